//! Exceptions and interrupts: dispatch, handlers, and catching an exception of one instruction.

use crate::println;
use core::arch::asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};
use core::{fmt, ptr};
use tproto::{exit, line};

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("trap.S"), options(att_syntax));

/// Registers at an exception or interrupt, as trap.S leaves them on the stack; a handler may change them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// R15 down to R8.
    pub r15_to_r8: [u64; 8],
    /// RBP.
    pub rbp: u64,
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
    /// RDX.
    pub rdx: u64,
    /// RCX.
    pub rcx: u64,
    /// RBX.
    pub rbx: u64,
    /// RAX.
    pub rax: u64,
    /// The vector.
    pub vector: u64,
    /// The error code; 0 for vectors without one.
    pub error_code: u64,
    /// RIP to return to.
    pub rip: u64,
    /// CS to return to.
    pub cs: u64,
    /// RFLAGS to return with.
    pub rflags: u64,
    /// RSP to return to.
    pub rsp: u64,
    /// SS to return to.
    pub ss: u64,
}

/// An exception that [`catch`] caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code; 0 for vectors without one.
    pub error_code: u64,
    /// Address of the instruction that raised it, or behind it for a trap.
    pub rip: u64,
    /// CR2: the address, for a page fault.
    pub cr2: u64,
}

/// #DB.
pub const DEBUG: u8 = 1;
/// NMI.
pub const NMI: u8 = 2;
/// #BP.
pub const BREAKPOINT: u8 = 3;
/// #UD.
pub const INVALID_OPCODE: u8 = 6;
/// #GP.
pub const GENERAL_PROTECTION: u8 = 13;
/// #PF.
pub const PAGE_FAULT: u8 = 14;

/// Called with interrupts off; what it leaves in the frame is what is returned to.
pub type Handler = fn(&mut Frame);

static HANDLERS: [AtomicPtr<()>; 256] = [const { AtomicPtr::new(ptr::null_mut()) }; 256];

/// Stack pointer of the innermost `trt_try`, 0 outside of any.
#[unsafe(no_mangle)]
static trt_catch_rsp: AtomicU64 = AtomicU64::new(0);

static CAUGHT_VECTOR: AtomicU64 = AtomicU64::new(0);
static CAUGHT_ERROR: AtomicU64 = AtomicU64::new(0);
static CAUGHT_RIP: AtomicU64 = AtomicU64::new(0);
static CAUGHT_CR2: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    /// Calls `body(argument)` and returns 0, or 1 if an exception cut it short.
    fn trt_try(body: extern "C" fn(*mut ()), argument: *mut ()) -> u64;
    fn trt_caught();
}

/// Sets or removes the handler of a vector. Handlers come before [`catch`].
pub fn set_handler(vector: u8, handler: Option<Handler>) {
    let pointer = handler.map_or(ptr::null_mut(), |handler| handler as *mut ());
    HANDLERS[usize::from(vector)].store(pointer, Relaxed);
}

/// Runs `body`, and returns the exception that ended it if one did.
///
/// The body is abandoned where it trapped: it must own nothing that wants to be dropped. It is meant for single
/// instructions such as an RDMSR.
pub fn catch<R>(body: impl FnOnce() -> R) -> Result<R, Trap> {
    struct Call<F, R> {
        body: Option<F>,
        result: MaybeUninit<R>,
    }
    extern "C" fn thunk<F: FnOnce() -> R, R>(argument: *mut ()) {
        // SAFETY: `catch` passes its own `call`, which outlives this call and which nothing else uses meanwhile.
        let call = unsafe { &mut *argument.cast::<Call<F, R>>() };
        if let Some(body) = call.body.take() {
            call.result.write(body());
        }
    }
    fn thunk_for<F: FnOnce() -> R, R>(_: &Call<F, R>) -> extern "C" fn(*mut ()) {
        thunk::<F, R>
    }

    let mut call = Call { body: Some(body), result: MaybeUninit::uninit() };
    // SAFETY: `thunk` gets the argument it expects. When an exception cuts it short, its frames are dropped without
    // running destructors, which the contract above allows.
    let trapped = unsafe { trt_try(thunk_for(&call), (&raw mut call).cast()) };
    if trapped == 0 {
        // SAFETY: the body returned, so that its result was written.
        Ok(unsafe { call.result.assume_init() })
    } else {
        Err(Trap {
            vector: CAUGHT_VECTOR.load(Relaxed) as u8,
            error_code: CAUGHT_ERROR.load(Relaxed),
            rip: CAUGHT_RIP.load(Relaxed),
            cr2: CAUGHT_CR2.load(Relaxed),
        })
    }
}

/// The address of the last page fault.
pub fn cr2() -> u64 {
    let value: u64;
    // SAFETY: reading CR2 has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Called by trap.S for every vector.
#[unsafe(no_mangle)]
extern "C" fn trt_trap(frame: &mut Frame) {
    let vector = frame.vector as u8;
    let handler = HANDLERS[usize::from(vector)].load(Relaxed);
    if !handler.is_null() {
        // SAFETY: `set_handler` stored a `Handler`, and nothing else stores here.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(frame);
        return;
    }
    let catching = trt_catch_rsp.load(Relaxed) != 0;
    if vector < 32 && vector != NMI && catching {
        CAUGHT_VECTOR.store(frame.vector, Relaxed);
        CAUGHT_ERROR.store(frame.error_code, Relaxed);
        CAUGHT_RIP.store(frame.rip, Relaxed);
        CAUGHT_CR2.store(cr2(), Relaxed);
        frame.rip = trt_caught as *const () as u64;
        frame.cs = u64::from(crate::desc::KERNEL_CODE);
        frame.ss = u64::from(crate::desc::KERNEL_DATA);
        // Back to how the runtime runs: no IF, TF, RF, AC.
        frame.rflags = 2;
        return;
    }
    println!("{}unexpected {}", line::FAIL, Report(frame));
    crate::port::exit(exit::FAIL)
}

struct Report<'a>(&'a Frame);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.0;
        write!(
            f,
            "vector {} error {:#x} at {:x}:{:#x} rflags {:#x} rsp {:#x} cr2 {:#x} rax {:#x}",
            frame.vector,
            frame.error_code,
            frame.cs,
            frame.rip,
            frame.rflags,
            frame.rsp,
            cr2(),
            frame.rax
        )
    }
}
