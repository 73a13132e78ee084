//! CPUID, MSRs, control registers, hypercalls.

use super::*;

#[test]
fn a_guest_is_told_what_time_others_took_when_its_timer_is_due() {
    use core::sync::atomic::{AtomicU64, Ordering};
    const STEAL_TIME: u32 = 0x4b56_4d03;
    const AREA: u64 = 0x3_0000;
    static WAITED: AtomicU64 = AtomicU64::new(500);
    let host = Host { waited: || WAITED.load(Ordering::Relaxed), ..host() };
    let mut vm = Vm::on(&host, &config(), Devices::default());
    WAITED.store(500 + TSC_HZ, Ordering::Relaxed);
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!(vm.memory.read_u64(AREA), Ok(0), "it did not ask");
    assert!(vm.write_msr(STEAL_TIME, AREA | 1));
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!(vm.memory.read_u64(AREA), Ok(1_000_000_000));
    WAITED.fetch_add(TSC_HZ, Ordering::Relaxed);
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!(vm.memory.read_u64(AREA), Ok(1_000_000_000), "that was just before");
    vm.now += TSC_HZ / 100;
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!(vm.memory.read_u64(AREA), Ok(2_000_000_000));
    for told in [2_000_000_000, 2_000_015_000] {
        WAITED.fetch_add(TSC_HZ * 75 / 10_000_000, Ordering::Relaxed);
        vm.now += TSC_HZ / 100;
        vm.exit(ExitKind::Deadline, [0, 0]);
        assert_eq!(vm.memory.read_u64(AREA), Ok(told), "7.5 us are not worth telling, twice as much is");
    }
    assert!(vm.write_msr(STEAL_TIME, 0));
    WAITED.fetch_add(TSC_HZ, Ordering::Relaxed);
    vm.now += TSC_HZ;
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!(vm.memory.read_u64(AREA), Ok(2_000_015_000));
}

#[test]
fn a_guest_says_where_the_word_is_by_which_it_ends_interrupts() {
    const PV_EOI: u32 = 0x4b56_4d04;
    let machine = MachineBits::all() - MachineBits::APIC_VIRTUALIZATION;
    let facts = HostFacts { machine, ..host().facts };
    let mut vm = Vm::on(&Host { facts, ..host() }, &config(), Devices::default());
    assert!(vm.write_msr(PV_EOI, 0x3_0005));
    assert_eq!(vm.machine.take_eoi_word(), Some(Some(0x3_0004)));
    assert!(!vm.write_msr(PV_EOI, 0x3_0003), "a reserved bit is a fault");
    assert_eq!((vm.read_msr(PV_EOI), vm.machine.take_eoi_word()), (Some(0x3_0005), None));
    let mut vm = Vm::new();
    assert!(!vm.write_msr(PV_EOI, 0x3_0005), "the hardware spares the exit, and CPUID says nothing of it");
}

#[test]
fn without_a_length_from_the_hardware_the_instruction_is_fetched() {
    let mut vm = Vm::new();
    vm.memory.write(ENTRY, &[0x2e, 0x0f, 0xa2]).unwrap();
    vm.vcpu.page.gpr[gpr::RAX] = 0x4000_0000;
    assert_eq!(vm.exit_of_length(ExitKind::Cpuid, [0, 0], 0), Action::Run);
    assert_eq!((vm.vcpu.page.rip, vm.vcpu.page.gpr[gpr::RBX]), (ENTRY + 3, 0x4b4d_564b));
    vm.vcpu.page.rip = ENTRY;
    let action = vm.exit_of_length(ExitKind::Hlt, [0, 0], 0);
    assert!(matches!(action, Action::End(Outcome::Unsupported { .. })), "{action:?}");
}

#[test]
fn executing_where_there_is_no_ram_is_an_invalid_opcode() {
    let mut vm = Vm::new();
    vm.vcpu.page.rip = 0xe000_0000;
    let action = vm.exit(ExitKind::NestedFault, [0xe000_0000, NestedFault::EXECUTE.bits()]);
    assert_eq!((action, vm.vcpu.page.inject), (Action::Run, Event::exception(6, None)));
}

#[test]
fn an_unknown_msr_faults_and_is_logged() {
    let mut vm = Vm::new();
    assert_eq!(vm.read_msr(0x1234), None);
    assert_eq!(vm.vcpu.page.rip, ENTRY, "the fault is at the instruction");
    assert!(vm.machine.take_log()[0].contains("0x1234"));
}

