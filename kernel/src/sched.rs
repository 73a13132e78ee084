//! Who runs: fixed priorities with budgets, per-CPU queues, one-shot timer.
//!
//! The kernel keeps no stack across a switch: [`schedule`] picks a scheduling context, completes what its execution context
//! was doing in the kernel (a vCPU run), and returns the register frame to leave with.

use crate::cpu::{self, Attention, Local, Queues};
use crate::hypercall::ipc;
use crate::object::ec::{Ec, State, WaitResult};
use crate::object::sc::{Place, Sc};
use crate::{reclaim, trace};
use core::sync::atomic::Ordering;
use hypercall_abi::Status;
use hypercall_abi::trace::Kind;
use khw::cpu::{control, fpu, mitigation, tsc};
use khw::desc::CpuTables;
use khw::entry::Frame;
use khw::irq::lapic;
use khw::{percpu, smp};

/// What the CPU leaves the kernel with: the current context if it may go on, otherwise the most urgent one.
pub fn resume(local: &'static Local) -> *mut Frame {
    match local.ec.get() {
        Some(ec) if !should_switch(local) => {
            activate(local, ec);
            leave_for(local, ec)
        }
        _ => schedule(local),
    }
}

/// Picks the most urgent context and returns its frame; waits if there is none.
pub fn schedule(local: &'static Local) -> *mut Frame {
    loop {
        put_back(local);
        smp::serve(|| reclaim::let_go(local));
        expire(local, tsc::read());
        let Some(sc) = pop_ready(&mut local.queues.lock()) else {
            // Nobody's state may be found in the registers by whoever runs next, so idling can keep it.
            local.slice_end.set(u64::MAX);
            trace::record(local, Kind::Idle, 0, None);
            khw::cpu::idle();
            continue;
        };
        let now = tsc::read();
        sc.waited.set(sc.waited.get() + now.saturating_sub(sc.since.replace(now)));
        let available = sc.budget().available(now);
        if available == 0 {
            await_refill(local, sc);
            continue;
        }
        // It pays for what was done here since somebody was charged last.
        local.sc.set(Some(sc));
        local.slice_end.set(now.saturating_add(available));
        local.attention.remove(Attention::SWITCH);
        let Some(ec) = runnable(local, sc) else {
            // It blocked again, or stopped, after it was queued; or whom it helps is blocked.
            local.sc.set(None);
            continue;
        };
        local.ec.set(Some(ec));
        activate(local, ec);
        if let Some(vcpu) = ec.vcpu.get() {
            trace::record(local, Kind::Enter, 0, Some(ec));
            if !vcpu.resume(ec) {
                continue;
            }
            activate(local, ec);
        }
        return leave_for(local, ec);
    }
}

/// The frame by which to leave the kernel for the user code of `ec`, which is active.
fn leave_for(local: &'static Local, ec: &'static Ec) -> *mut Frame {
    trace::returns(local, ec);
    ec.frame_ptr()
}

/// Makes `ec`'s address space, ports and register frame the active ones.
fn activate(local: &'static Local, ec: &'static Ec) {
    arm(local, local.slice_end.get());
    let epoch = smp::epoch();
    let is_active =
        local.active.get().is_some_and(|active| core::ptr::eq(active, ec)) && local.epoch.get() == epoch;
    if !is_active {
        percpu::set_frame_end(ec.frame_end());
        // SAFETY: these are this CPU's tables; the frame end is that of a live context, aligned by its type.
        unsafe { CpuTables::set_frame_end(local.tables, ec.frame_end()) };
        if control::read_cr3() != ec.pd.root.0 {
            // A guest of the domain that ran before may own what is in the FPU's registers.
            fpu::release();
            if local.crossing.has(Attention::BARRIERS) {
                mitigation::between_domains();
            }
            // SAFETY: the root of a live domain, which maps the kernel.
            unsafe { control::write_cr3(ec.pd.root.0) };
        }
        local.active.set(Some(ec));
        local.epoch.set(epoch);
    }
    if ec.pd.io_frames().is_some() || local.crossing.has(Attention::IO_IS_OPEN) {
        show_ports(local, ec);
    }
}

