//! What was on a disk at each moment, from a log of its writes: what a power failure would have left.
//!
//! QEMU's block driver `blklogwrites` writes such logs. The format is that of Linux's device mapper target log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c): sectors of a size that the superblock gives,
//! of which the first is the superblock and every entry has one of its own, with its data behind. Numbers are little-endian.

use anyhow::{Context, Result, ensure};

/// What the superblock begins with.
const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;
/// Smallest and largest sector.
const SECTOR_BYTES: std::ops::RangeInclusive<usize> = 512..=1 << 20;

/// What a drive writes at once: a write is torn between these. ext4 trusts in its superblock, which has 1 KiB, not being torn.
const PHYSICAL_BYTES: u64 = 4096;
/// Flag of an entry. The others are 2 for a write through the cache, 4 for a discard, 8 for a mark.
const FLUSH: u64 = 1 << 0;

/// Something that was done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where the data goes, in bytes.
    pub offset: u64,
    /// What was written; nothing by a flush.
    pub data: &'a [u8],
    /// Everything before it is durable.
    pub is_flush: bool,
}

/// The entries of a log, in the order in which they were completed.
///
/// # Errors
/// It is damaged, or has what the disks of Nacre's machines are not asked for: discards, marks, and writes through the cache.
pub fn parse(log: &[u8]) -> Result<Vec<Entry<'_>>> {
    let word = |at: usize| -> Result<u64> {
        let bytes = log.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().map(u64::from_le_bytes).context("the log ends too early")
    };
    ensure!(word(0)? == MAGIC, "it is no log of writes");
    ensure!(word(8)? == VERSION, "it is of another version");
    let (count, sector) = (word(16)?, word(24)? as u32 as usize);
    ensure!(SECTOR_BYTES.contains(&sector) && sector.is_power_of_two(), "its sectors have {sector} bytes");
    let mut entries = Vec::new();
    let mut at = sector;
    for number in 0..count {
        let (first, sectors, flags) = (word(at)?, word(at + 8)?, word(at + 16)?);
        ensure!(flags & !FLUSH == 0, "entry {number} is neither a write nor a flush");
        let place = |sectors: u64| sectors.checked_mul(sector as u64);
        let range = place(first).zip(place(sectors));
        let range = range.filter(|(offset, bytes)| offset.checked_add(*bytes).is_some());
        let (offset, bytes) = range.with_context(|| format!("entry {number} is too long"))?;
        at += sector;
        let end = usize::try_from(bytes).ok().and_then(|bytes| at.checked_add(bytes));
        let data = end.and_then(|end| log.get(at..end)).context("the log ends too early")?;
        at += data.len();
        entries.push(Entry { offset, data, is_flush: flags & FLUSH != 0 });
    }
    Ok(entries)
}

/// Plays a log back over what was on the disk before.
#[derive(Debug)]
pub struct Replay<'a> {
    /// What is on the disk whatever happens.
    durable: Vec<u8>,
    /// Writes since the last flush.
    pending: Vec<Entry<'a>>,
    entries: std::slice::Iter<'a, Entry<'a>>,
}

/// A moment right before a flush is completed.
#[derive(Debug)]
pub struct Moment {
    /// The disk if all was done that had been asked for: as it is after the flush.
    pub flushed: Vec<u8>,
    /// The disk if the power failed: of what was written since the last flush, some pages are there.
    pub torn: Vec<u8>,
}

impl<'a> Replay<'a> {
    /// Begins with `image`.
    pub fn new(image: Vec<u8>, entries: &'a [Entry<'a>]) -> Self {
        Replay { durable: image, pending: Vec::new(), entries: entries.iter() }
    }

    /// The next flush; `is_kept` says of each page of a write in turn whether it makes it to the disk before the power fails.
    pub fn next_flush(&mut self, mut is_kept: impl FnMut() -> bool) -> Option<Moment> {
        loop {
            let entry = *self.entries.next()?;
            if !entry.data.is_empty() {
                self.pending.push(entry);
            }
            if entry.is_flush {
                break;
            }
        }
        let mut torn = self.durable.clone();
        for Entry { offset, data, .. } in self.pending.drain(..) {
            write(&mut self.durable, offset, data);
            let (mut at, mut rest) = (offset, data);
            while !rest.is_empty() {
                let bytes = (PHYSICAL_BYTES - at % PHYSICAL_BYTES).min(rest.len() as u64) as usize;
                if is_kept() {
                    write(&mut torn, at, &rest[..bytes]);
                }
                (at, rest) = (at + bytes as u64, &rest[bytes..]);
            }
        }
        Some(Moment { flushed: self.durable.clone(), torn })
    }
}

