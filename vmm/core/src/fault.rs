//! What keeps an instruction from being emulated.

use alloc::string::String;
use hypercall_abi::vcpu::{Event, Groups};

use crate::vcpu::{CR0_PE, MODE, Vcpu};

/// Vector of the debug exception.
pub const DEBUG_EXCEPTION: u8 = 1;
/// Vector of the invalid-opcode exception.
pub const INVALID_OPCODE: u8 = 6;
/// Vector of the stack-segment exception.
pub const STACK_SEGMENT: u8 = 12;
/// Vector of the general-protection exception.
pub const GENERAL_PROTECTION: u8 = 13;
/// Vector of the page fault.
pub const PAGE_FAULT: u8 = 14;

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, for vectors that have one.
    pub error_code: Option<u32>,
    /// What CR2 becomes, for a page fault.
    pub address: Option<u64>,
}

impl Fault {
    /// #UD.
    pub const UNDEFINED: Fault = Fault { vector: INVALID_OPCODE, error_code: None, address: None };
    /// #GP(0).
    pub const PROTECTION: Fault = Fault { vector: GENERAL_PROTECTION, error_code: Some(0), address: None };
    /// #SS(0).
    pub const STACK: Fault = Fault { vector: STACK_SEGMENT, error_code: Some(0), address: None };

    /// #PF.
    pub const fn page(error_code: u32, address: u64) -> Fault {
        Fault { vector: PAGE_FAULT, error_code: Some(error_code), address: Some(address) }
    }

    /// Lets the guest take the exception at the next entry, at the instruction that it is on.
    pub fn raise(self, vcpu: &mut impl Vcpu) {
        let page = vcpu.state(if self.address.is_some() { Groups::DEBUG | MODE } else { MODE });
        if let Some(address) = self.address {
            page.cr2 = address;
            page.dirty |= Groups::DEBUG.bits();
        }
        // In real mode exceptions push no error code (SDM 3A 21.1.3), and VM entry refuses one (SDM 3C 27.2.1.3).
        let error_code = if page.cr0 & CR0_PE == 0 { None } else { self.error_code };
        page.inject = Event::exception(self.vector, error_code);
        page.dirty |= Groups::INJECT.bits();
    }
}

/// What keeps an instruction from being emulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The guest takes an exception instead.
    Fault(Fault),
    /// The VMM cannot do it: the end of the VM, with this explanation.
    Unsupported(String),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble::Fault(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::FakeVcpu;

    #[test]
    fn exceptions_have_no_error_code_in_real_mode() {
        let mut vcpu = FakeVcpu::new();
        Fault::PROTECTION.raise(&mut vcpu);
        assert_eq!(vcpu.page.inject, Event::exception(13, None));
        let mut vcpu = FakeVcpu::long_mode(0, 0);
        Fault::page(2, 0xdead_b000).raise(&mut vcpu);
        assert_eq!((vcpu.page.inject, vcpu.page.cr2), (Event::exception(14, Some(2)), 0xdead_b000));
    }
}
