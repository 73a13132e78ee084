//! The trace: who may have a CPU's events recorded, and what the records say.

use super::{Group, Needs, group};
use crate::guest::Guest;
use crate::layout::{PD, RUNNER_EC, TRACE};
use crate::prelude::*;
use crate::threads;
use alloc::vec::Vec;
use hypercall_abi::boot_info::RegionKind;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::trace::{Kind, RECORD_BYTES, Record};
use hypercall_abi::{Hypercall, Status};

/// These tests.
pub const GROUP: Group = group!(
    "the trace",
    Needs::Nothing => [
        a_ring_needs_a_trace_capability_and_memory_that_is_read_and_written,
        a_cpu_has_one_ring_which_goes_as_a_whole,
        a_number_tells_threads_apart,
        records_say_who_called_what_and_when,
        a_full_ring_goes_on_from_its_beginning,
        nothing_is_recorded_once_the_memory_is_unmapped_or_revoked,
        a_fault_is_recorded,
        calls_give_the_same_whether_they_are_recorded_or_not,
    ],
    Needs::Cpus(2) => [
        each_cpu_has_its_own_ring,
        part_of_a_trace_is_for_part_of_the_cpus,
    ],
    Needs::Guests => [
        runs_of_a_guest_are_recorded_with_their_exits,
        a_guest_that_ran_before_is_recorded_as_well,
    ],
);

const RING: u64 = BindRole::TraceRing as u64;

/// Memory that a CPU records into, and where the test sees it.
struct Ring {
    memory: Sel,
    at: u64,
    pages: u64,
}

impl Ring {
    #[track_caller]
    fn new(w: &mut World, pages: u64) -> Seen<Ring> {
        let memory = w.ram(pages)?;
        let ring = Ring { memory, at: w.view(memory, pages)?, pages };
        ring.clear();
        Ok(ring)
    }

    fn clear(&self) {
        // SAFETY: mapped, and nothing refers to it.
        unsafe { (self.at as *mut u8).write_bytes(0, (self.pages * PAGE) as usize) };
    }

    #[track_caller]
    fn start(&self, cpu: u16) -> Check {
        call(Bind, TRACE, [self.memory, RING, cpu.into()]).done()
    }

    #[track_caller]
    fn stop(&self) -> Check {
        call(Unmap, self.memory, [0, self.pages]).gives([self.pages, 0, 0])
    }

    /// All records, oldest first.
    fn records(&self) -> Vec<Record> {
        let count = (self.pages * PAGE) as usize / RECORD_BYTES;
        let mut records: Vec<Record> = (0..count)
            // SAFETY: inside of what is mapped; the kernel may write at the same time.
            .map(|index| unsafe { (self.at as *const Record).add(index).read_volatile() })
            .filter(|record| record.tsc != 0)
            .collect();
        let oldest = records.windows(2).position(|pair| pair[0].tsc > pair[1].tsc).map_or(0, |last| last + 1);
        records.rotate_left(oldest);
        records
    }
}

#[track_caller]
fn number_of(ec: Sel) -> Seen<u64> {
    let [stopped, rip, number] = call(EcInfo, ec, []).ok()?;
    equal("a thread that goes on", (stopped, rip), (0, 0))?;
    Ok(number)
}

fn is_call(record: &Record, call: Hypercall, selector: Sel) -> bool {
    record.kind() == Some(Kind::Hypercall)
        && (record.first(), u64::from(record.second())) == (call as u8, selector)
}

#[track_caller]
fn are_in_order(records: &[Record]) -> Check {
    holds("times do not run backwards", records.windows(2).all(|pair| pair[0].tsc <= pair[1].tsc))?;
    holds("every record has a kind", records.iter().all(|record| record.kind().is_some()))
}

fn a_ring_needs_a_trace_capability_and_memory_that_is_read_and_written(w: &mut World) -> Check {
    let (memory, sm) = (w.ram(1)?, w.sm(0)?);
    call(Bind, sm, [memory, RING, 0]).fails(BadType)?;
    call(Bind, TRACE, [sm, RING, 0]).fails(BadType)?;
    let weak = w.without(TRACE, Rights::USE)?;
    call(Bind, weak, [memory, RING, 0]).fails(BadRights)?;
    for right in [Rights::READ, Rights::WRITE] {
        let weak = w.without(memory, right)?;
        call(Bind, TRACE, [weak, RING, 0]).fails(BadRights)?;
    }
    for cpu in [w.info.cpu_count.into(), 64, 1 << 32, u64::MAX] {
        call(Bind, TRACE, [memory, RING, cpu]).fails(BadArgument)?;
    }
    let regions = &w.info.regions[..w.info.region_count as usize];
    if let Some(device) = regions.iter().find(|region| region.kind == RegionKind::Device as u32) {
        let page = w.part(device.selector.into(), 0, 1)?;
        call(Bind, TRACE, [page, RING, 0]).fails(BadArgument)?;
    }
    Ok(())
}

