//! The one seam between the kernel and the virtualization extensions: nothing outside this folder names VMX or SVM.
//!
//! Data path: the kernel's `VcpuRun` calls [`GuestCpu::run`] until the exit is one for the VMM, and [`GuestCpu::leave`] before
//! any user code or another guest runs on this CPU.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use hypercall_abi::vcpu::{Groups, RunFlags, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::vapic::Status;

mod backend;
mod breakpoints;
pub mod nested;
mod page;
pub mod svm;
pub mod vmx;

/// Virtual-APIC pages are left to the kernel.
static LEAVES_APIC_ALONE: AtomicBool = AtomicBool::new(false);

/// Has the kernel do by itself what APIC virtualization would do. Before [`detect`].
pub fn leave_apic_alone() {
    LEAVES_APIC_ALONE.store(true, Ordering::Relaxed);
}

pub use backend::{Backend, detect, enable_cpu, exits_shorten_tr, features};

/// Why the CPU cannot run guests: shown to the user as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Neither VMX nor SVM in CPUID.
    NoExtension,
    /// The firmware switched it off and locked the switch.
    LockedByFirmware,
    /// There is no EPT or NPT, or not with 4 levels and write-back tables.
    NoNestedPaging,
    /// VMX without unrestricted guest.
    NoUnrestrictedGuest,
    /// A control that isolation needs cannot be set; its name in the manual.
    MissingControl(&'static str),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::NoExtension => {
                f.write_str("this CPU has neither VT-x nor AMD-V, or they are hidden")
            }
            Unsupported::LockedByFirmware => {
                f.write_str("the firmware switched virtualization off; enable VT-x or SVM in its setup")
            }
            Unsupported::NoNestedPaging => f.write_str("this CPU has no EPT or NPT"),
            Unsupported::NoUnrestrictedGuest => f.write_str("this CPU's VT-x has no unrestricted guest"),
            Unsupported::MissingControl(name) => write!(f, "this CPU's virtualization lacks \"{name}\""),
        }
    }
}

/// What the extensions of this machine offer, beyond what the kernel requires.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// VMX, otherwise SVM.
    pub is_vmx: bool,
    /// Exits say how long their instruction is.
    pub has_instruction_length: bool,
    /// 1 GiB pages in the nested tables.
    pub has_nested_1g: bool,
    /// Dirty flags in the nested tables.
    pub has_dirty_flags: bool,
    /// Guests may be offered RDTSCP.
    pub has_rdtscp: bool,
    /// Guests may be offered INVPCID.
    pub has_invpcid: bool,
    /// Guests may be offered XSAVEC and XSAVES.
    pub has_xsaves: bool,
    /// Virtual-APIC pages are used by the hardware.
    pub virtualizes_apic: bool,
}