#[test]
fn the_tsc_starts_at_zero_and_the_clock_survives_its_changes() {
    let mut vm = Vm::new();
    vm.now += 1000;
    assert_eq!(vm.read_msr(0x10), Some(1000));
    assert!(vm.write_msr(0x4b56_4d01, 0x30_0001));
    let clock = |vm: &Vm| (vm.memory.read_u32(0x30_0000).unwrap(), vm.memory.read_u64(0x30_0008).unwrap());
    assert_eq!(clock(&vm), (2, 0));
    assert!(vm.write_msr(0x10, 51_000));
    assert_eq!((vm.read_msr(0x10), vm.read_msr(0x3b)), (Some(51_000), Some(50_000)));
    assert_eq!(clock(&vm), (4, 50_000), "time goes on from where the TSC is now");
    assert!(vm.write_msr(0x4b56_4d00, 0x30_0100));
    assert_eq!(vm.memory.read_u32(0x30_0104), Ok(1_700_000_000));
}

#[test]
fn only_the_guests_kernel_may_call_and_no_call_exists() {
    let mut vm = Vm::new();
    assert_eq!(vm.exit(ExitKind::Hypercall, [0, 0]), Action::Run);
    assert_eq!(vm.vcpu.page.gpr[gpr::RAX] as u32 as i32, -1000);
    vm.vcpu.page.segments[SS].access |= 3 << 5;
    vm.exit(ExitKind::Hypercall, [0, 0]);
    assert_eq!(vm.vcpu.page.gpr[gpr::RAX] as u32 as i32, -1);
}

#[test]
fn xcr0_takes_what_cpuid_offers() {
    let mut vm = Vm::new();
    for (value, is_valid) in [(3, true), (7, true), (2, false), (5, false), (0xe7, false), (1, true)] {
        vm.vcpu.page.gpr[gpr::RCX] = 0;
        crate::vcpu::write_edx_eax(&mut vm.vcpu.page, value);
        assert_eq!(vm.exit(ExitKind::Xsetbv, [0, 0]), Action::Run);
        assert_eq!(!vm.vcpu.page.inject.is_valid(), is_valid, "{value:#x}");
    }
    assert_eq!(vm.vcpu.page.xcr0, 1);
    vm.vcpu.page.segments[SS].access |= 3 << 5;
    crate::vcpu::write_edx_eax(&mut vm.vcpu.page, 3);
    vm.exit(ExitKind::Xsetbv, [0, 0]);
    assert_eq!(vm.vcpu.page.inject, Event::exception(13, Some(0)), "not a process's");
    assert_eq!(vm.vcpu.page.xcr0, 1);
}

#[test]
fn paging_with_lme_makes_long_mode_active() {
    let mut vm = Vm::new();
    vm.vcpu.page.efer = EFER_LME;
    let on = CR0_PE | CR0_PG;
    assert!(!vm.write_control(0, on), "long mode needs PAE");
    assert!(vm.write_control(4, CR4_PAE));
    assert!(vm.write_control(0, on));
    assert_eq!(vm.vcpu.page.efer, EFER_LME | EFER_LMA);
    assert!(!vm.write_control(4, 0), "PAE cannot go in long mode");
    assert!(vm.write_control(0, CR0_PE));
    assert_eq!(vm.vcpu.page.efer, EFER_LME);
    assert!(!vm.write_control(0, CR0_PG), "no paging without protection");
    assert!(!vm.write_control(4, 1 << 13), "no VMX");
}

#[test]
fn lmsw_and_clts_touch_their_bits_only() {
    let mut vm = Vm::new();
    vm.control(0, ControlOperation::Lmsw, 0xfff8);
    assert_eq!(vm.vcpu.page.cr0 & 0xf, 9, "TS set, PE kept");
    vm.control(0, ControlOperation::Clts, 0);
    assert_eq!(vm.vcpu.page.cr0 & 0xf, 1);
}

#[test]
fn control_registers_are_found_in_the_instruction_if_the_hardware_does_not_say() {
    let mut vm = Vm::new();
    // mov cr4, edi
    vm.memory.write(ENTRY, &[0x0f, 0x22, 0xe7]).unwrap();
    vm.vcpu.page.gpr[gpr::RDI] = 0x10;
    let access = ControlAccess { register: 4, operation: ControlOperation::Write, gpr: 0xff, source: 0 };
    assert_eq!(vm.exit_of_length(ExitKind::ControlAccess, [access.encode(), 0], 0), Action::Run);
    assert_eq!((vm.vcpu.page.cr4, vm.vcpu.page.rip), (0x10, ENTRY + 3));
}

