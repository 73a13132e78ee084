//! Threads of the tests: stacks, threads that make one hypercall, faults.

use crate::call::{Answer, Sel, call, syscall};
use crate::check::{Check, Failure, Seen};
use crate::layout::{SLEEP, STACK_COUNT, STACK_PAGES, STACKS};
use crate::prelude::{Bind, EcInfo, FOREVER, PAGE, Revoke, Wait, World, Yield};
use crate::world::board;
use core::sync::atomic::Ordering;
use hypercall_abi::cap::BindRole;
use hypercall_abi::regs::{Head, MESSAGE_WORDS};
use hypercall_abi::{Hypercall, Selector};

/// Above the thread that runs the tests: starts at once.
pub const HIGH: u64 = 25;
/// Below it: runs when it sleeps.
pub const LOW: u64 = 10;

/// Hands out stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stacks(u64);

impl Stacks {
    /// All of them, but the last: the runner's.
    pub const fn new() -> Self {
        Stacks(0)
    }

    /// The top of a stack, page-aligned.
    pub fn take(&mut self) -> u64 {
        self.0 += 1;
        assert!(self.0 < STACK_COUNT, "too few stacks");
        stack_top(self.0 - 1)
    }
}

impl Default for Stacks {
    fn default() -> Self {
        Self::new()
    }
}

/// The top of a stack.
pub const fn stack_top(index: u64) -> u64 {
    STACKS + (index + 1) * STACK_PAGES * PAGE
}

/// Ends a thread's work: it waits for ever.
pub fn park() -> ! {
    loop {
        if call(Wait, SLEEP, [FOREVER]).ok().is_err() {
            call(Yield, 0, []);
        }
    }
}

/// Words of the board that belong to one [`Pending`].
const BLOCK: usize = 32;
/// The first such block; what is before it is for tests.
const FIRST_BLOCK: usize = 32;

const HEAD: usize = 0;
const WORDS: usize = 1;
const STATE: usize = 16;
const STATUS: usize = 17;
const RESULTS: usize = 18;

const DONE: u64 = 1;

/// Makes the blocks of threads that are gone free again.
pub fn clear_blocks(are_used: bool) {
    let words = if are_used { FIRST_BLOCK..4096 } else { 0..0 };
    words.for_each(|index| board(index).store(0, Ordering::Relaxed));
}

/// A hypercall that another thread makes.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    block: usize,
    /// The thread.
    pub ec: Sel,
    /// Its scheduling context.
    pub sc: Sel,
}

extern "C" fn perform(block: u64) -> ! {
    let word = |index: usize| board(block as usize + index);
    let mut words = [0; MESSAGE_WORDS];
    for (index, value) in words.iter_mut().enumerate() {
        *value = word(WORDS + index).load(Ordering::Relaxed);
    }
    let (status, words) = syscall(word(HEAD).load(Ordering::Relaxed), words);
    word(STATUS).store(status, Ordering::Relaxed);
    for (index, &value) in words.iter().enumerate() {
        word(RESULTS + index).store(value, Ordering::Relaxed);
    }
    word(STATE).store(DONE, Ordering::Release);
    park()
}

impl World {
    /// Starts a thread.
    #[track_caller]
    pub fn thread(
        &mut self,
        cpu: u16,
        priority: u64,
        body: extern "C" fn(u64) -> !,
        argument: u64,
    ) -> Seen<(Sel, Sel)> {
        let ec = self.ec(cpu, body as *const () as u64, argument)?;
        let sc = self.sc(ec, priority)?;
        Ok((ec, sc))
    }

