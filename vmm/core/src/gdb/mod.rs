//! A gdb stub for the guest: registers, memory, breakpoints, single steps, Ctrl-C.
//!
//! The stub is between the run loop and the exits. With a debugger attached, #DB and #BP exit: what the debugger
//! caused (`breakpoints`, `step`) stops the guest, what the guest caused it gets.
//!
//! The protocol is the crate `gdbstub`'s; `target` says what it may ask for.

mod breakpoints;
mod memory;
mod registers;
mod step;
mod target;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::convert::Infallible;
use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{CS, Event, Groups, Intercepts};
use vdev::guest_mem::GuestMemory;
use vmm_protocol::outcome::Outcome;

use crate::fault::{DEBUG_EXCEPTION, GENERAL_PROTECTION};
use crate::vcpu::{RFLAGS_TF, Vcpu, complete_instruction};
use breakpoints::{HLT, Hardware, INT3, Software};
use step::Step;

/// Vector of INT3.
const BREAKPOINT: u8 = 3;
/// The answer to `vKill`, which [`gdbstub`] leaves out: gdb waits for it. After `k` nobody listens.
const KILLED: &[u8] = b"$OK#9a";
/// Longest packet from gdb.
const PACKET_BYTES: usize = 4096;

type StopReason = SingleThreadStopReason<u64>;

/// The VM under a debugger, and the line to gdb.
pub trait Inferior {
    /// Its CPU.
    type Cpu: Vcpu;
    /// Its memory.
    type Memory: GuestMemory;

    /// Both.
    fn parts(&mut self) -> (&mut Self::Cpu, &mut Self::Memory);

    /// Whether the CPU is QEMU's emulation of AMD-V (7.2 to 10.0). There INT3 never exits as an exception, and breakpoints in
    /// debug registers work only where the guest itself writes DR7: VMRUN changes no more than what DR7 reads as.
    fn is_emulated_svm(&self) -> bool;

    /// Runs the guest to its next exit. With `is_quiet` nothing is injected but what is in the page already.
    fn enter(&mut self, is_quiet: bool);

    /// Handles that exit.
    fn handle(&mut self);

    /// How the VM ended, if it has.
    fn outcome(&self) -> Option<&Outcome>;

    /// Takes a byte from gdb, if there is one.
    fn receive(&mut self) -> Option<u8>;

    /// Waits until there may be one.
    fn wait(&mut self);

    /// Sends bytes to gdb.
    fn send(&mut self, bytes: &[u8]);
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The debugger left, and the guest goes on.
    Detached,
    /// The debugger killed the VM.
    Killed,
    /// The VM ended by itself.
    Over,
    /// gdb broke the protocol; as [`Self::Detached`].
    Confused,
}

/// A debugger at work.
pub(crate) struct Debugger<'a, I> {
    inferior: &'a mut I,
    software: Software,
    hardware: Hardware,
    stepping: Option<Step>,
}

/// What the stub has to say, on its way to the line.
#[derive(Debug, Default)]
struct Replies(Vec<u8>);

impl Connection for Replies {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Serves gdb, the guest being stopped, until it leaves or the VM ends.
pub fn serve(inferior: &mut impl Inferior) -> Ended {
    let instruction = if inferior.is_emulated_svm() { HLT } else { INT3 };
    let mut debugger = Debugger {
        inferior,
        software: Software::new(instruction),
        hardware: Hardware::default(),
        stepping: None,
    };
    let ended = converse(&mut debugger);
    debugger.detach();
    ended
}

fn converse<I: Inferior>(debugger: &mut Debugger<'_, I>) -> Ended {
    let mut buffer = alloc::vec![0; PACKET_BYTES];
    let Ok(stub) = GdbStub::builder(Replies::default()).with_packet_buffer(&mut buffer).build() else {
        return Ended::Confused;
    };
    let mut state = stub.run_state_machine(debugger);
    loop {
        state = match state {
            Ok(GdbStubStateMachine::Idle(mut stub)) => {
                debugger.flush(stub.borrow_conn());
                let byte = debugger.wait();
                stub.incoming_data(debugger, byte)
            }
            Ok(GdbStubStateMachine::Running(mut stub)) => {
                debugger.flush(stub.borrow_conn());
                match debugger.run() {
                    Progress::Byte(byte) => stub.incoming_data(debugger, byte),
                    Progress::Stop(reason) => stub.report_stop(debugger, reason),
                }
            }
            Ok(GdbStubStateMachine::CtrlCInterrupt(stub)) => {
                debugger.end_step();
                stub.interrupt_handled(debugger, Some(StopReason::Signal(Signal::SIGINT)))
            }
            Ok(GdbStubStateMachine::Disconnected(mut stub)) => {
                debugger.flush(stub.borrow_conn());
                return match stub.get_reason() {
                    DisconnectReason::Kill => {
                        debugger.inferior.send(KILLED);
                        Ended::Killed
                    }
                    DisconnectReason::Disconnect => Ended::Detached,
                    _ => Ended::Over,
                };
            }
            Err(_) => return Ended::Confused,
        }
    }
}

/// Why a running guest needs the stub.
enum Progress {
    Byte(u8),
    Stop(StopReason),
}

impl<I: Inferior> Debugger<'_, I> {
    fn flush(&mut self, replies: &mut Replies) {
        if !replies.0.is_empty() {
            self.inferior.send(&replies.0);
            replies.0.clear();
        }
    }

