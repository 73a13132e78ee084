//! Doorbells: what a guest does that signals without an exit to its VMM.

use super::{Group, Needs, group};
use crate::emulator::is_bochs_svm;
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use crate::threads::LOW;
use hypercall_abi::boot_info::Machine;
use hypercall_abi::doorbell::{Doorbell, PAGE_END};
use hypercall_abi::exit::ExitKind;
use hypercall_abi::guest::DOORBELL_CALL;
use hypercall_abi::vcpu::{Event, Store, gpr};

pub(super) const GROUP: Group = group!(
    "doorbells",
    Needs::Guests => [
        a_doorbell_call_signals_and_the_guest_goes_on,
        a_call_of_user_code_is_for_the_vmm,
        an_out_with_the_bound_size_and_value_rings,
        a_doorbell_signals_the_badge_of_its_capability,
        a_doorbell_wakes_a_thread_while_the_guest_runs,
        a_guest_that_rings_without_pause_holds_nobody_up,
        a_doorbell_ends_with_its_capability_its_signal_or_by_unmapping,
        binding_a_doorbell_checks_its_arguments,
        an_event_rings_one_doorbell,
        a_single_step_over_a_doorbell_is_for_the_vmm,
        a_full_table_refuses_and_can_be_emptied,
        a_store_that_the_vmm_decoded_rings_the_doorbell_of_its_page,
        a_store_is_for_the_vmm_when_it_is_not_what_was_decoded,
    ],
);

/// Binds a new semaphore.
pub(super) fn bind(w: &mut World, guest: &Guest, what: Doorbell) -> Seen<Sel> {
    let sm = w.sm(0)?;
    call(Bind, guest.space, [sm, what.role() as u64, what.encode()]).done()?;
    Ok(sm)
}

/// How often a semaphore was signalled since the last look.
pub(super) fn rings(sm: Sel) -> Seen<u64> {
    let mut count = 0;
    while call(Wait, sm, [NOW]).status() == Some(Success) {
        count += 1;
    }
    Ok(count)
}

/// This vendor's hypercall.
fn hypercall(w: &World) -> [u8; 3] {
    let is_svm = w.info.machine & Machine::SVM.bits() != 0;
    [0x0f, 0x01, if is_svm { 0xd9 } else { 0xc1 }]
}

const fn port(port: u16, size: u8, data: Option<u32>) -> Doorbell {
    Doorbell::Port { port, size, data }
}

fn a_doorbell_call_signals_and_the_guest_goes_on(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let call_bytes = hypercall(w);
    let mut code = [0xf4; 7];
    code[..3].copy_from_slice(&call_bytes);
    code[3..6].copy_from_slice(&call_bytes);
    guest.code(&code);
    guest.page().gpr[gpr::RAX] = DOORBELL_CALL + 0xffff;
    let sm = bind(w, &guest, Doorbell::Call(0xffff))?;
    let other = bind(w, &guest, Doorbell::Call(0))?;
    guest.run_to(ExitKind::Hlt)?;
    equal("RIP", guest.page().rip, CODE + 6)?;
    equal("RAX", guest.page().gpr[gpr::RAX], DOORBELL_CALL + 0xffff)?;
    equal("rings", (rings(sm)?, rings(other)?), (2, 0))?;
    // Other numbers are the VMM's.
    for number in [0, DOORBELL_CALL + 1, DOORBELL_CALL - 1, DOORBELL_CALL + 0x1_0000, u64::MAX] {
        guest.restart();
        guest.page().gpr[gpr::RAX] = number;
        guest.run_to(ExitKind::Hypercall)?;
        equal("RIP", guest.page().rip, CODE)?;
        equal("privilege level", guest.page().exit_info[0], 0)?;
    }
    equal("rings", (rings(sm)?, rings(other)?), (0, 0))
}

fn a_call_of_user_code_is_for_the_vmm(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let call_bytes = hypercall(w);
    guest.code(&call_bytes);
    guest.page().gpr[gpr::RAX] = DOORBELL_CALL;
    let sm = bind(w, &guest, Doorbell::Call(0))?;
    // Privilege level 3: DPL of CS and SS.
    let page = guest.page();
    for segment in &mut page.segments {
        segment.access |= 0x60;
        segment.selector |= 3;
    }
    guest.run_to(ExitKind::Hypercall)?;
    equal("privilege level", guest.page().exit_info[0], 3)?;
    equal("RIP", guest.page().rip, CODE)?;
    equal("rings", rings(sm)?, 0)
}

