//! vCPU pages with random contents.

use super::{Group, Needs, group};
use crate::emulator::is_bochs_svm;
use crate::guest::Guest;
use crate::prelude::*;
use crate::tests::fuzz::Random;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{Groups, VcpuPage};

pub(super) const GROUP: Group = group!(
    "random vCPU pages",
    Needs::Guests => [
        ten_thousand_random_pages_do_no_harm,
        ten_thousand_runs_with_a_few_bad_fields_do_no_harm,
        a_page_that_changes_while_it_is_read_does_no_harm,
    ],
);

const RUNS: u64 = 10_000;
const PAGE_WORDS: u64 = size_of::<VcpuPage>() as u64 / 8;

/// Puts random words into the guest's memory: its code.
fn scatter(guest: &mut Guest, random: &mut Random) {
    for index in 0..256 {
        let word = random.draw();
        guest.write(0x1000 + index * 8, &word.to_le_bytes());
    }
}

fn words(guest: &mut Guest) -> &mut [u64] {
    let page: *mut VcpuPage = guest.page();
    // SAFETY: the page is mapped, and borrowed from the guest for as long as the slice lives.
    unsafe { core::slice::from_raw_parts_mut(page.cast(), PAGE_WORDS as usize) }
}

/// Runs for at most some µs. Any answer is fine but one that the contract does not have.
#[track_caller]
fn run(w: &World, guest: &mut Guest) -> Check {
    guest.page().deadline = w.deadline(30);
    let answer = guest.run();
    let kind = answer.value()?;
    holds("a known exit", ExitKind::from_raw(kind as u32).is_some())
}

fn ten_thousand_random_pages_do_no_harm(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let mut random = Random::new(1);
    for round in 0..RUNS {
        if round % 64 == 0 {
            scatter(&mut guest, &mut random);
        }
        for word in words(&mut guest) {
            *word = random.interesting();
        }
        // Without one of these the random is never looked at.
        let page = guest.page();
        if round % 3 == 0 {
            page.activity = 0;
        }
        page.dirty = random.draw() as u32;
        run(w, &mut guest)?;
        if round % 16 == 0 {
            call(VcpuRead, guest.vcpu, [random.draw() & 0x1fff]).done()?;
        }
    }
    works(&mut guest)
}

fn ten_thousand_runs_with_a_few_bad_fields_do_no_harm(w: &mut World) -> Check {
    if is_bochs_svm() {
        return Ok(());
    }
    let mut guest = Guest::new(w)?;
    let mut random = Random::new(2);
    for round in 0..RUNS {
        if round % 64 == 0 {
            scatter(&mut guest, &mut random);
        }
        guest.protected();
        for _ in 0..random.below(4) {
            let (index, value) = (random.below(PAGE_WORDS / 8 + 8), random.interesting());
            words(&mut guest)[index as usize] = value;
        }
        if random.below(4) == 0 {
            // Real mode, or paging with tables of noise.
            let page = guest.page();
            page.cr0 = [0x30, 0x8000_0031, 0x8001_0031, 0x31][random.below(4) as usize];
            page.cr4 = [0, 0x10, 0x20, 0x30][random.below(4) as usize];
            page.cr3 = random.below(32) << 12;
        }
        guest.page().dirty = Groups::all().bits();
        run(w, &mut guest)?;
    }
    works(&mut guest)
}

/// The vCPU is still good for a guest that does as it is told.
fn works(guest: &mut Guest) -> Check {
    guest.protected();
    guest.code(&[0x90, 0xf4]);
    // A poke may be left over.
    call(VcpuPoke, guest.vcpu, []).done()?;
    guest.run_to(ExitKind::Poked)?;
    guest.run_to(ExitKind::Hlt)
}

/// Writes noise into the page again and again: RDI has its address.
extern "C" fn disturb(page: u64) -> ! {
    let mut random = Random::new(3);
    loop {
        let index = random.below(PAGE_WORDS / 8 + 8);
        // SAFETY: a page that the test mapped; whoever reads it expects anything.
        unsafe { ((page + index * 8) as *mut u64).write_volatile(random.interesting()) };
    }
}

fn a_page_that_changes_while_it_is_read_does_no_harm(w: &mut World) -> Check {
    if is_bochs_svm() {
        return Ok(());
    }
    let mut guest = Guest::new(w)?;
    let cpu = w.other_cpu();
    let page = guest.page_address();
    // On another CPU if there is one; else as an equal, which comes between two runs.
    let priority = if cpu == 0 { crate::run::PRIORITY } else { crate::threads::LOW };
    let (ec, _) = w.thread(cpu, priority, disturb, page)?;
    for _ in 0..RUNS / 4 {
        guest.protected();
        guest.page().deadline = w.deadline(30);
        // The disturber may write a deadline that never comes: then a poke ends the run.
        call(VcpuPoke, guest.vcpu, []).done()?;
        guest.run().ok()?;
        if cpu == 0 {
            call(Yield, 0, []);
        } else {
            run_with_help(w, &mut guest)?;
        }
    }
    call(Revoke, ec, [1]).done()?;
    works(&mut guest)
}

/// A run whose deadline may be anything.
fn run_with_help(w: &mut World, guest: &mut Guest) -> Check {
    w.scoped(12, |w| {
        let vcpu = guest.vcpu;
        w.thread(0, crate::threads::HIGH, poke_later, vcpu)?;
        guest.run().ok().map(drop)
    })
}

/// Pokes the vCPU until it is ended.
extern "C" fn poke_later(vcpu: u64) -> ! {
    loop {
        call(Wait, crate::layout::SLEEP, [usys::cpu::now() + 100_000]);
        call(VcpuPoke, vcpu, []);
    }
}
