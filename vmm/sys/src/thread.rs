//! More threads in one process.

use crate::cap::{Cap, Ec, Sc};
use crate::error::Result;
use crate::object::{Schedule, ThreadStart};
use crate::{process, selector};
use alloc::boxed::Box;
use core::convert::Infallible;

/// A thread of this process, started.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// Its execution context.
    pub ec: Cap<Ec>,
    /// Its scheduling context.
    pub sc: Cap<Sc>,
}

type Body = Box<dyn FnOnce() -> Infallible>;

/// 64 KiB, as the first thread has.
#[repr(C, align(16))]
struct Stack([u8; 0x1_0000]);

/// Starts a thread on a CPU. It never ends, and its stack stays allocated; it is paid from the process's pool.
pub fn spawn(
    cpu: u16,
    schedule: Schedule,
    body: impl FnOnce() -> Infallible + Send + 'static,
) -> Result<Thread> {
    // SAFETY: an array of bytes has no invalid values.
    let stack: &'static mut Stack = Box::leak(unsafe { Box::new_zeroed().assume_init() });
    let body: Box<Body> = Box::new(Box::new(body));
    let start = ThreadStart {
        cpu,
        ip: enter as *const () as u64,
        // As after a CALL: the System V ABI aligns the stack before it.
        sp: (&raw mut *stack as u64) + size_of::<Stack>() as u64 - 8,
        argument: Box::into_raw(body) as u64,
    };
    let ec = process::pool().create_any_ec(selector::allocate()?, process::pd(), start)?;
    let sc = process::pool().create_sc(selector::allocate()?, ec, schedule)?;
    Ok(Thread { ec, sc })
}

extern "C" fn enter(body: *mut Body) -> ! {
    // SAFETY: `spawn` made the pointer with `into_raw`, and a thread starts once.
    let body = unsafe { Box::from_raw(body) };
    match body() {}
}
