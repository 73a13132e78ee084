use super::*;
use proptest::prelude::*;

const REAL: Mode = Mode { is_protected: false, is_long: false, is_v86: false };
const PROTECTED: Mode = Mode { is_protected: true, is_long: false, is_v86: false };
const LONG: Mode = Mode { is_protected: true, is_long: true, is_v86: false };
const V86: Mode = Mode { is_protected: true, is_long: false, is_v86: true };

const DATA: Segment = Segment::new(0x10, 0, 0xffff_ffff, 0xc093);
const CODE_64: Segment = Segment::new(0x08, 0, 0xffff_ffff, 0xa09b);
const UNUSABLE: Segment = Segment::new(0, 0, 0, Segment::UNUSABLE);
const TSS: Segment = Segment::new(0x30, 0x1000, 0x67, 0x8b);
const TABLE: DescriptorTable = DescriptorTable { base: 0, limit: 0xffff, reserved: 0 };

fn long_segments() -> [Segment; 6] {
    let mut segments = [DATA; 6];
    segments[CS] = CODE_64;
    segments
}

fn with(index: usize, segment: Segment) -> [Segment; 6] {
    let mut segments = long_segments();
    segments[index] = segment;
    segments
}

fn context() -> EventContext {
    EventContext {
        rflags: 0x202,
        interruptibility: Interruptibility::empty(),
        is_protected: true,
        length: 2,
        can_inject_length_0: false,
    }
}

#[test]
fn the_state_after_reset_passes_every_check() {
    const REAL_DATA: Segment = Segment::new(0, 0, 0xffff, 0x93);
    let mut segments = [REAL_DATA; 6];
    segments[CS] = Segment::new(0xf000, 0xffff_0000, 0xffff, 0x9b);
    let ldtr = Segment::new(0, 0, 0xffff, 0x82);
    let tr = Segment::new(0, 0, 0xffff, 0x8b);
    assert_eq!(check_rip_group(0xfff0, 2, 0, 0), Ok(()));
    assert_eq!(check_code_and_stack(&segments, REAL), Ok(()));
    assert_eq!(check_data_segments(&segments, REAL), Ok(()));
    assert_eq!(check_tables(&ldtr, &tr, &TABLE, &TABLE, REAL), Ok(()));
    assert_eq!(check_debug(0xffff_0ff0, 0x400), Ok(()));
    assert_eq!(check_pat(0x0007_0406_0007_0406, 0), Ok(()));
}

#[test]
fn canonical_addresses_have_equal_upper_bits() {
    for address in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
        assert!(is_canonical(address), "{address:#x}");
    }
    for address in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert!(!is_canonical(address), "{address:#x}");
    }
}

#[test]
fn rflags_keep_their_fixed_bits() {
    for rflags in [0, 2 | 1 << 3, 2 | 1 << 5, 2 | 1 << 15, 2 | 1 << 22, 2 | 1 << 63] {
        assert_eq!(check_rip_group(0, rflags, 0, 0), Err(EntryRule::Rflags), "{rflags:#x}");
    }
    assert_eq!(check_rip_group(1 << 47, 2, 0, 0), Err(EntryRule::Canonical));
}

#[test]
fn interruptibility_and_activity_have_few_values() {
    assert_eq!(check_rip_group(0, 0x202, 1, 1), Ok(()));
    assert_eq!(check_rip_group(0, 2, 2 | 8, 0), Ok(()));
    assert_eq!(check_rip_group(0, 2, 1, 0), Err(EntryRule::Activity), "STI shadow with IF clear");
    assert_eq!(check_rip_group(0, 0x202, 3, 0), Err(EntryRule::Activity), "both shadows");
    assert_eq!(check_rip_group(0, 2, 4, 0), Err(EntryRule::Activity), "SMI blocking");
    assert_eq!(check_rip_group(0, 2, 0, 2), Err(EntryRule::Activity), "shutdown");
}

#[test]
fn virtual_8086_mode_is_not_for_real_or_long_mode() {
    assert_eq!(check_v86(V86), Ok(()));
    assert_eq!(check_v86(Mode { is_long: true, ..V86 }), Err(EntryRule::Rflags));
    assert_eq!(check_v86(Mode { is_protected: false, ..V86 }), Err(EntryRule::Rflags));
}

#[test]
fn interrupts_need_the_guest_to_accept_them() {
    let event = Event::interrupt(0x20);
    assert_eq!(check_event(event, &context()), Ok(()));
    assert_eq!(check_event(event, &EventContext { rflags: 2, ..context() }), Err(EntryRule::Rflags));
    for interruptibility in [Interruptibility::STI, Interruptibility::MOV_SS] {
        let blocked = EventContext { interruptibility, ..context() };
        assert_eq!(check_event(event, &blocked), Err(EntryRule::Activity));
    }
    let in_nmi = EventContext { interruptibility: Interruptibility::NMI, ..context() };
    assert_eq!(check_event(event, &in_nmi), Ok(()));
}