/// Makes the I/O bitmap that of `ec`'s domain, copying it only if another one is in the TSS.
fn show_ports(local: &'static Local, ec: &'static Ec) {
    // The version first: ports that are closed while the bitmap is copied make it old again.
    let version = ec.pd.io_version.load(Ordering::Acquire);
    let frames = ec.pd.io_frames();
    // SAFETY: these are this CPU's tables; the frames belong to a live domain.
    unsafe {
        match frames {
            Some(frames) if local.io_owner.get() != (ec.pd.id, version) => {
                CpuTables::use_io_bitmap(local.tables, frames);
                local.io_owner.set((ec.pd.id, version));
                local.crossing.add(Attention::IO_IS_OPEN);
            }
            _ if frames.is_some() != local.crossing.has(Attention::IO_IS_OPEN) => {
                CpuTables::open_io_bitmap(local.tables, frames.is_some());
                local.crossing.set(Attention::IO_IS_OPEN, frames.is_some());
            }
            _ => {}
        }
        if frames.is_some() && local.tr_is_short.replace(false) && khw::virt::exits_shorten_tr() {
            CpuTables::reload_tr(local.tables);
        }
    }
}

/// Callers in a row, each waiting for a handler whose chain of calls waits for the next, through which one helps.
const HELP_DEPTH: usize = 64;

