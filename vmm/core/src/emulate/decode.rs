//! Fetching and decoding the instruction that a vCPU is on.

use alloc::format;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::CS;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};
use vdev::guest_mem::GuestMemory;

use super::walk::{Access, Paging};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{MODE, Vcpu, code_bits};

/// Longest instruction (SDM 2A 2.3.11).
const MAX_LENGTH: usize = 15;
const PAGE_SIZE: u64 = 4096;

/// Bytes at the instruction pointer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bytes {
    bytes: [u8; MAX_LENGTH],
    length: usize,
}

impl Bytes {
    /// Bytes that the hardware fetched: [`hypercall_abi::exit::NestedFault`], info\[3\] to info\[5\].
    pub fn from_exit(count: u64, words: [u64; 2]) -> Bytes {
        let mut bytes = [0; MAX_LENGTH];
        for (byte, from) in bytes.iter_mut().zip(words.into_iter().flat_map(u64::to_le_bytes)) {
            *byte = from;
        }
        Bytes {
            bytes,
            length: usize::try_from(count).unwrap_or(MAX_LENGTH).min(MAX_LENGTH),
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The instruction at the instruction pointer.
///
/// # Errors
/// The fault that fetching or decoding it raises.
pub(super) fn decode(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    known: Bytes,
) -> Result<Instruction, Fault> {
    if known.length > 0
        && let Ok(instruction) = decode_bytes(vcpu, known.as_slice())
    {
        return Ok(instruction);
    }
    let fetched = fetch(vcpu, memory)?;
    decode_fetched(vcpu, &fetched)
}

fn decode_fetched(vcpu: &mut impl Vcpu, fetched: &Fetched) -> Result<Instruction, Fault> {
    decode_bytes(vcpu, fetched.bytes.as_slice()).map_err(|error| match (error, fetched.end) {
        (DecoderError::NoMoreBytes, Some(fault)) => fault,
        // More than 15 bytes.
        (DecoderError::NoMoreBytes, None) => Fault::PROTECTION,
        _ => Fault::UNDEFINED,
    })
}

fn decode_bytes(vcpu: &mut impl Vcpu, bytes: &[u8]) -> Result<Instruction, DecoderError> {
    let page = vcpu.state(MODE);
    let mut decoder = Decoder::with_ip(code_bits(page), bytes, page.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        error => Err(error),
    }
}

/// As many bytes as the mode, the segment and the page tables let the CPU fetch, and what stops it.
struct Fetched {
    bytes: Bytes,
    end: Option<Fault>,
}

fn fetch(vcpu: &mut impl Vcpu, memory: &mut impl GuestMemory) -> Result<Fetched, Fault> {
    let page = vcpu.state(MODE);
    let paging = Paging::of(page);
    let (base, limit, linear_mask) = match code_bits(page) {
        64 => (0, u64::MAX, u64::MAX),
        _ => (
            page.segments[CS].base,
            page.segments[CS].limit.into(),
            0xffff_ffff,
        ),
    };
    let mut fetched = Bytes::default();
    while fetched.length < MAX_LENGTH {
        let offset = page.rip.wrapping_add(fetched.length as u64);
        if offset > limit {
            return stop(fetched, Fault::PROTECTION);
        }
        let linear = base.wrapping_add(offset) & linear_mask;
        let physical = match paging.translate(memory, linear, Access::Fetch) {
            Ok(physical) => physical,
            Err(fault) => return stop(fetched, fault),
        };
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE).min((limit - offset).saturating_add(1));
        let end = MAX_LENGTH.min(fetched.length + in_page as usize);
        let into = &mut fetched.bytes[fetched.length..end];
        if memory.read(physical, into).is_err() {
            // Where there is no RAM the CPU reads ones, which are no instruction.
            into.fill(0xff);
        }
        fetched.length = end;
    }
    Ok(Fetched {
        bytes: fetched,
        end: None,
    })
}

/// What cannot be fetched matters only if the instruction is not complete without it.
fn stop(fetched: Bytes, fault: Fault) -> Result<Fetched, Fault> {
    if fetched.length == 0 {
        Err(fault)
    } else {
        Ok(Fetched {
            bytes: fetched,
            end: Some(fault),
        })
    }
}

/// Fetches the instruction that caused an exit of this kind, prefixes included, and checks that it is one that does.
///
/// # Errors
/// [`Trouble::Unsupported`] if it is not: then the guest changed its code under the CPU.
pub fn decode_exiting(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    kind: ExitKind,
) -> Result<Instruction, Trouble> {
    let fetched = fetch(vcpu, memory)?;
    check_exiting(vcpu, &fetched, kind)
}

fn check_exiting(vcpu: &mut impl Vcpu, fetched: &Fetched, kind: ExitKind) -> Result<Instruction, Trouble> {
    let instruction = decode_fetched(vcpu, fetched)?;
    if may_exit(kind, instruction.mnemonic()) {
        return Ok(instruction);
    }
    let rip = vcpu.page().rip;
    let found = instruction.mnemonic();
    Err(Trouble::Unsupported(format!(
        "{kind:?} exit at {rip:#x}, where the instruction is {found:?}"
    )))
}

/// Length of the instruction that caused the last exit: what the hardware said, else what [`decode_exiting`] finds.
///
/// # Errors
/// As [`decode_exiting`].
#[inline]
pub fn verify_length(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    kind: ExitKind,
) -> Result<u8, Trouble> {
    match vcpu.page().exit_length {
        length @ 1..=15 => Ok(length as u8),
        _ => find_length(vcpu, memory, kind),
    }
}

fn find_length(vcpu: &mut impl Vcpu, memory: &mut impl GuestMemory, kind: ExitKind) -> Result<u8, Trouble> {
    let fetched = fetch(vcpu, memory)?;
    match plain_form(kind) {
        Some(code) if fetched.bytes.as_slice().starts_with(code) => Ok(code.len() as u8),
        _ => Ok(check_exiting(vcpu, &fetched, kind)?.len() as u8),
    }
}

/// The bytes of instructions that exit often, as compilers write them, in every mode: no decoder is needed for these.
fn plain_form(kind: ExitKind) -> Option<&'static [u8]> {
    Some(match kind {
        ExitKind::Hlt => &[0xf4],
        ExitKind::Cpuid => &[0x0f, 0xa2],
        ExitKind::MsrRead => &[0x0f, 0x32],
        ExitKind::MsrWrite => &[0x0f, 0x30],
        _ => return None,
    })
}

fn may_exit(kind: ExitKind, mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    match kind {
        ExitKind::Hlt => mnemonic == M::Hlt,
        ExitKind::Cpuid => mnemonic == M::Cpuid,
        ExitKind::PortIo => matches!(
            mnemonic,
            M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
        ),
        ExitKind::MsrRead => mnemonic == M::Rdmsr,
        ExitKind::MsrWrite => mnemonic == M::Wrmsr,
        ExitKind::ControlAccess => matches!(mnemonic, M::Mov | M::Clts | M::Lmsw | M::Smsw),
        ExitKind::DebugAccess => mnemonic == M::Mov,
        ExitKind::Hypercall => matches!(mnemonic, M::Vmcall | M::Vmmcall),
        ExitKind::Xsetbv => mnemonic == M::Xsetbv,
        ExitKind::CacheControl => matches!(mnemonic, M::Invd | M::Wbinvd | M::Wbnoinvd),
        ExitKind::Pause => mnemonic == M::Pause,
        ExitKind::Monitor => matches!(mnemonic, M::Monitor | M::Mwait),
        ExitKind::Invlpg => mnemonic == M::Invlpg,
        ExitKind::Rdpmc => mnemonic == M::Rdpmc,
        ExitKind::Rdtsc => matches!(mnemonic, M::Rdtsc | M::Rdtscp),
        _ => false,
    }
}
