//! Which of the two extensions this machine has, and dispatch to it.

use super::{Features, GuestCpu, HostState, Returned, RunArgs, Unsupported, svm, vmx};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};
use hypercall_abi::vcpu::{Groups, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::vapic::Status;

/// What [`detect`] found; written once.
static mut FOUND: Result<Features, Unsupported> = Err(Unsupported::NoExtension);
static STATE: AtomicU8 = AtomicU8::new(0);

/// Finds out what this machine has. Once, on the boot CPU, before other CPUs run.
pub fn detect() -> Result<Features, Unsupported> {
    let found = match vmx::region::detect() {
        Err(Unsupported::NoExtension) => svm::region::detect(),
        result => result,
    };
    // SAFETY: only this CPU runs, and `features` does not read before `STATE` says so.
    unsafe { FOUND = found };
    STATE.store(1, Ordering::Release);
    found
}

/// What [`detect`] found.
#[inline]
pub fn features() -> Result<Features, Unsupported> {
    if STATE.load(Ordering::Acquire) == 0 {
        return Err(Unsupported::NoExtension);
    }
    // SAFETY: written once, before `STATE` was.
    unsafe { FOUND }
}

/// Whether exits leave TR with a short limit (SDM 3C 27.5.2).
pub fn exits_shorten_tr() -> bool {
    features().is_ok_and(|features| features.is_vmx)
}

/// Switches the extension on, on this CPU.
///
/// # Safety
/// [`detect`] succeeded. The frame is zeroed kernel memory that is the CPU's for ever. Interrupts are off.
pub unsafe fn enable_cpu(frame: PhysAddr) -> Result<(), Unsupported> {
    // SAFETY: by the contract of this function.
    unsafe {
        if features()?.is_vmx { vmx::region::enable_cpu(frame) } else { svm::region::enable_cpu(frame) }
    }
}

/// A vCPU of either kind.
#[derive(Debug)]
pub enum Backend {
    /// VT-x.
    Vmx(vmx::Vcpu),
    /// AMD-V.
    Svm(svm::Vcpu),
}

const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

macro_rules! dispatch {
    ($self:ident, $vcpu:ident => $call:expr) => {
        match $self {
            Backend::Vmx($vcpu) => $call,
            Backend::Svm($vcpu) => $call,
        }
    };
}

// SAFETY: each method hands its contract on to the implementation of the machine's kind.
unsafe impl GuestCpu for Backend {
    const FRAMES: usize = max(vmx::Vcpu::FRAMES, svm::Vcpu::FRAMES);

    unsafe fn new(frames: &[PhysAddr], host: &HostState, nested_root: PhysAddr) -> Self {
        // SAFETY: by the contract of this function.
        unsafe {
            if features().is_ok_and(|features| features.is_vmx) {
                Backend::Vmx(vmx::Vcpu::new(&frames[..vmx::Vcpu::FRAMES], host, nested_root))
            } else {
                Backend::Svm(svm::Vcpu::new(&frames[..svm::Vcpu::FRAMES], host, nested_root))
            }
        }
    }

    unsafe fn take_over(&mut self) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.take_over() })
    }

    #[inline]
    unsafe fn run(
        &mut self,
        page: NonNull<VcpuPage>,
        args: &RunArgs,
        call: impl Fn(u16) -> Option<bool>,
    ) -> Returned {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.run(page, args, call) })
    }

    unsafe fn read(&mut self, page: NonNull<VcpuPage>, groups: Groups) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.read(page, groups) })
    }

    unsafe fn code_root(&mut self) -> Option<u64> {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.code_root() })
    }

    fn virtualizes_apic(&self) -> bool {
        dispatch!(self, vcpu => vcpu.virtualizes_apic())
    }

    unsafe fn interrupt_status(&mut self) -> Status {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.interrupt_status() })
    }

    unsafe fn set_interrupt_status(&mut self, status: Status) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.set_interrupt_status(status) })
    }

    unsafe fn set_virtual_apic(&mut self, page: PhysAddr, eoi_exits: [u64; 4]) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.set_virtual_apic(page, eoi_exits) })
    }

    #[inline]
    unsafe fn leave(&mut self) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.leave() })
    }

    unsafe fn destroy(&mut self) {
        // SAFETY: by the contract of this function.
        dispatch!(self, vcpu => unsafe { vcpu.destroy() })
    }
}
