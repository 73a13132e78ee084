//! The driver of an ATA disk, with a volatile cache between its user and the drive ([`cache`]) that loses power again and again: after
//! a number of writes that the seed in the disk's last sector gives, some sectors of what no flush covered are on the medium, the
//! others are lost, and every request fails. A read of the last sector turns the power on again.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod cache;
#[cfg(test)]
mod tests;

use crate::cache::Cache;
use drv_ata::drive::{Command, Failure, Medium};
use drv_ata::process::{self, Disk};
use usys::process::ProcessInfo;
use vmm_protocol::block::SECTOR_BYTES;

/// Runs the driver.
pub fn main(info: &'static ProcessInfo) -> ! {
    process::serve(info, plug_in)
}

fn plug_in(mut disk: Disk, sectors: u64) -> Cache<Disk> {
    let switch = sectors.saturating_sub(1);
    let mut last = [0; SECTOR_BYTES];
    if let Err(failure) = disk.execute(Command::Read { sector: switch, count: 1 }, &mut last) {
        log::error!("the seed cannot be read: {failure}");
    }
    Cache::new(disk, switch, tproto::power::seed_in(&last))
}

/// Why requests fail without power.
pub const NO_POWER: Failure = Failure::Medium;