#[test]
fn nmis_need_the_guest_not_to_handle_one() {
    let masked = EventContext { rflags: 2, ..context() };
    assert_eq!(check_event(Event::nmi(), &masked), Ok(()));
    let in_nmi = EventContext { interruptibility: Interruptibility::NMI, ..context() };
    assert_eq!(check_event(Event::nmi(), &in_nmi), Err(EntryRule::Activity));
    assert_eq!(check_event(Event(Event::nmi().0 | 1), &context()), Err(EntryRule::Event), "vector 3");
}

#[test]
fn error_codes_come_with_the_exceptions_that_have_them() {
    let real = EventContext { is_protected: false, ..context() };
    assert_eq!(check_event(Event::exception(13, Some(0)), &context()), Ok(()));
    assert_eq!(check_event(Event::exception(13, None), &context()), Err(EntryRule::Event));
    assert_eq!(check_event(Event::exception(13, None), &real), Ok(()));
    assert_eq!(check_event(Event::exception(13, Some(0)), &real), Err(EntryRule::Event));
    assert_eq!(check_event(Event::exception(6, Some(0)), &context()), Err(EntryRule::Event));
    assert_eq!(check_event(Event::exception(14, Some(0x8000)), &context()), Err(EntryRule::Event));
    assert_eq!(check_event(Event::exception(32, None), &context()), Err(EntryRule::Event));
}

#[test]
fn software_events_need_an_instruction_length() {
    let software = |length, can_inject_length_0| {
        let context = EventContext { length, can_inject_length_0, ..context() };
        check_event(Event(1 << 31 | (Event::SOFTWARE as u64) << 8 | 0x80), &context)
    };
    assert_eq!(software(2, false), Ok(()));
    assert_eq!(software(16, false), Err(EntryRule::Event));
    assert_eq!(software(0, false), Err(EntryRule::Event));
    assert_eq!(software(0, true), Ok(()));
}

#[test]
fn event_types_that_the_manual_reserves_are_refused() {
    for kind in [1, 7] {
        assert_eq!(check_event(Event(1 << 31 | kind << 8), &context()), Err(EntryRule::Event));
    }
    assert_eq!(check_event(Event(1 << 31 | 1 << 12 | 0x20), &context()), Err(EntryRule::Event));
}

#[test]
fn flat_64_bit_segments_are_accepted() {
    assert_eq!(check_code_and_stack(&long_segments(), LONG), Ok(()));
    assert_eq!(check_data_segments(&long_segments(), LONG), Ok(()));
    assert_eq!(check_code_and_stack(&with(SS, UNUSABLE), LONG), Ok(()));
    assert_eq!(check_data_segments(&with(GS, Segment { base: 0xffff_8880_0000_0000, ..DATA }), LONG), Ok(()));
}

#[test]
fn code_segments_obey_type_privilege_and_size() {
    let cs = |access| check_code_and_stack(&with(CS, Segment { access, ..CODE_64 }), LONG);
    assert_eq!(cs(0xe09b), Err(EntryRule::Segment), "L and D");
    assert_eq!(cs(0xa09a), Err(EntryRule::Segment), "not accessed");
    assert_eq!(cs(0xa0fb), Err(EntryRule::Segment), "DPL 3 over a stack of DPL 0");
    assert_eq!(cs(0xa08b), Err(EntryRule::Segment), "a system segment");
    assert_eq!(cs(0xa01b), Err(EntryRule::Segment), "not present");
    assert_eq!(cs(0xa19b), Err(EntryRule::Segment), "reserved bit");
    assert_eq!(cs(0x209b), Err(EntryRule::Segment), "4 GiB limit in bytes");
    let high = Segment { base: 1 << 32, ..CODE_64 };
    assert_eq!(check_code_and_stack(&with(CS, high), LONG), Err(EntryRule::Segment));
}

#[test]
fn real_mode_stacks_are_of_ring_0() {
    let mut segments = [Segment::new(0, 0, 0xffff, 0x93); 6];
    assert_eq!(
        check_code_and_stack(&segments, REAL),
        Ok(()),
        "a data segment in CS is what real mode leaves"
    );
    segments[SS].access = 0xf3;
    assert_eq!(check_code_and_stack(&segments, REAL), Err(EntryRule::Segment));
    assert_eq!(check_code_and_stack(&with(SS, Segment { access: 0xc097, ..DATA }), PROTECTED), Ok(()));
    assert_eq!(
        check_code_and_stack(&with(SS, Segment { access: 0xc09b, ..DATA }), LONG),
        Err(EntryRule::Segment)
    );
}

#[test]
fn data_segments_are_accessed_readable_and_low() {
    let ds = |segment| check_data_segments(&with(DS, segment), LONG);
    assert_eq!(ds(UNUSABLE), Ok(()));
    assert_eq!(ds(Segment { access: 0xc092, ..DATA }), Err(EntryRule::Segment));
    assert_eq!(ds(Segment { access: 0xc099, ..DATA }), Err(EntryRule::Segment), "execute-only");
    assert_eq!(ds(Segment { base: 1 << 32, ..DATA }), Err(EntryRule::Segment));
    assert_eq!(ds(Segment { limit: 0x10_0000, access: 0x4093, ..DATA }), Err(EntryRule::Segment));
    assert_eq!(ds(Segment { limit: 0xffff, ..DATA }), Ok(()), "page granularity with all low bits set");
    assert_eq!(ds(Segment { limit: 0x1_0000, ..DATA }), Err(EntryRule::Segment));
    let gs = Segment { base: 1 << 47, ..UNUSABLE };
    assert_eq!(check_data_segments(&with(GS, gs), LONG), Err(EntryRule::Canonical), "even if unusable");
}