/// Who runs on `sc`: its context. If that waits for a busy handler, `sc` helps: the end of the handler's chain of calls runs, or, if that
/// waits for a handler too, the end of that one's. If it is blocked, `sc` waits with it.
fn runnable(local: &Local, sc: &'static Sc) -> Option<&'static Ec> {
    let own = sc.running.get();
    if !has_use(own) {
        return None;
    }
    let ec = path(own).last()?;
    if ec.waits_for.get().is_some_and(|handler| handler.state.get() == State::Idle) {
        ipc::retry(ec);
    }
    let _queues = local.queues.lock();
    if ec.state.get() == State::Active {
        return Some(ec);
    }
    // Callers that wait for each other in a circle stay here too, until one of them ends.
    if sc.place.get() != Place::Dead {
        ec.helpers.push_back(sc);
        ec.helper_count.set(ec.helper_count.get() + 1);
        sc.helps.set(Some(ec));
        sc.place.set(Place::Helping);
    }
    None
}

/// `ec`, and whom it waits for: if its handler is busy, the end of the handler's chain of calls, and whom that waits for.
fn path(ec: &'static Ec) -> impl Iterator<Item = &'static Ec> {
    let next = |ec: &&'static Ec| {
        let handler = ec.waits_for.get().filter(|handler| handler.state.get() != State::Idle)?;
        Some(handler.chain_sc.get()?.running.get())
    };
    core::iter::successors(Some(ec), next).take(HELP_DEPTH + 1)
}

/// `ec` is about to stop waiting for a busy handler. Who runs may do so on its account, and so may those wait who wait with the end of its
/// path, or in a circle with anybody: they look again.
pub fn leave_wait(ec: &'static Ec) {
    let local = cpu::local();
    let mut queues = local.queues.lock();
    for other in path(ec) {
        release(&mut queues, other);
    }
    local.attention.add(Attention::SWITCH);
}

/// `ec` is not blocked any more, or not what somebody waits for: [`expire`] makes those ready that wait with it now. Whether there are any.
fn release(queues: &mut Queues, ec: &'static Ec) -> bool {
    let count = ec.helper_count.get();
    if count > 0 && ec.to_release.replace(count) == 0 {
        queues.releasing.push_back(ec);
    }
    count > 0
}

/// Makes one of those ready that wait with `ec`; false if there is none.
fn release_one(queues: &mut Queues, ec: &'static Ec) -> bool {
    let next = ec.helpers.first();
    if let Some(sc) = next {
        stop_helping(sc);
        enqueue(queues, sc, false);
    }
    let left = ec.to_release.get();
    if left > 0 {
        ec.to_release.set(if next.is_some() { left - 1 } else { 0 });
        if ec.to_release.get() == 0 {
            queues.releasing.remove(ec);
        }
    }
    next.is_some()
}

/// Makes all ready that wait with a context of this CPU, which is idle or stopped now; lets interrupts in.
pub fn release_helpers(local: &Local, ec: &'static Ec) {
    while release_one(&mut local.queues.lock(), ec) {
        local.attention.add(Attention::SWITCH);
        preemption_point(local);
    }
}

/// Charges the current scheduling context and puts it where it belongs. Afterwards nobody is current.
fn put_back(local: &'static Local) {
    local.ec.set(None);
    let now = tsc::read();
    let Some(sc) = local.sc.take() else {
        // Nobody was there to pay.
        return local.charged_since.set(now);
    };
    charge(local, sc, now);
    let mut queues = local.queues.lock();
    // A context that blocked may have been woken, and queued, by another CPU already.
    if has_use(sc.running.get()) && sc.place.get() == Place::Nowhere {
        let is_over = now >= local.slice_end.get();
        enqueue(&mut queues, sc, !is_over);
    }
}

/// Whether a context can use processor time: for itself, or to help.
fn has_use(ec: &Ec) -> bool {
    ec.state.get() == State::Active || ec.waits_for.get().is_some()
}

fn charge(local: &Local, sc: &Sc, now: u64) {
    let used = now.saturating_sub(local.charged_since.get());
    local.charged_since.set(now);
    sc.consumed.set(sc.consumed.get() + used);
    sc.budget().charge(now, used);
}

fn enqueue(queues: &mut Queues, sc: &'static Sc, at_front: bool) {
    let priority = sc.priority as usize & 31;
    let list = &queues.ready[priority];
    if at_front {
        list.push_front(sc)
    } else {
        list.push_back(sc)
    }
    queues.bitmap |= 1 << priority;
    // Who was out of budget waits since then.
    if sc.place.replace(Place::Ready) != Place::Refill {
        sc.since.set(tsc::read());
    }
}

fn pop_ready(queues: &mut Queues) -> Option<&'static Sc> {
    let priority = 31u32.checked_sub(queues.bitmap.leading_zeros())? as usize;
    let sc = queues.ready[priority].pop_front()?;
    if queues.ready[priority].is_empty() {
        queues.bitmap &= !(1 << priority);
    }
    sc.place.set(Place::Nowhere);
    Some(sc)
}

fn await_refill(local: &Local, sc: &'static Sc) {
    let mut queues = local.queues.lock();
    if sc.place.get() != Place::Dead {
        let when = sc.budget().next_refill();
        queues.refill.insert(sc, when);
        sc.place.set(Place::Refill);
        arm(local, when);
    }
}

/// Takes a scheduling context out of whatever queue it is in, for good.
pub fn retire(sc: &'static Sc) {
    let mut queues = cpu::of(sc.owner.cpu as usize).queues.lock();
    match sc.place.get() {
        Place::Ready => {
            let priority = sc.priority as usize & 31;
            queues.ready[priority].remove(sc);
            if queues.ready[priority].is_empty() {
                queues.bitmap &= !(1 << priority);
            }
        }
        Place::Refill => queues.refill.remove(sc),
        Place::Helping => stop_helping(sc),
        Place::Nowhere | Place::Dead => {}
    }
    sc.place.set(Place::Dead);
}

fn stop_helping(sc: &'static Sc) {
    if let Some(ec) = sc.helps.take() {
        ec.helpers.remove(sc);
        ec.helper_count.set(ec.helper_count.get() - 1);
    }
}

