//! Chains of descriptors, read out of guest memory once.

use super::DriverError;
use crate::guest_mem::GuestMemory;
use crate::segment::{Cursor, Segment};
use alloc::vec::Vec;

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1 << 0;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 1 << 1;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 1 << 2;

/// A chain's name.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Head {
    /// What the driver knows it by: in a split queue the descriptor that it began with, in a packed one the buffer id.
    pub id: u16,
    /// Slots of the ring that it takes in a packed queue.
    pub slots: u16,
}

/// The buffers that a driver offered together: those that the device reads, then those that it writes.
///
/// Made once and filled again and again, so that no request allocates.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    head: Head,
    segments: Vec<Segment>,
    sums: Sums,
    /// First of the segments of which something is left to read.
    first: usize,
}

/// What the segments of a chain are together.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// Bytes of all segments, as the driver offered them.
    bytes: u64,
    /// First of the segments that the device writes.
    writable: usize,
    /// Flags of the last descriptor.
    last: u16,
}

impl Sums {
    /// Adds a segment of a chain that has at most `size`.
    #[inline(always)]
    fn add(
        &mut self,
        segments: &mut Vec<Segment>,
        segment: Segment,
        flags: u16,
        size: u16,
    ) -> Result<(), DriverError> {
        if segments.len() >= usize::from(size) {
            return Err(DriverError::ChainLength);
        }
        if self.last & !flags & WRITE != 0 {
            return Err(DriverError::ChainOrder);
        }
        self.last = flags;
        self.writable += usize::from(flags & WRITE == 0);
        // At most 2^16 segments of less than 2^32 bytes each.
        self.bytes += u64::from(segment.len);
        segments.push(segment);
        Ok(())
    }
}

/// A descriptor, as it is in memory: taken apart where a part is needed, so that it stays in registers.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    gpa: u64,
    /// Length, flags, and the next one's index.
    rest: u64,
}

impl Descriptor {
    fn segment(self) -> Segment {
        Segment { gpa: self.gpa, len: self.rest as u32 }
    }

    fn flags(self) -> u16 {
        (self.rest >> 32) as u16
    }

    fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }

    fn has(self, flag: u16) -> bool {
        self.flags() & flag != 0
    }
}

/// A descriptor of a packed ring (2.8.14).
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedDescriptor {
    segment: Segment,
    /// Buffer id, good in the last descriptor of a chain.
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl PackedDescriptor {
    /// Reads its flags before its address, which is good only if they say so.
    pub(super) fn read(memory: &(impl GuestMemory + ?Sized), gpa: u64) -> Result<Self, DriverError> {
        let rest = memory.read_u64(gpa.wrapping_add(8))?;
        let address = memory.read_u64(gpa)?;
        Ok(PackedDescriptor {
            segment: Segment { gpa: address, len: rest as u32 },
            id: (rest >> 32) as u16,
            flags: (rest >> 48) as u16,
        })
    }
}

/// A table of descriptors.
#[derive(Clone, Copy, Debug)]
struct Table {
    gpa: u64,
    len: u16,
}

impl Table {
    /// An indirect table.
    fn new(Segment { gpa, len }: Segment) -> Result<Self, DriverError> {
        let entries = u64::from(len) / DESCRIPTOR_BYTES;
        if entries == 0 || !u64::from(len).is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(DriverError::IndirectTable);
        }
        // A table that is longer than a chain may be has entries that no chain uses.
        Ok(Table { gpa, len: u16::try_from(entries).unwrap_or(u16::MAX) })
    }

    #[inline(always)]
    fn read(&self, memory: &(impl GuestMemory + ?Sized), index: u16) -> Result<Descriptor, DriverError> {
        if index >= self.len {
            return Err(DriverError::Descriptor(index));
        }
        let [gpa, rest] = memory.read_words(self.gpa.wrapping_add(u64::from(index) * DESCRIPTOR_BYTES))?;
        Ok(Descriptor { gpa, rest })
    }
}

impl Chain {
    /// A chain with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its name, to give it back by.
    pub fn head(&self) -> Head {
        self.head
    }

    /// What the device may read and has not taken yet.
    pub fn readable(&self) -> &[Segment] {
        &self.segments[self.first..self.sums.writable]
    }

