//! Memory balloon (5.5): with statistics and free page reporting.

use super::chain::{Chain, Head};
use super::queue::Queue;
use super::{Device, DeviceType, DriverError, Turn, read_config_bytes};
use crate::balloon::{Balloon, MemoryStats, NotRam, PAGE_BYTES};
use crate::guest_mem::{GuestMemory, OutOfRange};
use crate::segment::total_bytes;

/// Queues: inflate, deflate, and one for each feature below, which drivers count without those that were not negotiated, while
/// 5.5.2 gives each a number of its own. So every queue behind the one for statistics is for reports.
const QUEUE_SIZES: [u16; 5] = [128, 128, 8, 32, 32];
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;

/// Feature bits (5.5.3).
mod feature {
    pub(super) const STATS_VQ: u64 = 1 << 1;
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

/// Statistics (5.5.6.3), by tag.
mod tag {
    pub(super) const FREE: u16 = 4;
    pub(super) const TOTAL: u16 = 5;
    pub(super) const AVAILABLE: u16 = 6;
}

/// Bytes of a statistic: tag and value.
const STATISTIC_BYTES: usize = 10;
/// Most bytes of statistics that are looked at.
const STATISTICS_BYTES: usize = 32 * STATISTIC_BYTES;
/// Most bytes of page numbers in a request: Linux sends 1 KiB.
const MOST_BYTES: u64 = 64 << 10;
/// Bytes of page numbers that are copied at a time.
const CHUNK: usize = 1024;

/// The front end of a balloon.
#[derive(Debug)]
pub struct BalloonDevice {
    balloon: Balloon,
    /// What the driver says that it gave, in pages.
    actual: u32,
    has_statistics: bool,
    /// The buffer of statistics that the driver gets back when it is to send others.
    held: Option<Head>,
    wants_statistics: bool,
    chain: Chain,
}

impl BalloonDevice {
    /// A device for this balloon.
    pub fn new(balloon: Balloon) -> Self {
        BalloonDevice {
            balloon,
            actual: 0,
            has_statistics: false,
            held: None,
            wants_statistics: false,
            chain: Chain::new(),
        }
    }

    /// The balloon.
    pub fn balloon(&self) -> &Balloon {
        &self.balloon
    }

    /// Says how many pages the owner of the memory would like to have; whether that is news, which the driver is to be told of
    /// ([`super::mmio::Transport::config_changed`]). The next poll asks for statistics.
    pub fn set_target(&mut self, pages: u64) -> bool {
        self.wants_statistics = true;
        self.balloon.set_target(pages)
    }

    /// Pages of which the numbers are in the chain go, or come back.
    fn move_pages<M: GuestMemory>(&mut self, memory: &mut M, is_inflate: bool) -> Result<(), DriverError> {
        let mut left = total_bytes(self.chain.readable());
        if left > MOST_BYTES || !left.is_multiple_of(4) {
            return Err(DriverError::Request);
        }
        let mut bytes = [0; CHUNK];
        while left > 0 {
            let bytes = &mut bytes[..left.min(CHUNK as u64) as usize];
            self.chain.take(memory, bytes)?;
            left -= bytes.len() as u64;
            for number in bytes.as_chunks().0 {
                let page = u32::from_le_bytes(*number).into();
                let done =
                    if is_inflate { self.balloon.give(memory, page, 1) } else { self.balloon.take(page, 1) };
                done.map_err(|NotRam| OutOfRange { gpa: page * PAGE_BYTES, len: PAGE_BYTES as usize })?;
            }
        }
        Ok(())
    }

    fn take_statistics<M: GuestMemory>(&mut self, memory: &mut M) -> Result<(), DriverError> {
        let len = total_bytes(self.chain.readable()).min(STATISTICS_BYTES as u64) as usize;
        let mut bytes = [0; STATISTICS_BYTES];
        self.chain.take(memory, &mut bytes[..len])?;
        let mut stats = MemoryStats::default();
        for [tag_low, tag_high, value @ ..] in bytes[..len].as_chunks::<STATISTIC_BYTES>().0 {
            let pages = u64::from_le_bytes(*value) / PAGE_BYTES;
            match u16::from_le_bytes([*tag_low, *tag_high]) {
                tag::FREE => stats.free_pages = pages,
                tag::TOTAL => stats.total_pages = pages,
                tag::AVAILABLE => stats.available_pages = pages,
                _ => {}
            }
        }
        self.balloon.set_stats(stats);
        Ok(())
    }

    /// The chain is a list of memory that is free. The driver gets it back and may use it then.
    fn take_report<M: GuestMemory>(&mut self, memory: &mut M) -> Result<(), DriverError> {
        for segment in self.chain.writable() {
            let (gpa, len) = (segment.gpa, segment.len);
            let end = gpa.checked_add(len.into()).ok_or(OutOfRange { gpa, len: len as usize })?;
            let (first, end) = (gpa.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
            self.balloon
                .report(memory, first, end.saturating_sub(first))
                .map_err(|NotRam| OutOfRange { gpa, len: len as usize })?;
        }
        Ok(())
    }
}

impl Device for BalloonDevice {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        feature::STATS_VQ | if self.balloon.takes_reports() { feature::PAGE_REPORTING } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let wanted = u32::try_from(self.balloon.target()).unwrap_or(u32::MAX);
        let config = u64::from(wanted) | u64::from(self.actual) << 32;
        read_config_bytes(&config.to_le_bytes(), offset, into);
    }

    fn write_config(&mut self, offset: u64, from: &[u8]) {
        if let (4, Ok(bytes)) = (offset, from.try_into()) {
            self.actual = u32::from_le_bytes(bytes);
        }
    }

    fn set_features(&mut self, features: u64) {
        self.has_statistics = features & feature::STATS_VQ != 0;
    }

    fn reset(&mut self) {
        self.balloon.reset();
        (self.actual, self.held) = (0, None);
    }

    fn queue_stopped(&mut self, index: usize) {
        self.held.take_if(|_| index == STATISTICS);
    }

    fn process<M: GuestMemory>(
        &mut self,
        memory: &mut M,
        queues: &mut [Queue],
        index: usize,
    ) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(index) else {
            return Ok(Turn::NOTHING);
        };
        for _ in 0..queue.size() {
            if !queue.pop_or_arm(memory, &mut self.chain)? {
                return queue.end_turn(memory, false);
            }
            match index {
                INFLATE | DEFLATE => self.move_pages(memory, index == INFLATE)?,
                STATISTICS if self.has_statistics => {
                    self.take_statistics(memory)?;
                    // A driver has one buffer; one that offers more gets the older back.
                    if let Some(older) = self.held.replace(self.chain.head()) {
                        queue.push(memory, older, 0)?;
                    }
                    continue;
                }
                _ => self.take_report(memory)?,
            }
            queue.push(memory, self.chain.head(), 0)?;
        }
        queue.end_turn(memory, true)
    }

    fn poll<M: GuestMemory>(&mut self, memory: &mut M, queues: &mut [Queue]) -> Result<Turn, DriverError> {
        let Some(queue) = queues.get_mut(STATISTICS).filter(|_| self.wants_statistics) else {
            return Ok(Turn::NOTHING);
        };
        let Some(held) = self.held.take() else {
            return Ok(Turn::NOTHING);
        };
        self.wants_statistics = false;
        queue.push(memory, held, 0)?;
        queue.end_turn(memory, false)
    }
}
