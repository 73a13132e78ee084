//! The time.

use crate::device::Device;
use crate::error::Result;
use crate::hal::Hal;
use hypercall_abi::guest::device::{Kind, config};

/// Nanoseconds of a second.
const SECOND: u128 = 1_000_000_000;
/// A host that does not know the time gives one of the first year.
const YEAR: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// The clock: what turns TSC ticks into time. Read once, it needs no device any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    tsc_hz: u64,
    /// Unix time in nanoseconds at TSC 0, modulo 2^64.
    unix_ns: u64,
}

impl Clock {
    /// Reads the clock with its device page at this guest-physical address.
    pub fn new<H: Hal + Clone>(hal: H, address: u64) -> Result<Self> {
        let device = Device::open_kind(hal, address, Kind::Clock)?;
        let tsc_hz = device.read_u64(config::CLOCK_TSC_HZ);
        Ok(Clock { tsc_hz, unix_ns: device.read_u64(config::CLOCK_UNIX_NS) })
    }

    /// TSC ticks in a second.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// Nanoseconds in `ticks` of the TSC, which is also the time since the VM began at that TSC.
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * SECOND / u128::from(self.tsc_hz.max(1))) as u64
    }

    /// Nanoseconds since 1970-01-01 00:00 UTC at TSC `tsc`; `None` if the host does not know.
    pub fn unix_nanoseconds(&self, tsc: u64) -> Option<u64> {
        Some(self.unix_ns.wrapping_add(self.nanoseconds(tsc))).filter(|time| *time >= YEAR)
    }
}