/// Gives a thread its scheduling context. It starts, or goes on, or does so when its wait ends.
pub fn start(sc: &'static Sc) {
    let ec = sc.owner;
    let target = cpu::of(ec.cpu as usize);
    let mut queues = target.queues.lock();
    ec.sc.set(Some(sc));
    if ec.state.get() == State::Idle {
        ec.state.set(State::Active);
    }
    if has_use(ec) {
        enqueue(&mut queues, sc, false);
    }
    drop(queues);
    notice(target, Some(sc), sc.priority);
}

/// Scheduling contexts of up to `priority` became ready, `sc` among them: their CPU must look whether one is the most urgent. If `sc` helps
/// right now, it has better things to do.
fn notice(target: &'static Local, sc: Option<&'static Sc>, priority: u8) {
    let is = |current| sc.is_some_and(|sc| core::ptr::eq(current, sc));
    if target.id != percpu::id() {
        interrupt(target.id);
    } else if target.sc.get().is_none_or(|current| priority > current.priority || is(current)) {
        target.attention.add(Attention::SWITCH);
    }
}

/// Prepares the current context for waiting until `deadline`: from here on it may be woken.
pub fn block(ec: &'static Ec, deadline: u64) {
    let local = cpu::local();
    let mut queues = local.queues.lock();
    ec.state.set(State::Blocked);
    if deadline == u64::MAX {
        return;
    }
    arm(local, deadline);
    queues.timed.insert(ec, deadline);
    ec.is_timed.set(true);
}

/// Ends the wait of a context of this CPU that goes on at once.
pub fn unblock_current(ec: &'static Ec) {
    let mut queues = cpu::local().queues.lock();
    leave_timed(&mut queues, ec);
    ec.state.set(State::Active);
    if release(&mut queues, ec) {
        arm(cpu::local(), 0);
    }
}

fn leave_timed(queues: &mut Queues, ec: &'static Ec) {
    if ec.is_timed.replace(false) {
        queues.timed.remove(ec);
    }
}

/// Takes a context of this CPU out of the deadline queue.
pub fn forget_deadline(ec: &'static Ec) {
    leave_timed(&mut cpu::local().queues.lock(), ec);
}

/// Ends a context's wait, from any CPU; of several that try, the first does.
pub fn wake(ec: &'static Ec, result: WaitResult) {
    let target = cpu::of(ec.cpu as usize);
    let mut queues = target.queues.lock();
    if ec.state.get() != State::Blocked {
        return;
    }
    // A kick that comes late must not end another wait: who waits in a vCPU run was attached before it blocked.
    if result == WaitResult::Kicked && ec.vcpu.get().is_none() {
        return;
    }
    leave_timed(&mut queues, ec);
    let frame = ec.frame();
    match result {
        WaitResult::Done(value) => (frame.rax, frame.rdi) = (Status::Success as u64, value),
        WaitResult::Failed(status) => frame.rax = status as u64,
        WaitResult::Look | WaitResult::Kicked => {}
    }
    ec.state.set(State::Active);
    trace::record(cpu::local(), Kind::Wake, 0, Some(ec));
    let own = ec.sc.get();
    if let Some(sc) = own {
        match sc.place.get() {
            Place::Nowhere => enqueue(&mut queues, sc, false),
            Place::Helping => {
                stop_helping(sc);
                enqueue(&mut queues, sc, false);
            }
            Place::Ready | Place::Refill | Place::Dead => {}
        }
    }
    let has_helpers = release(&mut queues, ec);
    drop(queues);
    if has_helpers || own.is_some() {
        // How urgent the helpers are is seen when they are made ready.
        notice(target, own, if has_helpers { u8::MAX } else { own.map_or(0, |sc| sc.priority) });
    }
}

/// Helpers, waits and refills that [`expire`] deals with at once.
const EXPIRE_STEPS: usize = 32;

