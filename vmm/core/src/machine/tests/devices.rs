//! Ports and device memory.

use super::*;

#[test]
fn the_first_serial_port_carries_what_the_guest_prints() {
    let mut vm = Vm::new();
    for byte in b"hi\n" {
        let rip = vm.vcpu.page.rip;
        assert_eq!(vm.write_port(0x3f8, 1, (*byte).into()), Action::Run);
        assert_eq!(vm.vcpu.page.rip, rip + 2);
    }
    vm.write_port(0x2f8, 1, b'x'.into());
    assert_eq!((vm.output(0), vm.output(1)), (b"hi\n".to_vec(), b"x".to_vec()));
    assert!(vm.output(9).is_empty());
}

#[test]
fn every_way_to_reset_or_power_off_is_honoured() {
    for (port, size, value) in [(0x600, 1, 1), (0x64, 1, 0xfe), (0xcf9, 1, 6), (0x92, 1, 1)] {
        assert_eq!(Vm::new().write_port(port, size, value), Action::Reset, "{port:#x}");
    }
    assert_eq!(Vm::new().write_port(0x600, 1, 0x34), Action::End(Outcome::PoweredOff));
    assert_eq!(Vm::new().write_port(0xf4, 4, 0x1234_5678), Action::End(Outcome::ExitCode(0x1234_5678)));
    let crash = Vm::new().exit(ExitKind::TripleFault, [0, 0]);
    assert_eq!(crash, Action::End(Outcome::TripleFault { rip: ENTRY }));
}

#[test]
fn ports_without_a_device_float_and_ignore_writes() {
    let mut vm = Vm::new();
    for (port, value) in [(0x20, 0x11), (0x21, 0xff), (0x43, 0x34), (0xcf8, 0x8000_0400)] {
        assert_eq!(vm.write_port(port, 4, value), Action::Run, "not even a PCI address is a reset");
    }
    assert_eq!(vm.read_port(0x21, 1), 0xaaaa_aaaa_aaaa_aaff);
    assert_eq!(vm.read_port(0xcfc, 2), 0xaaaa_aaaa_aaaa_ffff);
    assert_eq!(vm.read_port(0xcfc, 4), 0xffff_ffff);
}

#[test]
fn debug_consoles_and_string_output_reach_the_monitor() {
    let mut vm = Vm::new();
    // rep outsb
    vm.memory.write(ENTRY, &[0xf3, 0x6e]).unwrap();
    vm.memory.write(0x30_0000, b"boot").unwrap();
    let page = &mut vm.vcpu.page;
    (page.gpr[gpr::RSI], page.gpr[gpr::RCX], page.gpr[gpr::RDX]) = (0x30_0000, 4, 0xe9);
    let io = PortIo { port: 0xe9, size: 1, is_in: false, is_string: true, is_rep: true };
    assert_eq!(vm.exit(ExitKind::PortIo, [io.encode(), 0xff]), Action::Run);
    assert!(vm.machine.take_debug_output().eq(*b"boot"));
    assert_eq!(vm.vcpu.page.rip, ENTRY + 2);
}

#[test]
fn the_local_apic_answers_in_memory_until_it_is_in_x2apic_mode() {
    let mut vm = Vm::new();
    // mov eax, [rbx]
    vm.vcpu.page.gpr[gpr::RBX] = layout::LOCAL_APIC + 0x30;
    assert_eq!(vm.device_access(&[0x8b, 0x03], layout::LOCAL_APIC + 0x30), Action::Run);
    assert_eq!(vm.vcpu.page.gpr[gpr::RAX] & 0xff, 0x14, "the version");
    vm.enable_interrupts();
    vm.vcpu.page.gpr[gpr::RBX] = layout::LOCAL_APIC + 0x30;
    assert_eq!(vm.device_access(&[0x8b, 0x03], layout::LOCAL_APIC + 0x30), Action::Run);
    assert_eq!(vm.vcpu.page.gpr[gpr::RAX], 0xffff_ffff);
}
