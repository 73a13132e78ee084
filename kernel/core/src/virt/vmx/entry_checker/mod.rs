//! The entry checker: everything that VM entry checks, before the hardware does (SDM 3C 26.2 and 26.3).
//!
//! Emulators make only some of the checks, and no hardware says which one failed. Test and debug builds read the whole VMCS
//! before every entry and put it through all rules, in the order of the manual; the release build has none of this. The
//! rules do not share code with [`super::checks`], which they check.

mod controls;
mod guest;
mod host;
mod segments;
#[cfg(test)]
mod tests;

use super::controls::Capabilities;
use super::fields::{Field, Width};

/// Where fields of the current VMCS are read.
pub trait Fields {
    /// VMREAD.
    fn read<W: Width>(&self, field: Field<W>) -> W;
}

/// Who can have broken a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel: it wrote the field, or let a value through that it checks.
    Kernel,
    /// Groups of guest state that do not go together. A VMM may load them one after the other, and only the entry tells:
    /// `EntryRule::Hardware` is for these.
    Combination,
}

/// A rule that the VMCS breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Section of SDM 3C.
    pub section: &'static str,
    /// The rule.
    pub rule: &'static str,
    /// Who can have broken it.
    pub cause: Cause,
}

/// The machine, as far as the rules depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// Capability MSRs.
    pub capabilities: &'a Capabilities,
    /// Bits of a physical address.
    pub physical_bits: u8,
}

impl Machine<'_> {
    /// Aligned to `alignment` bytes, and inside of the physical-address width.
    fn is_address(&self, address: u64, alignment: u64) -> bool {
        address.is_multiple_of(alignment) && address >> self.physical_bits == 0
    }
}

/// A rule that only the kernel can break.
fn holds(condition: bool, section: &'static str, rule: &'static str) -> Result<(), Broken> {
    check(condition, section, rule, Cause::Kernel)
}

/// A rule that a VMM can break by a combination of groups.
fn fits(condition: bool, section: &'static str, rule: &'static str) -> Result<(), Broken> {
    check(condition, section, rule, Cause::Combination)
}

fn check(condition: bool, section: &'static str, rule: &'static str, cause: Cause) -> Result<(), Broken> {
    if condition { Ok(()) } else { Err(Broken { section, rule, cause }) }
}

/// Bits 63 to 47 are equal.
const fn is_canonical(address: u64) -> bool {
    address.wrapping_add(1 << 47) >> 48 == 0
}

/// Eight memory types: 2, 3 and values above 7 are reserved (SDM 3A 12.12.2).
fn is_pat(pat: u64) -> bool {
    (0..8).all(|index| matches!(pat >> (8 * index) & 0xff, 0 | 1 | 4..=7))
}

/// Checks the VMCS.
///
/// # Errors
/// The first rule that is broken, in the order of the manual.
pub fn check_entry(vmcs: &impl Fields, machine: &Machine<'_>) -> Result<(), Broken> {
    controls::check(vmcs, machine)?;
    host::check(vmcs, machine)?;
    guest::check(vmcs, machine)
}
