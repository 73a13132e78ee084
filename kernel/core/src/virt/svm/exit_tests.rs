use super::super::processor::tests::{hardware, tcg};
use super::*;
use std::vec::Vec;

fn exit(exit_code: u64, info_1: u64, info_2: u64) -> Vmcb {
    let mut vmcb = Vmcb::after_reset();
    vmcb.save.rip = 0x1000;
    vmcb.control.exit_code = exit_code;
    vmcb.control.exit_info_1 = info_1;
    vmcb.control.exit_info_2 = info_2;
    vmcb
}

fn guest(vmcb: &Vmcb, processor: &Processor) -> GuestExit {
    match decode(vmcb, processor) {
        Reason::Guest(exit) => exit,
        other => panic!("not for the VMM: {other:?}"),
    }
}

#[test]
fn host_events_are_not_for_the_vmm() {
    let decoded: Vec<Reason> =
        [0x60, 0x61, 0x52, 0x64, 0x74].iter().map(|&code| decode(&exit(code, 0, 0), &tcg())).collect();
    let expected =
        [Reason::HostInterrupt, Reason::HostNmi, Reason::HostMachineCheck, Reason::Window, Reason::Iret];
    assert_eq!(decoded, expected);
}

#[test]
fn a_refused_entry_is_recognized_in_64_and_in_32_bits() {
    assert_eq!(decode(&exit(u64::MAX, 0, 0), &tcg()), Reason::Refused);
    assert_eq!(decode(&exit(0xffff_ffff, 0, 0), &tcg()), Reason::Refused);
}

#[test]
fn with_next_rip_an_instruction_has_its_length() {
    let mut vmcb = exit(0x72, 0, 0);
    vmcb.control.next_rip = 0x1002;
    let cpuid = guest(&vmcb, &hardware());
    assert_eq!((cpuid.kind, cpuid.length, cpuid.needs), (ExitKind::Cpuid, 2, Groups::empty()));
}

#[test]
fn quick_kinds_are_what_the_long_way_comes_to() {
    // The second one is an IN, and a WRMSR.
    for (exit_code, info) in (0..0x410).flat_map(|exit_code| [(exit_code, 0), (exit_code, 1)]) {
        let mut vmcb = exit(exit_code, info, 0);
        vmcb.control.next_rip = vmcb.save.rip + 2;
        for processor in [hardware(), tcg()] {
            if let Some((kind, length)) = quick(&vmcb, &processor) {
                let long = guest(&vmcb, &processor);
                assert_eq!((kind, length), (long.kind, long.length), "{exit_code:#x}");
                assert_eq!(long.needs, Groups::empty(), "{exit_code:#x}");
                assert!(
                    long.info_words == 0
                        || matches!(kind, ExitKind::PortIo | ExitKind::Hypercall | ExitKind::NestedFault),
                    "{exit_code:#x}"
                );
                assert_eq!(long.decodes, length == 0, "{exit_code:#x}");
            }
        }
    }
    assert!(quick(&exit(0x72, 0, 0), &tcg()).is_some());
    assert!(quick(&exit(0x7b, 1 << 4, 0x1001), &tcg()).is_some());
    assert!(quick(&exit(0x7b, 1 << 4 | 1 << 2, 0x1001), &tcg()).is_none());
}

#[test]
fn without_next_rip_the_vmm_gets_what_it_needs_to_fetch_the_instruction() {
    let mut vmcb = exit(0x72, 0, 0);
    vmcb.control.next_rip = 0x1002;
    let cpuid = guest(&vmcb, &tcg());
    assert_eq!((cpuid.length, cpuid.decodes), (0, true));
}

#[test]
fn an_implausible_next_rip_is_no_length() {
    for next_rip in [0, 0x1000, 0x1010, 0xfff] {
        let mut vmcb = exit(0x78, 0, 0);
        vmcb.control.next_rip = next_rip;
        assert_eq!(guest(&vmcb, &hardware()).length, 0);
    }
}