#[test]
fn virtual_8086_segments_follow_their_selectors() {
    let segment = |selector: u16| Segment::new(selector, (selector as u64) << 4, 0xffff, 0xf3);
    let mut segments = [segment(0x1234); 6];
    assert_eq!(check_code_and_stack(&segments, V86), Ok(()));
    assert_eq!(check_data_segments(&segments, V86), Ok(()));
    segments[ES].base += 1;
    segments[CS].limit = 0xfffe;
    assert_eq!(check_code_and_stack(&segments, V86), Err(EntryRule::Segment));
    assert_eq!(check_data_segments(&segments, V86), Err(EntryRule::Segment));
}

#[test]
fn the_task_register_holds_a_busy_tss() {
    let tr = |tr: Segment, mode| check_tables(&UNUSABLE, &tr, &TABLE, &TABLE, mode);
    assert_eq!(tr(TSS, LONG), Ok(()));
    assert_eq!(tr(Segment { access: 0x83, ..TSS }, PROTECTED), Ok(()));
    assert_eq!(tr(Segment { access: 0x83, ..TSS }, LONG), Err(EntryRule::Segment), "a 16-bit TSS");
    assert_eq!(tr(Segment { access: 0x89, ..TSS }, LONG), Err(EntryRule::Segment), "not busy");
    assert_eq!(tr(UNUSABLE, LONG), Err(EntryRule::Segment));
    assert_eq!(tr(Segment { selector: 0x34, ..TSS }, LONG), Err(EntryRule::Segment), "in the LDT");
    assert_eq!(tr(Segment { base: 1 << 47, ..TSS }, LONG), Err(EntryRule::Canonical));
}

#[test]
fn descriptor_tables_have_canonical_bases_and_16_bit_limits() {
    let gdtr = |base, limit| {
        check_tables(&UNUSABLE, &TSS, &DescriptorTable { base, limit, reserved: 0 }, &TABLE, LONG)
    };
    assert_eq!(gdtr(0xffff_ffff_0000_0000, 0x7f), Ok(()));
    assert_eq!(gdtr(1 << 50, 0x7f), Err(EntryRule::Canonical));
    assert_eq!(gdtr(0, 0x1_0000), Err(EntryRule::Segment));
    let ldtr = Segment::new(0x28, 1 << 48, 0xf, 0x82);
    assert_eq!(check_tables(&ldtr, &TSS, &TABLE, &TABLE, LONG), Err(EntryRule::Canonical));
    let ldtr = Segment::new(0x28, 0, 0xf, 0x8b);
    assert_eq!(check_tables(&ldtr, &TSS, &TABLE, &TABLE, LONG), Err(EntryRule::Segment));
}

#[test]
fn values_that_would_fault_in_the_kernel_are_refused() {
    assert_eq!(check_debug(1 << 32, 0), Err(EntryRule::Msr));
    assert_eq!(check_debug(0, 1 << 32), Err(EntryRule::Msr));
    assert_eq!(check_pat(2, 0), Err(EntryRule::Msr));
    assert_eq!(check_pat(8 << 56, 0), Err(EntryRule::Msr));
    assert_eq!(check_pat(0, 1 << 6), Err(EntryRule::Msr), "branch trace messages");
    assert_eq!(check_sysenter(1 << 32, 0, 0), Err(EntryRule::Msr));
    assert_eq!(check_sysenter(8, 1 << 47, 0), Err(EntryRule::Canonical));
    assert_eq!(check_syscall([1 << 47, 0], 0, 0, 0), Err(EntryRule::Canonical));
    assert_eq!(check_syscall([0, 0], 0, 1 << 63, 0), Err(EntryRule::Canonical));
    assert_eq!(check_syscall([0, 0], 1 << 32, 0, 0), Err(EntryRule::Msr));
    assert_eq!(check_syscall([0, 0], 0, 0, 1 << 32), Err(EntryRule::Msr));
}

proptest! {
    #[test]
    fn an_accepted_interrupt_is_one_the_hardware_takes(raw: u64, rflags: u64, state in 0_u32..16, protected: bool) {
        let context = EventContext {
            rflags,
            interruptibility: Interruptibility::from_bits_truncate(state),
            is_protected: protected,
            length: 1,
            can_inject_length_0: false,
        };
        let event = Event(raw | 1 << 31);
        if check_event(event, &context).is_ok() {
            prop_assert!(event.kind() != 1 && event.kind() != 7);
            prop_assert!(event.kind() != Event::EXTERNAL || rflags & RFLAGS_IF != 0);
            prop_assert!(event.error_code().is_none() || event.kind() == Event::EXCEPTION && protected);
        }
    }
}
