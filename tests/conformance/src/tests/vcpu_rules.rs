//! Entry failures: each rule of SPEC.md 8.3 by values that break it.

use super::vcpu::HALT;
use super::{Group, Needs, group};
use crate::guest::Guest;
use crate::prelude::*;
use hypercall_abi::boot_info::Machine;
use hypercall_abi::exit::{EntryRule, ExitKind};
use hypercall_abi::vcpu::{CS, Event, FS, GS, Groups, SS, VcpuPage};

pub(super) const GROUP: Group = group!(
    "entry failures",
    Needs::Guests => [
        bad_control_registers_are_refused,
        a_bad_efer_is_refused,
        bad_flags_are_refused,
        bad_segments_are_refused,
        addresses_that_are_not_canonical_are_refused,
        bad_events_are_refused,
        bad_msr_values_are_refused,
        a_bad_activity_is_refused,
        a_refused_entry_leaves_the_page_as_it_was,
    ],
);

type Change = (&'static str, fn(&mut VcpuPage));

const NAMES: [(EntryRule, u64); 9] = [
    (EntryRule::Hardware, 0),
    (EntryRule::ControlRegister, 1),
    (EntryRule::Efer, 2),
    (EntryRule::Rflags, 3),
    (EntryRule::Segment, 4),
    (EntryRule::Canonical, 5),
    (EntryRule::Event, 6),
    (EntryRule::Msr, 7),
    (EntryRule::Activity, 8),
];

/// Each change of a good state is refused by `rule`, and the good state works afterwards.
#[track_caller]
fn refused(w: &mut World, rule: EntryRule, changes: &[Change]) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    for (name, change) in changes {
        guest.protected();
        change(guest.page());
        let what = |Failure(why)| Failure(alloc::format!("{name}: {why}"));
        guest.run_to(ExitKind::EntryFailure).map_err(what)?;
        let page = guest.page();
        let got = NAMES.iter().find(|(_, value)| *value == page.exit_info[0]).map(|(rule, _)| *rule);
        equal(name, got, Some(rule))?;
        equal("filled", page.filled, 0)?;
        guest.protected();
        guest.run_to(ExitKind::Hlt).map_err(what)?;
    }
    Ok(())
}

fn is_vmx(w: &World) -> bool {
    w.info.machine & Machine::VMX.bits() != 0
}

/// Long mode, as far as the checks before the entry look.
fn long_mode(page: &mut VcpuPage) {
    page.cr0 |= 1 << 31;
    page.cr4 |= 1 << 5;
    page.efer = 1 << 8 | 1 << 10;
    page.segments[CS].access = 0xa09b;
}

fn bad_control_registers_are_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::ControlRegister,
        &[
            ("CR0 bit 63", |page| page.cr0 |= 1 << 63),
            ("CR0 bit 32", |page| page.cr0 |= 1 << 32),
            ("PG without PE", |page| page.cr0 = 1 << 31 | 0x30),
            ("NW without CD", |page| page.cr0 |= 1 << 29),
            ("CR3 bit 51", |page| page.cr3 = 1 << 51),
            ("CR3 bit 62", |page| page.cr3 = 1 << 62),
            ("CR4 bit 63", |page| page.cr4 |= 1 << 63),
            ("CR4 bit 19", |page| page.cr4 |= 1 << 19),
            ("VMXE", |page| page.cr4 |= 1 << 13),
            ("SMXE", |page| page.cr4 |= 1 << 14),
            ("LA57", |page| page.cr4 |= 1 << 12),
            ("CET", |page| page.cr4 |= 1 << 23),
            ("PKS", |page| page.cr4 |= 1 << 24),
            ("PCIDE outside long mode", |page| page.cr4 |= 1 << 17),
        ],
    )
}

fn a_bad_efer_is_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::Efer,
        &[
            ("bit 1", |page| page.efer |= 2),
            ("bit 16", |page| page.efer |= 1 << 16),
            ("bit 63", |page| page.efer |= 1 << 63),
            ("LMA alone", |page| page.efer |= 1 << 10),
            ("LMA without PG", |page| page.efer |= 1 << 8 | 1 << 10),
            ("LMA without PAE", |page| {
                long_mode(page);
                page.cr4 = 0;
            }),
            ("LME and PG without LMA", |page| {
                long_mode(page);
                page.efer = 1 << 8;
            }),
        ],
    )
}

