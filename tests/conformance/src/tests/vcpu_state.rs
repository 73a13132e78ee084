//! The state of a vCPU: what is written is read back, and the host's own is not touched.

use super::vcpu::HALT;
use super::{Group, Needs, group};
use crate::guest::Guest;
use crate::prelude::*;
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::boot_info::Machine;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{DS, ES, FS, GS, Groups, Segment, VcpuPage, gpr};

pub(super) const GROUP: Group = group!(
    "vCPU state",
    Needs::Guests => [
        every_group_is_read_back_as_it_was_written,
        a_group_without_its_dirty_bit_is_not_taken,
        long_mode_may_be_enabled_before_pae_and_paging,
        two_vcpus_keep_their_states_apart,
        what_the_guest_writes_to_its_msrs_is_read_back,
        what_the_guest_writes_to_its_msrs_is_not_the_hosts,
        the_guests_debug_registers_do_not_stop_the_host,
        the_time_stamp_counter_has_its_offset,
    ],
);

/// Values that are valid everywhere, different for each seed.
fn fill(page: &mut VcpuPage, seed: u64, machine: Machine) {
    let value = |index: u64| (seed * 0x0101_0101 + index * 0x1234_5678) & 0x7fff_ffff;
    for (index, register) in page.gpr.iter_mut().enumerate() {
        if index != gpr::RSP {
            *register = value(index as u64) << 20;
        }
    }
    page.rflags = 0x8d7;
    for (index, segment) in [ES, DS, FS, GS].into_iter().enumerate() {
        let index = index as u64;
        page.segments[segment] =
            Segment::new((0x20 + 8 * index + 8 * seed) as u16, value(20 + index), 0xffff_ffff, 0xc093);
    }
    page.ldtr = Segment::new(0x60, value(30), 0x7f, 0x82);
    page.tr = Segment::new(0x68, value(31), 0x67, 0x8b);
    (page.gdtr.base, page.gdtr.limit) = (value(32), 0xabc);
    (page.idtr.base, page.idtr.limit) = (value(33), 0xdef);
    page.cr0 = 0x31 | [0, 2, 8, 0x1_0000, 0x4_0000][seed as usize % 5];
    page.cr3 = value(34) & 0x0fff_f000;
    page.cr4 = [0, 0x10, 0x80, 0x200, 0x2d0][seed as usize % 5];
    page.efer = [0, 1, 0x800, 0x801, 0][seed as usize % 5];
    page.cr2 = value(35);
    page.dr = core::array::from_fn(|index| value(40 + index as u64));
    page.dr6 = 0xffff_0ff0 | seed & 0xf;
    page.dr7 = 0x400;
    page.sysenter_cs = value(50) & 0xffff;
    (page.sysenter_esp, page.sysenter_eip) = (value(51), value(52) << 15);
    page.star = value(53) << 33 | value(54);
    page.lstar = 0xffff_8000_0000_0000 | value(55);
    page.cstar = value(56);
    page.sfmask = value(57) & 0x0007_ffff;
    page.kernel_gs_base = 0xffff_9000_0000_0000 | value(58);
    page.tsc_aux = if machine.contains(Machine::RDTSCP) { value(59) } else { 0 };
    page.pat = if seed.is_multiple_of(2) { 0x0007_0406_0007_0406 } else { 0x0106_0504_0001_0406 };
    page.debugctl = 0;
    page.xcr0 = 1;
    page.dirty = Groups::all().bits();
}

#[track_caller]
fn compare(got: &VcpuPage, expected: &VcpuPage) -> Check {
    equal("general-purpose registers", got.gpr, expected.gpr)?;
    equal("RFLAGS", got.rflags, expected.rflags)?;
    equal("segments", got.segments, expected.segments)?;
    equal("LDTR", got.ldtr, expected.ldtr)?;
    equal("TR", got.tr, expected.tr)?;
    equal("GDTR, IDTR", (got.gdtr, got.idtr), (expected.gdtr, expected.idtr))?;
    equal("CR0", got.cr0, expected.cr0)?;
    equal("CR3, CR4, EFER", (got.cr3, got.cr4, got.efer), (expected.cr3, expected.cr4, expected.efer))?;
    equal("CR2", got.cr2, expected.cr2)?;
    equal("DR0-3", got.dr, expected.dr)?;
    equal("DR6, DR7", (got.dr6, got.dr7), (expected.dr6, expected.dr7))?;
    equal(
        "SYSENTER",
        [got.sysenter_cs, got.sysenter_esp, got.sysenter_eip],
        [expected.sysenter_cs, expected.sysenter_esp, expected.sysenter_eip],
    )?;
    equal(
        "STAR, LSTAR, CSTAR, FMASK",
        [got.star, got.lstar, got.cstar, got.sfmask],
        [expected.star, expected.lstar, expected.cstar, expected.sfmask],
    )?;
    equal("KERNEL_GS_BASE", got.kernel_gs_base, expected.kernel_gs_base)?;
    equal("TSC_AUX", got.tsc_aux, expected.tsc_aux)?;
    equal("PAT, DEBUGCTL", (got.pat, got.debugctl), (expected.pat, expected.debugctl))?;
    equal("XCR0", got.xcr0, expected.xcr0)
}

