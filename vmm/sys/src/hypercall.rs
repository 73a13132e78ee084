//! The hypercall instruction (SPEC.md 3). Everything else in this crate goes through here.

use crate::error::{self, Error, Result};
use core::arch::asm;
use hypercall_abi::regs::{Head, MESSAGE_WORDS};
use hypercall_abi::{Hypercall, Selector, Status};

/// The result registers of a hypercall: RDI, RSI, RDX.
pub type Results = [u64; 3];

/// Executes a hypercall with up to six arguments and returns its status and result registers.
///
/// # Safety
///
/// The call may change what is mapped at the caller's own addresses, or start a thread in its address space: neither
/// may touch memory that Rust code holds references to, or break the contract of the code it starts.
#[inline]
pub unsafe fn raw(head: Head, arguments: [u64; 6]) -> (u32, Results) {
    let status: u64;
    let [mut rdi, mut rsi, mut rdx, r8, r9, r10] = arguments;
    // SAFETY: the register assignment is SPEC.md 3; RBX, RBP, RSP and R12 to R15 are preserved, what is not is
    // declared. The kernel reads and writes memory only as the caller vouches for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") head.0 => status,
            inlateout("rdi") rdi,
            inlateout("rsi") rsi,
            inlateout("rdx") rdx,
            inlateout("r8") r8 => _,
            inlateout("r9") r9 => _,
            inlateout("r10") r10 => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (status as u32, [rdi, rsi, rdx])
}

/// Executes a hypercall; any status but `Success` is an error.
///
/// # Safety
///
/// As [`raw`].
#[inline]
pub(crate) unsafe fn invoke(call: Hypercall, selector: Selector, arguments: [u64; 6]) -> Result<Results> {
    // SAFETY: the caller vouches for the call.
    let (status, results) = unsafe { raw(Head::new(call, selector), arguments) };
    error::check(call, status).map(|()| results)
}

/// Executes a hypercall without arguments and returns its first result.
///
/// # Safety
///
/// As [`raw`].
#[inline]
pub(crate) unsafe fn invoke_plain(call: Hypercall, selector: Selector) -> Result<u64> {
    let (status, result): (u64, u64);
    // SAFETY: as in `raw`; the call looks at no register but RAX.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") Head::new(call, selector).0 => status,
            lateout("rdi") result,
            lateout("rsi") _,
            lateout("rdx") _,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    error::check(call, status as u32).map(|()| result)
}

/// Executes a hypercall on a range: `step(done)` makes its arguments when `done` units are already done. The kernel may do
/// a part and say so (`Partial`), which bounds the time it spends in one call.
///
/// # Safety
///
/// As [`raw`], for every `done`.
pub(crate) unsafe fn invoke_range(
    call: Hypercall,
    selector: Selector,
    step: impl Fn(u64) -> [u64; 6],
) -> Result<()> {
    let mut done = 0u64;
    loop {
        // SAFETY: the caller vouches for the call.
        let (status, results) = unsafe { raw(Head::new(call, selector), step(done)) };
        if status != Status::Partial as u32 {
            return error::check(call, status);
        }
        // No progress would make this loop endless.
        if results[0] == 0 {
            return Err(Error { call, status: Status::Partial });
        }
        done += results[0];
    }
}

/// Calls a portal, by `Call` or `CallMessage`, with eight words and returns the reply's.
#[inline]
pub(crate) fn call_portal(
    call: Hypercall,
    selector: Selector,
    words: [u64; MESSAGE_WORDS],
) -> Result<[u64; MESSAGE_WORDS]> {
    let status: u64;
    let [mut w0, mut w1, mut w2, mut w3, mut w4, mut w5, mut w6, mut w7] = words;
    // SAFETY: the register assignment is SPEC.md 3; a portal call changes only the message registers and the caller's
    // message area.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") Head::new(call, selector).0 => status,
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
    error::check(call, status as u32).map(|()| [w0, w1, w2, w3, w4, w5, w6, w7])
}