    fn wait(&mut self) -> u8 {
        loop {
            if let Some(byte) = self.inferior.receive() {
                return byte;
            }
            self.inferior.wait();
        }
    }

    /// Runs the guest until there is something to say or to hear.
    fn run(&mut self) -> Progress {
        loop {
            if let Some(byte) = self.inferior.receive() {
                return Progress::Byte(byte);
            }
            if let Some(reason) = self.turn() {
                self.end_step();
                return Progress::Stop(reason);
            }
        }
    }

    /// One entry and the exit after it.
    fn turn(&mut self) -> Option<StopReason> {
        self.watch();
        let is_quiet = self.prepare_step();
        self.inferior.enter(is_quiet);
        let exit = self.inferior.parts().0.page().exit();
        let stop = match exit {
            Some(ExitKind::Exception) => self.exception(),
            Some(ExitKind::Hlt) if self.is_at_breakpoint() => Some(StopReason::SwBreak(())),
            Some(ExitKind::DebugAccess) => {
                // The guest sees its own registers.
                self.hardware.give_back(self.inferior.parts().0);
                self.inferior.handle();
                self.hardware.take(self.inferior.parts().0);
                self.emulated_step()
            }
            _ => {
                self.inferior.handle();
                self.emulated_step()
            }
        };
        match self.inferior.outcome() {
            Some(outcome) => Some(last_words(outcome)),
            None => stop,
        }
    }

    /// Has the exceptions and accesses exit that the debugger needs. A reset of the guest undoes it.
    fn watch(&mut self) {
        const EXCEPTIONS: u32 = 1 << DEBUG_EXCEPTION | 1 << BREAKPOINT;
        let registers = Intercepts::DEBUG_REGISTERS.bits();
        let page = self.inferior.parts().0.page();
        let intercepts = match self.hardware.is_used() {
            true => page.intercepts | registers,
            false => page.intercepts & !registers,
        };
        let exceptions = page.exception_bitmap | EXCEPTIONS | self.software.exceptions();
        if (page.intercepts, page.exception_bitmap) != (intercepts, exceptions) {
            (page.intercepts, page.exception_bitmap) = (intercepts, exceptions);
            page.dirty |= Groups::INTERCEPTS.bits();
        }
    }

    /// An exception: the debugger's, or the guest's.
    fn exception(&mut self) -> Option<StopReason> {
        let (vcpu, _) = self.inferior.parts();
        let [vector, _, causes, ..] = vcpu.page().exit_info;
        match vector as u8 {
            BREAKPOINT | GENERAL_PROTECTION if self.is_at_breakpoint() => Some(StopReason::SwBreak(())),
            BREAKPOINT => {
                self.pass_on_breakpoint();
                None
            }
            DEBUG_EXCEPTION => {
                let hit = self.hardware.hit(causes);
                if let Some(watch) = hit {
                    self.forget_causes(causes);
                    return Some(match watch.kind {
                        None => StopReason::HwBreak(()),
                        Some(kind) => StopReason::Watch { tid: (), kind, addr: watch.linear },
                    });
                }
                if self.is_own_step(causes) {
                    self.forget_causes(causes);
                    return Some(StopReason::DoneStep);
                }
                self.inferior.handle();
                None
            }
            _ => {
                self.inferior.handle();
                None
            }
        }
    }

    /// Whether the guest is on an instruction that the debugger put there.
    fn is_at_breakpoint(&mut self) -> bool {
        let page = self.inferior.parts().0.state(Groups::CS_SS);
        self.software.has(page.segments[CS].base.wrapping_add(page.rip))
    }

    /// An INT3 of the guest's own, which takes it behind the instruction.
    fn pass_on_breakpoint(&mut self) {
        let (vcpu, _) = self.inferior.parts();
        let trap = vcpu.page().rflags & RFLAGS_TF;
        // INT3 clears the flag: no trap behind it.
        vcpu.page().rflags &= !RFLAGS_TF;
        complete_instruction(vcpu, 1);
        let page = vcpu.page();
        page.rflags |= trap;
        page.inject = Event::exception(BREAKPOINT, None);
        page.dirty |= Groups::INJECT.bits();
    }

    /// Leaves no trace in the guest.
    fn detach(&mut self) {
        self.end_step();
        let (vcpu, memory) = self.inferior.parts();
        self.software.clear(memory);
        self.hardware.clear(vcpu);
        let page = vcpu.page();
        page.exception_bitmap = 0;
        page.intercepts = 0;
        page.dirty |= Groups::INTERCEPTS.bits();
    }
}

/// The end of a VM as that of a process.
fn last_words(outcome: &Outcome) -> StopReason {
    match outcome {
        Outcome::PoweredOff | Outcome::Reset => StopReason::Exited(0),
        Outcome::ExitCode(code) => StopReason::Exited(*code as u8),
        Outcome::TripleFault { .. } => StopReason::Terminated(Signal::SIGSEGV),
        _ => StopReason::Terminated(Signal::SIGABRT),
    }
}