fn an_out_with_the_bound_size_and_value_rings(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let any = bind(w, &guest, port(0x1234, 1, None))?;
    let word = bind(w, &guest, port(0x1234, 2, Some(0xbeef)))?;
    let long = bind(w, &guest, port(0x1234, 4, Some(0xdead_beef)))?;
    guest.page().gpr[gpr::RDX] = 0x1234;
    guest.page().gpr[gpr::RAX] = 0x7777_7777_dead_beef;
    // OUT DX, AL; OUT DX, AX; OUT DX, EAX; HLT.
    guest.code(&[0xee, 0x66, 0xef, 0xef, 0xf4]);
    guest.run_to(ExitKind::Hlt)?;
    equal("RIP", guest.page().rip, CODE + 4)?;
    equal("rings", (rings(any)?, rings(word)?, rings(long)?), (1, 1, 1))?;
    // Another value, another direction, another port, a string.
    for (code, rax, rdx) in [
        (&[0x66, 0xef][..], 0xbeee, 0x1234),
        (&[0xef], 0x1_0000_beef, 0x1234),
        (&[0xec], 0, 0x1234),
        (&[0xee], 0, 0x1235),
        (&[0x6e], 0, 0x1234),
    ] {
        guest.restart();
        guest.code(code);
        guest.page().gpr[gpr::RAX] = rax;
        guest.page().gpr[gpr::RDX] = rdx;
        guest.run_to(ExitKind::PortIo)?;
        equal("RIP", guest.page().rip, CODE)?;
    }
    equal("rings", (rings(any)?, rings(word)?, rings(long)?), (0, 0, 0))
}

fn a_doorbell_signals_the_badge_of_its_capability(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let ntfn = w.ntfn()?;
    for (index, badge) in [(0u16, 0x10), (1, 0x4000_0000_0000_0000)] {
        let badged = w.sel();
        call(Derive, ntfn, [0, badged, 0xffff, 0, 0, badge]).done()?;
        let bell = port(0x80 + index, 1, None);
        call(Bind, guest.space, [badged, bell.role() as u64, bell.encode()]).done()?;
    }
    guest.code(&[0xe6, 0x80, 0xe6, 0x81, 0xf4]);
    guest.run_to(ExitKind::Hlt)?;
    call(Wait, ntfn, [NOW]).gives([0x4000_0000_0000_0010, 0, 0])
}

fn a_doorbell_wakes_a_thread_while_the_guest_runs(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let sm = bind(w, &guest, port(0x80, 1, None))?;
    // OUT 80H, AL; JMP to itself: only the doorbell can wake this thread, which is more urgent.
    guest.code(&[0xe6, 0x80, 0xeb, 0xfe]);
    let run = w.begin((0, LOW), VcpuRun, guest.vcpu, [])?;
    call(Wait, sm, [w.deadline(2_000_000)]).gives([1, 0, 0])?;
    equal("is done", run.is_done(), false)?;
    call(VcpuPoke, guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)?;
    equal("RIP", guest.page().rip, CODE + 2)
}

fn a_guest_that_rings_without_pause_holds_nobody_up(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    // The call, and a JMP back to it.
    let [first, second, third] = hypercall(w);
    guest.endless(&[first, second, third, 0xeb, 0xfb]);
    guest.page().gpr[gpr::RAX] = DOORBELL_CALL;
    let sm = bind(w, &guest, Doorbell::Call(0))?;
    // Where every entry is checked, a ring takes 100 us.
    guest.page().deadline = w.deadline(20_000);
    guest.run_to(ExitKind::Deadline)?;
    equal("it rang again and again", rings(sm)? > 10, true)?;
    // A thread that is more urgent has the CPU when its time comes.
    guest.page().deadline = u64::MAX;
    let run = w.begin((0, LOW), VcpuRun, guest.vcpu, [])?;
    let never = w.sm(0)?;
    call(Wait, never, [w.deadline(20_000)]).fails(Timeout)?;
    equal("is done", run.is_done(), false)?;
    equal("it rang meanwhile", rings(sm)? > 10, true)?;
    call(VcpuPoke, guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)
}

