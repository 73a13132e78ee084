//! Running vCPUs: how a run begins, ends, and what an exit says.

use super::{Group, Needs, group};
use crate::guest::{CODE, Guest};
use crate::prelude::*;
use crate::threads::{HIGH, LOW};
use hypercall_abi::boot_info::Machine;
use hypercall_abi::cap::BindRole;
use hypercall_abi::exit::{ExitKind, NestedFault, PortIo};
use hypercall_abi::vcpu::{ACTIVITY_HALTED, FpuOperation, Groups, Intercepts, NO_CODE_ROOT, RunFlags, gpr};
use usys::cpu;

pub(super) const GROUP: Group = group!(
    "vCPUs",
    Needs::Guests => [
        a_vcpu_without_a_page_does_not_run,
        running_reading_and_poking_need_their_rights,
        a_halt_exits_with_rip_on_it,
        a_poke_makes_one_run_return,
        a_deadline_ends_a_run,
        bits_of_the_bound_notification_end_a_run,
        a_blocking_halt_waits_for_a_poke_a_signal_or_the_deadline,
        one_thread_runs_a_vcpu_at_a_time,
        a_running_guest_makes_way_for_the_more_urgent,
        a_run_ends_when_its_page_goes,
        a_run_ends_when_its_vcpu_goes,
        a_run_ends_when_its_space_goes,
        guest_memory_that_is_revoked_faults_in_a_running_guest,
        instructions_exit_with_kind_and_length,
        port_accesses_are_described,
        nested_faults_are_described,
        a_triple_fault_exits,
        vcpu_read_fills_groups,
        the_root_of_code_is_told_of_64_bit_code,
        wanted_groups_are_filled_at_every_exit,
        a_guest_does_not_see_what_was_in_the_pages_of_another,
    ],
);

/// JMP to itself.
pub(super) const LOOP: &[u8] = &[0xeb, 0xfe];
/// HLT.
pub(super) const HALT: &[u8] = &[0xf4];

fn a_vcpu_without_a_page_does_not_run(w: &mut World) -> Check {
    let (space, vcpu) = (w.guest_space()?, w.sel());
    call(CreateVcpu, vcpu, [w.pool, space, 0]).done()?;
    call(VcpuRun, vcpu, []).fails(Unbound)?;
    call(VcpuRead, vcpu, [1]).fails(Unbound)?;
    call(VcpuPoke, vcpu, []).done()?;
    let page = w.ram(1)?;
    call(Bind, vcpu, [page, BindRole::VcpuPage as u64]).done()?;
    call(VcpuRun, vcpu, []).gives([ExitKind::Poked as u64, 0, 0])?;
    call(Revoke, page, [1]).done()?;
    call(VcpuRun, vcpu, []).fails(Unbound)
}

fn running_reading_and_poking_need_their_rights(w: &mut World) -> Check {
    let guest = Guest::new(w)?;
    let no_run = w.without(guest.vcpu, Rights::VCPU_RUN)?;
    let no_poke = w.without(guest.vcpu, Rights::VCPU_POKE)?;
    call(VcpuRun, no_run, []).fails(BadRights)?;
    call(VcpuRead, no_run, [1]).fails(BadRights)?;
    call(VcpuPoke, no_poke, []).fails(BadRights)?;
    call(VcpuPoke, no_run, []).done()?;
    call(VcpuRun, no_poke, []).ok()?;
    call(VcpuRead, no_poke, [1]).done()?;
    for number in [VcpuRun, VcpuRead, VcpuPoke] {
        call(number, guest.space, []).fails(BadType)?;
    }
    for groups in [1 << 15, 1 << 31, 1 << 32, u64::MAX] {
        call(VcpuRead, guest.vcpu, [groups]).fails(BadArgument)?;
    }
    Ok(())
}

fn a_halt_exits_with_rip_on_it(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(&[0x90, 0xf4]);
    guest.run_to(ExitKind::Hlt)?;
    let has_lengths = w.info.machine & Machine::INSTRUCTION_LENGTH.bits() != 0;
    let page = guest.page();
    equal("RIP", page.rip, CODE + 1)?;
    equal("length", page.exit_length, u32::from(has_lengths))?;
    equal("dirty", page.dirty, 0)?;
    holds("RIP is filled", page.filled & Groups::RIP.bits() != 0)
}

