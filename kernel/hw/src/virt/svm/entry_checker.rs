//! The entry checker's hooks: the VMCB before each VMRUN, against the rules of [`kcore::virt::svm::entry_checker`], its clean bits,
//! and the flush checker.

use crate::{flush_checker, percpu};
use core::cell::UnsafeCell;
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;
use kcore::flush_checker::User;
use kcore::virt::svm::asid::TlbControl;
use kcore::virt::svm::entry_checker::{CleanShadow, check_entry};
use kcore::virt::svm::processor::Processor;
use kcore::virt::svm::vmcb::{Clean, Vmcb};

/// The VMCB that ran last on a CPU, and what it held then.
struct Last(UnsafeCell<(PhysAddr, CleanShadow)>);
// SAFETY: each CPU uses only the entry of its own number, with interrupts off.
unsafe impl Sync for Last {}
static LAST: [Last; MAX_CPUS] =
    [const { Last(UnsafeCell::new((PhysAddr(0), CleanShadow::new()))) }; MAX_CPUS];

fn last() -> &'static mut (PhysAddr, CleanShadow) {
    // SAFETY: only this CPU uses its entry, the kernel is not preempted, and each caller drops the reference at its end.
    unsafe { &mut *LAST[percpu::id()].0.get() }
}

/// Checks the entry that is about to happen. `clean` are the clean bits that a CPU with them would get.
#[inline(never)]
pub(super) fn check(frame: PhysAddr, vmcb: &Vmcb, clean: Clean, processor: &Processor) {
    if let Err(broken) = check_entry(vmcb, processor) {
        panic!("entry checker: APM 2 {}: {}", broken.section, broken.rule);
    }
    let (owner, shadow) = last();
    if *owner == frame
        && let Err(groups) = shadow.check(vmcb, clean)
    {
        panic!("entry checker: APM 2 15.15.3: clean bits over changed fields: {groups:?}");
    }
    let asid = vmcb.control.asid as u64;
    if vmcb.control.tlb_control == TlbControl::All as u32 {
        flush_checker::flush_all_tags();
    } else if vmcb.control.tlb_control != TlbControl::Nothing as u32 {
        flush_checker::flush_tag(asid);
    }
    flush_checker::enter(asid, user(frame, vmcb));
}

/// The guest ran: the CPU has just written the VMCB.
#[inline(never)]
pub(super) fn after_exit(frame: PhysAddr, vmcb: &Vmcb) {
    let (owner, shadow) = last();
    *owner = frame;
    shadow.record(vmcb);
    flush_checker::leave(vmcb.control.asid as u64, user(frame, vmcb));
}

/// The vCPU ends.
pub(super) fn end(frame: PhysAddr, asid: u32) {
    flush_checker::end(asid as u64, frame.0);
    last().0 = PhysAddr(0);
}

fn user(frame: PhysAddr, vmcb: &Vmcb) -> User {
    let save = &vmcb.save;
    User {
        vcpu: frame.0,
        root: vmcb.control.nested_cr3,
        registers: [save.cr0, save.cr3, save.cr4, save.efer, save.g_pat],
    }
}
