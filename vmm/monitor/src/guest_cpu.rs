//! The guest's CPU, as the VM's logic wants it.

use usys::abi::vcpu::{Groups, VcpuPage};
use usys::cap::{self, Cap};
use usys::vcpu::MappedVcpu;
use vmm_core::vcpu::Vcpu;

/// A vCPU whose state is fetched when it is looked at.
#[derive(Debug)]
pub struct GuestCpu(MappedVcpu);

impl GuestCpu {
    /// The logic's view of a vCPU.
    pub const fn new(vcpu: MappedVcpu) -> Self {
        GuestCpu(vcpu)
    }

    /// Runs the guest until an exit, of which the page tells.
    #[inline]
    pub fn run(&mut self) -> usys::Result<()> {
        self.0.run().map(drop)
    }

    /// The vCPU's capability.
    pub fn cap(&self) -> Cap<cap::Vcpu> {
        self.0.cap()
    }

    /// Puts what is not in the page, the FPU, into the state after reset.
    pub fn reset_fpu(&mut self) -> usys::Result<()> {
        self.0.reset_fpu()
    }
}

impl Vcpu for GuestCpu {
    #[inline]
    fn page(&mut self) -> &mut VcpuPage {
        self.0.page()
    }

    #[inline]
    fn require(&mut self, groups: Groups) {
        let page = self.0.page();
        let missing = groups.bits() & !(page.filled | page.dirty);
        if missing != 0 {
            self.fetch(missing);
        }
    }
}

impl GuestCpu {
    #[cold]
    fn fetch(&mut self, missing: u32) {
        match self.0.read(Groups::from_bits_retain(missing)) {
            Ok(()) => self.0.page().filled |= missing,
            // The page keeps older values: the guest may see them, nobody else.
            Err(error) => log::error!("the kernel refused {error}"),
        }
    }
}
