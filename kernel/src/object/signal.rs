//! Semaphores and notifications: what threads wait on.
//!
//! A semaphore counts; a notification collects 64 bits. Both are signalled by threads, interrupts and the kernel, from any CPU.

use super::ec::{Ec, WaitResult};
use super::vcpu::Vcpu;
use super::{Header, Linked, List, ListLink, Object};
use crate::{cpu, sched};
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::{ObjectType, Status};
use khw::sync::{Guard, Lock};

/// A semaphore or a notification, by the kind in its header.
#[repr(C)]
#[derive(Debug)]
pub struct Signal {
    header: Header,
    /// Count or bits. Changed under the lock; a look without it may be old.
    value: AtomicU64,
    inner: Lock<Inner>,
    /// Contexts whose faults are signalled here. Under the tree lock.
    watched: List<Ec, Watched>,
}

#[derive(Debug)]
struct Inner {
    /// Waiting contexts, oldest first.
    waiters: List<Ec, Waiting>,
    /// Whose `VcpuRun` returns when bits are set.
    vcpu: Cell<Option<&'static Vcpu>>,
    /// The object is ending: who looked it up before cannot wait here any more.
    is_ending: Cell<bool>,
}

// SAFETY: the list and its links are used under `Signal::inner`.
unsafe impl Send for Inner {}
// SAFETY: `header` is used under the tree lock.
unsafe impl Sync for Signal {}
// SAFETY: first field is the header.
unsafe impl Object for Signal {
    const KIND: ObjectType = ObjectType::Sm;
}

/// List of contexts that wait on a signal.
#[derive(Debug)]
pub enum Waiting {}
// SAFETY: always the same field.
unsafe impl Linked<Waiting> for Ec {
    fn link(&self) -> &ListLink {
        &self.waiting
    }
}

/// List of contexts whose faults are signalled.
#[derive(Debug)]
pub enum Watched {}
// SAFETY: always the same field.
unsafe impl Linked<Watched> for Ec {
    fn link(&self) -> &ListLink {
        &self.watched
    }
}