fn a_doorbell_ends_with_its_capability_its_signal_or_by_unmapping(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let bell = port(0x80, 1, None);
    let (role, what) = (bell.role() as u64, bell.encode());
    guest.code(&[0xe6, 0x80, 0xf4]);
    type End = fn(Sel, Sel) -> Answer;
    let ends: [End; 4] = [
        |_, derived| call(Revoke, derived, [1]),
        |sm, _| call(Revoke, sm, [0]),
        |sm, _| call(Revoke, sm, [1]),
        |_, derived| call(Unmap, derived, [0, 1]),
    ];
    for end in ends {
        let sm = w.sm(0)?;
        let derived = w.derive(sm, Rights::ALL)?;
        call(Bind, guest.space, [derived, role, what]).done()?;
        guest.restart();
        guest.run_to(ExitKind::Hlt)?;
        equal("rings", rings(sm)?, 1)?;
        end(sm, derived).ok()?;
        guest.restart();
        guest.run_to(ExitKind::PortIo)?;
    }
    // A space that ends with a doorbell leaves the capability free.
    let sm = bind(w, &guest, bell)?;
    call(Revoke, guest.space, [1]).done()?;
    call(Unmap, sm, [0, 1]).fails(Unbound)
}

fn binding_a_doorbell_checks_its_arguments(w: &mut World) -> Check {
    let guest = Guest::new(w)?;
    let sm = w.sm(0)?;
    let bell = port(0x80, 2, None);
    let (role, what) = (bell.role() as u64, bell.encode());
    for (role, what) in [
        (4, 0x1_0000),
        (4, u64::MAX),
        (5, 0x80),
        (5, 0x80 | 3 << 16),
        (5, 0x80 | 2 << 16 | 1 << 25),
        (5, 0x80 | 2 << 16 | 1 << 32),
        (5, 0x80 | 2 << 16 | 1 << 24 | 1 << 48),
        (6, PAGE_END),
        (6, u64::MAX),
    ] {
        call(Bind, guest.space, [sm, role, what]).fails(BadArgument)?;
    }
    let weak = w.without(guest.space, Rights::GUEST_DOORBELL)?;
    call(Bind, weak, [sm, role, what]).fails(BadRights)?;
    let weak = w.without(sm, Rights::SIGNAL)?;
    call(Bind, guest.space, [weak, role, what]).fails(BadRights)?;
    call(Bind, guest.vcpu, [sm, role, what]).fails(BadType)?;
    call(Bind, guest.space, [guest.vcpu, role, what]).fails(BadType)?;
    call(Unmap, sm, [0, 1]).fails(Unbound)?;
    call(Bind, guest.space, [sm, role, what]).done()?;
    // A capability is for one doorbell.
    let other = port(0x90, 2, None).encode();
    call(Bind, guest.space, [sm, role, other]).fails(Occupied)?;
    for arguments in [[0, 0], [1, 1], [0, 2]] {
        call(Unmap, sm, arguments).fails(BadArgument)?;
    }
    call(Unmap, sm, [0, 1]).gives([1, 0, 0])
}

fn an_event_rings_one_doorbell(w: &mut World) -> Check {
    let guest = Guest::new(w)?;
    let sm = w.sm(0)?;
    let role = port(0, 1, None).role() as u64;
    bind(w, &guest, port(0x80, 1, Some(7)))?;
    bind(w, &guest, port(0x80, 1, Some(8)))?;
    for taken in [port(0x80, 1, Some(7)), port(0x80, 1, None)] {
        call(Bind, guest.space, [sm, role, taken.encode()]).fails(Occupied)?;
    }
    bind(w, &guest, Doorbell::Page(5))?;
    call(Bind, guest.space, [sm, 6, 5]).fails(Occupied)
}

