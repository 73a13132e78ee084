//! Kernel entry and exit: traps, interrupts, SYSCALL.
//!
//! Registers of user code are saved straight into the register frame of the execution context that runs: the CPU pushes
//! there (TSS.RSP0), and SYSCALL entry does by hand. Then the code switches to this CPU's kernel stack, which starts
//! empty each time: the kernel keeps nothing on it across a switch of contexts.

use crate::desc::{USER_CODE, USER_DATA};
use crate::percpu::offset;
use core::arch::global_asm;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;

/// The registers of interrupted user code.
#[repr(C, align(16))]
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// R15.
    pub r15: u64,
    /// R14.
    pub r14: u64,
    /// R13.
    pub r13: u64,
    /// R12.
    pub r12: u64,
    /// R11.
    pub r11: u64,
    /// R10.
    pub r10: u64,
    /// R9.
    pub r9: u64,
    /// R8.
    pub r8: u64,
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
    /// Vector, or [`SYSCALL`].
    pub vector: u64,
    /// Error code of the exception.
    pub error: u64,
    /// RIP.
    pub rip: u64,
    /// CS.
    pub cs: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// RSP.
    pub rsp: u64,
    /// SS.
    pub ss: u64,
}

/// [`Frame::vector`] of a context that entered by SYSCALL and may leave by SYSRET.
pub const SYSCALL: u64 = 0x100;

const _: () =
    assert!(size_of::<Frame>() == 176 && offset_of!(Frame, vector) == 120 && offset_of!(Frame, rip) == 136);

impl Frame {
    /// The frame of a context that starts at `rip` in user mode.
    pub fn user(rip: u64, rsp: u64) -> Self {
        Frame {
            rip,
            rsp,
            cs: USER_CODE as u64,
            ss: USER_DATA as u64,
            rflags: 0x202,
            vector: 0,
            ..Default::default()
        }
    }
}

/// What the kernel proper provides to the entry code. Each takes the frame just saved and returns the frame to go on with.
#[derive(Clone, Copy, Debug)]
pub struct Handlers {
    /// A hypercall.
    pub syscall: extern "C" fn(*mut Frame) -> *mut Frame,
    /// An exception or interrupt in user code.
    pub user_trap: extern "C" fn(*mut Frame) -> *mut Frame,
    /// An interrupt, or a fatal exception, in the kernel.
    pub kernel_trap: extern "C" fn(*mut Frame),
    /// An NMI, anywhere.
    pub nmi: extern "C" fn(*mut Frame),
}

#[unsafe(no_mangle)]
static mut NACRE_HANDLERS: [usize; 4] = [0; 4];

/// Installs the handlers.
///
/// # Safety
/// Once, before any trap or SYSCALL can happen.
pub unsafe fn install(handlers: Handlers) {
    // SAFETY: nothing reads the array yet.
    unsafe {
        NACRE_HANDLERS = [
            handlers.syscall as usize,
            handlers.user_trap as usize,
            handlers.kernel_trap as usize,
            handlers.nmi as usize,
        ];
    }
}

/// Sets the SYSCALL MSRs of this CPU.
///
/// # Safety
/// After the GDT is loaded and [`install`] ran. `entry` is the address of code that handles SYSCALL: it begins in user state but
/// for CS, SS, RIP and RFLAGS, and may jump to `nacre_syscall_entry` after SWAPGS with all registers as they were.
pub unsafe fn enable_syscall(entry: u64) {
    use crate::cpu::msr;
    // IF, TF, DF, IOPL, NT, AC: user flags that must not hold in the kernel.
    const FLAG_MASK: u64 = 0x200 | 0x100 | 0x400 | 0x3000 | 0x4000 | 0x4_0000;
    // SAFETY: long mode has these MSRs; the selectors are those of `desc`.
    unsafe {
        msr::write(msr::STAR, 0x1b << 48 | 0x08 << 32);
        set_syscall_entry(entry);
        msr::write(msr::CSTAR, 0);
        msr::write(msr::SFMASK, FLAG_MASK);
        // SYSENTER faults: its code segment is null.
        msr::write(msr::SYSENTER_CS, 0);
    }
}

/// Where SYSCALL goes, by CPU: for vCPUs, whose guests change LSTAR.
static SYSCALL_ENTRIES: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Changes where SYSCALL goes on this CPU. vCPUs notice when they take the CPU over from another ([`crate::virt::GuestCpu::take_over`]).
///
/// # Safety
/// `entry` is as for [`enable_syscall`]; the CPU has no guest's registers.
pub unsafe fn set_syscall_entry(entry: u64) {
    SYSCALL_ENTRIES[crate::percpu::id()].store(entry, Ordering::Relaxed);
    // SAFETY: long mode has the MSR; by the contract of this function.
    unsafe { crate::cpu::msr::write(crate::cpu::msr::LSTAR, entry) };
}

/// Where SYSCALL goes on this CPU.
pub(crate) fn syscall_entry() -> u64 {
    SYSCALL_ENTRIES[crate::percpu::id()].load(Ordering::Relaxed)
}

/// Address of the entry stub of a vector.
pub fn stub(vector: usize) -> u64 {
    unsafe extern "C" {
        static nacre_stubs: [[u8; 16]; 256];
    }
    (&raw const nacre_stubs) as u64 + vector as u64 * 16
}

