//! I/O ports.

use super::{Group, Needs, group};
use crate::child::Child;
use crate::layout::PORTS;
use crate::prelude::*;
use crate::threads::{self, Fault, HIGH, LOW};
use crate::world::board;
use core::arch::asm;
use core::sync::atomic::Ordering;

pub(super) const GROUP: Group = group!(
    "ports",
    Needs::Nothing => [
        a_port_is_open_to_whom_it_was_mapped,
        mapping_ports_checks_its_arguments,
        revoked_ports_fault,
        revoked_ports_fault_in_a_thread_that_is_using_them,
        ports_of_one_domain_are_closed_to_another,
        wide_accesses_need_every_port,
        the_last_port_does_not_reach_beyond_the_bitmap,
        a_port_capability_is_mapped_into_one_domain,
    ],
    Needs::Cpus(2) => [revoked_ports_fault_on_another_cpu],
);

/// Ports without side effects: delay port, and PIC-free neighbours of the DMA page registers.
const SCRATCH_PORT: u64 = 0x84;

extern "C" fn read_once(port: u64) -> ! {
    read(port);
    board(0).fetch_add(1, Ordering::Release);
    threads::park()
}

extern "C" fn read_always(port: u64) -> ! {
    loop {
        read(port);
        board(0).fetch_add(1, Ordering::Release);
    }
}

extern "C" fn read_word(port: u64) -> ! {
    // SAFETY: reads a port; the kernel checks whether that is allowed.
    unsafe { asm!("in ax, dx", in("dx") port as u16, out("ax") _, options(nomem, nostack)) };
    board(0).fetch_add(1, Ordering::Release);
    threads::park()
}

fn read(port: u64) {
    // SAFETY: as in `read_word`.
    unsafe { asm!("in al, dx", in("dx") port as u16, out("al") _, options(nomem, nostack)) };
}

/// Runs `body` in a child until it faults or, `true`, counts.
#[track_caller]
fn succeeds(w: &mut World, child: &Child, body: extern "C" fn(u64) -> !, port: u64) -> Seen<bool> {
    board(0).store(0, Ordering::Relaxed);
    let (ec, _) = w.child_thread(child, (0, HIGH, 0), body as *const () as u64, port)?;
    let is_over = || board(0).load(Ordering::Acquire) > 0 || threads::fault_of(ec).is_ok_and(|f| f.is_some());
    w.until("the child reads the port or faults", is_over)?;
    let fault = threads::fault_of(ec)?;
    call(Revoke, ec, [1]).done()?;
    match fault {
        None => Ok(true),
        Some(Fault { vector: 13, .. }) => Ok(false),
        Some(other) => Err(Failure::new("fault", other, 13)),
    }
}