fn a_cpu_has_one_ring_which_goes_as_a_whole(w: &mut World) -> Check {
    let (memory, other) = (w.ram(2)?, w.ram(1)?);
    let at = w.addresses(2);
    call(Unmap, memory, [0, 2]).fails(Unbound)?;
    call(Bind, TRACE, [memory, RING, 0]).done()?;
    call(Bind, TRACE, [memory, RING, 0]).fails(Occupied)?;
    call(Bind, TRACE, [other, RING, 0]).fails(Occupied)?;
    call(Map, memory, [PD, at, 0, 2, 1]).fails(Occupied)?;
    call(Unmap, memory, [1, 1]).fails(BadArgument)?;
    call(Unmap, memory, [0, 2]).gives([2, 0, 0])?;
    call(Map, memory, [PD, at, 0, 2, 1]).gives([2, 0, 0])?;
    call(Bind, TRACE, [memory, RING, 0]).fails(Occupied)?;
    // The end of the memory capability is the end of the ring.
    call(Bind, TRACE, [other, RING, 0]).done()?;
    call(Revoke, other, [1]).done()?;
    let third = w.ram(1)?;
    call(Bind, TRACE, [third, RING, 0]).done()?;
    call(Unmap, third, [0, 1]).gives([1, 0, 0])
}

fn a_number_tells_threads_apart(w: &mut World) -> Check {
    let (first, second) = (w.ec(0, 0x1000, 0)?, w.ec(0, 0x1000, 0)?);
    let numbers = [number_of(RUNNER_EC)?, number_of(first)?, number_of(second)?];
    holds(
        "numbers differ, and none is 0",
        numbers.windows(2).all(|pair| pair[0] != pair[1] && pair[1] != 0),
    )?;
    equal("a number stays", number_of(first)?, numbers[1])
}

fn records_say_who_called_what_and_when(w: &mut World) -> Check {
    let (ring, sm, me) = (Ring::new(w, 4)?, w.sm(5)?, number_of(RUNNER_EC)?);
    ring.start(0)?;
    let before = usys::cpu::now();
    call(Signal, sm, []).done()?;
    call(Wait, sm, [NOW]).gives([1, 0, 0])?;
    call(CapInfo, 0x1234, []).fails(BadSelector)?;
    let after = usys::cpu::now();
    ring.stop()?;
    let records = ring.records();
    are_in_order(&records)?;
    for (number, selector, status) in
        [(Signal, sm, Success), (Wait, sm, Success), (CapInfo, 0x1234, BadSelector)]
    {
        let at = records.iter().position(|record| is_call(record, number, selector));
        let at = at.ok_or_else(|| Failure::new("records", alloc::format!("no {number:?}"), "one"))?;
        let record = records[at];
        holds("it was recorded when it was made", (before..=after).contains(&record.tsc))?;
        equal("who called", u64::from(record.ec), me)?;
        let back = records[at..].iter().find(|later| later.kind() == Some(Kind::Return));
        let back = back.map(|back| (back.first(), u64::from(back.ec)));
        equal("what it came to", back, Some((status as u8, me)))?;
    }
    Ok(())
}

fn a_full_ring_goes_on_from_its_beginning(w: &mut World) -> Check {
    let (ring, sm) = (Ring::new(w, 1)?, w.sm(0)?);
    let last = w.sm(0)?;
    ring.start(0)?;
    for _ in 0..1000 {
        call(Signal, sm, []).done()?;
    }
    call(Signal, last, []).done()?;
    ring.stop()?;
    let records = ring.records();
    equal("records", records.len(), PAGE as usize / RECORD_BYTES)?;
    are_in_order(&records)?;
    let tail = &records[records.len() - 16..];
    holds("the newest call is there", tail.iter().any(|record| is_call(record, Signal, last)))
}

fn nothing_is_recorded_once_the_memory_is_unmapped_or_revoked(w: &mut World) -> Check {
    for is_revoked in [false, true] {
        for cpu in 0..w.info.cpu_count {
            let (ring, sm) = (Ring::new(w, 1)?, w.sm(0)?);
            // The memory goes with whom it was derived from; the view of it stays.
            let part = w.derive(ring.memory, Rights::ALL)?;
            call(Bind, TRACE, [part, RING, cpu.into()]).done()?;
            w.call_on(cpu, Signal, sm, [])?.done()?;
            holds("something was recorded", !ring.records().is_empty())?;
            match is_revoked {
                true => call(Revoke, part, [1]).done()?,
                false => call(Unmap, part, [0, 1]).gives([1, 0, 0])?,
            }
            ring.clear();
            w.call_on(cpu, Signal, sm, [])?.done()?;
            equal("records", ring.records().len(), 0)?;
        }
    }
    Ok(())
}