#[test]
fn instructions_have_their_kinds() {
    for (code, kind) in [
        (0x6e, ExitKind::Rdtsc),
        (0x6f, ExitKind::Rdpmc),
        (0x76, ExitKind::CacheControl),
        (0x77, ExitKind::Pause),
        (0x78, ExitKind::Hlt),
        (0x79, ExitKind::Invlpg),
        (0x7a, ExitKind::VirtInstruction),
        (0x80, ExitKind::VirtInstruction),
        (0x81, ExitKind::Hypercall),
        (0x82, ExitKind::VirtInstruction),
        (0x83, ExitKind::VirtInstruction),
        (0x84, ExitKind::VirtInstruction),
        (0x85, ExitKind::VirtInstruction),
        (0x86, ExitKind::VirtInstruction),
        (0x87, ExitKind::Rdtsc),
        (0x89, ExitKind::CacheControl),
        (0x8a, ExitKind::Monitor),
        (0x8b, ExitKind::Monitor),
        (0x8c, ExitKind::Monitor),
        (0x8d, ExitKind::Xsetbv),
        (0x63, ExitKind::Init),
        (0x7f, ExitKind::TripleFault),
    ] {
        assert_eq!(guest(&exit(code, 0, 0), &tcg()).kind, kind, "exit code {code:#x}");
    }
}

#[test]
fn msr_exits_say_read_or_write() {
    assert_eq!(guest(&exit(0x7c, 0, 0), &tcg()).kind, ExitKind::MsrRead);
    assert_eq!(guest(&exit(0x7c, 1, 0), &tcg()).kind, ExitKind::MsrWrite);
}

#[test]
fn a_port_access_has_its_length_on_every_processor() {
    // OUT DX, AL at port 3F8H.
    let io = guest(&exit(0x7b, 0x3f8 << 16 | 1 << 4, 0x1001), &tcg());
    let expected = PortIo { port: 0x3f8, size: 1, is_in: false, is_string: false, is_rep: false };
    assert_eq!(PortIo::decode(io.info[0]), expected);
    assert_eq!((io.length, io.needs), (1, Groups::empty()));
}

#[test]
fn a_string_port_access_brings_the_segments() {
    // REP OUTSW through FS, with decode assists.
    let info = 0x1f0 << 16 | 4 << 10 | 1 << 5 | 1 << 3 | 1 << 2;
    let io = guest(&exit(0x7b, info, 0x1003), &hardware());
    let expected = PortIo { port: 0x1f0, size: 2, is_in: false, is_string: true, is_rep: true };
    assert_eq!(PortIo::decode(io.info[0]), expected);
    assert_eq!(io.info[1], hypercall_abi::vcpu::FS as u64);
    assert_eq!(io.needs, Groups::CS_SS | Groups::DATA_SEGMENTS | Groups::CONTROL);
    assert_eq!(guest(&exit(0x7b, info, 0x1003), &tcg()).info[1], 0xff);
    // INSD: always ES.
    assert_eq!(guest(&exit(0x7b, 0x1f0 << 16 | 1 << 6 | 5, 0x1001), &tcg()).info[1], 0);
}

#[test]
fn a_nested_write_fault_says_where_and_what() {
    let mut vmcb = exit(0x400, 1 << 32 | 7, 0xfee0_00b0);
    vmcb.control.byte_count = 3;
    vmcb.control.bytes[..3].copy_from_slice(&[0x89, 0x07, 0x90]);
    let fault = guest(&vmcb, &hardware());
    assert_eq!(fault.kind, ExitKind::NestedFault);
    assert_eq!(fault.info[0], 0xfee0_00b0);
    assert_eq!(fault.info[1], (NestedFault::WRITE | NestedFault::PRESENT).bits());
    assert_eq!(fault.info[3..], [3, 0x90_0789, 0]);
    assert_eq!((fault.needs, fault.decodes), (Groups::empty(), true));
    // Without decode assists the bytes are leftovers of somebody else.
    assert_eq!(guest(&vmcb, &tcg()).info[3..], [0, 0, 0]);
}

