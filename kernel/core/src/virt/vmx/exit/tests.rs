//! Qualifications are those that Bochs was seen to give, or examples after the tables of the manual.

use super::*;

fn decode_plain(reason: Reason, details: Details) -> Outcome {
    decode(reason, &details, 0, false)
}

fn report(reason: Reason, details: Details) -> Report {
    match decode_plain(reason, details) {
        Outcome::Vmm(report) => report,
        other => panic!("{other:?} is not for the VMM"),
    }
}

fn qualified(qualification: u64) -> Details {
    Details { qualification, ..Details::default() }
}

fn exception(info: u32) -> Details {
    Details { interruption: info, error_code: 0x1234, qualification: 0xdead_f00f, ..Details::default() }
}

#[test]
fn out_with_an_immediate_port_is_told_apart_from_in() {
    let out = report(Reason::IO_INSTRUCTION, qualified(0x10_0040));
    assert_eq!(
        PortIo::decode(out.info[0]),
        PortIo { port: 0x10, size: 1, is_in: false, is_string: false, is_rep: false }
    );
    assert_eq!((out.kind, out.info_count, out.groups), (ExitKind::PortIo, 1, Groups::RIP));
    let input = report(Reason::IO_INSTRUCTION, qualified(0x60_004b));
    assert_eq!(
        PortIo::decode(input.info[0]),
        PortIo { port: 0x60, size: 4, is_in: true, is_string: false, is_rep: false }
    );
}

#[test]
fn rep_outsb_reports_its_segment_and_what_its_emulation_needs() {
    let outs = Details { instruction: 0x1_8000, ..qualified(0x03f8_0030) };
    let exit = report(Reason::IO_INSTRUCTION, outs);
    let io = PortIo::decode(exit.info[0]);
    assert!(io.is_string && io.is_rep && !io.is_in);
    assert_eq!((io.port, io.size), (0x3f8, 1));
    assert_eq!(exit.info[1], hypercall_abi::vcpu::DS as u64);
    assert!(exit.groups.contains(Groups::CS_SS | Groups::DATA_SEGMENTS | Groups::CONTROL));
}

#[test]
fn ins_always_goes_to_es_and_outs_without_information_is_unknown() {
    assert_eq!(
        report(Reason::IO_INSTRUCTION, qualified(0x0060_0018)).info[1],
        hypercall_abi::vcpu::ES as u64
    );
    assert_eq!(report(Reason::IO_INSTRUCTION, qualified(0x0060_0010)).info[1], 0xff);
}

#[test]
fn nested_faults_say_what_was_tried_and_what_was_there() {
    let at = |qualification| {
        let details = Details { linear: 0x4010, physical: 0xfee0_0010, ..qualified(qualification) };
        let exit = report(Reason::EPT_VIOLATION, details);
        assert_eq!((exit.kind, exit.info[0], exit.info[3]), (ExitKind::NestedFault, 0xfee0_0010, 0));
        (NestedFault::from_bits_retain(exit.info[1]), exit.info[2])
    };
    assert_eq!(at(0x181), (NestedFault::READ | NestedFault::LINEAR_VALID, 0x4010));
    assert_eq!(at(0x18a), (NestedFault::WRITE | NestedFault::PRESENT | NestedFault::LINEAR_VALID, 0x4010));
    assert_eq!(at(0x19c), (NestedFault::EXECUTE | NestedFault::PRESENT | NestedFault::LINEAR_VALID, 0x4010));
    assert_eq!(at(0x081), (NestedFault::READ | NestedFault::LINEAR_VALID | NestedFault::PAGE_WALK, 0x4010));
    assert_eq!(at(0x001), (NestedFault::READ, 0), "a linear address that is not valid is not passed on");
}

#[test]
fn control_register_accesses_name_register_operation_and_operand() {
    let access =
        |qualification| ControlAccess::decode(report(Reason::CR_ACCESS, qualified(qualification)).info[0]);
    let expect = |register, operation, gpr, source| ControlAccess { register, operation, gpr, source };
    assert_eq!(access(0x0300), expect(0, ControlOperation::Write, 3, 0));
    assert_eq!(access(0x0f18), expect(8, ControlOperation::Read, 15, 0));
    assert_eq!(access(0x0020), expect(0, ControlOperation::Clts, 0xff, 0));
    assert_eq!(access(0xfff1_0030), expect(0, ControlOperation::Lmsw, 0xff, 0xfff1));
    assert!(report(Reason::CR_ACCESS, qualified(0)).groups.contains(Groups::CONTROL));
}

#[test]
fn debug_register_accesses_name_register_operation_and_operand() {
    let exit = report(Reason::MOV_DR, qualified(0x0917));
    assert_eq!(
        ControlAccess::decode(exit.info[0]),
        ControlAccess { register: 7, operation: ControlOperation::Read, gpr: 9, source: 0 }
    );
}

#[test]
fn task_switches_have_selector_and_source() {
    assert_eq!(report(Reason::TASK_SWITCH, qualified(0xc000_0028)).info[0], 3 << 16 | 0x28);
}