/// Destroys everything in the page but what has no group.
fn scramble(page: &mut VcpuPage) {
    let keep = (page.gpr, page.cr2, page.deadline);
    // SAFETY: any bytes are a page.
    unsafe { (page as *mut VcpuPage).cast::<u8>().write_bytes(0x5a, size_of::<VcpuPage>()) };
    (page.gpr, page.cr2, page.deadline) = keep;
    (page.dirty, page.filled, page.want, page.run_flags) = (0, 0, 0, 0);
    page.inject = hypercall_abi::vcpu::Event::NONE;
    (page.gdtr.reserved, page.idtr.reserved) = (0, 0);
}

fn has_xsave(w: &World) -> bool {
    w.info.machine & Machine::XSAVE.bits() != 0
}

fn every_group_is_read_back_as_it_was_written(w: &mut World) -> Check {
    let machine = Machine::from_bits_truncate(w.info.machine);
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    for seed in 0..10 {
        guest.protected();
        fill(guest.page(), seed, machine);
        let mut expected = guest.page().clone();
        guest.run_to(ExitKind::Hlt)?;
        equal("dirty", guest.page().dirty & 0x3ff, 0)?;
        scramble(guest.page());
        guest.read(Groups::all())?;
        expected.xcr0 = if has_xsave(w) { 1 } else { guest.page().xcr0 };
        compare(guest.page(), &expected)
            .map_err(|Failure(why)| Failure(alloc::format!("seed {seed}: {why}")))?;
    }
    Ok(())
}

fn a_group_without_its_dirty_bit_is_not_taken(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    guest.run_to(ExitKind::Hlt)?;
    let page = guest.page();
    page.lstar = 0x1234_5678;
    page.sysenter_eip = 0x1234_5678;
    page.dr[1] = 0x1234_5678;
    page.cr4 = 0x10;
    page.segments[FS].base = 0x1234_5678;
    page.gdtr.base = 0x1234_5678;
    guest.run_to(ExitKind::Hlt)?;
    guest.read(Groups::all())?;
    let page = guest.page();
    equal("LSTAR", page.lstar, 0)?;
    equal("SYSENTER_EIP", page.sysenter_eip, 0)?;
    equal("DR1", page.dr[1], 0)?;
    equal("CR4", page.cr4, 0)?;
    equal("base of FS", page.segments[FS].base, 0)?;
    equal("base of GDTR", page.gdtr.base, 0)
}

fn long_mode_may_be_enabled_before_pae_and_paging(w: &mut World) -> Check {
    const LME: u64 = 1 << 8;
    let mut guest = Guest::new(w)?;
    guest.code(&[0x0f, 0xa2, 0xf4]);
    for (cr4, efer) in [(0, LME), (0x20, LME), (0, 0), (0x10, LME | 0x801)] {
        guest.restart();
        let page = guest.page();
        (page.cr4, page.efer) = (cr4, efer);
        page.dirty |= Groups::CONTROL.bits();
        guest.run_to(ExitKind::Cpuid)?;
        guest.read(Groups::CONTROL)?;
        equal("CR4, EFER", (guest.page().cr4, guest.page().efer), (cr4, efer))?;
    }
    Ok(())
}

fn two_vcpus_keep_their_states_apart(w: &mut World) -> Check {
    let machine = Machine::from_bits_truncate(w.info.machine);
    let mut guests = [Guest::new(w)?, Guest::new(w)?];
    for (index, guest) in guests.iter_mut().enumerate() {
        guest.code(HALT);
        fill(guest.page(), 3 + index as u64, machine);
    }
    let expected = guests.each_mut().map(|guest| guest.page().clone());
    for _ in 0..5 {
        for guest in &mut guests {
            guest.run_to(ExitKind::Hlt)?;
        }
    }
    for (guest, mut expected) in guests.iter_mut().zip(expected) {
        scramble(guest.page());
        guest.read(Groups::all())?;
        expected.xcr0 = if has_xsave(w) { 1 } else { guest.page().xcr0 };
        compare(guest.page(), &expected)?;
    }
    Ok(())
}