/// What is beyond the end of the disk is not on it.
fn write(image: &mut [u8], offset: u64, data: &[u8]) {
    let to = usize::try_from(offset).ok().and_then(|start| image.get_mut(start..));
    if let Some(to) = to {
        let bytes = data.len().min(to.len());
        to[..bytes].copy_from_slice(&data[..bytes]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with entries of first sector, byte to fill the sectors with, number of sectors, flags.
    fn log(entries: &[(u64, u8, usize, u64)]) -> Vec<u8> {
        let sector = |words: [u64; 4]| {
            let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut log = sector([MAGIC, VERSION, entries.len() as u64, 512]);
        for &(first, fill, count, flags) in entries {
            log.extend(sector([first, count as u64, flags, 0]));
            log.extend(vec![fill; 512 * count]);
        }
        log
    }

    fn sectors(image: &[u8]) -> Vec<u8> {
        image.chunks(512).map(|sector| sector[511]).collect()
    }

    #[test]
    fn the_disk_is_at_each_flush_what_was_written_before() {
        let log = log(&[
            (0, 1, 2, 0),
            (1, 2, 1, 0),
            (0, 0, 0, FLUSH),
            (3, 9, 1, 0),
            (2, 3, 1, FLUSH),
            (0, 7, 1, 0),
        ]);
        let entries = parse(&log).unwrap();
        let mut replay = Replay::new(vec![0; 4 * 512], &entries);
        let first = replay.next_flush(|| false).unwrap();
        assert_eq!((sectors(&first.flushed), sectors(&first.torn)), (vec![1, 2, 0, 0], vec![0; 4]));
        let mut is_kept = [true, false].into_iter();
        let second = replay.next_flush(|| is_kept.next().unwrap()).unwrap();
        assert_eq!((sectors(&second.flushed), sectors(&second.torn)), (vec![1, 2, 3, 9], vec![1, 2, 0, 9]));
        assert!(replay.next_flush(|| true).is_none(), "no flush covers what was written last");
    }

    #[test]
    fn a_write_is_torn_between_pages() {
        let log = log(&[(6, 1, 12, 0), (0, 0, 0, FLUSH)]);
        let entries = parse(&log).unwrap();
        let mut odd = false;
        let moment = Replay::new(vec![0; 20 * 512], &entries).next_flush(|| {
            odd = !odd;
            odd
        });
        let expected: Vec<u8> = (0..20).map(|sector| u8::from([6, 7, 16, 17].contains(&sector))).collect();
        assert_eq!(sectors(&moment.unwrap().torn), expected);
    }

    #[test]
    fn a_damaged_log_is_an_error() {
        let whole = log(&[(0, 1, 2, 0)]);
        assert!(parse(&whole).is_ok());
        for end in [0, 20, 600, whole.len() - 1] {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        for (at, value) in [(0, 1), (8, 2), (16, 2), (24, 7), (520, u64::MAX), (528, 2), (528, 4)] {
            let mut broken = whole.clone();
            broken[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            assert!(parse(&broken).is_err(), "{at}");
        }
        assert!(parse(&log(&[(u64::MAX >> 9, 1, 1, FLUSH)])).is_err());
        let beyond = log(&[(u64::MAX >> 10, 1, 1, FLUSH)]);
        let entries = parse(&beyond).unwrap();
        let moment = Replay::new(vec![0; 512], &entries).next_flush(|| true).unwrap();
        assert_eq!(sectors(&moment.flushed), [0]);
    }
}