impl Signal {
    /// A semaphore with a count, or a notification without bits.
    pub fn new(header: Header, value: u64) -> Self {
        Signal {
            header,
            value: AtomicU64::new(value),
            watched: List::new(),
            inner: Lock::new(Inner {
                waiters: List::new(),
                vcpu: Cell::new(None),
                is_ending: Cell::new(false),
            }),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn is_notification(&self) -> bool {
        self.header.kind == ObjectType::Ntfn
    }

    /// Adds one (semaphore) or ORs `badge` (notification), and wakes who waits for it. False if a run must not go on
    /// without a look: there is something for a vCPU's run, or somebody more urgent is ready.
    #[inline]
    pub fn signal(&self, badge: u64) -> bool {
        let inner = self.inner.lock();
        let value = self.value.load(Ordering::Relaxed);
        let added = if self.is_notification() { value | badge } else { value.saturating_add(1) };
        if !inner.waiters.is_empty() || inner.vcpu.get().is_some() {
            return self.tell(inner, added);
        }
        self.value.store(added, Ordering::Relaxed);
        true
    }

    /// Leaves `added` for whoever waits for it. False as in [`Self::signal`].
    #[inline(never)]
    fn tell(&self, inner: Guard<'_, Inner>, added: u64) -> bool {
        if added == 0 {
            return true;
        }
        if let Some(ec) = inner.waiters.pop_front() {
            // Who waits found nothing, so what is there now is what was added.
            self.value.store(0, Ordering::Relaxed);
            ec.waits_on.set(None);
            // Under the lock: who finds `ec` out of the queue (`cancel`) knows that it was woken, and that its next wait is its own.
            sched::wake(ec, WaitResult::Done(added));
            return cpu::local().attention.is_none();
        }
        // Against `Vcpu::halt`, which says that it halts and then looks here: one of the two sees the other.
        self.value.store(added, Ordering::SeqCst);
        let vcpu = inner.vcpu.get();
        drop(inner);
        vcpu.inspect(|vcpu| vcpu.kick()).is_none()
    }

    /// Whether there was a count or a bit to take a moment ago.
    #[inline]
    pub fn has_value(&self) -> bool {
        self.value.load(Ordering::SeqCst) != 0
    }

    /// Takes one, or all bits, if there are any.
    #[inline]
    pub fn try_take(&self) -> Option<u64> {
        if !self.has_value() {
            return None;
        }
        let _inner = self.inner.lock();
        self.take()
    }

    /// Under the lock.
    fn take(&self) -> Option<u64> {
        let value = self.value.load(Ordering::Relaxed);
        if value == 0 {
            return None;
        }
        let (taken, left) = if self.is_notification() { (value, 0) } else { (1, value - 1) };
        self.value.store(left, Ordering::Relaxed);
        Some(taken)
    }

    /// Takes, or puts `ec`, which is blocked, into the queue: `None` then. Fails if the object is ending.
    pub fn take_or_enqueue(&'static self, ec: &'static Ec) -> Result<Option<u64>, Status> {
        let inner = self.inner.lock();
        if inner.is_ending.get() {
            return Err(Status::Aborted);
        }
        let taken = self.take();
        if taken.is_none() {
            inner.waiters.push_back(ec);
            ec.waits_on.set(Some(self));
        }
        Ok(taken)
    }

    /// Takes `ec` out of the queue if it is still in it: false if it was woken meanwhile.
    pub fn cancel(&self, ec: &'static Ec) -> bool {
        let inner = self.inner.lock();
        let waits_here = ec.waits_on.get().is_some_and(|signal| core::ptr::eq(signal, self));
        if waits_here {
            inner.waiters.remove(ec);
            ec.waits_on.set(None);
        }
        waits_here
    }

    /// Binds or unbinds the vCPU whose run returns on bits.
    pub fn bind_vcpu(&self, vcpu: Option<&'static Vcpu>) {
        self.inner.lock().vcpu.set(vcpu);
    }

    /// The vCPU bound to it.
    pub fn bound_vcpu(&self) -> Option<&'static Vcpu> {
        self.inner.lock().vcpu.get()
    }

    /// Signals with `badge` when `ec` stops on a fault; false if somebody is told already. Under the tree lock.
    pub fn watch(&'static self, ec: &'static Ec, badge: u64) -> bool {
        if !ec.fault_signal.load(Ordering::Relaxed).is_null() {
            return false;
        }
        ec.fault_badge.store(badge, Ordering::Relaxed);
        ec.fault_signal.store((self as *const Signal).cast_mut(), Ordering::Release);
        self.watched.push_back(ec);
        true
    }

    /// Nobody is told when `ec` stops. Under the tree lock.
    pub fn unwatch(ec: &'static Ec) {
        let signal = ec.fault_signal.swap(core::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: a signal takes itself out of its contexts before it ends.
        if let Some(signal) = unsafe { signal.as_ref() } {
            signal.watched.remove(ec);
        }
    }

    /// Tells who wants to know that `ec` stopped.
    pub fn report_fault(ec: &Ec) {
        let signal = ec.fault_signal.load(Ordering::Acquire);
        // SAFETY: a signal that ends meanwhile is freed after a grace period, and this is within one kernel entry.
        if let Some(signal) = unsafe { signal.as_ref() } {
            signal.signal(ec.fault_badge.load(Ordering::Relaxed));
        }
    }

    /// The object goes away: wakes one who waits, or forgets one who is watched; false if there is nobody, and nobody comes.
    /// Under the tree lock.
    pub fn dismiss_one(&self) -> bool {
        let inner = self.inner.lock();
        inner.is_ending.set(true);
        let waiter = inner.waiters.pop_front();
        if let Some(ec) = waiter {
            ec.waits_on.set(None);
            sched::wake(ec, WaitResult::Failed(Status::Aborted));
            return true;
        }
        let watched = self.watched.first();
        watched.map(Self::unwatch).is_some()
    }
}
