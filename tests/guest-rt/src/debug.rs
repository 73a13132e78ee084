//! Debug registers, and code to set breakpoints on.

use core::arch::{asm, naked_asm};

/// DR6: the breakpoint of this register was hit, for registers 0 to 3.
pub const DR6_HIT: u64 = 0b1111;
/// DR6: single step.
pub const DR6_SINGLE_STEP: u64 = 1 << 14;
/// RFLAGS.RF, which lets an instruction with a breakpoint on it run.
pub const RFLAGS_RF: u64 = 1 << 16;

/// What a breakpoint waits for: the R/W and LEN fields of DR7 (SDM 3B 18.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The instruction at the address.
    Execute,
    /// A write to the four bytes at the address.
    Write4,
    /// A read or write of the eight bytes at the address.
    Access8,
}

/// The DR7 value that enables breakpoint `index`, 0 to 3.
pub fn dr7_enable(index: u32, watch: Watch) -> u64 {
    let fields = match watch {
        Watch::Execute => 0b0000,
        Watch::Write4 => 0b1101,
        Watch::Access8 => 0b1011,
    };
    // Bit 10 reads as 1.
    1 << 10 | 1 << (2 * index) | fields << (16 + 4 * index)
}

macro_rules! debug_registers {
    ($($read:ident $write:ident $name:literal;)*) => {$(
        #[doc = concat!("Reads ", $name, ".")]
        pub fn $read() -> u64 {
            let value: u64;
            // SAFETY: reading a debug register has no effect.
            unsafe {
                asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes ", $name, ".")]
        pub fn $write(value: u64) {
            // SAFETY: what it leads to are debug exceptions, which the runtime takes.
            unsafe {
                asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nomem, nostack, preserves_flags));
            }
        }
    )*};
}

debug_registers! {
    dr0 set_dr0 "dr0";
    dr1 set_dr1 "dr1";
    dr2 set_dr2 "dr2";
    dr3 set_dr3 "dr3";
    dr6 set_dr6 "dr6";
    dr7 set_dr7 "dr7";
}

/// A function to set an execution breakpoint on: returns its argument plus 1.
#[unsafe(naked)]
pub extern "C" fn target(value: u64) -> u64 {
    naked_asm!("lea rax, [rdi + 1]", "ret")
}

/// Sets TF and runs NOP, CPUID, OUT 80H and the three instructions that clear TF again; the processor raises #DB after
/// each. Returns how often it has to.
pub fn single_step() -> u64 {
    // SAFETY: the handler of #DB returns; the stack is left as it was.
    unsafe {
        asm!(
            "mov {rbx}, rbx",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            // The instruction that sets TF is not stepped itself.
            "nop",
            "cpuid",
            "out 0x80, al",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            "mov rbx, {rbx}",
            rbx = out(reg) _,
            inout("eax") 0 => _,
            inout("ecx") 0 => _,
            out("edx") _,
        );
    }
    // The POPFQ that clears TF counts: TF was set when it began.
    6
}

/// Executes INT3.
pub fn int3() {
    // SAFETY: the handler of #BP returns.
    unsafe { asm!("int3", options(nostack)) };
}

/// Executes INT1 (ICEBP), which raises #DB without a bit in DR6.
pub fn int1() {
    // SAFETY: the handler of #DB returns.
    unsafe { asm!(".byte 0xf1", options(nostack)) };
}

/// Executes `INT 42H`.
pub fn int_0x42() {
    // SAFETY: the handler returns.
    unsafe { asm!("int 0x42", options(nostack)) };
}