fn a_port_is_open_to_whom_it_was_mapped(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let ports = w.part(PORTS, SCRATCH_PORT, 2)?;
    equal("before", succeeds(w, &child, read_once, SCRATCH_PORT)?, false)?;
    call(Map, ports, [child.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    equal("mapped", succeeds(w, &child, read_once, SCRATCH_PORT)?, true)?;
    equal("beside", succeeds(w, &child, read_once, SCRATCH_PORT + 1)?, false)?;
    equal("below", succeeds(w, &child, read_once, SCRATCH_PORT - 1)?, false)?;
    call(Map, ports, [child.pd, 0, 1, 1, 0]).gives([1, 0, 0])?;
    equal("both", succeeds(w, &child, read_once, SCRATCH_PORT + 1)?, true)?;
    call(Unmap, ports, [0, 2]).gives([2, 0, 0])?;
    equal("unmapped", succeeds(w, &child, read_once, SCRATCH_PORT)?, false)
}

fn mapping_ports_checks_its_arguments(w: &mut World) -> Check {
    let pd = w.pd()?;
    let ports = w.part(PORTS, SCRATCH_PORT, 4)?;
    for arguments in [
        [pd, 0, 0, 0, 0],
        [pd, 0, 0, 5, 0],
        [pd, 0, 4, 1, 0],
        [pd, 0, u64::MAX, 1, 0],
        [pd, 0x1000, 0, 1, 0],
        [pd, 0, 0, 1, 1],
        [pd, 0, 0, 1, 1 << 8],
    ] {
        call(Map, ports, arguments).fails(BadArgument)?;
    }
    for port in [0x20, 0x21, 0xa0, 0xa1] {
        let kept = w.part(PORTS, port - 1, 3)?;
        call(Map, kept, [pd, 0, 0, 3, 0]).fails(BadArgument)?;
        call(Map, kept, [pd, 0, 1, 1, 0]).fails(BadArgument)?;
    }
    let weak = w.without(ports, Rights::USE)?;
    call(Map, weak, [pd, 0, 0, 1, 0]).fails(BadRights)?;
    let no_map = w.without(pd, Rights::PD_MAP)?;
    call(Map, ports, [no_map, 0, 0, 1, 0]).fails(BadRights)?;
    let sm = w.sm(0)?;
    call(Map, ports, [sm, 0, 0, 1, 0]).fails(BadType)?;
    call(Unmap, ports, [0, 4]).fails(Unbound)?;
    // A part is never unmapped.
    call(Map, ports, [pd, 0, 0, 4, 0]).gives([4, 0, 0])?;
    call(Unmap, ports, [0, 3]).fails(BadArgument)?;
    call(Unmap, ports, [0, 4]).gives([4, 0, 0])
}

fn revoked_ports_fault(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    for _ in 0..5 {
        let ports = w.part(PORTS, SCRATCH_PORT, 1)?;
        call(Map, ports, [child.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
        equal("open", succeeds(w, &child, read_once, SCRATCH_PORT)?, true)?;
        call(Revoke, ports, [1]).done()?;
        equal("revoked", succeeds(w, &child, read_once, SCRATCH_PORT)?, false)?;
    }
    Ok(())
}

fn use_and_revoke(w: &mut World, cpu: u16) -> Check {
    let child = w.child(64, 1)?;
    let ports = w.part(PORTS, SCRATCH_PORT, 1)?;
    call(Map, ports, [child.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    let (ec, _) = w.child_thread(&child, (cpu, LOW, 0), read_always as *const () as u64, SCRATCH_PORT)?;
    w.until("the child reads", || board(0).load(Ordering::Acquire) > 20)?;
    equal("no fault", threads::fault_of(ec)?, None)?;
    call(Revoke, ports, [1]).done()?;
    let reads = board(0).load(Ordering::Acquire);
    w.until("the child faults", || threads::fault_of(ec).is_ok_and(|fault| fault.is_some()))?;
    // The read that was on its way may still have been counted.
    holds("no read afterwards", board(0).load(Ordering::Acquire) <= reads + 1)?;
    equal("vector", threads::fault_of(ec)?.map(|fault| fault.vector), Some(13))
}

fn revoked_ports_fault_in_a_thread_that_is_using_them(w: &mut World) -> Check {
    use_and_revoke(w, 0)
}

fn revoked_ports_fault_on_another_cpu(w: &mut World) -> Check {
    (0..10).try_for_each(|_| {
        board(0).store(0, Ordering::Relaxed);
        w.scoped(200, |w| {
            let cpu = w.other_cpu();
            use_and_revoke(w, cpu)
        })
    })
}

fn ports_of_one_domain_are_closed_to_another(w: &mut World) -> Check {
    let (with, without, other) = (w.child(64, 1)?, w.child(64, 1)?, w.child(64, 1)?);
    let (first, second) = (w.part(PORTS, SCRATCH_PORT, 1)?, w.part(PORTS, SCRATCH_PORT + 1, 1)?);
    call(Map, first, [with.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    call(Map, second, [other.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    for _ in 0..3 {
        equal("with", succeeds(w, &with, read_once, SCRATCH_PORT)?, true)?;
        equal("without", succeeds(w, &without, read_once, SCRATCH_PORT)?, false)?;
        equal("other", succeeds(w, &other, read_once, SCRATCH_PORT)?, false)?;
        equal("other's own", succeeds(w, &other, read_once, SCRATCH_PORT + 1)?, true)?;
        equal("not with", succeeds(w, &with, read_once, SCRATCH_PORT + 1)?, false)?;
    }
    Ok(())
}

fn wide_accesses_need_every_port(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let ports = w.part(PORTS, SCRATCH_PORT, 2)?;
    call(Map, ports, [child.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    equal("one of two", succeeds(w, &child, read_word, SCRATCH_PORT)?, false)?;
    call(Map, ports, [child.pd, 0, 0, 2, 0]).gives([2, 0, 0])?;
    equal("both", succeeds(w, &child, read_word, SCRATCH_PORT)?, true)
}

fn the_last_port_does_not_reach_beyond_the_bitmap(w: &mut World) -> Check {
    let child = w.child(64, 1)?;
    let ports = w.part(PORTS, 0xffff, 1)?;
    call(Map, ports, [child.pd, 0, 0, 1, 0]).gives([1, 0, 0])?;
    equal("a byte", succeeds(w, &child, read_once, 0xffff)?, true)?;
    equal("a word", succeeds(w, &child, read_word, 0xffff)?, false)
}

fn a_port_capability_is_mapped_into_one_domain(w: &mut World) -> Check {
    let (a, b) = (w.pd()?, w.pd()?);
    let ports = w.part(PORTS, SCRATCH_PORT, 1)?;
    call(Map, ports, [a, 0, 0, 1, 0]).gives([1, 0, 0])?;
    call(Map, ports, [b, 0, 0, 1, 0]).fails(Occupied)?;
    call(Unmap, ports, [0, 1]).gives([1, 0, 0])?;
    call(Map, ports, [b, 0, 0, 1, 0]).gives([1, 0, 0])?;
    // A domain whose pool has no frames for the bitmap.
    let (pool, poor) = (w.sub_pool(3)?, w.sel());
    call(CreatePd, poor, [pool]).done()?;
    let other = w.part(PORTS, SCRATCH_PORT, 1)?;
    call(Map, other, [poor, 0, 0, 1, 0]).fails(NoMemory)
}
