//! GDTR and IDTR.

use core::arch::asm;

/// The operand of LGDT, LIDT, SGDT and SIDT.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Bytes of the table less one.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

impl TableRegister {
    /// GDTR.
    pub fn gdtr() -> Self {
        let mut register = TableRegister::default();
        // SAFETY: SGDT writes the 10 bytes of `register`.
        unsafe { asm!("sgdt [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) }
        register
    }

    /// IDTR.
    pub fn idtr() -> Self {
        let mut register = TableRegister::default();
        // SAFETY: SIDT writes the 10 bytes of `register`.
        unsafe { asm!("sidt [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) }
        register
    }

    /// LGDT. Segment registers keep what they were loaded with.
    ///
    /// # Safety
    /// A GDT with the kernel's descriptors is there as long as it is loaded.
    #[inline]
    pub unsafe fn load_gdt(&self) {
        // SAFETY: by the contract of this function.
        unsafe { asm!("lgdt [{}]", in(reg) self, options(readonly, nostack, preserves_flags)) }
    }

    /// LIDT.
    ///
    /// # Safety
    /// An IDT with a gate for whatever may come is there as long as it is loaded.
    #[inline]
    pub unsafe fn load_idt(&self) {
        // SAFETY: by the contract of this function.
        unsafe { asm!("lidt [{}]", in(reg) self, options(readonly, nostack, preserves_flags)) }
    }
}
