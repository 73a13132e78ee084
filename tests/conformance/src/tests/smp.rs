//! More than one CPU.

use super::{Group, Needs, group};
use crate::layout::PD;
use crate::prelude::*;
use crate::threads::{self, HIGH, LOW};
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::Hypercall;

pub(super) const GROUP: Group = group!(
    "several CPUs",
    Needs::Cpus(2) => [
        threads_run_on_every_cpu,
        a_signal_wakes_a_thread_on_another_cpu,
        two_cpus_play_ping_pong,
        a_running_thread_of_another_cpu_ends,
        a_running_thread_of_another_cpu_stands_still_without_its_sc,
        a_page_that_another_cpu_reads_is_gone_when_revoke_returns,
        a_page_that_another_cpu_writes_becomes_read_only,
        part_of_a_large_page_that_another_cpu_reads_goes,
        a_waiter_on_another_cpu_is_aborted,
        nobody_begins_to_wait_for_what_is_ending,
        every_cpu_creates_and_revokes_at_once,
        every_cpu_derives_from_one_capability_that_is_revoked,
        signals_from_every_cpu_are_counted,
        a_call_in_progress_on_another_cpu_is_aborted,
        a_fault_on_another_cpu_is_signalled,
    ],
);

extern "C" fn count(index: u64) -> ! {
    loop {
        board(index as usize).fetch_add(1, Ordering::Relaxed);
    }
}

fn value(index: usize) -> u64 {
    board(index).load(Ordering::Relaxed)
}

fn threads_run_on_every_cpu(w: &mut World) -> Check {
    for cpu in 1..w.info.cpu_count {
        w.thread(cpu, LOW, count, cpu.into())?;
    }
    for cpu in 1..w.info.cpu_count {
        w.until("the thread counts", || value(cpu.into()) > 100)?;
    }
    Ok(())
}

fn a_signal_wakes_a_thread_on_another_cpu(w: &mut World) -> Check {
    for cpu in 1..w.info.cpu_count {
        let sm = w.sm(0)?;
        let waiter = w.begin((cpu, HIGH), Wait, sm, [FOREVER])?;
        w.sleep(2000);
        equal("is woken early", waiter.is_done(), false)?;
        call(Signal, sm, []).done()?;
        w.answer(&waiter)?.gives([1, 0, 0])?;
    }
    Ok(())
}

extern "C" fn pong(selectors: u64) -> ! {
    loop {
        call(Wait, selectors & 0xffff, [FOREVER]);
        board(0).fetch_add(1, Ordering::Relaxed);
        call(Signal, selectors >> 16, []);
    }
}

fn two_cpus_play_ping_pong(w: &mut World) -> Check {
    let (ping, back) = (w.sm(0)?, w.sm(0)?);
    let cpu = w.other_cpu();
    w.thread(cpu, HIGH, pong, back << 16 | ping)?;
    for round in 1..=500 {
        call(Signal, ping, []).done()?;
        call(Wait, back, [w.deadline(5_000_000)]).gives([1, 0, 0])?;
        equal("rounds", value(0), round)?;
    }
    Ok(())
}

fn a_running_thread_of_another_cpu_ends(w: &mut World) -> Check {
    for round in 0..20 {
        w.scoped(20, |w| {
            board(0).store(0, Ordering::Relaxed);
            let cpu = w.other_cpu();
            let (ec, _) = w.thread(cpu, LOW, count, 0)?;
            w.until("the thread counts", || value(0) > 100)?;
            if round % 2 == 0 {
                call(Revoke, ec, [1]).done()?;
            } else {
                // With all that pays for it.
                let pool = w.pool;
                call(Revoke, pool, [0]).done()?;
                call(Revoke, ec, [1]).done()?;
            }
            let last = value(0);
            w.sleep(1000);
            equal("it counts on", value(0), last)
        })?;
    }
    Ok(())
}

fn a_running_thread_of_another_cpu_stands_still_without_its_sc(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let (ec, sc) = w.thread(cpu, LOW, count, 0)?;
    w.until("the thread counts", || value(0) > 100)?;
    call(Revoke, sc, [1]).done()?;
    let last = value(0);
    w.sleep(2000);
    equal("it counts on", value(0), last)?;
    w.sc(ec, LOW)?;
    w.until("the thread counts again", || value(0) > last)
}

extern "C" fn read_always(address: u64) -> ! {
    loop {
        // SAFETY: a page of the test; that it vanishes is the point, and ends the thread.
        board(1).store(unsafe { (address as *const u64).read_volatile() }, Ordering::Relaxed);
        board(0).fetch_add(1, Ordering::Release);
    }
}

