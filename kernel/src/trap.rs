//! Exceptions and interrupts.

use crate::object::dma_space;
use crate::object::ec::{Ec, State};
use crate::object::interrupt;
use crate::object::signal::Signal;
use crate::{cpu, epitaph, hypercall, sched, trace};
use hypercall_abi::trace::Kind;
use khw::cpu::control;
use khw::entry::{Frame, Handlers};
use khw::irq::{lapic, vector};

/// The kernel's entry points.
pub const HANDLERS: Handlers = Handlers { syscall, user_trap, kernel_trap, nmi };

const DEBUG: u64 = 1;
const PAGE_FAULT: u64 = 14;
const EXCEPTIONS: u64 = 32;

extern "C" fn syscall(_frame: *mut Frame) -> *mut Frame {
    hypercall::dispatch()
}

extern "C" fn user_trap(frame: *mut Frame) -> *mut Frame {
    debug_assert!(!control::lifts_smap(), "a user's AC in the kernel");
    let local = cpu::local();
    // SAFETY: entry code saved the registers of the current context there; nobody else uses them now.
    let number = unsafe { (*frame).vector };
    if number < EXCEPTIONS {
        if let Some(ec) = local.ec.get() {
            fault(ec, number);
        }
    } else {
        deliver(number as u8);
    }
    sched::resume(local)
}

/// Stops a context on a fault and tells who wants to know.
fn fault(ec: &'static Ec, number: u64) {
    let address = if number == PAGE_FAULT { control::read_cr2() } else { 0 };
    trace::record(cpu::local(), Kind::Fault, number as u32, Some(ec));
    ec.fault.set((number, address));
    ec.state.set(State::Faulted);
    let frame = ec.frame();
    log::info!(
        "fault: vector {number} at rip {:#x}, address {address:#x}, error {:#x}",
        frame.rip,
        frame.error
    );
    Signal::report_fault(ec);
    hypercall::ipc::abandon(ec);
}

/// An interrupt arrived while the kernel let them in, or a fault in the kernel.
extern "C" fn kernel_trap(frame: *mut Frame) {
    // SAFETY: entry code saved the registers on this stack.
    let frame = unsafe { &*frame };
    match frame.vector {
        // What user code prepared (TF, a MOV SS) may trap behind its SYSCALL or INT: nothing of the kernel's. The user's
        // own trap comes when it goes on.
        DEBUG => {}
        0..EXCEPTIONS => epitaph::kernel_fault(frame),
        number => deliver(number as u8),
    }
}

fn deliver(number: u8) {
    let local = cpu::local();
    local.interrupts.set(local.interrupts.get().wrapping_add(1));
    trace::record(local, Kind::Interrupt, number as u32, local.ec.get());
    match number {
        vector::TIMER => {
            lapic::eoi();
            sched::timer_expired(local);
        }
        vector::REQUEST => {
            lapic::eoi();
            sched::look(local);
        }
        vector::DMA_FAULT => {
            lapic::eoi();
            dma_space::report_faults();
        }
        vector::GSI..vector::TIMER => interrupt::arrived((number - vector::GSI) as u32),
        // A device chose the number of its message (SECURITY.md). Spurious interrupts, of this APIC or an 8259, are not there to be ended.
        _ => lapic::end(number),
    }
}

/// An NMI came in kernel or user code. The kernel asks for none, but to stop the other CPUs when it ends: it goes on.
extern "C" fn nmi(_frame: *mut Frame) {
    epitaph::stop_if_over();
}

/// An NMI made a guest exit.
pub fn host_nmi() {
    epitaph::stop_if_over();
}
