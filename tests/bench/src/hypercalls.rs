//! Hypercalls that one thread makes.

use crate::error::Result;
use crate::report::Report;
use crate::stopwatch::{self, Mode, Timed};
use alloc::vec::Vec;
use bench_protocol::Summary;
use root_task::memory::FreeMemory;
use usys::abi::cap::MapFlags;
use usys::abi::{Hypercall, PAGE_SIZE, Rights, Selector};
use usys::cap::{Cap, Memory, Narrow, Sm};
use usys::{process, selector};

/// Where pages are mapped for the measurement; nothing else is there.
const PLAYGROUND: u64 = 0x600_0000_0000;
/// Revocations, and how many mappings each ends.
const REVOKE: [(&str, usize); 5] =
    [("revoke.1", 1), ("revoke.4", 4), ("revoke.16", 16), ("revoke.64", 64), ("revoke.256", 256)];
/// Pages of one page table.
const TABLE_PAGES: u64 = 512;

/// Measures them all.
pub fn measure(report: &Report, memory: &mut FreeMemory, overhead: u64) {
    report.measure("hypercall.null", || null(overhead));
    report.measure("hypercall.bad_number", || bad_number(overhead));
    report.measure("sm.signal", || signal(overhead));
    report.measure("sm.wait", || wait(overhead));
    report.measure("sm.create", || create(overhead));
    if report.wants("map.4k") || report.wants("unmap.4k") {
        Report::begin("map.4k");
        let [map, unmap] = match map_and_unmap(memory, overhead) {
            Ok([map, unmap]) => [Ok(map), Ok(unmap)],
            Err(failure) => [Err(failure.clone()), Err(failure)],
        };
        report.say("map.4k", map);
        report.say("unmap.4k", unmap);
    }
    for (op, mappings) in REVOKE {
        report.measure(op, || revoke(op, memory, mappings, overhead));
    }
}

/// A valid number, and one capability that is looked up.
fn null(overhead: u64) -> Result<Summary> {
    let call = Timed::new(Hypercall::CapInfo, process::selector::PD, &[]);
    // SAFETY: reads only.
    stopwatch::sample("hypercall.null", overhead, |mode| unsafe { Ok(call.expect(mode)?.ticks) })
}

/// A number that no hypercall has.
fn bad_number(overhead: u64) -> Result<Summary> {
    let call = Timed::nothing();
    // SAFETY: the kernel refuses it.
    stopwatch::sample("hypercall.bad_number", overhead, |mode| unsafe { Ok(call.execute(mode).ticks) })
}

fn new_semaphore() -> Result<Cap<Sm>> {
    Ok(process::pool().create_sm(selector::allocate()?, 0)?)
}

/// Nobody waits.
fn signal(overhead: u64) -> Result<Summary> {
    let call = Timed::new(Hypercall::Signal, new_semaphore()?.selector(), &[]);
    // SAFETY: touches no memory.
    stopwatch::sample("sm.signal", overhead, |mode| unsafe { Ok(call.expect(mode)?.ticks) })
}

/// The count is above zero.
fn wait(overhead: u64) -> Result<Summary> {
    let semaphore = new_semaphore()?;
    let call = Timed::new(Hypercall::Wait, semaphore.selector(), &[u64::MAX]);
    stopwatch::sample("sm.wait", overhead, |mode| {
        semaphore.up()?;
        // SAFETY: touches no memory.
        unsafe { Ok(call.expect(mode)?.ticks) }
    })
}

/// The table of the object space for the selector is there.
fn create(overhead: u64) -> Result<Summary> {
    let to = selector::allocate()?;
    let call = Timed::new(Hypercall::CreateSm, to, &[process::selector::POOL.0.into(), 0]);
    stopwatch::sample("sm.create", overhead, |mode| {
        // SAFETY: creates an object that nobody knows.
        let ticks = unsafe { call.expect(mode) }?.ticks;
        Cap::<Sm>::new(to).delete()?;
        Ok(ticks)
    })
}

/// One page of user memory, through a capability of which other pages are mapped: the tables are there.
fn map_and_unmap(memory: &mut FreeMemory, overhead: u64) -> Result<[Summary; 2]> {
    let pages = memory.allocate(TABLE_PAGES, 1)?;
    let rights = Rights::READ | Rights::WRITE;
    let source: Cap<Memory> = pages.memory().derive(selector::allocate()?, Narrow::rights(rights))?;
    let flags = MapFlags::READ | MapFlags::WRITE;
    source.map(process::pd(), PLAYGROUND, 0, 1, flags)?;
    // A page that no large page can hold together with its neighbours, as they are not mapped.
    let page = 7;
    let to = source.selector();
    let map = [process::selector::PD.0.into(), PLAYGROUND + page * PAGE_SIZE, page, 1, flags.bits().into()];
    let (map, unmap) = (Timed::new(Hypercall::Map, to, &map), Timed::new(Hypercall::Unmap, to, &[page, 1]));
    // SAFETY: nothing else is at these addresses.
    let run = |call: &Timed, mode: Mode| unsafe { call.expect(mode) }.map(|outcome| outcome.ticks);
    let map_summary = stopwatch::sample("map.4k", overhead, |mode| {
        let ticks = run(&map, mode)?;
        run(&unmap, Mode::Timed)?;
        Ok(ticks)
    })?;
    let unmap_summary = stopwatch::sample("unmap.4k", overhead, |mode| {
        run(&map, Mode::Timed)?;
        run(&unmap, mode)
    })?;
    source.delete()?;
    selector::release(to);
    memory.free(pages);
    Ok([map_summary, unmap_summary])
}

/// Everything that was derived from a capability: so many children, each of which maps one page.
fn revoke(op: &str, memory: &mut FreeMemory, mappings: usize, overhead: u64) -> Result<Summary> {
    let pages = memory.allocate(TABLE_PAGES, 1)?;
    let rights = Rights::READ | Rights::WRITE;
    let flags = MapFlags::READ | MapFlags::WRITE;
    // One page stays mapped, so that the tables stay.
    let anchor: Cap<Memory> = pages.memory().derive(selector::allocate()?, Narrow::rights(rights))?;
    let last = TABLE_PAGES - 1;
    anchor.map(process::pd(), PLAYGROUND + last * PAGE_SIZE, last, 1, flags)?;
    let parent = pages.memory().derive(selector::allocate()?, Narrow::rights(rights | Rights::DERIVE))?;
    let children: Vec<Selector> = (0..mappings).map(|_| selector::allocate()).collect::<usys::Result<_>>()?;
    let call = Timed::new(Hypercall::Revoke, parent.selector(), &[0]);
    let summary = stopwatch::sample(op, overhead, |mode| {
        for (page, &to) in (0..).zip(&children) {
            let child = parent.derive(to, Narrow::rights(rights).range(page, 1))?;
            child.map(process::pd(), PLAYGROUND + page * PAGE_SIZE, 0, 1, flags)?;
        }
        // SAFETY: nobody refers to what is mapped there.
        unsafe { Ok(call.expect(mode)?.ticks) }
    });
    for to in children.into_iter().chain([parent.selector(), anchor.selector()]) {
        let _ = Cap::<Memory>::new(to).delete();
        selector::release(to);
    }
    memory.free(pages);
    summary
}
