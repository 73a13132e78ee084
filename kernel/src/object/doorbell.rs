//! Doorbells: acts of a guest that signal a semaphore or notification without waking its VMM (ADR 0005).
//!
//! The kernel does for such an exit what a VMM would: it moves the guest behind the instruction by way of the vCPU page, and
//! enters again.

use super::guest_space::GuestSpace;
use super::instruction::Instruction;
use super::signal::Signal;
use super::vcpu::Vcpu;
use crate::cap::{Found, Target, Tree};
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::exit::{ExitKind, NestedFault, PortIo};
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

/// The words of the page that say what the guest did.
struct Exit {
    kind: u32,
    length: u32,
    info: [u64; 2],
    rax: u64,
}

impl Exit {
    /// What may ring, and the length of the instruction: 0 if the hardware does not say it.
    #[inline]
    fn event(&self) -> Option<(Event, u32)> {
        if self.kind == ExitKind::PortIo as u32 {
            let io = PortIo::decode(self.info[0]);
            let is_plain_out = !io.is_in && !io.is_string && self.length != 0;
            return is_plain_out.then(|| (Event::out(io.port, io.size, self.rax), self.length));
        }
        if self.kind == ExitKind::NestedFault as u32 {
            let access = NestedFault::from_bits_truncate(self.info[1]);
            let is_store = access & (NestedFault::WRITE | NestedFault::PAGE_WALK) == NestedFault::WRITE;
            return is_store.then(|| (Event::write(self.info[0] >> 12), 0));
        }
        // The privilege level, which must be 0: what user code of a guest may ring is its kernel's to say.
        let index = self.rax.wrapping_sub(DOORBELL_CALL);
        let is_call = self.kind == ExitKind::Hypercall as u32 && index < DOORBELL_CALLS && self.info[0] == 0;
        is_call.then(|| (Event::call(index as u16), DOORBELL_CALL_LENGTH))
    }
}

impl Vcpu {
    /// Rings the doorbell that the exit is for, and completes the instruction; false if the exit is for the VMM.
    #[inline]
    pub fn rings(&self, page: NonNull<VcpuPage>, kind: u32) -> bool {
        let Some(table) = self.space.table() else {
            return false;
        };
        let p = page.as_ptr();
        // SAFETY: the page is bound: its frame stays until a grace period after it is unbound. The VMM may write it at
        // any time, so each word is read once; whatever it holds, a doorbell of this guest is the worst that rings.
        let exit = unsafe {
            Exit {
                kind,
                length: (&raw const (*p).exit_length).read_volatile(),
                info: [0, 1].map(|index| (&raw const (*p).exit_info[index]).read_volatile()),
                rax: (&raw const (*p).gpr[RAX]).read_volatile(),
            }
        };
        let Some((event, length)) = exit.event() else {
            return false;
        };
        let Some(bell) = table.find(event) else {
            return false;
        };
        let length = match length {
            // SAFETY: as above.
            0 => self.length_if(page, |rip| unsafe {
                (&raw const (*p).stores[Store::place(rip)]).read_volatile()
            }),
            length => length,
        };
        // SAFETY: as above.
        let Some(instruction) = (unsafe { Instruction::new(page, length) }) else {
            return false;
        };
        instruction.complete();
        // SAFETY: the table holds signals that are alive, or whose grace period is not over.
        let signal = unsafe { &*(bell.signal as *const Signal) };
        signal.signal(bell.badge);
        true
    }
}
