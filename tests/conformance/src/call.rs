//! Raw hypercalls.

use crate::check::{Check, Failure, Seen};
use core::arch::asm;
use hypercall_abi::regs::{Head, MESSAGE_WORDS};
use hypercall_abi::{Hypercall, Selector, Status};

/// A selector, or what a test passes as one.
pub type Sel = u64;

/// What a hypercall left in the registers.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    head: u64,
    before: [u64; 3],
    /// RAX.
    pub status: u64,
    /// RDI, RSI, RDX.
    pub values: [u64; 3],
}

/// Makes a hypercall. Arguments that are left out are 0.
pub fn call<const N: usize>(number: Hypercall, selector: Sel, arguments: [u64; N]) -> Answer {
    call_head(Head::new(number, Selector(selector as u32)).0, arguments)
}

/// Makes a hypercall with any head.
pub fn call_head<const N: usize>(head: u64, arguments: [u64; N]) -> Answer {
    let mut words = [0; MESSAGE_WORDS];
    words[..N].copy_from_slice(&arguments);
    let before = [words[0], words[1], words[2]];
    let (status, words) = syscall(head, words);
    Answer { head, before, status, values: [words[0], words[1], words[2]] }
}

/// Executes SYSCALL with a head and the eight message registers: RAX and those registers afterwards.
pub fn syscall(head: u64, words: [u64; MESSAGE_WORDS]) -> (u64, [u64; MESSAGE_WORDS]) {
    let status: u64;
    let [mut w0, mut w1, mut w2, mut w3, mut w4, mut w5, mut w6, mut w7] = words;
    // SAFETY: the register assignment is SPEC.md 3. What a test maps, starts or ends is its own (crate documentation),
    // and the call counts as an access to all memory.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") head => status,
            inlateout("rdi") w0,
            inlateout("rsi") w1,
            inlateout("rdx") w2,
            inlateout("r8") w3,
            inlateout("r9") w4,
            inlateout("r10") w5,
            inlateout("r12") w6,
            inlateout("r13") w7,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status, [w0, w1, w2, w3, w4, w5, w6, w7])
}

impl Answer {
    /// The answer to a call that another thread made.
    pub fn of(head: u64, before: [u64; 3], status: u64, values: [u64; 3]) -> Self {
        Answer { head, before, status, values }
    }

    /// The status, if it is one.
    pub fn status(&self) -> Option<Status> {
        u32::try_from(self.status).ok().and_then(Status::from_raw)
    }

    #[track_caller]
    fn demand(&self, expected: Status) -> Check {
        if self.status() == Some(expected) {
            return Ok(());
        }
        let name =
            Head(self.head).call().map_or_else(|| "a bad head".into(), |call| alloc::format!("{call:?}"));
        match self.status() {
            Some(status) => Err(Failure::new(&name, status, expected)),
            None => Err(Failure::new(&name, self.status, expected)),
        }
    }

    /// Success: the three results.
    #[track_caller]
    pub fn ok(self) -> Seen<[u64; 3]> {
        self.demand(Status::Success)?;
        Ok(self.values)
    }

    /// Success without results.
    #[track_caller]
    pub fn done(self) -> Check {
        self.gives([0; 3])
    }

    /// Success with exactly these results.
    #[track_caller]
    pub fn gives(self, values: [u64; 3]) -> Check {
        self.demand(Status::Success)?;
        crate::check::equal("results", self.values, values)
    }

    /// Success: result 0.
    #[track_caller]
    pub fn value(self) -> Seen<u64> {
        Ok(self.ok()?[0])
    }

    /// An error, which leaves nothing new in the registers of the results (SPEC.md 3.1).
    #[track_caller]
    pub fn fails(self, expected: Status) -> Check {
        self.demand(expected)?;
        let is_call = matches!(Head(self.head).call(), Some(Hypercall::Call | Hypercall::CallMessage));
        let is_stale = expected == Status::Aborted && is_call;
        if is_stale || self.values == [0; 3] {
            return Ok(());
        }
        crate::check::equal("registers after an error", self.values, self.before)
    }

    /// An error whose registers are not looked at: calls that began before they failed say nothing about them.
    #[track_caller]
    pub fn fails_with(self, expected: Status) -> Check {
        self.demand(expected)
    }
}