/// For the log: the extension, and what it has.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_vmx { "VMX" } else { "SVM" })?;
        for (has, name) in [
            (self.has_instruction_length, "instruction lengths"),
            (self.has_nested_1g, "nested 1 GiB pages"),
            (self.has_dirty_flags, "nested dirty flags"),
            (self.has_rdtscp, "RDTSCP"),
            (self.has_invpcid, "INVPCID"),
            (self.has_xsaves, "XSAVES"),
            (self.virtualizes_apic, "APIC virtualization"),
        ] {
            if has {
                f.write_str(", ")?;
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// The host state of one CPU that world switches restore.
#[derive(Clone, Copy, Debug)]
pub struct HostState {
    /// Base of the GDT.
    pub gdt_base: u64,
    /// Base of the IDT.
    pub idt_base: u64,
    /// Base of the TSS.
    pub tss_base: u64,
    /// Selector of the TSS.
    pub tss_selector: u16,
    /// Kernel code selector; the data selector is the next descriptor (+8).
    pub code_selector: u16,
    /// GS base in the kernel: the per-CPU block.
    pub gs_base: u64,
}

/// What one run depends on besides what is in the vCPU page, and what was read of the page already: each word of it is read
/// once.
#[derive(Clone, Copy, Debug)]
pub struct RunArgs {
    /// Groups that the VMM changed, without those that the caller took over.
    pub dirty: Groups,
    /// How to run.
    pub flags: RunFlags,
    /// Changes whenever a translation of the guest's space was removed or lost rights: cached translations of an older
    /// generation must be flushed before entry. Never 0.
    pub nested_generation: u64,
    /// CR3 of the address space to come back to.
    pub host_cr3: u64,
    /// TSC now.
    pub now: u64,
    /// TSC at which the kernel wants the CPU back (timeslice or deadline, whichever is first).
    pub until: u64,
}

/// Why [`GuestCpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// For the VMM: the page says why, and so does this [`hypercall_abi::exit::ExitKind`].
    Exit(u32),
    /// A host interrupt is pending, not yet acknowledged: open an interrupt window, then run again.
    HostInterrupt,
    /// An NMI arrived and ended with the exit (VMX). On SVM the kernel's own handler has it.
    HostNmi,
    /// A machine check arrived.
    HostMachineCheck,
    /// `until` is reached.
    Timer,
    /// The guest executed HLT, `HLT_BLOCKS` is set, RIP was advanced and the activity in the page is `HALTED`. Where the
    /// hardware does not give the length, HLT exits as [`hypercall_abi::exit::ExitKind::Hlt`] instead.
    Halted,
}

/// One virtual CPU's hardware state, bound to the CPU that first loads it.
///
/// # Safety
/// Implementations guarantee that nothing in the page, whatever a VMM writes into it at whatever time, and nothing a
/// guest does, breaks the host: each value that the hardware would fault or misbehave on in root mode is checked
/// after it was copied once, and a refused entry is [`Returned::Exit`] with
/// [`hypercall_abi::exit::ExitKind::EntryFailure`].
pub unsafe trait GuestCpu: Sized {
    /// Frames of kernel memory one vCPU needs (VMCS or VMCB, and what belongs to it).
    const FRAMES: usize;

    /// Initializes the state in `frames` (zeroed, owned by the vCPU from here on) as after reset. `nested_root` is the root of
    /// the EPT or NPT.
    ///
    /// # Safety
    /// The frames are in the direct map, exclusive, and stay so until after [`Self::destroy`]. [`enable_cpu`] ran here.
    unsafe fn new(frames: &[PhysAddr], host: &HostState, nested_root: PhysAddr) -> Self;

    /// Puts registers into the CPU that stay the guest's while its domain's user code runs, as the FPU's do
    /// ([`crate::cpu::fpu`]): the FPU's owner was another one.
    ///
    /// # Safety
    /// Runs on the CPU of the vCPU, interrupts off, and no other vCPU is between [`Self::run`] and [`Self::leave`].
    unsafe fn take_over(&mut self);

    /// Takes over what the page says is dirty, enters the guest, and on the way back writes the page. Until
    /// [`Self::leave`] the CPU has values of the guest that user code must not find.
    ///
    /// `call` may answer doorbell calls of the guest's kernel, by their numbers, in a run in which nothing else happened. If it
    /// says `Some(true)`, the guest goes on behind the instruction at once; if `Some(false)`, by [`Returned::HostInterrupt`].
    ///
    /// # Safety
    /// As [`Self::take_over`], which was called when it had to be. `call` neither uses nor ends this vCPU; it says `Some(true)`
    /// only if every reason to leave the guest since the last entry is an interrupt that is still pending.
    unsafe fn run(
        &mut self,
        page: NonNull<VcpuPage>,
        args: &RunArgs,
        call: impl Fn(u16) -> Option<bool>,
    ) -> Returned;

    /// Fills `groups` of the page from the hardware state.
    ///
    /// # Safety
    /// As [`Self::take_over`].
    unsafe fn read(&mut self, page: NonNull<VcpuPage>, groups: Groups);

    /// CR3, if the guest is in 64-bit mode: where its code is.
    ///
    /// # Safety
    /// As [`Self::take_over`].
    unsafe fn code_root(&mut self) -> Option<u64>;

    /// Whether the hardware does with a virtual-APIC page what [`kcore::virt::vapic`] does elsewhere: in runs with `VIRTUAL_APIC`, and
    /// with [`Self::set_virtual_apic`] and [`Self::set_interrupt_status`] called before.
    fn virtualizes_apic(&self) -> bool {
        false
    }

    /// Guest interrupt status, where the hardware has it.
    ///
    /// # Safety
    /// As [`Self::take_over`].
    unsafe fn interrupt_status(&mut self) -> Status {
        Status::default()
    }

    /// Sets the guest interrupt status, where the hardware has it.
    ///
    /// # Safety
    /// As [`Self::take_over`].
    unsafe fn set_interrupt_status(&mut self, _status: Status) {}

    /// Which page it is, and the vectors whose EOI exits.
    ///
    /// # Safety
    /// As [`Self::take_over`]. The frame is RAM that user memory may be in, and remains so as long as runs have `VIRTUAL_APIC`.
    unsafe fn set_virtual_apic(&mut self, _page: PhysAddr, _eoi_exits: [u64; 4]) {}

    /// Switches back what [`Self::run`] switched in: afterwards user code may run, or another guest.
    ///
    /// # Safety
    /// As [`Self::take_over`].
    unsafe fn leave(&mut self);

    /// Removes every trace from the CPU (VMCLEAR, ASID); the frames may be reused afterwards.
    ///
    /// # Safety
    /// Runs on the CPU of the vCPU, interrupts off, after [`Self::leave`].
    unsafe fn destroy(&mut self);
}
