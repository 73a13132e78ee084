//! Scattered pieces of guest memory, as requests name them.

use crate::guest_mem::{GuestMemory, OutOfRange};

/// A piece of guest memory that a driver gave to a device. Nothing is known about it: it may lie anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// Bytes of all segments together.
#[inline]
pub fn total_bytes(segments: &[Segment]) -> u64 {
    // Most requests have one.
    if let [one] = segments {
        return one.len.into();
    }
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// A place in a list of segments; it moves as bytes are copied.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are done.
    done: u32,
}

impl<'a> Cursor<'a> {
    /// The beginning of the list.
    pub fn new(segments: &'a [Segment]) -> Self {
        Cursor { segments, done: 0 }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> u64 {
        total_bytes(self.segments) - u64::from(self.done)
    }

    /// The next piece, of at most `most` bytes; `None` at the end of the list, or if `most` is 0.
    pub fn next_piece(&mut self, most: usize) -> Option<Segment> {
        while let [first, rest @ ..] = self.segments {
            let left = first.len - self.done;
            if left > 0 {
                let len = left.min(u32::try_from(most).unwrap_or(u32::MAX));
                let piece = Segment { gpa: first.gpa.wrapping_add(self.done.into()), len };
                self.done += len;
                return (len > 0).then_some(piece);
            }
            (self.segments, self.done) = (rest, 0);
        }
        None
    }

    /// Moves on without copying; stops at the end of the list.
    pub fn skip(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(piece) = self.next_piece(left) {
            left -= piece.len as usize;
        }
    }

    /// Copies out of guest memory until `into` is full or the list ends. Returns the bytes that were copied.
    pub fn read(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        into: &mut [u8],
    ) -> Result<usize, OutOfRange> {
        let mut done = 0;
        while let Some(piece) = self.next_piece(into.len() - done) {
            let end = done + piece.len as usize;
            memory.read(piece.gpa, &mut into[done..end])?;
            done = end;
        }
        Ok(done)
    }

    /// Copies into guest memory until all of `from` is there or the list ends. Returns the bytes that were copied.
    pub fn write(
        &mut self,
        memory: &mut (impl GuestMemory + ?Sized),
        from: &[u8],
    ) -> Result<usize, OutOfRange> {
        if let ([one], 0) = (self.segments, self.done)
            && one.len as usize == from.len()
        {
            memory.write(one.gpa, from)?;
            self.done = one.len;
            return Ok(from.len());
        }
        let mut done = 0;
        while let Some(piece) = self.next_piece(from.len() - done) {
            let end = done + piece.len as usize;
            memory.write(piece.gpa, &from[done..end])?;
            done = end;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_mem::VecMemory;

    const PIECES: [Segment; 4] = [
        Segment { gpa: 10, len: 3 },
        Segment { gpa: 50, len: 0 },
        Segment { gpa: 20, len: 1 },
        Segment { gpa: 30, len: 4 },
    ];

    #[test]
    fn bytes_go_through_the_pieces_in_order() {
        let mut memory = VecMemory::new(64);
        let mut cursor = Cursor::new(&PIECES);
        assert_eq!(cursor.write(&mut memory, &[1, 2]), Ok(2));
        assert_eq!(cursor.write(&mut memory, &[3, 4, 5]), Ok(3));
        assert_eq!(cursor.remaining(), 3);
        let mut back = [0; 9];
        assert_eq!(Cursor::new(&PIECES).read(&memory, &mut back), Ok(8));
        assert_eq!(back, [1, 2, 3, 4, 5, 0, 0, 0, 0]);
        assert_eq!(memory.read_u8(20), Ok(4));
        assert_eq!(memory.read_u8(50), Ok(0));
    }

    #[test]
    fn skipping_stops_at_the_end() {
        let mut cursor = Cursor::new(&PIECES);
        cursor.skip(4);
        assert_eq!(cursor.next_piece(usize::MAX), Some(Segment { gpa: 30, len: 4 }));
        cursor.skip(usize::MAX);
        assert_eq!((cursor.remaining(), cursor.next_piece(1)), (0, None));
    }

    #[test]
    fn a_piece_outside_memory_is_an_error() {
        let mut memory = VecMemory::new(64);
        let segments = [Segment { gpa: 60, len: 4 }, Segment { gpa: u64::MAX, len: 4 }];
        assert!(Cursor::new(&segments).write(&mut memory, &[7; 8]).is_err());
        assert_eq!(memory.read_u32(60), Ok(0x0707_0707));
    }
}
