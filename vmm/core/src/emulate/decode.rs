//! Fetching and decoding the instruction that a vCPU is on.

use alloc::format;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::{CS, VcpuPage};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic};
use vdev::guest_mem::GuestMemory;

use super::Cause;
use super::cache::{DecodeCache, Decoded};
use super::walk::{Access, Paging};
use crate::fault::{Fault, Trouble};
use crate::vcpu::{MODE, Vcpu, code_bits, code_root};

/// Longest instruction (SDM 2A 2.3.11).
const MAX_LENGTH: usize = 15;
const PAGE_SIZE: u64 = 4096;

/// Bytes at the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    /// Little-endian; what is behind the last byte is anything.
    word: u128,
    /// 0 to [`MAX_LENGTH`].
    length: usize,
}

impl Bytes {
    fn new(low: u64, high: u64, length: usize) -> Bytes {
        Bytes { word: u128::from(high) << 64 | u128::from(low), length }
    }

    /// Bytes that the hardware fetched ([`hypercall_abi::exit::NestedFault`]), if it does that.
    fn of_exit(page: &VcpuPage, cause: Cause) -> Option<Bytes> {
        let [_, _, _, count, low, high, ..] = page.exit_info;
        let is_there = cause == Cause::Memory && count > 0;
        is_there.then(|| Bytes::new(low, high, count.min(MAX_LENGTH as u64) as usize))
    }

    /// As many bytes as an instruction can have, from RAM at `physical`; `None` if they are not all in its page.
    #[inline]
    pub(super) fn read_whole(memory: &impl GuestMemory, physical: u64) -> Option<Bytes> {
        if physical % PAGE_SIZE > PAGE_SIZE - 16 {
            return None;
        }
        let low = memory.read_u64(physical).ok()?;
        let high = memory.read_u64(physical + 8).ok()?;
        Some(Bytes::new(low, high, MAX_LENGTH))
    }

    /// The first `length` bytes, at most 15, and a mask with ones for them.
    pub(super) fn prefix(&self, length: usize) -> (u128, u128) {
        let mask = (1 << (8 * length.min(MAX_LENGTH))) - 1;
        (self.word & mask, mask)
    }

    /// The bytes in little-endian order, with anything behind the last one.
    pub(super) fn word(&self) -> u128 {
        self.word
    }

    /// 0 to 15.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    fn starts_with(&self, code: &[u8]) -> bool {
        self.word.to_le_bytes()[..self.length].starts_with(code)
    }
}

/// The instruction at the instruction pointer, which may be in the cache already.
///
/// # Errors
/// The fault that fetching or decoding it raises.
pub(super) fn decode<'a>(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &'a mut DecodeCache,
    cause: Cause,
) -> Result<&'a Decoded, Trouble> {
    let (root, bits) = mode(vcpu);
    let page = vcpu.page();
    let rip = page.rip;
    let bytes = match (Bytes::of_exit(page, cause), root) {
        (None, Some(root)) => cache.fetch(memory, root, rip),
        (bytes, _) => bytes,
    };
    if !bytes.is_some_and(|bytes| cache.has(rip, bits, &bytes)) {
        decode_fully(vcpu, memory, cache, cause)?;
    }
    cache.get(rip).ok_or(Fault::UNDEFINED.into())
}

/// The root of the page tables of 64-bit code, and the size of code in bits.
#[inline]
fn mode(vcpu: &mut impl Vcpu) -> (Option<u64>, u32) {
    if let Some(root) = code_root(vcpu.page()) {
        return (Some(root), 64);
    }
    let page = vcpu.state(MODE);
    let bits = code_bits(page);
    ((bits == 64).then_some(page.cr3), bits)
}

#[inline(never)]
fn decode_fully(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &mut DecodeCache,
    cause: Cause,
) -> Result<(), Trouble> {
    let page = vcpu.state(MODE);
    let (rip, bits) = (page.rip, code_bits(page));
    if let Some(bytes) = Bytes::of_exit(page, cause)
        && let Ok(instruction) = decode_bytes(page, &bytes)
    {
        cache.insert(rip, bits, &bytes, Decoded::new(&instruction));
        return Ok(());
    }
    let fetched = fetch(vcpu, memory, cache)?;
    if cache.has(rip, bits, &fetched.bytes) {
        return Ok(());
    }
    let instruction = decode_fetched(vcpu, &fetched)?;
    cache.insert(rip, bits, &fetched.bytes, Decoded::new(&instruction));
    Ok(())
}

fn decode_fetched(vcpu: &mut impl Vcpu, fetched: &Fetched) -> Result<Instruction, Trouble> {
    let page = vcpu.state(MODE);
    decode_bytes(page, &fetched.bytes).map_err(|error| match (error, fetched.end) {
        (DecoderError::NoMoreBytes, Some(fault)) => fault.into(),
        // More than 15 bytes.
        (DecoderError::NoMoreBytes, None) => Fault::PROTECTION.into(),
        _ if is_vector(page, &fetched.bytes) => {
            Trouble::Unsupported(format!("an AVX instruction at {:#x}", page.rip))
        }
        _ => Fault::UNDEFINED.into(),
    })
}

