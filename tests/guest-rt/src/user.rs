//! Ring 3, and the two ways into the kernel from there.

use crate::{cpu, desc, msr};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("user.S"), options(att_syntax));

const STACK_BYTES: usize = 16 * 1024;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_BYTES]>);

// SAFETY: used as a stack by one CPU.
unsafe impl Sync for Stack {}

static USER_STACK: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));
static KERNEL_STACK: Stack = Stack(UnsafeCell::new([0; STACK_BYTES]));

/// What GS points to in the kernel: reached only by SWAPGS with a right KERNEL_GS_BASE.
#[repr(C)]
struct KernelGs {
    kernel_rsp: AtomicU64,
    user_rsp: AtomicU64,
}

static KERNEL_GS: KernelGs = KernelGs { kernel_rsp: AtomicU64::new(0), user_rsp: AtomicU64::new(0) };

/// GS base of user mode, which tells user code that SWAPGS was undone: 8 bytes that hold [`USER_GS_MARK`].
static USER_GS: AtomicU64 = AtomicU64::new(USER_GS_MARK);

/// What user code reads at GS:0.
pub const USER_GS_MARK: u64 = 0x7573_6572_2067_7321;

/// Handles a system call: its number and one argument.
pub type SystemCall = fn(u64, u64) -> u64;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

unsafe extern "C" {
    fn trt_syscall_entry();
    fn trt_sysenter_entry();
    /// Enters ring 3 at `trt_user_start` and returns what its last system call passed.
    fn trt_enter_user(body: extern "C" fn(u64) -> u64, argument: u64, stack: u64) -> u64;
}

/// Sets up SYSCALL, with interrupts off in the kernel, and GS for both rings.
pub fn enable_syscall(handler: SystemCall) {
    HANDLER.store(handler as *mut (), Relaxed);
    KERNEL_GS.kernel_rsp.store(KERNEL_STACK.0.get() as u64 + STACK_BYTES as u64, Relaxed);
    let star = u64::from(desc::KERNEL_CODE) << 32 | u64::from(desc::USER_CODE32) << 48;
    // SAFETY: the entry is in user.S, the selectors are laid out for it, and the runtime itself does not use GS.
    unsafe {
        cpu::wrmsr(msr::STAR, star);
        cpu::wrmsr(msr::LSTAR, trt_syscall_entry as *const () as u64);
        // IF, TF, DF, AC.
        cpu::wrmsr(msr::SFMASK, 0x4_0700);
        cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | msr::EFER_SCE);
        cpu::wrmsr(msr::KERNEL_GS_BASE, &raw const KERNEL_GS as u64);
        cpu::wrmsr(msr::GS_BASE, &raw const USER_GS as u64);
    }
}

/// Sets up SYSENTER too; for Intel's processors, as AMD's have it in legacy mode only.
pub fn enable_sysenter() {
    // SAFETY: the entry is in user.S; selectors follow KERNEL_CODE as SYSENTER and SYSEXIT want it.
    unsafe {
        cpu::wrmsr(msr::SYSENTER_CS, u64::from(desc::KERNEL_CODE));
        cpu::wrmsr(msr::SYSENTER_ESP, KERNEL_STACK.0.get() as u64 + STACK_BYTES as u64);
        cpu::wrmsr(msr::SYSENTER_EIP, trt_sysenter_entry as *const () as u64);
    }
}

/// Runs `body(argument)` in ring 3 with interrupts on, and returns what it returns. [`enable_syscall`] comes first.
pub fn run(body: extern "C" fn(u64) -> u64, argument: u64) -> u64 {
    // SAFETY: user mode sees the same memory and has its own stack; traps come in on the TSS's stack.
    unsafe { trt_enter_user(body, argument, USER_STACK.0.get() as u64 + STACK_BYTES as u64) }
}

/// In ring 3: a system call by SYSCALL. RCX must come back as the return address, or `u64::MAX` is returned.
pub fn syscall(number: u64, argument: u64) -> u64 {
    let (result, bad): (u64, u64);
    // SAFETY: user.S preserves what the System V convention has a function preserve.
    unsafe {
        asm!(
            "syscall",
            "2:",
            "lea r8, [rip + 2b]",
            "xor r8, rcx",
            inout("rax") number => result, inout("rdi") argument => _, out("r8") bad,
            out("rcx") _, out("r11") _, out("rdx") _, out("rsi") _, out("r9") _, out("r10") _,
        );
    }
    if bad == 0 { result } else { u64::MAX }
}

/// In ring 3: a system call by SYSENTER, back by SYSEXIT.
pub fn sysenter(number: u64, argument: u64) -> u64 {
    let result: u64;
    // SAFETY: user.S returns to the address in RDX with the stack in RCX.
    unsafe {
        asm!(
            "mov rcx, rsp",
            "lea rdx, [rip + 2f]",
            "sysenter",
            "2:",
            inout("rax") number => result, inout("rdi") argument => _,
            out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// In either ring: the eight bytes at GS:0.
pub fn gs_word() -> u64 {
    let value: u64;
    // SAFETY: GS points to `USER_GS` or `KERNEL_GS` since `enable_syscall`.
    unsafe { asm!("mov {}, gs:[0]", out(reg) value, options(nostack, readonly, preserves_flags)) };
    value
}

/// In either ring: RDTSCP, the time stamp and TSC_AUX.
pub fn rdtscp() -> (u64, u32) {
    let (low, high, aux): (u32, u32, u32);
    // SAFETY: RDTSCP has no effect.
    unsafe {
        asm!("rdtscp", out("eax") low, out("edx") high, out("ecx") aux, options(nomem, nostack, preserves_flags))
    };
    (u64::from(high) << 32 | u64::from(low), aux)
}

/// Called by user.S, on the kernel's stack.
#[unsafe(no_mangle)]
extern "C" fn trt_system_call(number: u64, argument: u64) -> u64 {
    let handler = HANDLER.load(Relaxed);
    if handler.is_null() {
        return u64::MAX;
    }
    // SAFETY: `enable_syscall` stored a `SystemCall`, and nothing else stores here.
    let handler: SystemCall = unsafe { core::mem::transmute(handler) };
    handler(number, argument)
}