fn bad_flags_are_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::Rflags,
        &[
            ("bit 1 clear", |page| page.rflags = 0),
            ("bit 3", |page| page.rflags |= 8),
            ("bit 5", |page| page.rflags |= 1 << 5),
            ("bit 15", |page| page.rflags |= 1 << 15),
            ("bit 22", |page| page.rflags |= 1 << 22),
            ("bit 63", |page| page.rflags |= 1 << 63),
            ("VM in real mode", |page| {
                page.cr0 &= !1;
                page.rflags |= 1 << 17;
            }),
            ("VM in long mode", |page| {
                long_mode(page);
                page.rflags |= 1 << 17;
            }),
            ("interrupt with IF clear", |page| page.inject = Event::interrupt(0x40)),
        ],
    )
}

fn bad_segments_are_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::Segment,
        &[
            ("CS not present", |page| page.segments[CS].access &= !0x80),
            ("reserved bit of CS", |page| page.segments[CS].access |= 1 << 8),
            ("reserved bit of SS", |page| page.segments[SS].access |= 1 << 17),
            ("reserved bit of GS", |page| page.segments[GS].access |= 1 << 31),
            ("L and D in long mode", |page| {
                long_mode(page);
                page.segments[CS].access |= 1 << 14;
            }),
            ("limit of GDTR", |page| page.gdtr.limit = 0x1_0000),
            ("limit of IDTR", |page| page.idtr.limit = 0xffff_ffff),
        ],
    )?;
    if !is_vmx(w) {
        return Ok(());
    }
    refused(
        w,
        EntryRule::Segment,
        &[
            ("CS is data of ring 1", |page| page.segments[CS].access = 0xc0b3),
            ("TR unusable", |page| page.tr.access |= 1 << 16),
            ("TR not busy", |page| page.tr.access = 0x89),
            ("limit without granularity", |page| page.segments[FS].access = 0x4093),
            ("limit of LDTR", |page| {
                page.ldtr.access = 0x82;
                page.ldtr.limit = 0xffff_ffff;
            }),
        ],
    )
}

fn addresses_that_are_not_canonical_are_refused(w: &mut World) -> Check {
    const BAD: u64 = 0x0000_8000_0000_0000;
    refused(
        w,
        EntryRule::Canonical,
        &[
            ("RIP", |page| {
                long_mode(page);
                page.rip = BAD;
            }),
            ("FS", |page| page.segments[FS].base = BAD),
            ("GS", |page| page.segments[GS].base = 0xffff_7fff_ffff_ffff),
            ("TR", |page| page.tr.base = BAD),
            ("GDTR", |page| page.gdtr.base = BAD),
            ("IDTR", |page| page.idtr.base = 1 << 63),
            ("SYSENTER_ESP", |page| page.sysenter_esp = BAD),
            ("SYSENTER_EIP", |page| page.sysenter_eip = BAD),
            ("LSTAR", |page| page.lstar = BAD),
            ("CSTAR", |page| page.cstar = BAD),
            ("KERNEL_GS_BASE", |page| page.kernel_gs_base = BAD),
        ],
    )
}

fn event(kind: u64, vector: u64, rest: u64) -> Event {
    Event(1 << 31 | kind << 8 | vector | rest)
}