#[test]
fn clts_lmsw_and_smsw_that_show_as_moves_are_told_apart() {
    let exit = |vm: &mut Vm, code: &[u8], operation| {
        vm.memory.write(ENTRY, code).unwrap();
        vm.vcpu.page.rip = ENTRY;
        let access = ControlAccess { register: 0, operation, gpr: 0xff, source: 0 };
        // The length is known where nRIP is, the register only with decode assists.
        let action = vm.exit_of_length(ExitKind::ControlAccess, [access.encode(), 0], code.len() as u32);
        assert_eq!(action, Action::Run);
        assert_eq!(vm.vcpu.page.rip, ENTRY + code.len() as u64);
    };
    let mut vm = Vm::new();
    vm.vcpu.page.cr0 = 0x39;
    vm.vcpu.page.gpr[gpr::RAX] = 0xdead_beef;
    exit(&mut vm, &[0x0f, 0x06], ControlOperation::Write);
    assert_eq!(vm.vcpu.page.cr0, 0x31, "CLTS");
    // lmsw [ebx]
    vm.memory.write_u16(0x30_0000, 0xfffe).unwrap();
    vm.vcpu.page.gpr[gpr::RBX] = 0x30_0000;
    exit(&mut vm, &[0x0f, 0x01, 0x33], ControlOperation::Write);
    assert_eq!(vm.vcpu.page.cr0, 0x3f, "LMSW keeps PE");
    // smsw [ebx], smsw eax
    exit(&mut vm, &[0x0f, 0x01, 0x23], ControlOperation::Read);
    assert_eq!(vm.memory.read_u32(0x30_0000), Ok(0x3f));
    exit(&mut vm, &[0x0f, 0x01, 0xe0], ControlOperation::Read);
    assert_eq!(vm.vcpu.page.gpr[gpr::RAX], 0x3f);
}

#[test]
fn most_cpuid_leaves_need_no_more_state_than_the_exit_brought() {
    let mut vm = Vm::new();
    for (leaf, needed) in
        [(0, Groups::empty()), (0x4000_0001, Groups::empty()), (1, Groups::CONTROL), (0xd, Groups::XCR0)]
    {
        vm.vcpu.required = Groups::empty();
        vm.vcpu.page.gpr[gpr::RAX] = leaf;
        vm.exit(ExitKind::Cpuid, [0, 0]);
        assert_eq!(vm.vcpu.required, needed, "{leaf:#x}");
    }
}

#[test]
fn an_msr_of_a_hidden_feature_does_not_exist() {
    let mut hidden = config();
    hidden.hide_features = vec!["tsc_deadline_timer".into(), "rdtscp".into(), "rdpid".into()];
    let mut vm = Vm::with(&hidden);
    for index in [MSR_TSC_DEADLINE, 0xc000_0103] {
        assert_eq!(vm.read_msr(index), None, "{index:#x}");
        assert!(!vm.write_msr(index, 0), "{index:#x}");
        assert!(Vm::new().write_msr(index, 0), "{index:#x}");
    }
}

#[test]
fn a_process_of_the_guest_cannot_end_the_vm_by_an_instruction_on_device_memory() {
    // movaps xmm0, [ebx]
    let code = [0x0f, 0x28, 0x03];
    let mut vm = Vm::new();
    vm.vcpu.page.gpr[gpr::RBX] = layout::LOCAL_APIC;
    let action = vm.device_access(&code, layout::LOCAL_APIC);
    assert!(
        matches!(action, Action::End(Outcome::Unsupported { .. })),
        "the guest's kernel gets an explanation: {action:?}"
    );
    vm.vcpu.page.segments[SS].access |= 3 << 5;
    assert_eq!(vm.device_access(&code, layout::LOCAL_APIC), Action::Run);
    assert_eq!(vm.vcpu.page.inject, Event::exception(6, None));
    assert!(vm.machine.take_log()[0].contains("Movaps"));
}

#[test]
fn a_debug_exception_that_passes_through_the_vmm_says_its_cause() {
    let mut vm = Vm::new();
    (vm.vcpu.page.dr6, vm.vcpu.page.dr7) = (0xffff_0ff2, 0x2401);
    let page = &mut vm.vcpu.page;
    page.exit_kind = ExitKind::Exception as u32;
    page.exit_info = [1, 0, 0x4001, 0, 0, 0, 0, 0];
    vm.machine.handle_exit(&mut vm.vcpu, &mut vm.memory, vm.now);
    let page = &vm.vcpu.page;
    assert_eq!(page.inject, Event::exception(1, None));
    assert_eq!((page.dr6, page.dr7), (0xffff_4ff1, 0x401));
}
