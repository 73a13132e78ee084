//! Between guest memory and the slots, a piece at a time.

use crate::Words;
use vdev::block::BlockError;
use vdev::guest_mem::GuestMemory;
use vdev::segment::Cursor;

/// Copies so many bytes from guest memory to offset `to` of the channel.
pub(crate) fn to_slot(
    words: &Words,
    to: usize,
    memory: &dyn GuestMemory,
    mut from: Cursor<'_>,
    bytes: usize,
    bounce: &mut [u8],
) -> Result<(), BlockError> {
    let mut done = 0;
    while done < bytes {
        let piece = (bytes - done).min(bounce.len());
        let copied = from.read(memory, &mut bounce[..piece])?;
        if copied == 0 {
            return Err(BlockError::OutOfRange);
        }
        words.0.write(to + done, &bounce[..copied]).map_err(|_| BlockError::Io)?;
        done += copied;
    }
    Ok(())
}

/// Copies so many bytes from offset `from` of the channel to guest memory.
pub(crate) fn to_guest(
    words: &Words,
    from: usize,
    memory: &mut dyn GuestMemory,
    mut to: Cursor<'_>,
    bytes: usize,
    bounce: &mut [u8],
) -> Result<(), BlockError> {
    let mut done = 0;
    while done < bytes {
        let piece = (bytes - done).min(bounce.len());
        words.0.read(from + done, &mut bounce[..piece]).map_err(|_| BlockError::Io)?;
        to.write(memory, &bounce[..piece])?;
        done += piece;
    }
    Ok(())
}