extern "C" fn write_always(address: u64) -> ! {
    loop {
        // SAFETY: as in `read_always`.
        unsafe { (address as *mut u64).write_volatile(1) };
        board(0).fetch_add(1, Ordering::Release);
    }
}

/// `take_away` must stop a thread on another CPU that uses `address` before it returns.
fn stops(
    w: &mut World,
    body: extern "C" fn(u64) -> !,
    address: u64,
    take_away: impl FnOnce() -> Check,
) -> Check {
    board(0).store(0, Ordering::Relaxed);
    let cpu = w.other_cpu();
    let (ec, _) = w.thread(cpu, LOW, body, address)?;
    w.until("the thread uses the page", || value(0) > 100)?;
    equal("no fault", threads::fault_of(ec)?, None)?;
    take_away()?;
    let uses = value(0);
    w.until("the thread faults", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
    let fault = threads::fault_of(ec)?.map(|fault| (fault.vector, fault.address));
    equal("fault", fault, Some((14, address)))?;
    // The access that was over may still have been counted.
    holds("no use afterwards", value(0) <= uses + 1)
}

fn a_page_that_another_cpu_reads_is_gone_when_revoke_returns(w: &mut World) -> Check {
    for _ in 0..20 {
        w.scoped(20, |w| {
            let memory = w.ram(1)?;
            let address = w.view(memory, 1)?;
            stops(w, read_always, address, || call(Revoke, memory, [0]).done())
        })?;
    }
    Ok(())
}

fn a_page_that_another_cpu_writes_becomes_read_only(w: &mut World) -> Check {
    let memory = w.ram(1)?;
    let address = w.addresses(1);
    call(Map, memory, [PD, address, 0, 1, 3]).gives([1, 0, 0])?;
    stops(w, write_always, address, || call(Map, memory, [PD, address, 0, 1, 1]).gives([1, 0, 0]))
}

fn part_of_a_large_page_that_another_cpu_reads_goes(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let memory = w.large_ram(1536)?;
    let base = 0x4000_0000;
    call(Map, memory, [child.pd, base, 0, 1536, 1]).gives([1536, 0, 0])?;
    let address = base + 700 * PAGE;
    let cpu = w.other_cpu();
    let (ec, _) = w.child_thread(&child, (cpu, LOW, 0), read_always as *const () as u64, address)?;
    w.until("the child reads", || value(0) > 100)?;
    call(Unmap, memory, [700, 1]).gives([1, 0, 0])?;
    let uses = value(0);
    w.until("the child faults", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
    holds("no use afterwards", value(0) <= uses + 1)
}

fn a_waiter_on_another_cpu_is_aborted(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    for _ in 0..10 {
        w.scoped(20, |w| {
            let sm = w.sm(0)?;
            let waiter = w.begin((cpu, HIGH), Wait, sm, [FOREVER])?;
            call(Revoke, sm, [1]).done()?;
            let answer = w.answer(&waiter)?;
            // It may not have begun to wait, or even to look: the root of what is ending has no rights, then it goes.
            let status = answer.status();
            holds("aborted, or nothing there", matches!(status, Some(Aborted | BadRights | BadSelector)))
        })?;
    }
    Ok(())
}

/// Waits on a semaphore again and again, whether it is there or not.
extern "C" fn wait_always(sm: u64) -> ! {
    loop {
        // In some hours: the work of a deadline is what the end of the semaphore is to meet.
        call(Wait, sm, [usys::cpu::now() + (1 << 44)]);
        board(0).fetch_add(1, Ordering::Release);
    }
}

fn nobody_begins_to_wait_for_what_is_ending(w: &mut World) -> Check {
    let (sm, cpu) = (w.sel(), w.other_cpu());
    w.thread(cpu, LOW, wait_always, sm)?;
    for round in 0..200 {
        call(CreateSm, sm, [w.pool, 0]).done()?;
        // Its end meets each instruction of a call on the other CPU, sooner or later.
        for _ in 0..round % 100 {
            core::hint::spin_loop();
        }
        let before = value(0);
        call(Revoke, sm, [1]).done()?;
        w.until("the thread's wait ends", || value(0) > before)?;
    }
    Ok(())
}

/// Creates and revokes in a loop: RDI has the pool and the first of eight selectors.
extern "C" fn churn(argument: u64) -> ! {
    let (pool, first, counter) = (argument & 0xffff, argument >> 16 & 0xffff, (argument >> 32) as usize);
    loop {
        let mut status = call(CreateSm, first, [pool, 0]).status;
        status |= call(Derive, first, [0, first + 1, 0xffff]).status;
        status |= call(Derive, first + 1, [0, first + 2, 0xffff]).status;
        status |= call(CreatePd, first + 3, [pool]).status;
        status |= call(Derive, first + 1, [first + 3, 77, 0xffff]).status;
        status |= call(CreateEc, first + 4, [pool, first + 3, 0, 0x1000, 0x1000]).status;
        status |= call(CreateSc, first + 5, [pool, first + 4, 1, 1000, 1000]).status;
        status |= call(Revoke, first + 1, [1]).status;
        status |= call(Revoke, first + 3, [1]).status;
        status |= call(Revoke, first, [1]).status;
        if status != 0 {
            board(1).store(status, Ordering::Relaxed);
        }
        board(counter).fetch_add(1, Ordering::Relaxed);
    }
}

fn every_cpu_creates_and_revokes_at_once(w: &mut World) -> Check {
    let pool = w.sub_pool(256)?;
    for cpu in 0..w.info.cpu_count {
        let first = w.sels(8);
        w.thread(cpu, LOW, churn, pool | first << 16 | (2 + u64::from(cpu)) << 32)?;
    }
    // Each revocation waits for every CPU, which an emulator on a busy host may not have running.
    for cpu in 0..w.info.cpu_count {
        w.until("each CPU makes progress", || value(2 + usize::from(cpu)) > 5)?;
    }
    equal("statuses", value(1), 0)?;
    call(Revoke, pool, [1]).done()
}

extern "C" fn derive_always(argument: u64) -> ! {
    let (source, to) = (argument & 0xffff, argument >> 16);
    loop {
        let answer = call(Derive, source, [0, to, 0xffff]);
        if answer.status == 0 {
            board(0).fetch_add(1, Ordering::Relaxed);
            call(Revoke, to, [1]);
        }
    }
}

fn every_cpu_derives_from_one_capability_that_is_revoked(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    let middle = w.sel();
    for cpu in 1..w.info.cpu_count {
        let to = w.sel();
        w.thread(cpu, LOW, derive_always, middle | to << 16)?;
    }
    for _ in 0..200 {
        call(Derive, sm, [0, middle, 0xffff]).done()?;
        for _ in 0..50 {
            core::hint::spin_loop();
        }
        call(Revoke, sm, [0]).done()?;
        call(CapInfo, middle, []).fails(BadSelector)?;
    }
    Ok(())
}

extern "C" fn signal_always(sm: u64) -> ! {
    for _ in 0..1000 {
        call(Signal, sm, []);
    }
    board(0).fetch_add(1, Ordering::Release);
    threads::park()
}

fn signals_from_every_cpu_are_counted(w: &mut World) -> Check {
    let sm = w.sm(0)?;
    for cpu in 0..w.info.cpu_count {
        w.thread(cpu, LOW, signal_always, sm)?;
    }
    for _ in 0..u64::from(w.info.cpu_count) * 1000 {
        call(Wait, sm, [w.deadline(5_000_000)]).gives([1, 0, 0])?;
    }
    call(Wait, sm, [NOW]).fails(Timeout)
}

extern "C" fn wait_in_call(words: &mut [u64; 8]) {
    board(0).fetch_add(1, Ordering::Relaxed);
    call(Wait, words[0], [FOREVER]);
}

fn a_call_in_progress_on_another_cpu_is_aborted(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let (handler, sm) = (w.handler(cpu)?, w.sm(0)?);
    let portal = w.portal(handler, wait_in_call)?;
    let served = w.begin((cpu, HIGH), Hypercall::Call, portal, [sm])?;
    w.until("the handler waits", || value(0) == 1)?;
    let queued = w.begin((cpu, HIGH), Hypercall::Call, portal, [sm])?;
    w.sleep(1000);
    call(Revoke, handler, [1]).done()?;
    for caller in [served, queued] {
        let status = w.answer(&caller)?.status();
        let is_over = matches!(status, Some(Aborted | BadRights | BadSelector));
        holds("aborted, or the portal is going or gone", is_over)?;
    }
    Ok(())
}

fn a_fault_on_another_cpu_is_signalled(w: &mut World) -> Check {
    let cpu = w.other_cpu();
    let fault = w.fault_at(cpu, 0x1000, 0)?;
    equal("fault", (fault.vector, fault.rip, fault.address), (14, 0x1000, 0x1000))
}