#[test]
fn what_the_host_must_handle_never_reaches_the_vmm() {
    assert_eq!(decode_plain(Reason::EXTERNAL_INTERRUPT, Details::default()), Outcome::HostInterrupt);
    assert_eq!(decode_plain(Reason::PREEMPTION_TIMER, Details::default()), Outcome::Timer);
    assert_eq!(decode(Reason::EXCEPTION_OR_NMI, &exception(0x8000_0202), u32::MAX, false), Outcome::HostNmi);
    let machine_check = decode(Reason::EXCEPTION_OR_NMI, &exception(0x8000_0312), u32::MAX, false);
    assert_eq!(machine_check, Outcome::HostMachineCheck);
}

#[test]
fn exceptions_of_the_bitmap_are_reported_with_their_details() {
    let exit = |info, vector: u8| match decode(Reason::EXCEPTION_OR_NMI, &exception(info), 1 << vector, false)
    {
        Outcome::Vmm(report) => (report.kind, report.info[0], report.info[1], report.info[2]),
        other => panic!("{other:?}"),
    };
    assert_eq!(exit(0x8000_0306, 6), (ExitKind::Exception, 6, 0, 0));
    assert_eq!(exit(0x8000_0b0e, 14), (ExitKind::Exception, 14, 0x1234, 0xdead_f00f));
    assert_eq!(exit(0x8000_0301, 1), (ExitKind::Exception, 1, 0, 0x600f));
}

#[test]
fn exceptions_that_only_the_kernel_wants_go_back_to_the_guest() {
    let outcome = decode_plain(Reason::EXCEPTION_OR_NMI, exception(0x8000_0b11));
    let event = Event::exception(17, Some(0x1234));
    assert_eq!(outcome, Outcome::Reflect { event, debug_bits: 0 });
    let outcome = decode_plain(Reason::EXCEPTION_OR_NMI, exception(0x8000_0301));
    assert_eq!(outcome, Outcome::Reflect { event: Event::exception(1, None), debug_bits: 0x600f });
}

#[test]
fn an_exception_while_another_event_was_delivered_is_for_the_vmm() {
    let outcome = decode(Reason::EXCEPTION_OR_NMI, &exception(0x8000_0b11), 0, true);
    assert!(matches!(outcome, Outcome::Vmm(Report { kind: ExitKind::Exception, .. })), "{outcome:?}");
}

#[test]
fn virtualization_instructions_are_one_kind() {
    for reason in (19..=27).chain([11, 50, 53]) {
        assert_eq!(report(Reason(reason), Details::default()).kind, ExitKind::VirtInstruction, "{reason}");
        assert_eq!(Reason(reason).needs(), Needs::LENGTH, "{reason}");
    }
}

#[test]
fn the_virtual_apic_in_hardware_ends_interrupts_and_hides_refused_self_ipis() {
    let exit = report(Reason::VIRTUALIZED_EOI, qualified(0x52));
    assert_eq!((exit.kind, exit.info[0]), (ExitKind::Eoi, 0x52));
    assert_eq!(decode(Reason::APIC_WRITE, &qualified(0x3f0), 0, false), Outcome::Nothing);
}

#[test]
fn unknown_exits_are_data_for_the_vmm() {
    for raw in [5, 6, 17, 37, 43, 44, 46, 49, 57, 58, 60, 74, 0xffff] {
        let exit = report(Reason(raw), qualified(7));
        assert_eq!((exit.kind, exit.info[..3].to_vec()), (ExitKind::Unhandled, std::vec![0, raw as u64, 7]));
        assert!(Reason(raw).needs().contains(Needs::QUALIFICATION));
    }
}

#[test]
fn an_interrupted_event_comes_back_without_the_bit_that_injection_reserves() {
    assert_eq!(Interruption(0x8000_1020).event(0xffff), Event::interrupt(0x20));
    assert_eq!(Interruption(0x8000_0b0e).event(2), Event::exception(14, Some(2)));
    assert!(Interruption(0x8000_0603).is_software() && !Interruption(0x8000_0306).is_software());
}

#[test]
fn a_faulting_iret_blocks_nmis_again_unless_it_double_faults() {
    assert!(restores_nmi_blocking(Reason::EXCEPTION_OR_NMI, &exception(0x8000_1b0e)));
    assert!(!restores_nmi_blocking(Reason::EXCEPTION_OR_NMI, &exception(0x8000_1b08)));
    assert!(!restores_nmi_blocking(Reason::EXCEPTION_OR_NMI, &exception(0x8000_0b0e)));
    assert!(restores_nmi_blocking(Reason::EPT_VIOLATION, &qualified(0x1181)));
    assert!(!restores_nmi_blocking(Reason::EPT_VIOLATION, &qualified(0x0181)));
    assert!(!restores_nmi_blocking(Reason::CPUID, &qualified(0x1000)));
}

#[test]
fn quick_kinds_are_what_the_long_way_comes_to() {
    for raw in 0..64 {
        let reason = Reason(raw as u16);
        let long = match decode(reason, &Details::default(), 0, false) {
            Outcome::Vmm(report) if reason.plain_kind().is_some() => Some(report.kind),
            Outcome::Vmm(report) if report.kind == ExitKind::PortIo => Some(report.kind),
            _ => None,
        };
        let expected = long.filter(|&kind| kind != ExitKind::MsrWrite);
        assert_eq!(quick_kind(raw), expected, "reason {raw}");
    }
    for raw in [64, 1 << 16 | 10, 1 << 27 | 10, ENTRY_FAILURE | 33, ENTRY_FAILURE | 10] {
        assert_eq!(quick_kind(raw), None, "{raw:#x}");
    }
}
