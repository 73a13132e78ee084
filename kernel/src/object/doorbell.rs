//! Doorbells: acts of a guest that signal a semaphore or notification without waking its VMM (ADR 0005).
//!
//! The kernel does for such an exit what a VMM would: it moves the guest behind the instruction by way of the vCPU page, and
//! enters again.

use super::guest_space::GuestSpace;
use super::signal::Signal;
use super::vcpu::Vcpu;
use crate::cap::{Found, Target, Tree};
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::exit::{ExitKind, PortIo};
use hypercall_abi::guest::{DOORBELL_CALL, DOORBELL_CALL_LENGTH, DOORBELL_CALLS};
use hypercall_abi::vcpu::gpr::RAX;
use hypercall_abi::vcpu::{Groups, Interruptibility, VcpuPage};
use hypercall_abi::{Rights, Status};
use kcore::addr::PhysAddr;
use kcore::cap::Slots;
use kcore::virt::doorbell::{Bell, Event, Refusal, Table};
use khw::mem::phys_to_virt;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;

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
        let bell = Bell {
            signal: signal as *const Signal as u64,
            badge: bound.count,
        };
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

/// The words of the page that say what the guest did, each read once.
struct Act {
    rax: u64,
    rip: u64,
    rflags: u64,
    length: u32,
    info: u64,
}

impl Act {
    /// The event, and the length of the instruction.
    #[inline]
    fn event(&self, kind: u32) -> Option<(Event, u32)> {
        if kind == ExitKind::PortIo as u32 {
            let io = PortIo::decode(self.info);
            let is_plain_out = !io.is_in && !io.is_string && self.length != 0;
            return is_plain_out.then(|| (Event::out(io.port, io.size, self.rax), self.length));
        }
        if kind != ExitKind::Hypercall as u32 {
            return None;
        }
        let index = self.rax.wrapping_sub(DOORBELL_CALL);
        // The privilege level: what user code of a guest may ring is its kernel's to say.
        if index >= DOORBELL_CALLS || self.info != 0 {
            return None;
        }
        Some((Event::call(index as u16), DOORBELL_CALL_LENGTH))
    }
}

impl Vcpu {
    /// Rings the doorbell that the exit is for, and moves the guest behind its instruction; false if the exit is for the VMM.
    /// So is one that interrupted the delivery of an event, whose instruction is single-stepped, or is at a 4-GiB boundary.
    #[inline]
    pub fn rings(&self, page: NonNull<VcpuPage>, kind: u32) -> bool {
        let Some(table) = self.space.table() else {
            return false;
        };
        let p = page.as_ptr();
        // SAFETY: the page is bound: its frame stays until a grace period after it is unbound. The VMM may write it at
        // any time, so each word is read once; whatever it holds, a doorbell of this guest is the worst that rings.
        let (act, event) = unsafe {
            let act = Act {
                rax: (&raw const (*p).gpr[RAX]).read_volatile(),
                rip: (&raw const (*p).rip).read_volatile(),
                rflags: (&raw const (*p).rflags).read_volatile(),
                length: (&raw const (*p).exit_length).read_volatile(),
                info: (&raw const (*p).exit_info[0]).read_volatile(),
            };
            (act, (&raw const (*p).inject).read_volatile())
        };
        let Some((what, length)) = act.event(kind) else {
            return false;
        };
        let next = act.rip.wrapping_add(length as u64);
        if event.is_valid() || act.rflags & RFLAGS_TF != 0 || (act.rip ^ next) >> 32 != 0 {
            return false;
        }
        let Some(bell) = table.find(what) else {
            return false;
        };
        const SHADOW: u32 = Interruptibility::STI.union(Interruptibility::MOV_SS).bits();
        // SAFETY: as above.
        unsafe {
            let interruptibility = &raw mut (*p).interruptibility;
            interruptibility.write_volatile(interruptibility.read_volatile() & !SHADOW);
            (&raw mut (*p).rip).write_volatile(next);
            (&raw mut (*p).rflags).write_volatile(act.rflags & !RFLAGS_RF);
            (&raw mut (*p).dirty).write_volatile(Groups::RIP.bits());
        }
        // SAFETY: the table holds signals that are alive, or whose grace period is not over.
        let signal = unsafe { &*(bell.signal as *const Signal) };
        signal.signal(bell.badge);
        true
    }
}