    /// What the device may write.
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.sums.writable..]
    }

    /// Takes two 64-bit words from the front of what is readable: what a request begins with.
    #[inline(always)]
    pub fn take_words(&mut self, memory: &(impl GuestMemory + ?Sized)) -> Result<[u64; 2], DriverError> {
        // Nearly every driver gives them a descriptor of their own.
        match self.segments.get(self.first) {
            Some(&Segment { gpa, len: 16 }) if self.first < self.sums.writable => {
                self.first += 1;
                Ok(memory.read_words(gpa)?)
            }
            _ => self.take_scattered_words(memory),
        }
    }

    #[cold]
    fn take_scattered_words(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
    ) -> Result<[u64; 2], DriverError> {
        let mut bytes = [0; 16];
        self.take(memory, &mut bytes)?;
        let words = u128::from_le_bytes(bytes);
        Ok([words as u64, (words >> 64) as u64])
    }

    /// Takes `into.len()` bytes from the front of what is readable, however the driver cut it.
    pub fn take(&mut self, memory: &(impl GuestMemory + ?Sized), into: &mut [u8]) -> Result<(), DriverError> {
        let mut done = 0;
        while done < into.len() {
            let Some(segment) = self.segments[self.first..self.sums.writable].first_mut() else {
                return Err(DriverError::Request);
            };
            let len = (into.len() - done).min(segment.len as usize);
            memory.read(segment.gpa, &mut into[done..done + len])?;
            done += len;
            if len < segment.len as usize {
                segment.gpa = segment.gpa.wrapping_add(len as u64);
                segment.len -= len as u32;
            } else {
                self.first += 1;
            }
        }
        Ok(())
    }

    /// Takes the last byte of what is writable, and says where it is. No empty segment stays behind: what is one segment is done
    /// in fewer steps.
    #[inline]
    pub fn take_last(&mut self) -> Result<u64, DriverError> {
        while self.segments.len() > self.sums.writable {
            let Some(segment) = self.segments.last_mut() else { break };
            let Segment { gpa, len } = *segment;
            segment.len = len.saturating_sub(1);
            if len <= 1 {
                self.segments.pop();
            }
            if len > 0 {
                return Ok(gpa.wrapping_add(u64::from(len - 1)));
            }
        }
        Err(DriverError::Request)
    }

    /// Copies `from` to the beginning of what is writable, as far as there is room; returns the bytes written.
    pub fn write(&self, memory: &mut (impl GuestMemory + ?Sized), from: &[u8]) -> Result<usize, DriverError> {
        Ok(Cursor::new(self.writable()).write(memory, from)?)
    }

    /// Reads the chain that begins at `head` of a queue's table of `size` descriptors.
    pub(super) fn fill(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        table: u64,
        size: u16,
        head: u16,
        allows_indirect: bool,
    ) -> Result<(), DriverError> {
        self.begin();
        let walked = self.walk(memory, Table { gpa: table, len: size }, head, allows_indirect);
        walked.and_then(|()| self.end(Head { id: head, slots: 1 }))
    }

    /// Empties it, for descriptors to be added.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.segments.clear();
        self.sums = Sums::default();
        self.first = 0;
    }

    /// All descriptors were added.
    #[inline]
    pub(super) fn end(&mut self, head: Head) -> Result<(), DriverError> {
        self.head = head;
        if self.sums.bytes > 1 << 32 { Err(DriverError::ChainBytes) } else { Ok(()) }
    }

    /// Adds what a descriptor of a packed ring of `size` says. All descriptors of its table belong to the chain, in order (2.8.7).
    pub(super) fn add_packed(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        packed: &PackedDescriptor,
        size: u16,
        allows_indirect: bool,
    ) -> Result<(), DriverError> {
        let PackedDescriptor { segment, flags, .. } = *packed;
        if flags & INDIRECT == 0 {
            return self.add(segment, flags, size);
        }
        if !allows_indirect || flags & NEXT != 0 {
            return Err(DriverError::IndirectTable);
        }
        let table = Table::new(segment)?;
        for index in 0..u64::from(table.len) {
            let PackedDescriptor { segment, flags, .. } =
                PackedDescriptor::read(memory, table.gpa.wrapping_add(index * DESCRIPTOR_BYTES))?;
            // All flags but WRITE are reserved, and mean nothing (2.8.7).
            self.add(segment, flags, size)?;
        }
        Ok(())
    }

    fn walk(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        table: Table,
        head: u16,
        allows_indirect: bool,
    ) -> Result<(), DriverError> {
        let size = table.len;
        let mut descriptor = table.read(memory, head)?;
        while !descriptor.has(INDIRECT) {
            self.add(descriptor.segment(), descriptor.flags(), size)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            descriptor = table.read(memory, descriptor.next())?;
        }
        // An indirect table ends the chain (2.7.5.3.1).
        if !allows_indirect || descriptor.has(NEXT) {
            return Err(DriverError::IndirectTable);
        }
        self.add_table(memory, descriptor.segment(), size)
    }

    /// Adds the descriptors of an indirect table, of which each is used at most once.
    fn add_table(
        &mut self,
        memory: &(impl GuestMemory + ?Sized),
        table: Segment,
        size: u16,
    ) -> Result<(), DriverError> {
        let table = Table::new(table)?;
        // Nearly every chain is one table, and is taken apart here.
        let mut sums = self.sums;
        let mut index = 0;
        loop {
            let descriptor = table.read(memory, index)?;
            if descriptor.has(INDIRECT) {
                return Err(DriverError::IndirectTable);
            }
            sums.add(&mut self.segments, descriptor.segment(), descriptor.flags(), size)?;
            if !descriptor.has(NEXT) {
                self.sums = sums;
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    #[inline]
    fn add(&mut self, segment: Segment, flags: u16, size: u16) -> Result<(), DriverError> {
        self.sums.add(&mut self.segments, segment, flags, size)
    }
}
