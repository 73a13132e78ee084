//! The word by which the guest ends interrupts without an exit (SPEC.md 7.7).

use crate::guest_ram::GuestRam;
use usys::abi::{PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Memory, Narrow, Vcpu};
use usys::selector;

/// The binding of the word to the vCPU.
#[derive(Debug, Default)]
pub struct EoiWord {
    /// Selector of the capability that is bound.
    selector: Option<Selector>,
}

impl EoiWord {
    /// Puts the word at this guest-physical address, a multiple of 4: nowhere if there is no memory, which is the guest's loss.
    pub fn place(&mut self, vcpu: Cap<Vcpu>, ram: &GuestRam, gpa: Option<u64>) {
        if let Some(selector) = self.selector {
            // It may be gone already, with memory that the guest gave away.
            let _ = Cap::<Memory>::new(selector).delete();
        }
        let Some(gpa) = gpa else { return };
        let Some((memory, page)) = ram.page(gpa) else { return };
        match self.bind(vcpu, memory, page, gpa % PAGE_SIZE) {
            Ok(()) => log::debug!("interrupts end by the word at {gpa:#x}"),
            Err(error) => log::error!("{error}"),
        }
    }

    fn bind(&mut self, vcpu: Cap<Vcpu>, memory: Cap<Memory>, page: u64, offset: u64) -> usys::Result<()> {
        let selector = match self.selector {
            Some(selector) => selector,
            None => *self.selector.insert(selector::allocate()?),
        };
        let keep = Narrow::rights(Rights::READ | Rights::WRITE).range(page, 1);
        vcpu.bind_eoi_word(memory.derive(selector, keep)?, offset)
    }
}
