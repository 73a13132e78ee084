//! What a disk costs Debian's own driver outside the guest: requests of 4 KiB, one at a time and 32 at a time.
//!
//! Boots that read more or less differ in nothing else, and machines that count instructions repeat exactly, so that the
//! difference of the VMM's statistics, divided by the requests more, is what one request takes. The copy, one instruction
//! for eight bytes, is taken off and said apart.

use super::linux::{self, Boot};
use crate::run::machine::Machine;
use crate::workspace;
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// The operations: a request alone, and one of 32.
pub const OPERATIONS: [&str; 2] = ["virtio.block_4k_read", "virtio.block_4k_read_qd32"];

/// Bytes of a request.
const REQUEST: u64 = 4096;
/// Instructions that copy a request.
const COPY: u64 = REQUEST / 8;
/// Requests of the boot that the others are compared with, so that caches are warm in each.
const FEW: u64 = 200;
/// Requests more of the others.
const MORE: u64 = 960;
/// Bytes of the disk.
const DISK: u64 = 8 << 20;

/// What a request costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Instructions of kernel and VMM, without the copy.
    pub outside: u64,
    /// Exits by kind in a thousand requests, and bytes copied in one.
    pub heavy: BTreeMap<String, u64>,
}

/// Measures both operations.
pub fn measure(machine: Machine, mitigations: &str) -> Result<[Cost; 2]> {
    let few = boot(machine, mitigations, FEW, 0)?;
    let single = boot(machine, mitigations, FEW + MORE, 0)?;
    let deep = boot(machine, mitigations, FEW, MORE)?;
    Ok([cost(&few, &single)?, cost(&few, &deep)?])
}

/// Boots Debian, reads so many times 4 KiB one after the other, and as often 32 of them at once as makes `deep`.
fn boot(machine: Machine, mitigations: &str, single: u64, deep: u64) -> Result<Boot> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let disk = folder.path().join("disk");
    workspace::write(&disk, vec![0; DISK as usize])?;
    let disk = format!("{},ro,memory", disk.display());
    // What Linux reads ahead, 128 KiB, is split into requests of 4 KiB, which reach the driver, and the device, together.
    let command = format!(
        "exec 2>/dev/null; cd /sys/block/vda/queue; echo none > scheduler; echo 4 > max_sectors_kb
dd if=/dev/vda of=/dev/null iflag=direct bs=4k count={single}
dd if=/dev/vda of=/dev/null bs=128k count={}",
        deep / 32
    );
    let options = ["--disk", &disk, "--exec", &command];
    linux::statistics(machine, mitigations, "virtio", &options, linux::parse_end)
}

/// What the requests more cost.
fn cost(few: &Boot, many: &Boot) -> Result<Cost> {
    let ticks = many.outside.checked_sub(few.outside).context("more requests cost less")?;
    let mut heavy = BTreeMap::from([("bytes_copied".to_owned(), REQUEST)]);
    for (kind, count) in &many.exits {
        let more = count.saturating_sub(few.exits.get(kind).copied().unwrap_or(0));
        let in_a_thousand = (more * 1000).div_ceil(MORE);
        if in_a_thousand >= 10 {
            heavy.insert(format!("{kind} in 1000"), in_a_thousand);
        }
    }
    Ok(Cost { outside: (ticks / MORE).saturating_sub(COPY), heavy })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(outside: u64, nested: u64, cpuid: u64) -> Boot {
        let exits = [("exit NestedFault", nested), ("exit Cpuid", cpuid)];
        let exits = exits.map(|(kind, count)| (kind.to_owned(), count)).into();
        Boot { outside, since_entry: 0, exits }
    }

    #[test]
    fn a_request_costs_what_the_requests_more_cost_without_the_copy() {
        let cost = cost(&boot(1000, 10, 50), &boot(1000 + MORE * 3000, 10 + 3 * MORE, 51)).unwrap();
        assert_eq!(cost.outside, 3000 - COPY);
        let heavy = [("bytes_copied", 4096), ("exit NestedFault in 1000", 3000)];
        assert_eq!(cost.heavy, heavy.map(|(what, count)| (what.to_owned(), count)).into());
    }

    #[test]
    fn figures_that_make_no_sense_are_an_error() {
        assert!(cost(&boot(1000, 0, 0), &boot(999, 0, 0)).is_err());
    }
}