fn a_single_step_over_a_doorbell_is_for_the_vmm(w: &mut World) -> Check {
    const RFLAGS_TF: u64 = 1 << 8;
    if is_bochs_svm() {
        return Ok(());
    }
    let mut guest = Guest::new(w)?;
    let sm = bind(w, &guest, port(0x80, 1, None))?;
    guest.code(&[0xe6, 0x80, 0xf4]);
    guest.page().rflags |= RFLAGS_TF;
    guest.run_to(ExitKind::PortIo)?;
    equal("RIP", guest.page().rip, CODE)?;
    equal("event", guest.page().inject, Event::NONE)?;
    equal("rings", rings(sm)?, 0)
}

fn a_full_table_refuses_and_can_be_emptied(w: &mut World) -> Check {
    const MAX: u16 = 127;
    let mut guest = Guest::new(w)?;
    w.scoped(16, |w| {
        for index in 0..MAX {
            bind(w, &guest, Doorbell::Call(index))?;
        }
        let sm = w.sm(0)?;
        call(Bind, guest.space, [sm, 4, MAX.into()]).fails(Unsupported)
    })?;
    let sm = bind(w, &guest, port(0x80, 1, None))?;
    guest.code(&[0xe6, 0x80, 0xf4]);
    guest.run_to(ExitKind::Hlt)?;
    equal("rings", rings(sm)?, 1)
}

/// The page of the doorbell, and its address.
const BELL_PAGE: u64 = 0x200;
const BELL: u64 = BELL_PAGE << 12;

/// MOV [RBX + 50H], EAX.
const STORE: [u8; 3] = [0x89, 0x43, 0x50];

/// Tells the kernel what is at [`CODE`].
fn teach(guest: &mut Guest, code: &[u8]) {
    guest.page().stores[Store::place(CODE)] = Store::new(CODE, code);
}

fn a_store_that_the_vmm_decoded_rings_the_doorbell_of_its_page(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let sm = bind(w, &guest, Doorbell::Page(BELL_PAGE))?;
    guest.long_mode();
    guest.page().gpr[gpr::RBX] = BELL;
    let mut code = [0xf4; 4];
    code[..3].copy_from_slice(&STORE);
    guest.code(&code);
    guest.run_to(ExitKind::NestedFault)?;
    equal("RIP", guest.page().rip, CODE)?;
    teach(&mut guest, &STORE);
    for offset in [0, 0x50, 0xfac] {
        guest.restart();
        guest.page().gpr[gpr::RBX] = BELL + offset;
        guest.run_to(ExitKind::Hlt)?;
        equal("RIP", guest.page().rip, CODE + 3)?;
        equal("rings", rings(sm)?, 1)?;
    }
    // The pages beside it are silent, and so is the page without its doorbell.
    for address in [BELL - 0x60, BELL + 0xfb0] {
        guest.restart();
        guest.page().gpr[gpr::RBX] = address;
        guest.run_to(ExitKind::NestedFault)?;
    }
    call(Unmap, sm, [0, 1]).ok()?;
    guest.restart();
    guest.page().gpr[gpr::RBX] = BELL;
    guest.run_to(ExitKind::NestedFault)?;
    equal("rings", rings(sm)?, 0)
}

fn a_store_is_for_the_vmm_when_it_is_not_what_was_decoded(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let sm = bind(w, &guest, Doorbell::Page(BELL_PAGE))?;
    guest.long_mode();
    guest.page().gpr[gpr::RBX] = BELL;
    teach(&mut guest, &STORE);
    // Other code at the same place, a load, and what was told of another place.
    for code in [&[0x89, 0x4b, 0x50][..], &[0x66, 0x89, 0x43, 0x50], &[0x8b, 0x43, 0x50]] {
        guest.restart();
        guest.code(code);
        guest.run_to(ExitKind::NestedFault)?;
        equal("RIP", guest.page().rip, CODE)?;
    }
    guest.code(&STORE);
    for (rip, length) in [(CODE + 1, 3), (CODE, 0), (CODE, 16), (CODE, 255)] {
        guest.restart();
        let mut store = Store::new(rip, &STORE);
        store.length = length;
        guest.page().stores[Store::place(CODE)] = store;
        guest.run_to(ExitKind::NestedFault)?;
    }
    // Outside of 64-bit mode.
    guest.protected();
    teach(&mut guest, &STORE);
    guest.page().gpr[gpr::RBX] = BELL;
    guest.run_to(ExitKind::NestedFault)?;
    equal("rings", rings(sm)?, 0)
}
