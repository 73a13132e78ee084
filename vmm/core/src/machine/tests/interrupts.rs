//! Interrupts, timers and halting.

use super::*;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use vdev::lapic::PageWords;

#[test]
fn input_interrupts_the_guest_when_it_takes_interrupts() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    assert_eq!(vm.machine.input(0, b"ls"), 2);
    vm.set_if(false);
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::INTERRUPT_WINDOW));
    vm.set_if(true);
    vm.vcpu.page.interruptibility = Interruptibility::STI.bits();
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::INTERRUPT_WINDOW), "the STI shadow holds it back");
    vm.vcpu.page.interruptibility = 0;
    assert_eq!(vm.enter(), (Event::interrupt(0x40), RunFlags::empty()));
    assert_eq!(vm.read_port(0x3f8, 1) as u8, b'l');
    assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
    assert_eq!(vm.enter().0, Event::interrupt(0x40), "without FIFO every byte interrupts");
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
    assert_eq!((event, flags), (Event::exception(13, Some(0)), RunFlags::INTERRUPT_WINDOW));
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

impl Vm {
    /// Whether the straight path arms the timer for guest TSC `deadline`.
    fn arms_quietly(&mut self, deadline: u64) -> bool {
        self.vcpu.page.gpr[gpr::RCX] = MSR_TSC_DEADLINE.into();
        crate::vcpu::write_edx_eax(&mut self.vcpu.page, deadline);
        self.vcpu.page.exit_kind = ExitKind::MsrWrite as u32;
        self.vcpu.page.exit_length = 2;
        self.machine.arm_timer_quietly(&mut self.vcpu, &mut self.memory, self.now)
    }
}

#[test]
fn arming_the_timer_for_a_time_to_come_only_moves_the_deadline() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.enter();
    vm.now += 5;
    assert!(!vm.arms_quietly(3_000_000), "the timer is masked, and counts otherwise");
    vm.write_msr(MSR_X2APIC_LVT_TIMER, 0x4_0080);
    let rip = vm.vcpu.page.rip;
    assert!(vm.arms_quietly(3_000_000));
    assert_eq!((vm.vcpu.page.deadline, vm.vcpu.page.rip), (BOOT_TSC + 3_000_000, rip + 2));
    assert!(vm.arms_quietly(2_000_000), "again, before it was due");
    assert_eq!(vm.vcpu.page.deadline, BOOT_TSC + 2_000_000);
    assert_eq!(vm.read_msr(MSR_TSC_DEADLINE), Some(2_000_000));
    for deadline in [0, 1] {
        assert!(!vm.arms_quietly(deadline), "disarming it, or having it expire at once");
    }
    assert_eq!(vm.read_msr(MSR_TSC_DEADLINE), Some(2_000_000));
    vm.now += 2_000_000;
    assert!(!vm.arms_quietly(9_000_000), "it is due");
    vm.set_if(true);
    assert_eq!(vm.enter().0, Event::interrupt(0x80));
    assert!(!vm.arms_quietly(9_000_000), "in the middle of a delivery");
}

#[test]
fn the_deadline_timer_is_a_deadline_of_the_run_and_wakes_a_halted_guest() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.write_msr(MSR_X2APIC_LVT_TIMER, 0x4_0080);
    vm.write_msr(MSR_TSC_DEADLINE, 3_000_000);
    vm.set_if(true);
    assert_eq!(vm.exit(ExitKind::Hlt, [0, 0]), Action::Run);
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::empty()));
    assert_eq!((vm.vcpu.page.deadline, vm.vcpu.page.activity), (BOOT_TSC + 3_000_000, ACTIVITY_HALTED));
    vm.now = vm.vcpu.page.deadline;
    assert_eq!(vm.exit(ExitKind::Deadline, [0, 0]), Action::Run);
    assert_eq!(vm.enter().0, Event::interrupt(0x80));
    assert_eq!(vm.vcpu.page.activity, ACTIVITY_ACTIVE);
    assert!(vm.vcpu.page.deadline > vm.now, "nothing in particular");
}