fn a_poke_makes_one_run_return(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    for _ in 0..3 {
        call(VcpuPoke, guest.vcpu, []).done()?;
    }
    guest.run_to(ExitKind::Poked)?;
    guest.run_to(ExitKind::Hlt)?;
    // A run in progress; the guest loops on a less urgent thread.
    let run = guest.count_on(w, 0)?;
    call(VcpuPoke, guest.vcpu, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Poked as u64)?;
    holds("RIP in the loop", (CODE..CODE + 8).contains(&guest.page().rip))
}

fn a_deadline_ends_a_run(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.endless(LOOP);
    guest.page().deadline = 1;
    guest.run_to(ExitKind::Deadline)?;
    for microseconds in [50, 500, 5000, 30_000] {
        let deadline = w.deadline(microseconds);
        guest.page().deadline = deadline;
        guest.run_to(ExitKind::Deadline)?;
        holds("not before the deadline", cpu::now() >= deadline)?;
        equal("RIP", guest.page().rip, CODE)?;
    }
    Ok(())
}

fn bits_of_the_bound_notification_end_a_run(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.endless(LOOP);
    let (ntfn, badged) = (w.ntfn()?, w.sel());
    call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 0xa5]).done()?;
    call(Bind, guest.vcpu, [ntfn, BindRole::VcpuNotification as u64]).done()?;
    call(Signal, badged, []).done()?;
    guest.run_to(ExitKind::Notified)?;
    equal("bits", guest.page().notified, 0xa5)?;
    call(Wait, ntfn, [NOW]).fails(Timeout)?;
    let run = guest.count_on(w, 0)?;
    call(Signal, badged, []).done()?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::Notified as u64)?;
    // Without the notification the guest runs on.
    call(Revoke, ntfn, [1]).done()?;
    guest.page().deadline = w.deadline(1000);
    guest.run_to(ExitKind::Deadline)
}

fn a_blocking_halt_waits_for_a_poke_a_signal_or_the_deadline(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    // Where the hardware tells no lengths, it is so in 64-bit mode only.
    guest.long_mode();
    guest.code(&[0xf4, 0xf4, 0xf4, 0xf4]);
    let (ntfn, badged) = (w.ntfn()?, w.sel());
    call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 2]).done()?;
    call(Bind, guest.vcpu, [ntfn, BindRole::VcpuNotification as u64]).done()?;
    guest.page().run_flags = RunFlags::HLT_BLOCKS.bits();
    type Waker = fn(&Guest, Sel) -> Answer;
    let wakers: [(u64, Waker); 2] = [
        (ExitKind::Poked as u64, |guest, _| call(VcpuPoke, guest.vcpu, [])),
        (ExitKind::Notified as u64, |_, badged| call(Signal, badged, [])),
    ];
    for (kind, wake) in wakers {
        let run = w.begin((0, HIGH), VcpuRun, guest.vcpu, [])?;
        w.sleep(2000);
        equal("is done", run.is_done(), false)?;
        wake(&guest, badged);
        equal("kind", w.answer(&run)?.value()?, kind)?;
        let page = guest.page();
        equal("activity and RIP", (page.activity, page.rip), (ACTIVITY_HALTED, CODE + 1))?;
    }
    guest.page().deadline = w.deadline(2000);
    guest.run_to(ExitKind::Deadline)?;
    // Made active, it goes on behind the HLT.
    let page = guest.page();
    page.activity = 0;
    page.dirty = Groups::RIP.bits();
    page.run_flags = 0;
    page.deadline = u64::MAX;
    guest.run_to(ExitKind::Hlt)?;
    equal("RIP", guest.page().rip, CODE + 1)
}

fn one_thread_runs_a_vcpu_at_a_time(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let run = guest.count_on(w, 0)?;
    guest.run().fails(Busy)?;
    call(VcpuRead, guest.vcpu, [1]).fails(Busy)?;
    call(VcpuFpu, guest.vcpu, [FpuOperation::Reset as u64]).fails(Busy)?;
    // Its runner ends: the vCPU is free again.
    run.end()?;
    guest.page().deadline = w.deadline(500);
    guest.run_to(ExitKind::Deadline)
}