#[test]
fn nested_reads_fetches_and_page_walks_are_told_apart() {
    let flags = |error| NestedFault::from_bits_retain(guest(&exit(0x400, error, 0), &tcg()).info[1]);
    assert_eq!(flags(1 << 32 | 4), NestedFault::READ);
    assert_eq!(flags(1 << 32 | 1 << 4 | 4), NestedFault::EXECUTE);
    assert_eq!(flags(1 << 33 | 6), NestedFault::WRITE | NestedFault::PAGE_WALK);
}

#[test]
fn a_control_register_access_names_the_register_where_the_hardware_does() {
    let access = |code, info, processor: &Processor| {
        let exit = guest(&exit(code, info, 0), processor);
        assert_eq!(exit.kind, ExitKind::ControlAccess);
        ControlAccess::decode(exit.info[0])
    };
    let mov = access(0x18, 1 << 63 | 11, &hardware());
    assert_eq!((mov.register, mov.operation, mov.gpr), (8, ControlOperation::Write, 11));
    let read = access(0x08, 0, &tcg());
    assert_eq!((read.register, read.operation, read.gpr), (8, ControlOperation::Read, 0xff));
    // LMSW or CLTS.
    assert_eq!(access(0x10, 0, &hardware()).gpr, 0xff);
}

#[test]
fn a_debug_register_access_names_the_register() {
    let exit = guest(&exit(0x37, 3, 0), &hardware());
    assert_eq!(exit.kind, ExitKind::DebugAccess);
    let access = ControlAccess::decode(exit.info[0]);
    assert_eq!((access.register, access.operation, access.gpr), (7, ControlOperation::Write, 3));
}

#[test]
fn exceptions_carry_error_code_and_cause() {
    let fault = guest(&exit(0x4e, 2, 0xdead_b000), &tcg());
    assert_eq!((fault.kind, &fault.info[..3]), (ExitKind::Exception, &[14, 2, 0xdead_b000][..]));
    let mut vmcb = exit(0x41, 0, 0);
    vmcb.save.dr6 = 0xffff_4ff1;
    assert_eq!(guest(&vmcb, &tcg()).info[..3], [1, 0, 0x4001]);
}

#[test]
fn a_task_switch_names_its_source() {
    let source = |info_2, int_info| {
        let mut vmcb = exit(0x7d, 0x28, info_2);
        vmcb.control.exit_int_info = int_info;
        guest(&vmcb, &tcg()).info[0]
    };
    assert_eq!(source(0, 0), 0x28);
    assert_eq!(source(1 << 36, 0), 1 << 16 | 0x28);
    assert_eq!(source(1 << 38, 0), 2 << 16 | 0x28);
    assert_eq!(source(0, 1 << 31 | 0x308), 3 << 16 | 0x28);
}

#[test]
fn an_unknown_exit_is_data_for_the_vmm() {
    let exit = guest(&exit(0x403, 5, 6), &tcg());
    assert_eq!((exit.kind, &exit.info[..3]), (ExitKind::Unhandled, &[1, 0x403, 5][..]));
}

proptest::proptest! {
    #[test]
    fn no_exit_code_or_information_makes_the_decoder_panic(
        code: u64, small in 0u64..0x410, info_1: u64, info_2: u64, int_info: u64, count: u8, next_rip: u64,
    ) {
        for code in [code, small] {
            for processor in [tcg(), hardware()] {
                let mut vmcb = exit(code, info_1, info_2);
                vmcb.control.exit_int_info = int_info;
                vmcb.control.byte_count = count;
                vmcb.control.next_rip = next_rip;
                let _ = decode(&vmcb, &processor);
            }
        }
    }
}

#[test]
fn an_exception_that_interrupts_a_delivery_does_not_drop_what_was_delivered() {
    let interrupt = Event::interrupt(0x30);
    for vector in [1, 17] {
        let exception = guest(&exit(0x40 + vector, 0, 0), &hardware());
        assert!(exception.is_reflected(0, Event::NONE), "nothing else is there");
        assert!(!exception.is_reflected(0, interrupt), "the VMM gets both");
        assert!(!exception.is_reflected(1 << vector, Event::NONE), "the VMM asked for it");
    }
    assert!(!guest(&exit(0x72, 0, 0), &hardware()).is_reflected(0, Event::NONE));
}