/// Leaves the kernel for user mode, abandoning the kernel stack.
///
/// # Safety
/// The frame is that of a context whose address space is active and for which [`crate::percpu::set_frame_end`] and
/// TSS.RSP0 were set; user RIP is below [`hypercall_abi::USER_END`] if its vector is [`SYSCALL`].
pub unsafe fn leave(frame: *mut Frame) -> ! {
    unsafe extern "C" {
        fn nacre_leave(frame: *mut Frame) -> !;
    }
    // SAFETY: by the contract of this function.
    unsafe { nacre_leave(frame) }
}

global_asm!(
    ".macro SAVE_REGISTERS",
    "push rax; push rbx; push rcx; push rdx; push rsi; push rdi; push rbp",
    "push r8; push r9; push r10; push r11; push r12; push r13; push r14; push r15",
    ".endm",
    ".macro RESTORE_REGISTERS",
    "pop r15; pop r14; pop r13; pop r12; pop r11; pop r10; pop r9; pop r8",
    "pop rbp; pop rdi; pop rsi; pop rdx; pop rcx; pop rbx; pop rax",
    ".endm",
    // One 16-byte stub for each vector. Vectors 8, 10-14, 17, 21, 29 and 30 come with an error code.
    ".balign 16",
    ".global nacre_stubs",
    "nacre_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    ".if vector == 1",
    "jmp nacre_debug",
    ".elseif vector == 2",
    "jmp nacre_nmi",
    ".elseif vector == 8 || vector == 18",
    "jmp nacre_paranoid",
    ".else",
    "jmp nacre_trap",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "nacre_trap:",
    "SAVE_REGISTERS",
    "mov rdi, rsp",
    "cld",
    "test byte ptr [rdi + {cs}], 3",
    "jz 2f",
    "swapgs",
    "1:",
    "mov rsp, gs:[{stack_top}]",
    // Gates leave AC alone, and a user's would lift SMAP (SDM 3A 4.6). CLAC is not there on every CPU.
    "test byte ptr [rdi + {rflags} + 2], 4",
    "jnz 7f",
    "8:",
    "xor ebp, ebp",
    "call [rip + NACRE_HANDLERS + 8]",
    "mov rdi, rax",
    "jmp nacre_leave",
    "7:",
    "push 2",
    "popfq",
    "jmp 8b",
    "2:",
    "call [rip + NACRE_HANDLERS + 16]",
    "RESTORE_REGISTERS",
    "add rsp, 16",
    "iretq",
    // A debug exception comes on a stack of its own. If user code raised it, its registers belong in its frame.
    "nacre_debug:",
    "SAVE_REGISTERS",
    "cld",
    "test byte ptr [rsp + {cs}], 3",
    "lea rsi, [rip + NACRE_HANDLERS + 16]",
    "jz 3f",
    "swapgs",
    "mov rsi, rsp",
    "mov rdi, gs:[{frame_end}]",
    "sub rdi, {frame_bytes}",
    "mov rbx, rdi",
    "mov ecx, {frame_bytes} / 8",
    "rep movsq",
    "mov rdi, rbx",
    "jmp 1b",
    // NMI, double fault and machine check come on their own stacks, maybe before SWAPGS: look at GS itself.
    "nacre_nmi:",
    "SAVE_REGISTERS",
    "lea rsi, [rip + NACRE_HANDLERS + 24]",
    "jmp 3f",
    "nacre_paranoid:",
    "SAVE_REGISTERS",
    "lea rsi, [rip + NACRE_HANDLERS + 16]",
    "3:",
    "mov rdi, rsp",
    "push 2",
    "popfq",
    "xor ebx, ebx",
    "mov ecx, {gs_base}",
    "rdmsr",
    "test edx, edx",
    "js 4f",
    "swapgs",
    "inc ebx",
    "4:",
    "call [rsi]",
    "test ebx, ebx",
    "jz 5f",
    "swapgs",
    "5:",
    "RESTORE_REGISTERS",
    "add rsp, 16",
    "iretq",
    ".balign 16",
    ".global nacre_syscall_entry",
    // Any hypercall, after SWAPGS.
    "nacre_syscall_entry:",
    "mov gs:[{scratch}], rsp",
    "mov rsp, gs:[{frame_end}]",
    "push {user_data}",
    "push gs:[{scratch}]",
    "push r11",
    "push {user_code}",
    "push rcx",
    "push 0",
    "push {syscall}",
    "SAVE_REGISTERS",
    "mov rdi, rsp",
    "mov rsp, gs:[{stack_top}]",
    "xor ebp, ebp",
    "call [rip + NACRE_HANDLERS]",
    "mov rdi, rax",
    ".global nacre_leave",
    "nacre_leave:",
    "mov rsp, rdi",
    "cmp qword ptr [rsp + {vector}], {syscall}",
    "RESTORE_REGISTERS",
    "je 6f",
    "swapgs",
    "add rsp, 16",
    "iretq",
    "6:",
    "mov rcx, [rsp + 16]",
    "mov r11, [rsp + 32]",
    "mov rsp, [rsp + 40]",
    "swapgs",
    "sysretq",
    cs = const offset_of!(Frame, cs),
    rflags = const offset_of!(Frame, rflags),
    frame_bytes = const size_of::<Frame>(),
    vector = const offset_of!(Frame, vector),
    syscall = const SYSCALL,
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    stack_top = const offset::STACK_TOP,
    frame_end = const offset::FRAME_END,
    scratch = const offset::SCRATCH,
    gs_base = const crate::cpu::msr::GS_BASE,
);
