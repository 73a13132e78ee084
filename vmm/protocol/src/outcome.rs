//! How a VM ended.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// How a VM ended, as its VMM, or the root task for it, reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest asked for a reset and the manifest says not to restart it.
    Reset,
    /// The guest wrote this value to port 0xf4.
    ExitCode(u32),
    /// The guest crashed beyond its own handling (triple fault).
    TripleFault {
        /// Instruction pointer of the guest.
        rip: u64,
    },
    /// The guest halted with interrupts off and nothing can wake it.
    Stuck {
        /// Instruction pointer of the guest.
        rip: u64,
    },
    /// The CPU refused the guest's state.
    EntryFailure {
        /// Rule, `hypercall_abi::exit::EntryRule`.
        rule: u64,
        /// What the hardware said.
        detail: u64,
    },
    /// The guest did what the VMM does not support.
    Unsupported {
        /// What, and where.
        what: String,
    },
    /// The guest needed memory back that it had given away, and there was none.
    OutOfMemory,
    /// The VM could not be started.
    NotStarted {
        /// Why, and what to do.
        why: String,
    },
    /// The VMM process crashed.
    VmmCrashed {
        /// Exception vector.
        vector: u8,
        /// Instruction pointer of the VMM.
        rip: u64,
        /// Faulting address for a page fault.
        address: u64,
    },
}

/// Longest text in an [`Outcome`], in bytes: with it the postcard form fits into one frame.
const MAX_TEXT: usize = 240;

impl Outcome {
    /// [`Outcome::NotStarted`], its text cut to what fits into a frame.
    pub fn not_started(why: impl fmt::Display) -> Self {
        Outcome::NotStarted { why: cut(why) }
    }

    /// [`Outcome::Unsupported`], its text cut to what fits into a frame.
    pub fn unsupported(what: impl fmt::Display) -> Self {
        Outcome::Unsupported { what: cut(what) }
    }

    /// The postcard form, at most [`crate::link::MAX_PAYLOAD`] bytes: longer texts are cut.
    pub fn encode(&self) -> Vec<u8> {
        let outcome = match self {
            Outcome::NotStarted { why } => Outcome::not_started(why),
            Outcome::Unsupported { what } => Outcome::unsupported(what),
            outcome => outcome.clone(),
        };
        // Into a vector, out of a value without maps or unsized sequences, this cannot fail.
        postcard::to_allocvec(&outcome).unwrap_or_default()
    }

    /// Decodes the postcard form; `None` if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

fn cut(text: impl fmt::Display) -> String {
    let mut text = alloc::format!("{text}");
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PoweredOff => write!(f, "powered off"),
            Outcome::Reset => write!(f, "asked for a reset"),
            Outcome::ExitCode(value) => write!(f, "ended with {value:#x} on port 0xf4"),
            Outcome::TripleFault { rip } => write!(f, "triple fault at {rip:#x}"),
            Outcome::Stuck { rip } => write!(f, "halted for ever at {rip:#x}"),
            Outcome::EntryFailure { rule, detail } => {
                write!(f, "the CPU refused the guest's state (rule {rule}, {detail:#x})")
            }
            Outcome::Unsupported { what } => {
                write!(f, "did what the VMM does not support: {}", Plain(what))
            }
            Outcome::OutOfMemory => {
                write!(f, "needed memory back that it had given away, and there was none")
            }
            Outcome::NotStarted { why } => write!(f, "not started: {}", Plain(why)),
            Outcome::VmmCrashed { vector, rip, address } => {
                write!(f, "its VMM crashed: vector {vector} at {rip:#x}, address {address:#x}")
            }
        }
    }
}

/// A text without control characters: a VMM may have put any into its report.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split(char::is_control) {
            f.write_str(part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_outcome_fits_into_a_frame() {
        let outcome = Outcome::NotStarted { why: "ä".repeat(1000) };
        let bytes = outcome.encode();
        assert!(bytes.len() <= crate::link::MAX_PAYLOAD);
        assert!(
            matches!(Outcome::decode(&bytes), Some(Outcome::NotStarted { why }) if why.len() == MAX_TEXT)
        );
    }

    #[test]
    fn a_report_cannot_steer_the_readers_terminal() {
        let outcome = Outcome::NotStarted { why: "a\x1b[2J\r\nb".into() };
        assert_eq!(alloc::format!("{outcome}"), "not started: a[2Jb");
    }

    #[test]
    fn every_field_survives_encoding() {
        let outcome = Outcome::VmmCrashed { vector: 14, rip: u64::MAX, address: 1 };
        assert_eq!(Outcome::decode(&outcome.encode()), Some(outcome));
        assert_eq!(Outcome::decode(&[0xff; 3]), None);
    }
}
