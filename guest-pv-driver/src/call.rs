//! The call instruction (Linux, Documentation/virt/kvm/x86/hypercalls.rst).

use crate::detect::Leaf;
use core::arch::asm;

/// Which instruction leaves the guest: the two vendors have different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Intel's VMCALL.
    Vmcall,
    /// AMD's VMMCALL.
    Vmmcall,
}

impl Instruction {
    /// That of the CPU's vendor; `cpuid` is the instruction, with subleaf 0.
    pub fn detect(cpuid: impl Fn(u32) -> Leaf) -> Self {
        let [_, vendor, ..] = cpuid(0);
        match &vendor.to_le_bytes() {
            // AuthenticAMD, HygonGenuine.
            b"Auth" | b"Hygo" => Instruction::Vmmcall,
            _ => Instruction::Vmcall,
        }
    }
}

/// What the hypervisor answers to a number it does not know: `-KVM_ENOSYS`.
pub const NO_SUCH_CALL: i64 = -1000;

/// Calls the hypervisor from ring 0: `number` in RAX, arguments in RBX, RCX, RDX and RSI, the result in RAX.
///
/// # Safety
/// There must be a hypervisor that takes `instruction`, which raises #UD otherwise; what the call does to memory is
/// the caller's to know.
pub unsafe fn hypercall(instruction: Instruction, number: u64, arguments: [u64; 4]) -> i64 {
    let result: i64;
    let [mut rbx, rcx, rdx, rsi] = arguments;
    macro_rules! call {
        ($mnemonic:literal) => {
            // SAFETY: the caller vouches for the call. RBX is put back, as the compiler does not let it be an operand.
            unsafe {
                asm!(
                    "xchg {rbx}, rbx", $mnemonic, "xchg {rbx}, rbx",
                    rbx = inout(reg) rbx, inout("rax") number => result, in("rcx") rcx, in("rdx") rdx, in("rsi") rsi,
                    options(nostack),
                );
            }
        };
    }
    match instruction {
        Instruction::Vmcall => call!("vmcall"),
        Instruction::Vmmcall => call!("vmmcall"),
    }
    // What RBX held afterwards is of no use: the convention preserves it.
    let _ = rbx;
    result
}

#[cfg(test)]
mod tests {
    use super::Instruction;

    #[test]
    fn each_vendors_cpus_have_their_own_instruction() {
        for (vendor, instruction) in [
            (b"GenuineIntel", Instruction::Vmcall),
            (b"AuthenticAMD", Instruction::Vmmcall),
            (b"HygonGenuine", Instruction::Vmmcall),
        ] {
            let [b, d, c] =
                [0, 4, 8].map(|at| u32::from_le_bytes(core::array::from_fn(|byte| vendor[at + byte])));
            assert_eq!(Instruction::detect(|_| [1, b, c, d]), instruction);
        }
    }
}