    /// Has a thread on `cpu` make a hypercall.
    #[track_caller]
    pub fn begin<const N: usize>(
        &mut self,
        (cpu, priority): (u16, u64),
        number: Hypercall,
        selector: Sel,
        arguments: [u64; N],
    ) -> Seen<Pending> {
        let block = (FIRST_BLOCK..4096 - BLOCK)
            .step_by(BLOCK)
            .find(|&block| board(block + HEAD).load(Ordering::Relaxed) == 0)
            .ok_or_else(|| Failure("too many threads".into()))?;
        // A head of 0 (`Call` of selector 0) is never asked for.
        let head = Head::new(number, Selector(selector as u32)).0;
        board(block + HEAD).store(head, Ordering::Relaxed);
        for (index, &value) in arguments.iter().enumerate() {
            board(block + WORDS + index).store(value, Ordering::Relaxed);
        }
        let (ec, sc) = self.thread(cpu, priority, perform, block as u64)?;
        Ok(Pending { block, ec, sc })
    }

    /// Has a thread on `cpu` make a hypercall that does not wait for long: the answer.
    #[track_caller]
    pub fn call_on<const N: usize>(
        &mut self,
        cpu: u16,
        number: Hypercall,
        selector: Sel,
        arguments: [u64; N],
    ) -> Seen<Answer> {
        let pending = self.begin((cpu, HIGH), number, selector, arguments)?;
        self.answer(&pending)
    }

    /// The answer, which must come soon.
    #[track_caller]
    pub fn answer(&self, pending: &Pending) -> Seen<Answer> {
        self.until("an answer to another thread's call", || pending.is_done())?;
        Ok(pending.result())
    }

    /// Runs `ip` as a thread on `cpu` until it stops on a fault.
    #[track_caller]
    pub fn fault_at(&mut self, cpu: u16, ip: u64, argument: u64) -> Seen<Fault> {
        let stack = self.stacks.take();
        self.fault_with(cpu, ip, stack, argument)
    }

    /// As [`Self::fault_at`], with any stack pointer.
    #[track_caller]
    pub fn fault_with(&mut self, cpu: u16, ip: u64, sp: u64, argument: u64) -> Seen<Fault> {
        let (ec, told) = (self.sel(), self.sm(0)?);
        let place = hypercall_abi::regs::pack_ec_place(cpu, false);
        call(Hypercall::CreateEc, ec, [self.pool, crate::layout::PD, place, ip, sp, argument]).done()?;
        call(Bind, ec, [told, BindRole::FaultNotification as u64]).done()?;
        let sc = self.sc(ec, HIGH)?;
        let told_in_time = call(Wait, told, [self.deadline(1_000_000)]).ok();
        let fault = fault_of(ec)?;
        for selector in [sc, ec, told] {
            call(Revoke, selector, [1]);
        }
        told_in_time?;
        fault.ok_or_else(|| Failure("the fault was signalled and EcInfo knows of none".into()))
    }
}

impl Pending {
    /// Whether the call has returned.
    pub fn is_done(&self) -> bool {
        board(self.block + STATE).load(Ordering::Acquire) == DONE
    }

    /// What it returned with; means something once it is done.
    pub fn result(&self) -> Answer {
        let word = |index: usize| board(self.block + index).load(Ordering::Relaxed);
        Answer::of(
            word(HEAD),
            core::array::from_fn(|index| word(WORDS + index)),
            word(STATUS),
            core::array::from_fn(|index| word(RESULTS + index)),
        )
    }

    /// The eight words of a reply.
    pub fn words(&self) -> [u64; MESSAGE_WORDS] {
        core::array::from_fn(|index| board(self.block + RESULTS + index).load(Ordering::Relaxed))
    }

    /// Ends the thread. Its stack and its block are not used again in this test.
    #[track_caller]
    pub fn end(&self) -> Check {
        call(Revoke, self.ec, [1]).done()
    }
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector.
    pub vector: u64,
    /// Instruction pointer.
    pub rip: u64,
    /// Faulting address of a page fault.
    pub address: u64,
}

/// Why a thread stopped, if it did.
pub fn fault_of(ec: Sel) -> Seen<Option<Fault>> {
    let [state, rip, address] = call(EcInfo, ec, []).ok()?;
    Ok((state >> 63 != 0).then_some(Fault { vector: state & !(1 << 63), rip, address }))
}
