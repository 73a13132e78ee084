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

/// A guest in 64-bit code, as [`Vm::enter_long_mode`].
fn long_mode() -> Vm {
    let mut vm = Vm::new();
    vm.enter_long_mode();
    vm
}

impl Vm {
    /// Lets the guest be in 64-bit code at `ENTRY`, with tables at 0x1000 that map the first 2 MiB pages where they are.
    pub(super) fn enter_long_mode(&mut self) {
        self.vcpu = FakeVcpu::long_mode(ENTRY, 0x1000);
        for (address, entry) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3008, 0x20_0087)] {
            self.memory.write_u64(address, entry).unwrap();
        }
        let page = &mut self.vcpu.page;
        (page.code_root, page.exit_kind) = (0x1000, ExitKind::NestedFault as u32);
    }

    /// What the straight path makes of a store to `address`, which the CPU has translated, by the code at `ENTRY`.
    pub(super) fn store(&mut self, address: u64) -> bool {
        let page = &mut self.vcpu.page;
        page.rip = ENTRY;
        let flags = NestedFault::WRITE | NestedFault::LINEAR_VALID;
        page.exit_info[..3].copy_from_slice(&[address, flags.bits(), page.gpr[gpr::RBX]]);
        self.machine.access_quietly(&mut self.vcpu, &self.memory)
    }
}

#[test]
fn a_register_that_only_changes_needs_nothing_but_another_entry() {
    const LINEAR: u64 = 0xffff_8000_0000_0000;
    let mut vm = long_mode();
    // mov [rbx], eax
    vm.memory.write(ENTRY, &[0x89, 0x03]).unwrap();
    vm.vcpu.page.gpr[gpr::RBX] = LINEAR;
    for register in [0x10, 0x3f, 1] {
        vm.vcpu.page.gpr[gpr::RAX] = register;
        assert!(vm.store(layout::IO_APIC));
        assert_eq!(vm.vcpu.page.rip, ENTRY + 2);
    }
    // The I/O APIC's version, by the other path.
    assert_eq!(vm.peek(layout::IO_APIC + 0x10), 0x17_0020);
    let mut vm = long_mode();
    vm.memory.write(ENTRY, &[0x89, 0x03]).unwrap();
    vm.vcpu.page.gpr[gpr::RBX] = LINEAR;
    assert!(!vm.store(layout::LOCAL_APIC + 0xf0), "it may have an interrupt now");
    assert!(!vm.store(0x1000), "memory that was taken away");
    vm.vcpu.page.inject = Event::interrupt(0x40);
    assert!(!vm.store(layout::IO_APIC), "in the middle of a delivery");
    assert_eq!(vm.vcpu.page.rip, ENTRY);
}

#[test]
fn an_instruction_that_changed_is_not_taken_for_the_old_one() {
    let mut vm = long_mode();
    // mov [rbx], eax, then mov [rcx], eax: the same length.
    vm.memory.write(ENTRY, &[0x89, 0x03]).unwrap();
    vm.vcpu.page.gpr[gpr::RBX] = 0x7000;
    assert!(vm.store(layout::IO_APIC));
    vm.memory.write(ENTRY, &[0x89, 0x01]).unwrap();
    assert!(!vm.store(layout::IO_APIC), "another address than the CPU's");
    // The same bytes again, but the tables lead elsewhere.
    vm.memory.write(ENTRY, &[0x89, 0x03]).unwrap();
    assert!(vm.store(layout::IO_APIC));
    vm.memory.write_u64(0x3008, 0x0087).unwrap();
    assert!(!vm.store(layout::IO_APIC), "no move is there");
    vm.memory.write_u64(0x3008, 0x20_0087).unwrap();
    assert!(vm.store(layout::IO_APIC));
    vm.vcpu.page.code_root = 0x8000;
    assert!(!vm.store(layout::IO_APIC), "another address space");
}
