//! The time between two instructions: everything that is timed, is timed here.

use crate::error::{Failure, Result};
use crate::report::{self, Report};
use bench_protocol::{Samples, Summary};
use core::arch::asm;
use usys::abi::regs::{Head, MESSAGE_WORDS};
use usys::abi::{Hypercall, Selector, Status};

/// The TSC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC is allowed in ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A marker: whoever traces the instructions sees it, nobody else.
#[inline(always)]
pub fn mark() {
    // SAFETY: it exchanges a register with itself.
    unsafe { asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) }
}

/// Whether a hypercall is timed, is executed between two markers, or is left out to see what timing alone costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Timed.
    Timed,
    /// Timed, without the hypercall.
    Empty,
    /// Between two markers.
    Marked,
}

/// A hypercall to be timed: its registers.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    head: Head,
    words: [u64; MESSAGE_WORDS],
}

/// What came of a timed hypercall.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Ticks between the two RDTSC.
    pub ticks: u32,
    /// RAX.
    pub status: u32,
}

impl Timed {
    /// A hypercall with up to six arguments, or up to eight message words.
    pub fn new(call: Hypercall, selector: Selector, arguments: &[u64]) -> Self {
        let mut words = [0; MESSAGE_WORDS];
        words[..arguments.len()].copy_from_slice(arguments);
        Timed { head: Head::new(call, selector), words }
    }

    /// A hypercall of a number that there is not.
    pub const fn nothing() -> Self {
        Timed { head: Head(0xff), words: [0; MESSAGE_WORDS] }
    }

    /// Executes it. Between the two RDTSC are, besides the hypercall and the loads of RAX and RDX that it needs, one MOV before
    /// and one after it; [`Mode::Empty`] has only those.
    ///
    /// # Safety
    ///
    /// As [`usys::hypercall::raw`].
    #[inline(never)]
    pub unsafe fn execute(&self, mode: Mode) -> Outcome {
        let [w0, w1, w2, w3, w4, w5, w6, w7] = self.words;
        let (ticks, status): (u64, u64);
        macro_rules! execute {
            ($before:literal, $call:literal, $after:literal) => {
                // SAFETY: the register assignment is SPEC.md 3; for the rest the caller vouches.
                unsafe {
                    asm!(
                        $before,
                        $call,
                        $after,
                        inlateout("rdi") w0 => _,
                        inlateout("rsi") w1 => _,
                        inlateout("r11") w2 => _,
                        inlateout("r8") w3 => _,
                        inlateout("r9") w4 => _,
                        inlateout("r10") w5 => _,
                        inlateout("r12") w6 => _,
                        inlateout("r13") w7 => _,
                        in("r14") self.head.0,
                        lateout("rax") ticks,
                        lateout("rdx") _,
                        lateout("rcx") _,
                        out("r15") status,
                        options(nostack),
                    )
                }
            };
        }
        // R15 holds the start, which a hypercall preserves, then the status; RCX is what is left for the time.
        match mode {
            Mode::Timed => execute!(
                "rdtsc\n mov r15d, eax",
                "mov rax, r14\n mov rdx, r11\n syscall",
                "mov rcx, rax\n rdtsc\n sub eax, r15d\n mov r15, rcx"
            ),
            Mode::Empty => {
                execute!("rdtsc\n mov r15d, eax", "", "mov rcx, rax\n rdtsc\n sub eax, r15d\n mov r15, rcx")
            }
            Mode::Marked => execute!(
                "mov rdx, r11\n xchg bx, bx",
                "mov rax, r14\n syscall",
                "xchg bx, bx\n mov r15, rax\n xor eax, eax"
            ),
        }
        Outcome { ticks: ticks as u32, status: status as u32 }
    }

    /// Executes it, and expects success.
    ///
    /// # Safety
    ///
    /// As [`usys::hypercall::raw`].
    pub unsafe fn expect(&self, mode: Mode) -> Result<Outcome> {
        // SAFETY: the caller vouches.
        let outcome = unsafe { self.execute(mode) };
        if mode != Mode::Empty && outcome.status != Status::Success as u32 {
            return Err(Failure::new(format_args!(
                "hypercall {:#x}: status {}",
                self.head.0, outcome.status
            )));
        }
        Ok(outcome)
    }
}

/// Ticks of a measurement of nothing.
pub fn overhead() -> Result<u64> {
    let nothing = Timed::nothing();
    let mut samples = Samples::new();
    while !samples.is_full() {
        // SAFETY: nothing is called.
        samples.push(unsafe { nothing.execute(Mode::Empty) }.ticks);
    }
    report::summary(samples, 0).map(|summary| summary.median)
}

/// Samples of `once`, which executes operation `op` in this mode and returns its ticks; then one more between markers.
pub fn sample(op: &str, overhead: u64, mut once: impl FnMut(Mode) -> Result<u32>) -> Result<Summary> {
    let mut samples = Samples::new();
    while !samples.is_full() {
        samples.push(once(Mode::Timed)?);
    }
    Report::announce(op);
    once(Mode::Marked)?;
    report::summary(samples, overhead)
}
