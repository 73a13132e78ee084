//! Instructions that are dear on hardware, and dearer under nested virtualization, counted in a trace.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeMap;

/// Longest instruction in bytes.
pub const MAX_LENGTH: usize = 15;

/// How often instructions of each class were executed; classes that were not are absent.
pub type Counts = BTreeMap<String, u64>;

/// Adds the instruction that these bytes begin with.
pub fn count(counts: &mut Counts, bytes: &[u8]) {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    if let Some(class) = class(&instruction) {
        *counts.entry(class.to_owned()).or_default() += 1;
    }
    if is_locked(&instruction) {
        *counts.entry("locked".to_owned()).or_default() += 1;
    }
}

/// What a REP MOVS or REP STOS does, by iteration: its class, and bytes.
pub fn repeated(bytes: &[u8]) -> Option<(&'static str, u64)> {
    use Mnemonic as M;
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let class = match instruction.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => "bytes_copied",
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => "bytes_zeroed",
        _ => return None,
    };
    let has_prefix = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    has_prefix.then(|| (class, instruction.memory_size().size() as u64))
}

/// Adds so many bytes.
pub fn count_bytes(counts: &mut Counts, class: &str, bytes: u64) {
    if bytes > 0 {
        *counts.entry(class.to_owned()).or_default() += bytes;
    }
}

fn is_locked(instruction: &Instruction) -> bool {
    let is_implicit = instruction.mnemonic() == Mnemonic::Xchg
        && (0..2).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    instruction.has_lock_prefix() || is_implicit
}

fn class(instruction: &Instruction) -> Option<&'static str> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Vmread => "vmread",
        M::Vmwrite => "vmwrite",
        M::Vmclear | M::Vmptrld => "vmclear_vmptrld",
        M::Vmload | M::Vmsave => "vmload_vmsave",
        M::Clgi | M::Stgi => "clgi_stgi",
        M::Rdmsr | M::Wrmsr => "rdmsr_wrmsr",
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsaves
        | M::Xsaves64 => "xsave_xrstor",
        M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => "xsave_xrstor",
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => "fxsave_fxrstor",
        M::Xsetbv => "xsetbv",
        M::Swapgs => "swapgs",
        M::Syscall | M::Sysret | M::Sysretq => "syscall_sysret",
        M::Iret | M::Iretd | M::Iretq => "iret",
        M::Ltr | M::Lgdt | M::Lidt | M::Lldt => "ltr_lgdt",
        M::Invlpg | M::Invlpga | M::Invpcid | M::Invept | M::Invvpid => "tlb",
        M::Verw => "verw",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => "port_io",
        M::Mov => return control_register(instruction),
        _ => return None,
    })
}

/// Loads of control and debug registers; reading them costs little.
fn control_register(instruction: &Instruction) -> Option<&'static str> {
    let register = instruction.op0_register();
    match register {
        Register::CR0 => Some("mov_cr0"),
        Register::CR3 => Some("mov_cr3"),
        Register::CR4 => Some("mov_cr4"),
        _ if register.is_dr() => Some("mov_dr"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_moves_and_stores_have_a_size() {
        assert_eq!(repeated(&[0xf3, 0x48, 0xab]), Some(("bytes_zeroed", 8)));
        assert_eq!(repeated(&[0xf3, 0xa4]), Some(("bytes_copied", 1)));
        assert_eq!(repeated(&[0x48, 0xab]), None);
        assert_eq!(repeated(&[0xf3, 0x0f, 0x1e, 0xfa]), None);
    }

    #[test]
    fn instructions_are_counted_by_what_they_do() {
        let mut counts = Counts::new();
        for bytes in [
            &[0x0f, 0x78, 0xc1][..],         // vmread rcx, rax
            &[0x0f, 0x01, 0xf8],             // swapgs
            &[0x0f, 0x22, 0xd8],             // mov cr3, rax
            &[0x0f, 0x20, 0xd8],             // mov rax, cr3
            &[0x0f, 0x23, 0xf8],             // mov dr7, rax
            &[0xf0, 0x48, 0x0f, 0xb1, 0x0f], // lock cmpxchg [rdi], rcx
            &[0x87, 0x07],                   // xchg [rdi], eax
            &[0x66, 0x87, 0xdb],             // xchg bx, bx
            &[0xe6, 0x80],                   // out 0x80, al
            &[0x48, 0x89, 0xc8],             // mov rax, rcx
        ] {
            count(&mut counts, bytes);
        }
        let expected =
            [("vmread", 1), ("swapgs", 1), ("mov_cr3", 1), ("mov_dr", 1), ("locked", 2), ("port_io", 1)];
        assert_eq!(counts, Counts::from(expected.map(|(class, count)| (class.to_owned(), count))));
    }
}