/// Makes helpers ready whose wait is over, ends waits whose deadline has passed, and refills budgets. If there are many, the timer fires again at once for the rest.
pub fn expire(local: &'static Local, now: u64) {
    for _ in 0..EXPIRE_STEPS {
        let mut queues = local.queues.lock();
        if let Some(ec) = queues.releasing.first() {
            release_one(&mut queues, ec);
            local.attention.add(Attention::SWITCH);
            continue;
        }
        if let Some(sc) = queues.refill.first().filter(|sc| sc.refilled.when() <= now) {
            queues.refill.remove(sc);
            enqueue(&mut queues, sc, false);
            local.attention.add(Attention::SWITCH);
            continue;
        }
        let Some(ec) = queues.timed.first().filter(|ec| ec.timed.when() <= now) else {
            return;
        };
        leave_timed(&mut queues, ec);
        drop(queues);
        match ec.waits_on.get() {
            Some(signal) if signal.cancel(ec) => wake(ec, WaitResult::Failed(Status::Timeout)),
            None if ec.vcpu.get().is_some() => wake(ec, WaitResult::Look),
            None if ipc::stop_waiting(ec) => wake(ec, WaitResult::Failed(Status::Timeout)),
            // Whoever took it out of its signal's queue is about to wake it.
            _ => {}
        }
    }
    arm(local, now);
}

/// The timer fired.
pub fn timer_expired(local: &'static Local) {
    local.armed.set(u64::MAX);
    let now = tsc::read();
    expire(local, now);
    if now >= local.slice_end.get() {
        local.attention.add(Attention::SWITCH);
    }
    rearm(local, now);
}

/// Whether the current context should make way.
pub fn should_switch(local: &Local) -> bool {
    local.attention.has(Attention::SWITCH) || is_stopped(local)
}

/// Between two steps of a hypercall, which holds the tree lock at most: lets interrupts in, and says whether to go on afterwards.
pub fn preemption_point(local: &Local) -> bool {
    khw::cpu::interrupt_window();
    trace::record(local, Kind::Window, 0, local.ec.get());
    !should_switch(local)
}

/// Whether the current context cannot go on.
#[inline]
pub fn is_stopped(local: &Local) -> bool {
    local.ec.get().is_none_or(|ec| ec.state.get() != State::Active)
}

/// When the current timeslice ends, TSC.
pub fn slice_end(local: &Local) -> u64 {
    local.slice_end.get()
}

/// Sees to it that the timer fires at TSC `when` or earlier.
///
/// The timer is always armed for the first deadline, refill and end of slice of this CPU, or for earlier: one that fires
/// early finds nothing to do and is armed again. So a later time costs nothing here.
#[inline]
pub(crate) fn arm(local: &Local, when: u64) {
    if when < local.armed.get() {
        local.armed.set(when);
        lapic::arm(when);
    }
}

/// Arms the timer afresh, after it fired.
fn rearm(local: &Local, now: u64) {
    let queues = local.queues.lock();
    // A slice that is over needs no timer: the context is about to make way.
    let mut first = if local.slice_end.get() > now { local.slice_end.get() } else { u64::MAX };
    first = first.min(queues.timed.next()).min(queues.refill.next());
    drop(queues);
    arm(local, first);
}

/// Another CPU was given something to do, or must leave the guest.
pub fn interrupt(cpu: usize) {
    smp::interrupt(cpu);
}

/// A request interrupt came: somebody more urgent may be ready.
pub fn look(local: &Local) {
    let queues = local.queues.lock();
    let most_urgent = 31u32.checked_sub(queues.bitmap.leading_zeros());
    let current = local.sc.get().map(|sc| sc.priority as u32);
    if most_urgent > current || !queues.releasing.is_empty() || smp::has_request() {
        local.attention.add(Attention::SWITCH);
    }
}
