//! Results and flags of the integer instructions (SDM 1 3.4.3).

const CARRY: u64 = 1 << 0;
const PARITY: u64 = 1 << 2;
const ADJUST: u64 = 1 << 4;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
const STATUS: u64 = CARRY | PARITY | ADJUST | ZERO | SIGN | OVERFLOW;

/// An operation on a destination and a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    AddWithCarry,
    Subtract,
    SubtractWithBorrow,
    And,
    Or,
    Xor,
    BitTest,
    BitSet,
    BitReset,
    BitComplement,
    Increment,
    Decrement,
    Negate,
}

/// The low `size` bytes (1 to 8) of a value.
pub(super) fn truncate(value: u64, size: usize) -> u64 {
    value & u64::MAX >> (64u32.wrapping_sub(8 * size as u32) & 63)
}

/// A value of `size` bytes with its sign carried up.
pub(super) fn sign_extend(value: u64, size: usize) -> u64 {
    let shift = 64 - 8 * size.clamp(1, 8);
    ((value << shift) as i64 >> shift) as u64
}

impl Operation {
    /// The result in `size` bytes, and RFLAGS after it.
    pub(super) fn apply(self, destination: u64, source: u64, size: usize, rflags: u64) -> (u64, u64) {
        let (a, b) = (truncate(destination, size), truncate(source, size));
        let carry = rflags & CARRY;
        match self {
            Operation::Add => add(a, b, 0, size, rflags),
            Operation::AddWithCarry => add(a, b, carry, size, rflags),
            Operation::Subtract => subtract(a, b, 0, size, rflags),
            Operation::SubtractWithBorrow => subtract(a, b, carry, size, rflags),
            Operation::Negate => subtract(0, a, 0, size, rflags),
            Operation::And => logic(a & b, size, rflags),
            Operation::Or => logic(a | b, size, rflags),
            Operation::Xor => logic(a ^ b, size, rflags),
            Operation::Increment => keep_carry(add(a, 1, 0, size, rflags), carry),
            Operation::Decrement => keep_carry(subtract(a, 1, 0, size, rflags), carry),
            Operation::BitTest | Operation::BitSet | Operation::BitReset | Operation::BitComplement => {
                self.bit(a, b, size, rflags)
            }
        }
    }

    fn bit(self, value: u64, index: u64, size: usize, rflags: u64) -> (u64, u64) {
        let mask = 1 << (index % (8 * size as u64));
        let result = match self {
            Operation::BitSet => value | mask,
            Operation::BitReset => value & !mask,
            Operation::BitComplement => value ^ mask,
            _ => value,
        };
        let carry = if value & mask != 0 { CARRY } else { 0 };
        (result, rflags & !CARRY | carry)
    }
}

fn keep_carry((result, rflags): (u64, u64), carry: u64) -> (u64, u64) {
    (result, rflags & !CARRY | carry)
}

fn sign_bit(size: usize) -> u64 {
    1 << (8 * size.clamp(1, 8) - 1)
}

fn result_flags(result: u64, size: usize) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZERO;
    }
    if result & sign_bit(size) != 0 {
        flags |= SIGN;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PARITY;
    }
    flags
}

fn add(a: u64, b: u64, carry: u64, size: usize, rflags: u64) -> (u64, u64) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = truncate(wide as u64, size);
    let mut flags = result_flags(result, size) | (a ^ b ^ result) & ADJUST;
    if wide > u128::from(truncate(u64::MAX, size)) {
        flags |= CARRY;
    }
    if (a ^ result) & (b ^ result) & sign_bit(size) != 0 {
        flags |= OVERFLOW;
    }
    (result, rflags & !STATUS | flags)
}

fn subtract(a: u64, b: u64, borrow: u64, size: usize, rflags: u64) -> (u64, u64) {
    let result = truncate(a.wrapping_sub(b).wrapping_sub(borrow), size);
    let mut flags = result_flags(result, size) | (a ^ b ^ result) & ADJUST;
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CARRY;
    }
    if (a ^ b) & (a ^ result) & sign_bit(size) != 0 {
        flags |= OVERFLOW;
    }
    (result, rflags & !STATUS | flags)
}

fn logic(result: u64, size: usize, rflags: u64) -> (u64, u64) {
    (result, rflags & !STATUS | result_flags(result, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_manual() {
        let flags = |operation: Operation, a, b, size| operation.apply(a, b, size, 2).1;
        assert_eq!(flags(Operation::Add, 0xff, 1, 1), 2 | CARRY | ZERO | ADJUST | PARITY);
        assert_eq!(flags(Operation::Add, 0x7fff_ffff, 1, 4), 2 | OVERFLOW | SIGN | ADJUST | PARITY);
        assert_eq!(flags(Operation::Subtract, 0, 1, 8), 2 | CARRY | SIGN | ADJUST | PARITY);
        assert_eq!(flags(Operation::Subtract, 0x80, 1, 1), 2 | OVERFLOW | ADJUST);
        assert_eq!(flags(Operation::And, 0xf0, 0x0f, 2), 2 | ZERO | PARITY);
        assert_eq!(flags(Operation::BitTest, 0b100, 2, 4), 2 | CARRY);
    }

    #[test]
    fn carry_goes_in_and_out() {
        assert_eq!(Operation::AddWithCarry.apply(u64::MAX, 0, 8, CARRY), (0, CARRY | ZERO | ADJUST | PARITY));
        assert_eq!(Operation::SubtractWithBorrow.apply(0, u64::MAX, 8, CARRY).1 & CARRY, CARRY);
        assert_eq!(Operation::Increment.apply(0xffff, 0, 2, CARRY).1 & CARRY, CARRY);
        assert_eq!(Operation::Negate.apply(1, 0, 4, 0).0, 0xffff_ffff);
    }

    #[test]
    fn bit_operations_take_the_index_modulo_the_width() {
        assert_eq!(Operation::BitSet.apply(0, 35, 4, 0).0, 8);
        assert_eq!(Operation::BitComplement.apply(8, 3, 4, 0), (0, CARRY));
    }

    #[test]
    fn values_are_cut_and_extended_by_their_size() {
        assert_eq!(truncate(0x1234_5678, 2), 0x5678);
        assert_eq!(sign_extend(0x80, 1), 0xffff_ffff_ffff_ff80);
        assert_eq!(sign_extend(0x7fff_ffff, 4), 0x7fff_ffff);
    }
}