fn a_fault_is_recorded(w: &mut World) -> Check {
    let ring = Ring::new(w, 4)?;
    ring.start(0)?;
    let fault = w.fault_at(0, 0x1000, 0)?;
    ring.stop()?;
    let records = ring.records();
    let recorded = records.iter().find(|record| record.kind() == Some(Kind::Fault));
    equal("vector", recorded.map(|record| u64::from(record.first())), Some(fault.vector))
}

extern "C" fn echo(_words: &mut [u64; 8]) {}

fn calls_give_the_same_whether_they_are_recorded_or_not(w: &mut World) -> Check {
    let (ring, handler) = (Ring::new(w, 4)?, w.handler(0)?);
    let portal = w.portal(handler, echo)?;
    let words = [1 << 63, 2, 3, 4, 5, 6, 7, u64::MAX];
    let head = hypercall_abi::regs::Head::new(Hypercall::Call, hypercall_abi::Selector(portal as u32)).0;
    let plain = crate::call::syscall(head, words);
    let info = call(CapInfo, PD, []).ok()?;
    ring.start(0)?;
    let recorded = crate::call::syscall(head, words);
    let recorded_info = call(CapInfo, PD, []).ok()?;
    let made = w.sm(3)?;
    call(Wait, made, [NOW]).gives([1, 0, 0])?;
    ring.stop()?;
    equal("the reply", recorded, plain)?;
    equal("what CapInfo says", recorded_info, info)?;
    let calls = ring.records().iter().filter(|record| is_call(record, Hypercall::Call, portal)).count();
    equal("calls that were recorded", calls, 1)
}

fn each_cpu_has_its_own_ring(w: &mut World) -> Check {
    let (here, there) = (Ring::new(w, 4)?, Ring::new(w, 4)?);
    let (cpu, sm) = (w.other_cpu(), w.sm(0)?);
    let mine = w.sm(0)?;
    here.start(0)?;
    there.start(cpu)?;
    call(Signal, mine, []).done()?;
    w.call_on(cpu, Signal, sm, [])?.done()?;
    there.stop()?;
    here.stop()?;
    let has = |ring: &Ring, sm| ring.records().iter().any(|record| is_call(record, Signal, sm));
    equal("on this CPU", (has(&here, mine), has(&here, sm)), (true, false))?;
    equal("on the other", (has(&there, mine), has(&there, sm)), (false, true))?;
    are_in_order(&here.records())?;
    are_in_order(&there.records())
}

fn part_of_a_trace_is_for_part_of_the_cpus(w: &mut World) -> Check {
    let ring = Ring::new(w, 1)?;
    let cpu = w.other_cpu();
    let part = w.part(TRACE, cpu.into(), 1)?;
    call(Bind, part, [ring.memory, RING, 1]).fails(BadArgument)?;
    call(Bind, part, [ring.memory, RING, 0]).done()?;
    let sm = w.sm(0)?;
    w.call_on(cpu, Signal, sm, [])?.done()?;
    ring.stop()?;
    holds("that CPU's call is there", ring.records().iter().any(|record| is_call(record, Signal, sm)))
}

/// Runs CPUID again and again while the CPU records.
#[track_caller]
fn record_runs(w: &mut World, guest: &mut Guest) -> Check {
    let ring = Ring::new(w, 4)?;
    ring.start(0)?;
    for _ in 0..3 {
        guest.restart();
        guest.run_to(ExitKind::Cpuid)?;
    }
    ring.stop()?;
    let records = ring.records();
    are_in_order(&records)?;
    let ends = |record: &&Record| {
        record.kind() == Some(Kind::Return)
            && (u32::from(record.first()), u32::from(record.second()))
                == (Status::Success as u32, ExitKind::Cpuid as u32)
    };
    equal("exits", records.iter().filter(ends).count(), 3)?;
    let runs = records.iter().filter(|record| is_call(record, VcpuRun, guest.vcpu)).count();
    equal("runs", runs, 3)
}

fn runs_of_a_guest_are_recorded_with_their_exits(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(&[0x0f, 0xa2]);
    record_runs(w, &mut guest)
}

fn a_guest_that_ran_before_is_recorded_as_well(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(&[0x0f, 0xa2]);
    for _ in 0..2 {
        guest.restart();
        guest.run_to(ExitKind::Cpuid)?;
        record_runs(w, &mut guest)?;
    }
    let fault = threads::fault_of(RUNNER_EC)?;
    equal("faults", fault, None)
}
