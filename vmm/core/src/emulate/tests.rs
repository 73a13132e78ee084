use super::*;
use crate::fault::Fault;
use crate::vcpu::{CR0_PE, FakeVcpu, RFLAGS_DF};
use alloc::vec::Vec;
use hypercall_abi::exit::{ExitKind, NestedFault};
use hypercall_abi::vcpu::{CS, DS, ES, FS, NO_CODE_ROOT, Segment, gpr};
use proptest::prelude::*;
use vdev::guest_mem::VecMemory;

const CODE: u64 = 0x2000;
const DEVICE: u64 = 0xfec0_0000;

/// Device memory that reads as a pattern, and a log of everything that reached it.
#[derive(Default)]
struct Recorder {
    log: Vec<(&'static str, u64, u8, u64)>,
}

const PATTERN: u64 = 0x8877_6655_4433_2211;

impl Devices for Recorder {
    fn read_memory(&mut self, address: u64, size: u8) -> u64 {
        self.log.push(("read", address, size, 0));
        PATTERN
    }

    fn write_memory(&mut self, address: u64, size: u8, value: u64) {
        self.log.push(("write", address, size, value));
    }

    fn read_port(&mut self, port: u16, size: u8) -> u32 {
        self.log.push(("in", port.into(), size, 0));
        PATTERN as u32
    }

    fn write_port(&mut self, port: u16, size: u8, value: u32) {
        self.log.push(("out", port.into(), size, value.into()));
    }
}

struct Machine {
    vcpu: FakeVcpu,
    memory: VecMemory,
    devices: Recorder,
    cache: DecodeCache,
}

impl Machine {
    /// 64-bit mode with the first 4 GiB mapped one to one.
    fn long(code: &[u8]) -> Machine {
        let mut memory = VecMemory::new(0x10_0000);
        memory.write_u64(0x1_0000, 0x1_1007).unwrap();
        for index in 0..4 {
            memory.write_u64(0x1_1000 + index * 8, index << 30 | 0x87).unwrap();
        }
        memory.write(CODE, code).unwrap();
        let mut vcpu = FakeVcpu::long_mode(CODE, 0x1_0000);
        vcpu.page.code_root = vcpu.page.cr3;
        // The exit tells nothing of the instruction's own access.
        vcpu.page.exit_info[1] = NestedFault::PAGE_WALK.bits();
        Machine { vcpu, memory, devices: Recorder::default(), cache: DecodeCache::default() }
    }

    /// 32-bit mode without paging.
    fn protected(code: &[u8]) -> Machine {
        let mut machine = Machine::long(code);
        let page = &mut machine.vcpu.page;
        (page.cr0, page.cr4, page.efer, page.code_root) = (CR0_PE, 0, 0, NO_CODE_ROOT);
        page.segments[CS] = Segment::new(8, 0, 0xffff_ffff, 0xc09b);
        machine
    }

    fn step(&mut self) -> Result<(), Trouble> {
        self.step_for(Cause::Memory)
    }

    fn step_for(&mut self, cause: Cause) -> Result<(), Trouble> {
        let Machine { vcpu, memory, devices, cache } = self;
        if cause == Cause::Memory && emulate_move(vcpu, memory, devices, cache) {
            return Ok(());
        }
        emulate(&mut self.vcpu, &mut self.memory, &mut self.devices, &mut self.cache, cause)
    }