/// Whether the instruction has a VEX or EVEX prefix (SDM 2A 2.3.5, 2.7): the decoder is built without those, whose tables
/// would be the larger part of a VMM's heap. Outside 64-bit mode the bytes are other instructions unless a register operand
/// follows.
fn is_vector(page: &VcpuPage, bytes: &Bytes) -> bool {
    let bytes = bytes.word.to_le_bytes();
    let is_segment_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let mut rest = bytes.iter().skip_while(|byte| is_segment_prefix(byte));
    let is_prefix = matches!(rest.next(), Some(0xc4 | 0xc5 | 0x62));
    is_prefix && (code_bits(page) == 64 || rest.next().is_some_and(|byte| *byte >= 0xc0))
}

fn decode_bytes(page: &VcpuPage, bytes: &Bytes) -> Result<Instruction, DecoderError> {
    let array = bytes.word.to_le_bytes();
    let mut decoder =
        Decoder::with_ip(code_bits(page), &array[..bytes.length], page.rip, DecoderOptions::NONE);
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

fn fetch(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &mut DecodeCache,
) -> Result<Fetched, Fault> {
    let page = vcpu.state(MODE);
    if code_bits(page) == 64
        && let Some(bytes) = cache.fetch(memory, page.cr3, page.rip)
    {
        return Ok(Fetched { bytes, end: None });
    }
    fetch_in_pieces(page, &Paging::of(page), memory)
}

fn fetch_in_pieces(
    page: &VcpuPage,
    paging: &Paging,
    memory: &mut impl GuestMemory,
) -> Result<Fetched, Fault> {
    let (base, limit, linear_mask) = match code_bits(page) {
        64 => (0, u64::MAX, u64::MAX),
        _ => (page.segments[CS].base, page.segments[CS].limit.into(), 0xffff_ffff),
    };
    let (mut bytes, mut length) = ([0; 16], 0);
    let mut end = None;
    while length < MAX_LENGTH {
        let offset = page.rip.wrapping_add(length as u64);
        if offset > limit {
            end = Some(Fault::PROTECTION);
            break;
        }
        let linear = base.wrapping_add(offset) & linear_mask;
        let physical = match paging.translate(memory, linear, Access::Fetch) {
            Ok(physical) => physical,
            Err(fault) => {
                end = Some(fault);
                break;
            }
        };
        let in_page = (PAGE_SIZE - linear % PAGE_SIZE).min((limit - offset).saturating_add(1));
        let into = &mut bytes[length..MAX_LENGTH.min(length + in_page as usize)];
        if memory.read(physical, into).is_err() {
            // Where there is no RAM the CPU reads ones, which are no instruction.
            into.fill(0xff);
        }
        length += into.len();
    }
    // What cannot be fetched matters only if the instruction is not complete without it.
    match end {
        Some(fault) if length == 0 => Err(fault),
        _ => Ok(Fetched { bytes: Bytes { word: u128::from_le_bytes(bytes), length }, end }),
    }
}

/// Fetches the instruction that caused an exit of this kind, prefixes included, and checks that it is one that does.
///
/// # Errors
/// [`Trouble::Unsupported`] if it is not: then the guest changed its code under the CPU.
pub fn decode_exiting(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &mut DecodeCache,
    kind: ExitKind,
) -> Result<Instruction, Trouble> {
    let fetched = fetch(vcpu, memory, cache)?;
    check_exiting(vcpu, &fetched, kind)
}

fn check_exiting(vcpu: &mut impl Vcpu, fetched: &Fetched, kind: ExitKind) -> Result<Instruction, Trouble> {
    let instruction = decode_fetched(vcpu, fetched)?;
    if may_exit(kind, instruction.mnemonic()) {
        return Ok(instruction);
    }
    let rip = vcpu.page().rip;
    let found = instruction.mnemonic();
    Err(Trouble::Unsupported(format!("{kind:?} exit at {rip:#x}, where the instruction is {found:?}")))
}

/// Length of the instruction that caused the last exit: what the hardware said, else what [`decode_exiting`] finds.
///
/// # Errors
/// As [`decode_exiting`].
#[inline]
pub fn verify_length(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &mut DecodeCache,
    kind: ExitKind,
) -> Result<u8, Trouble> {
    match vcpu.page().exit_length {
        length @ 1..=15 => Ok(length as u8),
        _ => find_length(vcpu, memory, cache, kind),
    }
}

#[inline(never)]
fn find_length(
    vcpu: &mut impl Vcpu,
    memory: &mut impl GuestMemory,
    cache: &mut DecodeCache,
    kind: ExitKind,
) -> Result<u8, Trouble> {
    let (root, rip) = (code_root(vcpu.page()), vcpu.page().rip);
    if let Some(code) = plain_form(kind)
        && let Some(bytes) = root.and_then(|root| cache.fetch(memory, root, rip))
        && bytes.starts_with(code)
    {
        return Ok(code.len() as u8);
    }
    let fetched = fetch(vcpu, memory, cache)?;
    match plain_form(kind) {
        Some(code) if fetched.bytes.starts_with(code) => Ok(code.len() as u8),
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
        ExitKind::PortIo => {
            matches!(mnemonic, M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd)
        }
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