fn a_running_guest_makes_way_for_the_more_urgent(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.endless(LOOP);
    w.begin((0, LOW), VcpuRun, guest.vcpu, [])?;
    for _ in 0..50 {
        let deadline = w.deadline(300);
        call(Wait, crate::layout::SLEEP, [deadline]).fails(Timeout)?;
        holds("soon", cpu::now() < deadline + w.info.tsc_hz)?;
    }
    // And for its equals.
    let (_, sc) = w.thread(0, LOW, spin, 0)?;
    w.sleep(50_000);
    holds("an equal runs", call(ScInfo, sc, []).value()? > w.info.tsc_hz / 200)
}

extern "C" fn spin(_: u64) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A guest that loops on a less urgent thread; what `end` does must end the run with `status`.
fn run_ends(w: &mut World, status: hypercall_abi::Status, end: impl FnOnce(&Guest) -> Sel) -> Check {
    let mut guest = Guest::new(w)?;
    let run = guest.count_on(w, 0)?;
    let what = end(&guest);
    call(Revoke, what, [1]).done()?;
    let answer = w.answer(&run)?;
    equal("status", answer.status(), Some(status))
}

fn a_run_ends_when_its_page_goes(w: &mut World) -> Check {
    run_ends(w, Unbound, |guest| guest.bound)
}

fn a_run_ends_when_its_vcpu_goes(w: &mut World) -> Check {
    run_ends(w, Aborted, |guest| guest.vcpu)
}

fn a_run_ends_when_its_space_goes(w: &mut World) -> Check {
    run_ends(w, Aborted, |guest| guest.space)
}

fn guest_memory_that_is_revoked_faults_in_a_running_guest(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let run = guest.count_on(w, 0)?;
    call(Unmap, guest.memory, [1, 1]).gives([1, 0, 0])?;
    equal("kind", w.answer(&run)?.value()?, ExitKind::NestedFault as u64)?;
    equal("address", guest.page().exit_info[0] & !0xfff, CODE)?;
    call(Map, guest.memory, [guest.space, CODE, 1, 1, 7]).gives([1, 0, 0])?;
    guest.page().deadline = w.deadline(500);
    guest.run_to(ExitKind::Deadline)?;
    call(Revoke, guest.memory, [1]).done()?;
    guest.page().deadline = u64::MAX;
    guest.run_to(ExitKind::NestedFault)
}

fn instructions_exit_with_kind_and_length(w: &mut World) -> Check {
    let has_lengths = w.info.machine & Machine::INSTRUCTION_LENGTH.bits() != 0;
    let mut guest = Guest::new(w)?;
    let intercepts = Intercepts::all().bits();
    for (code, kind) in [
        (&[0x0f, 0xa2][..], ExitKind::Cpuid),
        (&[0xf4], ExitKind::Hlt),
        (&[0xec], ExitKind::PortIo),
        (&[0xe6, 0x80], ExitKind::PortIo),
        (&[0x0f, 0x32], ExitKind::MsrRead),
        (&[0x0f, 0x30], ExitKind::MsrWrite),
        (&[0x0f, 0x09], ExitKind::CacheControl),
        (&[0x0f, 0x08], ExitKind::CacheControl),
        (&[0x0f, 0x33], ExitKind::Rdpmc),
        (&[0x0f, 0x31], ExitKind::Rdtsc),
        (&[0xf3, 0x90], ExitKind::Pause),
        (&[0x0f, 0x01, 0x38], ExitKind::Invlpg),
        (&[0x0f, 0x23, 0xf8], ExitKind::DebugAccess),
        (&[0x0f, 0x21, 0xf8], ExitKind::DebugAccess),
    ] {
        guest.protected();
        let page = guest.page();
        page.intercepts = intercepts;
        page.gpr[gpr::RCX] = 0x1b;
        guest.code(code);
        guest.run_to(kind)?;
        let page = guest.page();
        equal("RIP", page.rip, CODE)?;
        // Some hardware tells the length for some exits only.
        if has_lengths || page.exit_length != 0 {
            equal("length", page.exit_length, code.len() as u32)
                .map_err(|Failure(why)| Failure(alloc::format!("{kind:?}: {why}")))?;
        }
    }
    // Either vendor's hypercall.
    let hypercall: &[u8] =
        if w.info.machine & Machine::SVM.bits() != 0 { &[0x0f, 0x01, 0xd9] } else { &[0x0f, 0x01, 0xc1] };
    guest.protected();
    guest.code(hypercall);
    guest.run_to(ExitKind::Hypercall)?;
    // What the VMM asked for, and no more: without intercepts RDTSC and PAUSE do not exit.
    guest.protected();
    guest.code(&[0x0f, 0x31, 0xf3, 0x90, 0xf4]);
    guest.run_to(ExitKind::Hlt)?;
    equal("RIP", guest.page().rip, CODE + 4)?;
    guest.protected();
    guest.page().exception_bitmap = 1 << 6;
    guest.code(&[0x0f, 0x0b]);
    guest.run_to(ExitKind::Exception)?;
    equal("vector", guest.page().exit_info[0], 6)
}

