//! Where the VM's devices are.

use crate::detect::{self, Leaf};
use crate::hal::Hal;
use hypercall_abi::guest::cpuid::{DEVICES, SIGNATURE, is_compatible};
use hypercall_abi::guest::device::{Kind, MAGIC, PAGE_BYTES, reg};

/// The paravirtual devices of this VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    address: u64,
    count: u32,
}

impl Machine {
    /// Looks for the devices; `cpuid` is the instruction, with subleaf 0. `None` outside a Nacre VM, and where the contract
    /// has a version that these drivers do not know.
    pub fn detect(cpuid: impl Fn(u32) -> Leaf) -> Option<Self> {
        let interface = detect::find(SIGNATURE, &cpuid)?;
        let [version, count, low, high] = cpuid(interface.base + DEVICES);
        is_compatible(version).then_some(Machine { address: u64::from(low) | u64::from(high) << 32, count })
    }

    /// Guest-physical addresses of the device pages: a kernel that does not map everything maps these.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.address;
        (0..u64::from(self.count)).map(move |index| first + index * PAGE_BYTES)
    }

    /// The page of the device of this kind that is the `nth`, from 0.
    pub fn find(&self, hal: &impl Hal, kind: Kind, nth: usize) -> Option<u64> {
        let is_kind = |page: &u64| {
            hal.read_register(page + reg::MAGIC) == MAGIC
                && hal.read_register(page + reg::KIND) == kind as u32
        };
        self.pages().filter(is_kind).nth(nth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypercall_abi::guest::cpuid::{BASE, VERSION};

    fn nacre(version: u32) -> impl Fn(u32) -> Leaf {
        move |leaf| match leaf {
            1 => [0, 0, 1 << 31, 0],
            BASE => [BASE + 1, 0x7263_614e, 0x6575_4765, 0x7650_7473],
            leaf if leaf == BASE + 1 => [version, 3, 0xd000_0000, 1],
            _ => [0; 4],
        }
    }

    #[test]
    fn the_devices_are_found_by_the_signature() {
        let machine = Machine::detect(nacre(VERSION)).unwrap();
        let pages = [0x1_d000_0000, 0x1_d000_1000, 0x1_d000_2000];
        assert!(machine.pages().eq(pages));
    }

    #[test]
    fn another_hypervisor_and_another_version_have_no_devices() {
        assert_eq!(Machine::detect(|_| [0; 4]), None);
        assert_eq!(Machine::detect(nacre(VERSION + 0x1_0000)), None);
    }
}