    fn gpr(&mut self, index: usize) -> &mut u64 {
        &mut self.vcpu.page.gpr[index]
    }
}

#[test]
fn a_load_zero_extends_and_advances_rip() {
    // mov eax, [rbx + 0x10]
    let mut machine = Machine::long(&[0x8b, 0x43, 0x10]);
    *machine.gpr(gpr::RBX) = DEVICE;
    *machine.gpr(gpr::RAX) = u64::MAX;
    machine.step().unwrap();
    assert_eq!(machine.devices.log, [("read", DEVICE + 0x10, 4, 0)]);
    assert_eq!((*machine.gpr(gpr::RAX), machine.vcpu.page.rip), (0x4433_2211, CODE + 3));
}

#[test]
fn stores_of_every_size_reach_the_device() {
    let cases: [(&[u8], u8, u64); 6] = [
        (&[0x88, 0x23], 1, 0x77),                                   // mov [rbx], ah
        (&[0x66, 0x89, 0x03], 2, 0x7788),                           // mov [rbx], ax
        (&[0x89, 0x03], 4, 0x5566_7788),                            // mov [rbx], eax
        (&[0x48, 0x89, 0x03], 8, 0x1122_3344_5566_7788),            // mov [rbx], rax
        (&[0xc6, 0x03, 0xf0], 1, 0xf0),                             // mov byte [rbx], 0xf0
        (&[0x48, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], 8, u64::MAX), // mov qword [rbx], -1
    ];
    for (code, size, value) in cases {
        let mut machine = Machine::long(code);
        *machine.gpr(gpr::RBX) = DEVICE;
        *machine.gpr(gpr::RAX) = 0x1122_3344_5566_7788;
        machine.step().unwrap();
        assert_eq!(machine.devices.log, [("write", DEVICE, size, value)], "{code:x?}");
        assert_eq!(machine.vcpu.page.rip, CODE + code.len() as u64);
    }
}

#[test]
fn narrow_loads_extend_as_the_instruction_says() {
    // movzx ecx, byte [rbx]; movsx rcx, word [rbx]; mov ch, [rbx]
    let cases: [(&[u8], u64); 3] = [
        (&[0x0f, 0xb6, 0x0b], 0x11),
        (&[0x48, 0x0f, 0xbf, 0x0b], 0x2211),
        (&[0x8a, 0x2b], 0xffff_ffff_ffff_11ff),
    ];
    for (code, expected) in cases {
        let mut machine = Machine::long(code);
        *machine.gpr(gpr::RBX) = DEVICE;
        *machine.gpr(gpr::RCX) = u64::MAX;
        machine.step().unwrap();
        assert_eq!(*machine.gpr(gpr::RCX), expected, "{code:x?}");
    }
}

#[test]
fn read_modify_write_touches_the_device_twice_and_sets_flags() {
    // lock or dword [rbx], 0x8000_0000
    let mut machine = Machine::long(&[0xf0, 0x81, 0x0b, 0, 0, 0, 0x80]);
    *machine.gpr(gpr::RBX) = DEVICE;
    machine.step().unwrap();
    assert_eq!(machine.devices.log, [("read", DEVICE, 4, 0), ("write", DEVICE, 4, 0xc433_2211)]);
    assert_ne!(machine.vcpu.page.rflags & 1 << 7, 0, "SF");
    // test byte [rbx], 1
    let mut machine = Machine::long(&[0xf6, 0x03, 0x01]);
    *machine.gpr(gpr::RBX) = DEVICE;
    machine.step().unwrap();
    assert_eq!((machine.devices.log.len(), machine.vcpu.page.rflags & 1 << 6), (1, 0));
}

#[test]
fn bit_tests_reach_the_word_that_their_index_names() {
    // bts [rbx], ecx
    let mut machine = Machine::long(&[0x0f, 0xab, 0x0b]);
    *machine.gpr(gpr::RBX) = DEVICE;
    *machine.gpr(gpr::RCX) = 67;
    machine.step().unwrap();
    assert_eq!(machine.devices.log[1], ("write", DEVICE + 8, 4, 0x4433_2219));
}

#[test]
fn exchange_swaps_register_and_device() {
    // xchg [rbx], eax
    let mut machine = Machine::long(&[0x87, 0x03]);
    *machine.gpr(gpr::RBX) = DEVICE;
    *machine.gpr(gpr::RAX) = 5;
    machine.step().unwrap();
    assert_eq!(machine.devices.log[1], ("write", DEVICE, 4, 5));
    assert_eq!(*machine.gpr(gpr::RAX), 0x4433_2211);
}

#[test]
fn a_repeated_move_copies_from_memory_to_the_device() {
    // rep movsd
    let mut machine = Machine::protected(&[0xf3, 0xa5]);
    for index in 0..3 {
        machine.memory.write_u32(0x3000 + index * 4, index as u32 + 7).unwrap();
    }
    *machine.gpr(gpr::RSI) = 0x3000;
    *machine.gpr(gpr::RDI) = DEVICE;
    *machine.gpr(gpr::RCX) = 3;
    machine.step().unwrap();
    let expected = [0, 1, 2].map(|index| ("write", DEVICE + index * 4, 4, index + 7));
    assert_eq!(machine.devices.log, expected);
    assert_eq!(
        (*machine.gpr(gpr::RCX), *machine.gpr(gpr::RDI), machine.vcpu.page.rip),
        (0, DEVICE + 12, CODE + 2)
    );
}

#[test]
fn string_instructions_go_down_with_the_direction_flag() {
    // rep stosb; lodsw
    let mut machine = Machine::long(&[0xf3, 0xaa, 0x66, 0xad]);
    machine.vcpu.page.rflags |= RFLAGS_DF;
    *machine.gpr(gpr::RDI) = DEVICE + 1;
    *machine.gpr(gpr::RSI) = DEVICE;
    *machine.gpr(gpr::RCX) = 2;
    *machine.gpr(gpr::RAX) = 0xab;
    machine.step().unwrap();
    machine.step().unwrap();
    let expected = [("write", DEVICE + 1, 1, 0xab), ("write", DEVICE, 1, 0xab), ("read", DEVICE, 2, 0)];
    assert_eq!(machine.devices.log, expected);
    assert_eq!((*machine.gpr(gpr::RAX), *machine.gpr(gpr::RSI)), (0x2211, DEVICE - 2));
}

#[test]
fn a_long_repetition_is_done_in_pieces() {
    let mut machine = Machine::long(&[0xf3, 0xaa]);
    *machine.gpr(gpr::RDI) = DEVICE;
    *machine.gpr(gpr::RCX) = 1100;
    machine.step().unwrap();
    assert_eq!((machine.vcpu.page.rip, *machine.gpr(gpr::RCX)), (CODE, 76));
    machine.step().unwrap();
    assert_eq!((machine.vcpu.page.rip, *machine.gpr(gpr::RCX)), (CODE + 2, 0));
}

#[test]
fn a_fault_in_a_repetition_keeps_what_was_done() {
    let mut machine = Machine::long(&[0xf3, 0xa4]);
    // Only the first 2 MiB are mapped: the source runs out of its page.
    machine.memory.write_u64(0x1_1000, 0x1_2007).unwrap();
    machine.memory.write_u64(0x1_2000, 0x87).unwrap();
    *machine.gpr(gpr::RSI) = 0x1f_fffe;
    *machine.gpr(gpr::RDI) = DEVICE;
    *machine.gpr(gpr::RCX) = 9;
    assert_eq!(machine.step(), Err(Trouble::Fault(Fault::page(0, 0x20_0000))));
    assert_eq!((*machine.gpr(gpr::RCX), machine.vcpu.page.rip), (7, CODE));
}

#[test]
fn string_output_sends_bytes_of_the_segment_that_the_prefix_names() {
    // rep fs outsb, in real mode
    let mut machine = Machine::long(&[0xf3, 0x64, 0x6e]);
    machine.vcpu = FakeVcpu::new();
    machine.vcpu.page.rip = CODE;
    machine.vcpu.page.segments[CS].base = 0;
    machine.vcpu.page.segments[FS] = Segment::new(0x400, 0x4000, 0xffff, 0x93);
    machine.memory.write(0x4010, b"ok").unwrap();
    *machine.gpr(gpr::RSI) = 0xabcd_0010;
    *machine.gpr(gpr::RCX) = 2;
    *machine.gpr(gpr::RDX) = 0x3f8;
    machine.step_for(Cause::Port).unwrap();
    let expected = [b'o', b'k'].map(|byte| ("out", 0x3f8, 1, byte.into()));
    assert_eq!(machine.devices.log, expected);
    assert_eq!(*machine.gpr(gpr::RSI), 0xabcd_0012, "only SI moves");
}

#[test]
fn string_input_fills_memory() {
    let mut machine = Machine::protected(&[0xf3, 0x6d]);
    *machine.gpr(gpr::RDI) = 0x3000;
    *machine.gpr(gpr::RCX) = 2;
    *machine.gpr(gpr::RDX) = 0x1f0;
    machine.step_for(Cause::Port).unwrap();
    assert_eq!(machine.memory.read_u64(0x3000).unwrap(), 0x4433_2211_4433_2211);
}

#[test]
fn string_io_honours_the_limits_that_the_cpu_had_not_looked_at_yet() {
    // rep outsb; rep insb
    for (code, index) in [(0x6e, DS), (0x6c, ES)] {
        let mut machine = Machine::protected(&[0xf3, code]);
        machine.vcpu.page.segments[index] = Segment::new(0x18, 0x4000, 0x11, 0x4093);
        *machine.gpr(gpr::RSI) = 0x10;
        *machine.gpr(gpr::RDI) = 0x10;
        *machine.gpr(gpr::RCX) = 5;
        *machine.gpr(gpr::RDX) = 0x1f0;
        assert_eq!(machine.step_for(Cause::Port), Err(Fault::PROTECTION.into()));
        assert_eq!((*machine.gpr(gpr::RCX), machine.vcpu.page.rip), (3, CODE));
        assert_eq!(machine.devices.log.len(), 2);
    }
}

#[test]
fn an_instruction_that_the_cpu_did_not_report_is_not_executed() {
    // outsb, where the CPU saw an access to memory; mov [rbx], eax, where it saw port I/O.
    let mut machine = Machine::long(&[0x6e]);
    assert!(matches!(machine.step(), Err(Trouble::Unsupported(_))));
    let mut machine = Machine::long(&[0x89, 0x03]);
    assert!(matches!(machine.step_for(Cause::Port), Err(Trouble::Unsupported(_))));
    assert!(machine.devices.log.is_empty());
}

#[test]
fn a_device_is_not_read_when_the_write_behind_it_faults() {
    // xchg [rbx], eax; not dword [rbx]; add [rbx], eax
    for code in [&[0x87, 0x03], &[0xf7, 0x13], &[0x01, 0x03]] {
        let mut machine = Machine::long(code);
        // The gigabyte with the device is read-only.
        machine.memory.write_u64(0x1_1018, 3 << 30 | 0x85).unwrap();
        *machine.gpr(gpr::RBX) = DEVICE;
        assert_eq!(machine.step(), Err(Fault::page(3, DEVICE).into()));
        assert!(machine.devices.log.is_empty());
    }
}

#[test]
fn code_and_data_wrap_at_4_gib_in_compatibility_mode() {
    // mov [ebx], eax in a 32-bit segment of long mode, at linear address 0x2000 and with data around 0.
    let mut machine = Machine::long(&[0x89, 0x03]);
    machine.vcpu.page.segments[CS] = Segment::new(8, 0xffff_0000, 0xffff_ffff, 0xc09b);
    machine.vcpu.page.segments[DS] = Segment::new(0x18, 0xffff_fffe, 0xffff_ffff, 0xc093);
    machine.vcpu.page.rip = 0x1_2000;
    *machine.gpr(gpr::RAX) = 0x4433_2211;
    machine.step().unwrap();
    assert_eq!(machine.vcpu.page.rip, 0x1_2002);
    assert_eq!(machine.devices.log, [("write", 0xffff_fffe, 2, 0x2211)]);
    assert_eq!(machine.memory.read_u16(0), Ok(0x4433));
}

#[test]
fn an_access_may_straddle_memory_and_device() {
    let mut machine = Machine::protected(&[0x89, 0x03]);
    machine.memory = VecMemory::new(0x3000);
    machine.memory.write(CODE, &[0x89, 0x03]).unwrap();
    *machine.gpr(gpr::RBX) = 0x2ffe;
    *machine.gpr(gpr::RAX) = 0x4433_2211;
    machine.step().unwrap();
    assert_eq!(machine.memory.read_u16(0x2ffe), Ok(0x2211));
    assert_eq!(machine.devices.log, [("write", 0x3000, 2, 0x4433)]);
}

#[test]
fn a_page_that_is_not_mapped_raises_the_guests_own_page_fault() {
    let mut machine = Machine::long(&[0x89, 0x03]);
    *machine.gpr(gpr::RBX) = 1 << 40;
    assert_eq!(machine.step(), Err(Trouble::Fault(Fault::page(2, 1 << 40))));
    assert_eq!(machine.vcpu.page.rip, CODE);
}

#[test]
fn bytes_from_the_hardware_spare_the_fetch() {
    let mut machine = Machine::long(&[0xcc]);
    *machine.gpr(gpr::RBX) = DEVICE;
    machine.vcpu.page.exit_info[3..].copy_from_slice(&[15, 0x038b, 0, 0, 0]);
    machine.step().unwrap();
    assert_eq!(machine.vcpu.page.rip, CODE + 2);
}

/// What the CPU says about an access to the device at `offset`, and the linear address if the hardware says it.
fn reached(linear: Option<u64>, offset: u64, is_write: bool) -> [u64; 8] {
    let mut flags = NestedFault::READ;
    flags.set(NestedFault::WRITE, is_write);
    flags.set(NestedFault::LINEAR_VALID, linear.is_some());
    [DEVICE + offset, flags.bits(), linear.unwrap_or(0), 0, 0, 0, 0, 0]
}

#[test]
fn what_the_cpu_translated_is_not_translated_again() {
    const UNMAPPED: u64 = 1 << 40;
    for linear in [Some(UNMAPPED + 8), None] {
        // mov [rbx + 8], eax; or [rbx + 8], eax
        for (code, log) in [
            (&[0x89, 0x43, 0x08], &[("write", DEVICE + 8, 4, 7)][..]),
            (
                &[0x09, 0x43, 0x08],
                &[("read", DEVICE + 8, 4, 0), ("write", DEVICE + 8, 4, PATTERN & 0xffff_ffff | 7)],
            ),
        ] {
            let mut machine = Machine::long(code);
            *machine.gpr(gpr::RBX) = UNMAPPED;
            *machine.gpr(gpr::RAX) = 7;
            machine.vcpu.page.exit_info = reached(linear, 8, true);
            machine.step().unwrap();
            assert_eq!(machine.devices.log, log);
        }
    }
}

#[test]
fn a_load_through_the_cpus_translation_extends_as_any_other() {
    // movzx ecx, byte [rbx]
    let mut machine = Machine::long(&[0x0f, 0xb6, 0x0b]);
    machine.vcpu.page.exit_info = reached(None, 0, false);
    *machine.gpr(gpr::RBX) = 1 << 40;
    machine.step().unwrap();
    assert_eq!(*machine.gpr(gpr::RCX), 0x11);
}

#[test]
fn a_translation_serves_no_other_access_than_that_of_the_cpu() {
    const UNMAPPED: u64 = 1 << 40;
    // mov [rbx + 8], eax
    let mut machine = Machine::long(&[0x89, 0x43, 0x08]);
    *machine.gpr(gpr::RBX) = UNMAPPED;
    for info in [
        // Another address, a read, and bytes on two pages.
        reached(Some(UNMAPPED), 0, true),
        reached(None, 0xc, true),
        reached(Some(UNMAPPED + 8), 8, false),
    ] {
        let fault = Fault::page(2, UNMAPPED + 8);
        machine.vcpu.page.exit_info = info;
        assert_eq!(machine.step(), Err(Trouble::Fault(fault)));
    }
    *machine.gpr(gpr::RBX) = UNMAPPED - 9;
    machine.vcpu.page.exit_info = reached(Some(UNMAPPED - 1), 0xfff, true);
    assert!(machine.step().is_err());
    assert!(machine.devices.log.is_empty());
}

#[test]
fn an_instruction_that_was_decoded_before_is_not_taken_for_another() {
    let mut machine = Machine::long(&[0x89, 0x03]);
    *machine.gpr(gpr::RBX) = DEVICE;
    *machine.gpr(gpr::RAX) = 0xaa;
    machine.step().unwrap();
    // The guest changes its code: mov [rbx + 4], eax.
    machine.memory.write(CODE, &[0x89, 0x43, 0x04]).unwrap();
    machine.vcpu.page.rip = CODE;
    machine.step().unwrap();
    assert_eq!(machine.vcpu.page.rip, CODE + 3);
    // The same bytes at the same address are another instruction in 16-bit code: mov [bp + di + 4], ax.
    machine.vcpu.page.rip = CODE;
    machine.vcpu.page.segments[CS].access = 0x9b;
    machine.vcpu.page.code_root = NO_CODE_ROOT;
    machine.step().unwrap();
    let sizes: Vec<u8> = machine.devices.log.iter().map(|entry| entry.2).collect();
    assert_eq!(sizes, [4, 4]);
    assert_eq!(machine.memory.read_u16(4), Ok(0xaa));
}

#[test]
fn an_avx_instruction_is_not_supported_rather_than_undefined() {
    // vmovups [rbx], xmm0; the same with FS and a 32-bit address
    for code in [&[0xc5, 0xf8, 0x11, 0x03][..], &[0x64, 0x67, 0xc5, 0xf8, 0x11, 0x03]] {
        let mut machine = Machine::long(code);
        let result = machine.step();
        assert!(matches!(result, Err(Trouble::Unsupported(_))), "{result:?}");
    }
    // les eax, [ebx] to device memory, which is no instruction in 64-bit mode
    let mut machine = Machine::protected(&[0xc4, 0x03]);
    assert!(matches!(machine.step(), Err(Trouble::Unsupported(_))));
}

#[test]
fn what_is_not_supported_says_where_it_is() {
    // movdqa xmm0, [rbx]
    let mut machine = Machine::long(&[0x66, 0x0f, 0x6f, 0x03]);
    *machine.gpr(gpr::RBX) = DEVICE;
    let Err(Trouble::Unsupported(text)) = machine.step() else { panic!("supported") };
    assert!(text.contains("Movdqa at 0x2000"), "{text}");
}

#[test]
fn the_length_of_an_exiting_instruction_counts_its_prefixes() {
    let mut machine = Machine::long(&[0x66, 0x48, 0x0f, 0xa2]);
    let length = verify_length(&mut machine.vcpu, &mut machine.memory, &mut machine.cache, ExitKind::Cpuid);
    assert_eq!(length, Ok(4));
    let wrong = verify_length(&mut machine.vcpu, &mut machine.memory, &mut machine.cache, ExitKind::Hlt);
    assert!(matches!(wrong, Err(Trouble::Unsupported(_))));
    let mut plain = Machine::long(&[0x0f, 0xa2]);
    let length = verify_length(&mut plain.vcpu, &mut plain.memory, &mut plain.cache, ExitKind::Cpuid);
    assert_eq!(length, Ok(2));
    let wrong = verify_length(&mut plain.vcpu, &mut plain.memory, &mut plain.cache, ExitKind::MsrRead);
    assert!(matches!(wrong, Err(Trouble::Unsupported(_))));
    machine.vcpu.page.exit_length = 2;
    assert_eq!(
        verify_length(&mut machine.vcpu, &mut machine.memory, &mut machine.cache, ExitKind::Cpuid),
        Ok(2)
    );
}

#[test]
fn an_instruction_may_end_with_its_page_but_not_reach_into_a_missing_one() {
    // Only 0x0000_0000 to 0x001f_ffff are mapped; cpuid in the last bytes.
    let mut machine = Machine::long(&[]);
    machine.memory = VecMemory::new(0x20_0000);
    for (address, entry) in [(0x1_0000, 0x1_1007), (0x1_1000, 0x1_2007), (0x1_2000, 0x87)] {
        machine.memory.write_u64(address, entry).unwrap();
    }
    machine.memory.write(0x1f_fffe, &[0x0f, 0xa2]).unwrap();
    machine.vcpu.page.rip = 0x1f_fffe;
    assert_eq!(
        verify_length(&mut machine.vcpu, &mut machine.memory, &mut machine.cache, ExitKind::Cpuid),
        Ok(2)
    );
    machine.memory.write(0x1f_ffff, &[0x0f]).unwrap();
    machine.vcpu.page.rip = 0x1f_ffff;
    let fault = verify_length(&mut machine.vcpu, &mut machine.memory, &mut machine.cache, ExitKind::Cpuid);
    assert_eq!(fault, Err(Trouble::Fault(Fault::page(0x10, 0x20_0000))), "an instruction fetch");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn no_instruction_makes_the_emulator_panic(
        code in prop::collection::vec(any::<u8>(), 1..16),
        registers in prop::array::uniform16(prop_oneof![
            any::<u64>(), 0u64..0x10, (0u64..0x3000).prop_map(|offset| DEVICE + offset), 0u64..0x20_0000,
        ]),
        rflags in any::<u64>(),
        mode in 0..3,
    ) {
        let mut machine = if mode == 0 { Machine::long(&code) } else { Machine::protected(&code) };
        if mode == 2 {
            machine.vcpu.page.segments[CS].access = 0x9b;
        }
        machine.vcpu.page.gpr = registers;
        machine.vcpu.page.rflags = rflags;
        let before = machine.vcpu.page.rip;
        for cause in [Cause::Memory, Cause::Port] {
            machine.vcpu.page.rip = before;
            if machine.step_for(cause).is_err() {
                prop_assert_eq!(machine.vcpu.page.rip, before);
            }
        }
    }
}