fn port_accesses_are_described(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    for (code, size, is_in, is_string) in [
        (&[0xec][..], 1, true, false),
        (&[0x66, 0xed], 2, true, false),
        (&[0xed], 4, true, false),
        (&[0xee], 1, false, false),
        (&[0xef], 4, false, false),
        (&[0x6c], 1, true, true),
        (&[0x66, 0x6f], 2, false, true),
    ] {
        guest.protected();
        let page = guest.page();
        page.gpr[gpr::RDX] = 0x1234;
        page.gpr[gpr::RAX] = 0xdead_beef;
        guest.code(code);
        guest.run_to(ExitKind::PortIo)?;
        let expected = PortIo { port: 0x1234, size, is_in, is_string, is_rep: false };
        equal("access", PortIo::decode(guest.page().exit_info[0]), expected)?;
        equal("RAX", guest.page().gpr[gpr::RAX], 0xdead_beef)?;
    }
    Ok(())
}

fn nested_faults_are_described(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let read_only = w.ram(1)?;
    call(Map, read_only, [guest.space, 0x20_0000, 0, 1, 1]).gives([1, 0, 0])?;
    let (load, store): (&[u8], &[u8]) = (&[0x8b, 0x03], &[0x89, 0x03]);
    let jump: &[u8] = &[0xff, 0xe3];
    for (code, address, access, is_present) in [
        (load, 0x10_0000, NestedFault::READ, false),
        (store, 0x10_0008, NestedFault::WRITE, false),
        (jump, 0x10_0010, NestedFault::EXECUTE, false),
        (store, 0x20_0ff0, NestedFault::WRITE, true),
        (jump, 0x20_0000, NestedFault::EXECUTE, true),
        (load, 0xfee0_0020, NestedFault::READ, false),
    ] {
        guest.protected();
        guest.page().gpr[gpr::RBX] = address;
        guest.code(code);
        guest.run_to(ExitKind::NestedFault)?;
        let page = guest.page();
        equal("address", page.exit_info[0], address)?;
        let details = NestedFault::from_bits_retain(page.exit_info[1]);
        holds("access", details.contains(access))
            .and_then(|()| equal("present", details.contains(NestedFault::PRESENT), is_present))
            .map_err(|Failure(why)| Failure(alloc::format!("{address:#x}, {details:?}: {why}")))?;
        equal("length", page.exit_length, 0)?;
    }
    // Reading what is readable works.
    guest.protected();
    guest.page().gpr[gpr::RBX] = 0x20_0000;
    guest.code(&[0x8b, 0x03, 0xf4]);
    guest.run_to(ExitKind::Hlt)
}

fn a_triple_fault_exits(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(&[0x0f, 0x0b]);
    guest.run_to(ExitKind::TripleFault)?;
    // Nothing of it is left.
    guest.protected();
    guest.code(HALT);
    guest.run_to(ExitKind::Hlt)
}