#[test]
fn a_guest_that_halts_with_interrupts_off_is_stuck() {
    let mut vm = Vm::new();
    vm.set_if(false);
    assert_eq!(vm.exit(ExitKind::Hlt, [0, 0]), Action::End(Outcome::Stuck { rip: ENTRY + 2 }));
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

#[test]
fn pasted_text_raises_an_edge_for_every_piece() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    // FIFOs on: pieces of up to 16 bytes.
    vm.write_port(0x3fa, 1, 1);
    vm.set_if(true);
    assert_eq!(vm.machine.input(0, &[b'x'; 40]), 40);
    let mut got = 0;
    while vm.enter().0 == Event::interrupt(0x40) {
        // A driver that reads what was there, and trusts that more would interrupt again.
        let burst = if got < 32 { 16 } else { 8 };
        for _ in 0..burst {
            assert_eq!(vm.read_port(0x3f8, 1) as u8, b'x');
            got += 1;
            vm.machine.prepare_entry(&mut vm.vcpu, vm.now);
            vm.vcpu.page.inject = Event::NONE;
        }
        vm.write_msr(MSR_X2APIC_EOI, 0);
    }
    assert_eq!(got, 40);
}

#[test]
fn timers_that_count_another_clock_do_not_notice_a_write_of_the_tsc() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    // One-shot, undivided, 2 ms.
    vm.write_msr(0x83e, 0xb);
    vm.write_msr(MSR_X2APIC_LVT_TIMER, 0x80);
    vm.write_msr(0x838, 2_000_000);
    vm.enter();
    let deadline = vm.vcpu.page.deadline;
    for tsc in [1 << 60, 0] {
        assert!(vm.write_msr(0x10, tsc));
        vm.enter();
        assert_eq!(vm.vcpu.page.deadline, deadline, "{tsc:#x}");
    }
}

#[test]
fn a_guest_in_an_nmi_handler_that_halts_is_stuck_whatever_nmi_waits() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.write_msr(0x830, 0x400);
    vm.vcpu.page.interruptibility = Interruptibility::NMI.bits();
    vm.set_if(false);
    let halted = vm.exit(ExitKind::Hlt, [0, 0]);
    assert!(matches!(halted, Action::End(Outcome::Stuck { .. })), "{halted:?}");
}

#[test]
fn an_init_to_the_only_cpu_resets_the_machine() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.vcpu.page.gpr[gpr::RCX] = 0x830;
    crate::vcpu::write_edx_eax(&mut vm.vcpu.page, 0x4500);
    assert_eq!(vm.exit(ExitKind::MsrWrite, [0, 0]), Action::Reset);
    // To everybody else: nobody.
    crate::vcpu::write_edx_eax(&mut vm.vcpu.page, 0xc_4500);
    assert_eq!(vm.exit(ExitKind::MsrWrite, [0, 0]), Action::Run);
}

#[test]
fn an_interrupt_whose_delivery_an_exception_interrupts_comes_behind_it() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.set_if(true);
    assert!(vm.write_msr(MSR_X2APIC_SELF_IPI, 0x41));
    let (interrupt, _) = vm.enter();
    assert_eq!(interrupt, Event::interrupt(0x41));
    let page = &mut vm.vcpu.page;
    page.exit_kind = ExitKind::Exception as u32;
    page.exit_info = [17, 0, 0, 0, 0, 0, 0, 0];
    // The kernel hands the interrupted event back in the page.
    vm.machine.handle_exit(&mut vm.vcpu, &mut vm.memory, vm.now);
    assert_eq!(vm.enter(), (Event::exception(17, Some(0)), RunFlags::INTERRUPT_WINDOW));
    vm.exit(ExitKind::InterruptWindow, [0, 0]);
    assert_eq!(vm.enter().0, Event::interrupt(0x41));
}

#[test]
fn with_a_virtual_apic_the_kernel_is_told_of_requests_and_delivers_them() {
    let page: &'static PageWords = Box::leak(Box::new([const { AtomicU32::new(0) }; 1024]));
    let mut vm = Vm::on(&Host { apic_page: Some(page), ..host() }, &config(), Devices::default());
    vm.set_if(true);
    assert_eq!(vm.enter().1, RunFlags::empty(), "in xAPIC mode the VMM delivers");
    vm.enable_interrupts();
    vm.vcpu.page.dirty = 0;
    assert_eq!(vm.enter().1, RunFlags::VIRTUAL_APIC);
    assert_ne!(vm.vcpu.page.dirty & Groups::APIC.bits(), 0);
    vm.vcpu.page.dirty = 0;
    vm.machine.input(0, b"x");
    assert_eq!(vm.enter(), (Event::NONE, RunFlags::VIRTUAL_APIC));
    assert_eq!((page[0x220 / 4].load(Relaxed), vm.vcpu.page.dirty), (1, Groups::APIC.bits()));
    vm.vcpu.page.dirty = 0;
    vm.enter();
    assert_eq!(vm.vcpu.page.dirty, 0, "nothing has changed");
    assert_eq!(vm.exit(ExitKind::Eoi, [0x40, 0]), Action::Run);
}
