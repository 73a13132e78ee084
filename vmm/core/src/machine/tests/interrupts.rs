//! Interrupts, timers and halting.

use super::*;

#[test]
fn input_interrupts_the_guest_when_it_takes_interrupts() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    assert_eq!(vm.machine.input(0, b"ls"), 2);
    vm.set_if(false);
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::INTERRUPT_WINDOW));
    vm.set_if(true);
    vm.vcpu.page.interruptibility = Interruptibility::STI.bits();
    assert_eq!(
        vm.enter(),
        (Event::NONE, RunFlags::INTERRUPT_WINDOW),
        "the STI shadow holds it back"
    );
    vm.vcpu.page.interruptibility = 0;
    assert_eq!(vm.enter(), (Event::interrupt(0x40), RunFlags::empty()));
    assert_eq!(vm.read_port(0x3f8, 1) as u8, b'l');
    assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
    assert_eq!(
        vm.enter().0,
        Event::interrupt(0x40),
        "without FIFO every byte interrupts"
    );
    assert_eq!(vm.read_port(0x3f8, 1) as u8, b's');
    assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
    assert_eq!(vm.enter().0, Event::NONE);
}

#[test]
fn an_exception_goes_before_an_interrupt() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.machine.input(0, b"x");
    vm.set_if(true);
    assert!(!vm.write_msr(0xdead, 0));
    let (event, flags) = vm.enter();
    assert_eq!(
        (event, flags),
        (Event::exception(13, Some(0)), RunFlags::INTERRUPT_WINDOW)
    );
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.set_if(true);
    assert!(vm.write_msr(MSR_X2APIC_TPR, 0x50));
    assert!(vm.write_msr(MSR_X2APIC_SELF_IPI, 0x41));
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::empty()));
    vm.control(8, ControlOperation::Read, 0);
    assert_eq!(vm.vcpu.page.gpr[gpr::RBX], 5);
    assert!(vm.write_control(8, 0));
    assert_eq!(vm.enter().0, Event::interrupt(0x41));
    assert!(!vm.write_control(8, 0x10));
}

#[test]
fn the_deadline_timer_is_a_deadline_of_the_run_and_wakes_a_halted_guest() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.write_msr(MSR_X2APIC_LVT_TIMER, 0x4_0080);
    vm.write_msr(MSR_TSC_DEADLINE, 3_000_000);
    vm.set_if(true);
    assert_eq!(vm.exit(ExitKind::Hlt, [0, 0]), Action::Run);
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::HLT_BLOCKS));
    assert_eq!(
        (vm.vcpu.page.deadline, vm.vcpu.page.activity),
        (BOOT_TSC + 3_000_000, ACTIVITY_HALTED)
    );
    vm.now = vm.vcpu.page.deadline;
    assert_eq!(vm.exit(ExitKind::Deadline, [0, 0]), Action::Run);
    assert_eq!(vm.enter().0, Event::interrupt(0x80));
    assert_eq!(
        (vm.vcpu.page.deadline, vm.vcpu.page.activity),
        (u64::MAX, ACTIVITY_ACTIVE)
    );
}

#[test]
fn a_guest_that_halts_with_interrupts_off_is_stuck() {
    let mut vm = Vm::new();
    vm.set_if(false);
    assert_eq!(
        vm.exit(ExitKind::Hlt, [0, 0]),
        Action::End(Outcome::Stuck { rip: ENTRY + 2 })
    );
}

#[test]
fn an_nmi_to_oneself_is_taken_once() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    assert!(vm.write_msr(0x830, 0x400));
    vm.vcpu.page.interruptibility = Interruptibility::NMI.bits();
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::NMI_WINDOW));
    vm.vcpu.page.interruptibility = 0;
    assert_eq!(vm.enter(), (Event::nmi(), RunFlags::empty()));
    vm.exit(ExitKind::Poked, [0, 0]);
    assert_eq!(vm.enter().0, Event::NONE);
}