fn vcpu_read_fills_groups(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    guest.run_to(ExitKind::Hlt)?;
    for group in Groups::all().iter() {
        guest.page().filled = 0;
        guest.read(group)?;
        let filled = Groups::from_bits_retain(guest.page().filled);
        let inputs = Groups::INJECT | Groups::INTERCEPTS | Groups::TSC_OFFSET | Groups::APIC;
        let is_input = inputs.contains(group);
        holds("filled", is_input || filled.contains(group))?;
    }
    guest.page().cr3 = 0x1234_5000;
    guest.read(Groups::CONTROL)?;
    equal("CR3", guest.page().cr3, 0)
}

fn the_root_of_code_is_told_of_64_bit_code(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    // MOV [RBX], EAX.
    guest.code(&[0x89, 0x03]);
    guest.page().gpr[gpr::RBX] = 0x20_0000;
    guest.page().decode = Groups::CODE.bits();
    guest.run_to(ExitKind::NestedFault)?;
    equal("filled", guest.page().filled, (Groups::RIP | Groups::CODE).bits())?;
    equal("root in 32-bit mode", guest.page().code_root, NO_CODE_ROOT)?;
    guest.long_mode();
    guest.page().gpr[gpr::RBX] = 0x20_0000;
    guest.page().decode = Groups::CODE.bits();
    let root = guest.page().cr3;
    for _ in 0..3 {
        guest.page().code_root = 0;
        guest.run_to(ExitKind::NestedFault)?;
        equal("filled", guest.page().filled, (Groups::RIP | Groups::CODE).bits())?;
        equal("root", guest.page().code_root, root)?;
        equal("address", guest.page().exit_info[0], 0x20_0000)?;
        equal("length", guest.page().exit_length, 0)?;
    }
    guest.page().decode = (Groups::CODE | Groups::CONTROL).bits();
    guest.run_to(ExitKind::NestedFault)?;
    holds("filled", guest.page().filled & Groups::CONTROL.bits() != 0)?;
    equal("root", guest.page().code_root, root)
}

fn wanted_groups_are_filled_at_every_exit(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    let want = Groups::TABLES | Groups::SYSCALL | Groups::CONTROL;
    guest.code(&[0x90, 0xf4]);
    guest.page().want = want.bits();
    guest.run_to(ExitKind::Hlt)?;
    holds("filled", Groups::from_bits_retain(guest.page().filled).contains(want))?;
    // What the VMM changed and the kernel did not take stays when a poke comes first.
    let page = guest.page();
    page.lstar = 0x7777_0000;
    page.dirty = Groups::SYSCALL.bits();
    call(VcpuPoke, guest.vcpu, []).done()?;
    guest.run_to(ExitKind::Poked)?;
    let page = guest.page();
    equal("LSTAR", page.lstar, 0x7777_0000)?;
    equal("dirty", page.dirty, Groups::SYSCALL.bits())?;
    guest.run_to(ExitKind::Hlt)?;
    equal("LSTAR", guest.page().lstar, 0x7777_0000)
}

fn a_guest_does_not_see_what_was_in_the_pages_of_another(w: &mut World) -> Check {
    for value in [0x1111_u64, 0x2222] {
        w.scoped(100, |w| {
            let mut guest = Guest::new(w)?;
            guest.code(HALT);
            guest.page().want = (Groups::SYSCALL | Groups::DEBUG | Groups::SYSENTER).bits();
            guest.page().dirty = (Groups::RIP | Groups::CS_SS | Groups::CONTROL).bits();
            guest.run_to(ExitKind::Hlt)?;
            // Nobody set these: they are as after reset.
            let page = guest.page();
            equal("LSTAR, STAR", (page.lstar, page.star), (0, 0))?;
            equal("SYSENTER_EIP, DR0", (page.sysenter_eip, page.dr[0]), (0, 0))?;
            page.lstar = value;
            page.star = value;
            page.sysenter_eip = value;
            page.dr[0] = value;
            page.dirty = (Groups::SYSCALL | Groups::DEBUG | Groups::SYSENTER).bits();
            guest.run_to(ExitKind::Hlt)
        })?;
    }
    Ok(())
}