fn bad_events_are_refused(w: &mut World) -> Check {
    const CODE: u64 = 1 << 11;
    refused(
        w,
        EntryRule::Event,
        &[
            ("type 1", |page| page.inject = event(1, 0, 0)),
            ("type 7", |page| page.inject = event(7, 0, 0)),
            ("reserved bit 12", |page| page.inject = event(3, 6, 1 << 12)),
            ("reserved bit 30", |page| page.inject = event(3, 6, 1 << 30)),
            ("NMI with vector 3", |page| page.inject = event(2, 3, 0)),
            ("exception 32", |page| page.inject = event(3, 32, 0)),
            ("exception 2", |page| page.inject = event(3, 2, 0)),
            ("#UD with an error code", |page| page.inject = event(3, 6, CODE)),
            ("#GP without one", |page| page.inject = event(3, 13, 0)),
            ("interrupt with an error code", |page| {
                page.rflags |= 1 << 9;
                page.inject = event(0, 0x40, CODE);
            }),
            ("INT n of 16 bytes", |page| {
                page.inject = event(4, 0x80, 0);
                page.inject_length = 16;
            }),
        ],
    )?;
    if is_vmx(w) {
        return refused(
            w,
            EntryRule::Event,
            &[("error code 8000H", |page| page.inject = event(3, 13, CODE | 0x8000 << 32))],
        );
    }
    refused(
        w,
        EntryRule::Event,
        &[("type 5", |page| page.inject = event(5, 1, 0)), ("type 6", |page| page.inject = event(6, 3, 0))],
    )
}

fn bad_msr_values_are_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::Msr,
        &[
            ("DR6", |page| page.dr6 |= 1 << 32),
            ("DR7", |page| page.dr7 |= 1 << 32),
            ("PAT with type 2", |page| page.pat = 2),
            ("PAT with type 8", |page| page.pat = 8 << 56),
            ("DEBUGCTL bit 6", |page| page.debugctl = 1 << 6),
            ("DEBUGCTL bit 63", |page| page.debugctl = 1 << 63),
            ("TSC_AUX", |page| page.tsc_aux = 1 << 32),
        ],
    )?;
    if w.info.guest_xcr0 != 0 {
        refused(
            w,
            EntryRule::Msr,
            &[
                ("XCR0 without x87", |page| page.xcr0 = 2),
                ("XCR0 of 0", |page| page.xcr0 = 0),
                ("AVX without SSE", |page| page.xcr0 = 5),
                ("XCR0 bit 62", |page| page.xcr0 = 1 << 62 | 1),
                ("XCR0 bit 63", |page| page.xcr0 = 1 << 63 | 1),
            ],
        )?;
    }
    if is_vmx(w) {
        refused(
            w,
            EntryRule::Msr,
            &[("SYSENTER_CS", |page| page.sysenter_cs = 1 << 32), ("FMASK", |page| page.sfmask = 1 << 32)],
        )?;
    }
    Ok(())
}

fn a_bad_activity_is_refused(w: &mut World) -> Check {
    refused(
        w,
        EntryRule::Activity,
        &[
            ("activity 2", |page| page.activity = 2),
            ("activity 3", |page| page.activity = u32::MAX),
            ("interruptibility bit 2", |page| page.interruptibility = 1 << 2),
            ("interruptibility bit 4", |page| page.interruptibility = 1 << 4),
            ("interruptibility bit 31", |page| page.interruptibility = 1 << 31),
            ("STI and MOV SS", |page| {
                page.rflags |= 1 << 9;
                page.interruptibility = 3;
            }),
            ("STI with IF clear", |page| page.interruptibility = 1),
            ("an interrupt in a shadow", |page| {
                page.rflags |= 1 << 9;
                page.interruptibility = 1;
                page.inject = Event::interrupt(0x40);
            }),
            ("an NMI while one is handled", |page| {
                page.interruptibility = 1 << 3;
                page.inject = Event::nmi();
            }),
        ],
    )
}

fn a_refused_entry_leaves_the_page_as_it_was(w: &mut World) -> Check {
    let mut guest = Guest::new(w)?;
    guest.code(HALT);
    let page = guest.page();
    page.lstar = 1 << 47;
    page.want = Groups::all().bits();
    page.gpr[0] = 0x1234;
    guest.run_to(ExitKind::EntryFailure)?;
    let page = guest.page();
    equal("LSTAR", page.lstar, 1 << 47)?;
    equal("RAX", page.gpr[0], 0x1234)?;
    equal("filled", page.filled, 0)?;
    // Correcting the value is enough: what was not taken is still dirty.
    page.lstar = 0x7777;
    page.want = 0;
    guest.run_to(ExitKind::Hlt)?;
    guest.read(Groups::SYSCALL)?;
    equal("LSTAR", guest.page().lstar, 0x7777)
}
