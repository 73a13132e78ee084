//! The usual forms of MOV in 64-bit code, without the full decoder: what compilers write for an access to a device (SDM 2A 2.1,
//! 2.2.1; SDM 2B MOV, MOVZX).

use hypercall_abi::vcpu::gpr::{RBP, RSP};
use iced_x86::Register;

use super::address::Address;
use super::alu::{sign_extend, truncate};
use super::register::Gpr;
use super::transfer::{Kind, Transfer};

const REX_W: u8 = 1 << 3;
const REX_R: u8 = 1 << 2;
const REX_X: u8 = 1 << 1;
const REX_B: u8 = 1 << 0;
/// ModRM.rm: a SIB byte follows.
const HAS_SIB: usize = 4;
/// ModRM.rm and SIB.base with mod 0: a displacement of 32 bits instead of a register.
const NO_BASE: usize = 5;

/// Takes the instruction apart, a few bytes at a time.
struct Reader {
    rest: u128,
    length: u8,
}

impl Reader {
    fn byte(&mut self) -> u8 {
        let byte = self.rest as u8;
        self.rest >>= 8;
        self.length += 1;
        byte
    }

    /// A little-endian number of `size` bytes (1, 2 or 4), sign-extended.
    fn signed(&mut self, size: u8) -> u64 {
        let value = sign_extend(self.rest as u64, size.into());
        self.rest >>= 8 * u32::from(size);
        self.length += size;
        value
    }
}

/// The instruction at the start of 15 bytes at `rip`, and its length; `None` for anything but a plain move between memory and a
/// general-purpose register, or of an immediate into memory.
pub(super) fn decode(code: u128, rip: u64) -> Option<(Transfer, u8)> {
    let mut reader = Reader { rest: code, length: 0 };
    let mut byte = reader.byte();
    let is_16_bit = byte == 0x66;
    if is_16_bit {
        byte = reader.byte();
    }
    let mut rex = None;
    if byte & 0xf0 == 0x40 {
        rex = Some(byte);
        byte = reader.byte();
    }
    let rex_bits = rex.unwrap_or(0);
    let wide = match (rex_bits & REX_W != 0, is_16_bit) {
        (true, _) => 8,
        (false, true) => 2,
        (false, false) => 4,
    };
    // What moves: bytes in memory, and bytes of the register.
    let (size, register_size, is_load) = match byte {
        0x88 | 0xc6 => (1, 1, false),
        0x89 | 0xc7 => (wide, wide, false),
        0x8a => (1, 1, true),
        0x8b => (wide, wide, true),
        0x0f => match reader.byte() {
            0xb6 => (1, wide, true),
            0xb7 => (2, wide, true),
            _ => return None,
        },
        _ => return None,
    };
    let is_immediate = byte & 0xfe == 0xc6;
    let mod_rm = reader.byte();
    let register = usize::from(mod_rm >> 3 & 7) | if rex_bits & REX_R != 0 { 8 } else { 0 };
    // An immediate has an opcode in place of the register, 0.
    if is_immediate && mod_rm >> 3 & 7 != 0 {
        return None;
    }
    let immediate_size = if is_immediate { size.min(4) } else { 0 };
    let address = address(&mut reader, mod_rm, rex_bits, rip, immediate_size)?;
    let gpr = Gpr::named(register, register_size, rex.is_some());
    let kind = match (is_immediate, is_load) {
        (true, _) => Kind::StoreImmediate { value: truncate(reader.signed(immediate_size as u8), size) },
        (false, true) => Kind::Load { to: gpr, is_signed: false },
        (false, false) => Kind::Store { from: gpr },
    };
    let transfer = Transfer::new(kind, address, size as u8);
    (reader.length <= 15).then_some((transfer, reader.length))
}

/// The memory operand; `None` if there is none. An immediate of so many bytes follows.
fn address(reader: &mut Reader, mod_rm: u8, rex: u8, rip: u64, immediate_size: usize) -> Option<Address> {
    let (mode, low) = (mod_rm >> 6, usize::from(mod_rm & 7));
    let (mut base, mut index, mut scale) = (Some(low | if rex & REX_B != 0 { 8 } else { 0 }), None, 0);
    let mut is_relative = false;
    if mode == 3 {
        return None;
    }
    if low == HAS_SIB {
        let sib = reader.byte();
        scale = sib >> 6;
        let number = usize::from(sib >> 3 & 7) | if rex & REX_X != 0 { 8 } else { 0 };
        index = (number != RSP).then_some(number);
        let low = usize::from(sib & 7);
        base = (mode != 0 || low != NO_BASE).then_some(low | if rex & REX_B != 0 { 8 } else { 0 });
    } else if mode == 0 && low == NO_BASE {
        (base, is_relative) = (None, true);
    }
    let mut displacement = match (mode, base) {
        (1, _) => reader.signed(1),
        (2, _) | (_, None) => reader.signed(4),
        _ => 0,
    };
    if is_relative {
        let length = u64::from(reader.length) + immediate_size as u64;
        displacement = displacement.wrapping_add(rip.wrapping_add(length));
    }
    let gpr = |number| Gpr::new(number, 8);
    let segment = if matches!(base, Some(RSP | RBP)) { Register::SS } else { Register::DS };
    Some(Address::in_64_bit_code(base.map(gpr), index.map(gpr), scale, displacement, segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use iced_x86::{Decoder, DecoderError, DecoderOptions};
    use proptest::prelude::*;

    const RIP: u64 = 0xffff_8000_1234_5678;

    fn by_the_full_decoder(code: &[u8; 15]) -> Option<(Transfer, u8)> {
        let mut decoder = Decoder::with_ip(64, code, RIP, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (decoder.last_error() == DecoderError::None)
            .then(|| Transfer::of(&instruction).map(|transfer| (transfer, instruction.len() as u8)))?
    }

    fn word(code: &[u8; 15]) -> u128 {
        let mut bytes = [0; 16];
        bytes[..15].copy_from_slice(code);
        u128::from_le_bytes(bytes)
    }

    fn any_move() -> impl Strategy<Value = [u8; 15]> {
        let prefix = prop::sample::select(vec![vec![], vec![0x66]]);
        let rex = prop_oneof![Just(vec![]), (0x40_u8..0x50).prop_map(|rex| vec![rex])];
        let opcode = prop::sample::select(vec![
            vec![0x88],
            vec![0x89],
            vec![0x8a],
            vec![0x8b],
            vec![0xc6],
            vec![0xc7],
            vec![0x0f, 0xb6],
            vec![0x0f, 0xb7],
        ]);
        (prefix, rex, opcode, any::<[u8; 15]>()).prop_map(|(prefix, rex, opcode, rest)| {
            let mut code = [prefix, rex, opcode, rest.to_vec()].concat();
            code.truncate(15);
            code.try_into().unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_the_full_decoder_says(code in any_move()) {
            let expected = by_the_full_decoder(&code);
            prop_assert_eq!(decode(word(&code), RIP), expected, "{:02x?}", code);
        }

        #[test]
        fn any_bytes_are_the_same_instruction_or_left_to_the_full_decoder(code in any::<[u8; 15]>()) {
            if let Some(decoded) = decode(word(&code), RIP) {
                prop_assert_eq!(Some(decoded), by_the_full_decoder(&code), "{:02x?}", code);
            }
        }
    }
}
