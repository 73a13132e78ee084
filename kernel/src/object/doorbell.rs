//! Doorbells: acts of a guest that signal a semaphore or notification without waking its VMM (ADR 0005).
//!
//! The kernel does for such an exit what a VMM would: it moves the guest behind the instruction by way of the vCPU page, and
//! enters again.

use super::guest_space::GuestSpace;
use super::instruction::Instruction;
use super::signal::Signal;
use super::vcpu::Vcpu;
use crate::cap::{Found, Target, Tree};
use crate::cpu::Local;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::exit::{NestedFault, PortIo};
use hypercall_abi::guest::{DOORBELL_CALL, DOORBELL_CALL_LENGTH, DOORBELL_CALLS};
use hypercall_abi::vcpu::gpr::RAX;
use hypercall_abi::vcpu::{Store, VcpuPage};
use hypercall_abi::{Rights, Status};
use kcore::addr::PhysAddr;
use kcore::cap::Slots;
use kcore::virt::doorbell::{Bell, Event, Refusal, Table};
use khw::mem::phys_to_virt;

impl GuestSpace {
    fn table(&self) -> Option<&Table> {
        let frame = self.doorbells.load(Ordering::Acquire);
        // SAFETY: the frame is the space's until a grace period after its end; any bytes are a table, which changes
        // through atomics alone.
        (frame != 0).then(|| unsafe { &*phys_to_virt(PhysAddr(frame)).cast() })
    }

    /// Binds a capability for a semaphore or notification to a trigger. The first doorbell costs a frame.
    pub fn bind_doorbell(
        &'static self,
        tree: &mut Tree,
        bound: Found,
        trigger: Doorbell,
    ) -> Result<(), Status> {
        let signal: &Signal = bound.signal(Rights::SIGNAL)?;
        if tree.slot(bound.slot).bound != 0 {
            return Err(Status::Occupied);
        }
        if self.doorbells.load(Ordering::Relaxed) == 0 {
            let frame = self.pool.take_frame().ok_or(Status::NoMemory)?;
            self.doorbells.store(frame.0, Ordering::Release);
        }
        let bell = Bell { signal: signal as *const Signal as u64, badge: bound.count };
        let table = self.table().ok_or(Status::NoMemory)?;
        let place = table.insert(trigger, bell).map_err(|refusal| match refusal {
            Refusal::Taken => Status::Occupied,
            Refusal::Full => Status::Unsupported,
        })?;
        let target = Target::Doorbell(self);
        let addr = target.header() as *const _ as u64;
        target.bound_list().bind(tree, bound.slot, addr, place as u64);
        Ok(())
    }

    /// Removes the doorbell at a place. Under the tree lock; a grace period follows.
    pub fn unbind_doorbell(&self, place: u64) {
        if let Some(table) = self.table() {
            table.remove(place as usize);
        }
    }
}

/// Whether a nested fault is a write by an instruction.
fn is_store(access: u64) -> bool {
    let access = NestedFault::from_bits_truncate(access);
    access & (NestedFault::WRITE | NestedFault::PAGE_WALK) == NestedFault::WRITE
}

const _: () = assert!(DOORBELL_CALL & 0xffff == 0 && DOORBELL_CALLS == 0x1_0000);

impl Vcpu {
    /// Rings the doorbell of a call in the middle of a run, and lets interrupts in; `None` if it is not done here. Says whether the
    /// guest may go on with no further look: no run had to be told, which may be this one, nobody more urgent became ready, and no
    /// interrupt came. Whatever else a run looks at (`Vcpu::enter_guest`), an interrupt comes when it changes.
    #[inline(always)]
    pub fn rings_call(&self, local: &Local, index: u16) -> Option<bool> {
        let bell = self.space.table()?.find(Event::call(index))?;
        if !local.attention.is_none() {
            return None;
        }
        // SAFETY: the table holds signals that are alive, or whose grace period is not over.
        let is_quiet = unsafe { &*(bell.signal as *const Signal) }.signal(bell.badge);
        let interrupts = local.interrupts.get();
        khw::cpu::interrupt_window();
        Some(is_quiet && local.interrupts.get() == interrupts)
    }

    /// Rings the doorbell of a port: an OUT without prefixes. False if the exit is for the VMM, as below.
    #[inline(always)]
    pub(super) fn rings_port(&self, page: NonNull<VcpuPage>) -> bool {
        let p = page.as_ptr();
        // SAFETY: the page is bound: its frame stays until a grace period after it is unbound. The VMM may write it at
        // any time, so each word is read once; whatever it holds, a doorbell of this guest is the worst that rings.
        let (info, rax, length) = unsafe {
            (
                (&raw const (*p).exit_info[0]).read_volatile(),
                (&raw const (*p).gpr[RAX]).read_volatile(),
                (&raw const (*p).exit_length).read_volatile(),
            )
        };
        PortIo::is_plain_out(info) && self.rings(page, Event::out(info as u32, rax), || length.into())
    }

    /// Rings the doorbell of a call that the backend did not ring in the middle of the run.
    #[inline(always)]
    pub(super) fn rings_hypercall(&self, page: NonNull<VcpuPage>) -> bool {
        let p = page.as_ptr();
        // SAFETY: as above.
        let (level, rax) = unsafe {
            ((&raw const (*p).exit_info[0]).read_volatile(), (&raw const (*p).gpr[RAX]).read_volatile())
        };
        // The privilege level must be 0: what user code of a guest may ring is its kernel's to say.
        let is_doorbell = level == 0 && rax & !0xffff == DOORBELL_CALL;
        is_doorbell && self.rings(page, Event::call(rax as u16), || DOORBELL_CALL_LENGTH.into())
    }

    /// Rings the doorbell of a page that the guest wrote to by an instruction that the VMM named.
    #[inline(always)]
    pub(super) fn rings_page(&self, page: NonNull<VcpuPage>) -> bool {
        let p = page.as_ptr();
        // SAFETY: as above.
        let [address, access] =
            [0, 1].map(|index| unsafe { (&raw const (*p).exit_info[index]).read_volatile() });
        // SAFETY: as above.
        let store = |rip| unsafe { (&raw const (*p).stores[Store::place(rip)]).read_volatile() };
        is_store(access) && self.rings(page, Event::write(address >> 12), || self.length_if(page, store))
    }

    #[inline(always)]
    fn rings(&self, page: NonNull<VcpuPage>, event: Event, length: impl FnOnce() -> u64) -> bool {
        let Some(bell) = self.space.table().and_then(|table| table.find(event)) else {
            return false;
        };
        // SAFETY: as above.
        let Some(instruction) = (unsafe { Instruction::new(page, length()) }) else {
            return false;
        };
        instruction.complete();
        // SAFETY: the table holds signals that are alive, or whose grace period is not over.
        let signal = unsafe { &*(bell.signal as *const Signal) };
        signal.signal(bell.badge);
        true
    }
}
