//! KVM's paravirtual EOI (Linux: Documentation/virt/kvm/x86/msr.rst).
//!
//! The guest names a word of its memory. While bit 0 of it is set, clearing that ends the interrupt in service in place of a write to
//! EOI. Whoever delivers interrupts may set it, or not, at each of them. The kernel does where it delivers them (SPEC.md 7.7); the VMM,
//! which does in xAPIC mode only, never does.

use super::Lapic;

/// Where the word is.
pub const MSR_PV_EOI: u32 = 0x4b56_4d04;

/// The word is in use.
const ENABLE: u64 = 1 << 0;
const RESERVED: u64 = 1 << 1;

/// The register.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PvEoi {
    value: u64,
    has_changed: bool,
}

impl Lapic {
    /// Where the guest now has its word, if that changed since this was last asked: its guest-physical address, a multiple of 4, of which
    /// nothing else is known; `None` for no word.
    pub fn take_eoi_word(&mut self) -> Option<Option<u64>> {
        let PvEoi { value, has_changed } = self.pv_eoi;
        self.pv_eoi.has_changed = false;
        has_changed.then(|| (value & ENABLE != 0).then_some(value & !ENABLE))
    }

    pub(super) fn pv_eoi(&self) -> u64 {
        self.pv_eoi.value
    }

    /// WRMSR; false for what raises #GP.
    pub(super) fn write_pv_eoi(&mut self, value: u64) -> bool {
        let is_good = value & RESERVED == 0;
        if is_good {
            self.pv_eoi = PvEoi { value, has_changed: true };
        }
        is_good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic() -> Lapic {
        Lapic::new(0, true, 1_000_000_000, 1_000_000_000)
    }

    #[test]
    fn the_word_is_where_the_guest_says_until_it_says_otherwise() {
        let mut lapic = lapic();
        assert_eq!((lapic.msr_read(MSR_PV_EOI, 0), lapic.take_eoi_word()), (Some(0), None));
        // Nowhere is a place, too: what lies there is not the local APIC's business.
        for gpa in [0x1234, 0, !0b11] {
            assert!(lapic.msr_write(MSR_PV_EOI, gpa | 1, 0).is_some());
            assert_eq!(lapic.msr_read(MSR_PV_EOI, 0), Some(gpa | 1));
            assert_eq!((lapic.take_eoi_word(), lapic.take_eoi_word()), (Some(Some(gpa)), None));
        }
        assert!(lapic.msr_write(MSR_PV_EOI, 0x1234, 0).is_some());
        assert_eq!(lapic.take_eoi_word(), Some(None));
    }

    #[test]
    fn the_reserved_bit_is_a_fault_that_changes_nothing() {
        let mut lapic = lapic();
        for value in [0b10, 0b11, u64::MAX] {
            assert!(lapic.msr_write(MSR_PV_EOI, value, 0).is_none(), "{value:#x}");
        }
        assert_eq!((lapic.msr_read(MSR_PV_EOI, 0), lapic.take_eoi_word()), (Some(0), None));
    }

    #[test]
    fn init_takes_the_word_away() {
        let mut lapic = lapic();
        assert!(lapic.msr_write(MSR_PV_EOI, 0x1001, 0).is_some());
        lapic.take_eoi_word();
        lapic.init();
        assert_eq!((lapic.msr_read(MSR_PV_EOI, 0), lapic.take_eoi_word()), (Some(0), Some(None)));
    }
}