const MSRS: [(u32, u64); 8] = [
    (0x174, 0x10),
    (0x175, 0x1122_3344),
    (0x176, 0x5566_7788),
    (0xc000_0081, 0x0011_0008_1234_5678),
    (0xc000_0082, 0x0000_1234_5678_9abc),
    (0xc000_0083, 0x1357_9bdf),
    (0xc000_0084, 0x700),
    (0xc000_0102, 0x0000_7654_3210_fedc),
];

/// Code that writes all of [`MSRS`], FS_BASE and GS_BASE, then halts.
fn write_msrs(guest: &mut Guest) {
    let mut code = alloc::vec![];
    for (index, value) in MSRS.into_iter().chain([(0xc000_0100, 0x4444_5000), (0xc000_0101, 0x6666_7000)]) {
        code.push(0xb9);
        code.extend(index.to_le_bytes());
        code.push(0xb8);
        code.extend((value as u32).to_le_bytes());
        code.push(0xba);
        code.extend(((value >> 32) as u32).to_le_bytes());
        code.extend([0x0f, 0x30]);
    }
    code.push(0xf4);
    guest.code(&code);
}

fn what_the_guest_writes_to_its_msrs_is_read_back(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    write_msrs(&mut guest);
    guest.run_to(ExitKind::Hlt)?;
    scramble(guest.page());
    guest.read(Groups::all())?;
    let page = guest.page();
    let got = [
        page.sysenter_cs,
        page.sysenter_esp,
        page.sysenter_eip,
        page.star,
        page.lstar,
        page.cstar,
        page.sfmask,
        page.kernel_gs_base,
    ];
    equal("MSRs", got, MSRS.map(|(_, value)| value))?;
    equal("base of FS", page.segments[FS].base, 0x4444_5000)?;
    equal("base of GS", page.segments[GS].base, 0x6666_7000)
}

fn what_the_guest_writes_to_its_msrs_is_not_the_hosts(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    write_msrs(&mut guest);
    let sm = w.sm(0)?;
    for round in 0..20 {
        guest.restart();
        guest.run_to(ExitKind::Hlt)?;
        // SYSCALL works, FS and GS have the host's bases, and a switch to another thread and back works.
        call(Signal, sm, []).done()?;
        call(Wait, sm, [FOREVER]).gives([1, 0, 0])?;
        board(9).store(round, Ordering::Relaxed);
        let (fs, gs): (u64, u64);
        // SAFETY: reads a word of the board, if the bases are 0; else the thread faults.
        unsafe {
            core::arch::asm!(
                "mov {fs}, fs:[{address}]",
                "mov {gs}, gs:[{address}]",
                address = in(reg) crate::layout::BOARD + 72,
                fs = out(reg) fs,
                gs = out(reg) gs,
                options(nostack),
            );
        }
        equal("words at FS and GS", (fs, gs), (round, round))?;
        w.sleep(500);
    }
    Ok(())
}

fn the_guests_debug_registers_do_not_stop_the_host(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    // Breakpoints on the host's code and data, at both rings.
    let code = the_guests_debug_registers_do_not_stop_the_host as *const () as u64;
    let page = guest.page();
    page.dr = [code, crate::layout::BOARD, crate::threads::stack_top(0) - 8, 0xffff_8000_0000_0000];
    page.dr7 = 0x400 | 0xff | 0xfff0_0000;
    page.dirty |= Groups::DEBUG.bits();
    guest.run_to(ExitKind::Hlt)?;
    board(0).store(1, Ordering::Relaxed);
    w.sleep(1000);
    equal("word of the board", board(0).load(Ordering::Relaxed), 1)?;
    guest.read(Groups::DEBUG)?;
    equal("DR0", guest.page().dr[0], code)
}

fn the_time_stamp_counter_has_its_offset(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    // RDTSC, HLT.
    guest.code(&[0x0f, 0x31, 0xf4]);
    for offset in [0_u64, 1 << 50, (1_u64 << 40).wrapping_neg()] {
        guest.restart();
        guest.page().tsc_offset = offset;
        guest.page().dirty |= Groups::TSC_OFFSET.bits();
        let before = usys::cpu::now();
        guest.run_to(ExitKind::Hlt)?;
        let after = usys::cpu::now();
        let seen = guest.page().gpr[gpr::RAX] & 0xffff_ffff | guest.page().gpr[gpr::RDX] << 32;
        let seen = seen.wrapping_sub(offset);
        holds("the host's counter and the offset", before <= seen && seen <= after)
            .map_err(|_| Failure::new("TSC without the offset", seen, (before, after)))?;
    }
    Ok(())
}
