use alloc::string::String;
use core::fmt;

const MIB: u64 = 1 << 20;

/// Why a VM cannot be started. The text says what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The kernel is none that we can boot.
    Unrecognized {
        /// What it seems to be.
        looks_like: &'static str,
    },
    /// The file is shorter than its headers say.
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Bytes that the file should have.
        needs: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// A field of a header contradicts another or makes no sense.
    Damaged {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The kernel needs what we do not have.
    Unsupported {
        /// What.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The guest's memory is too small.
    TooLittleMemory {
        /// For what.
        what: &'static str,
        /// Bytes that would be enough.
        needs: u64,
        /// Bytes that there are.
        has: u64,
    },
    /// The kernel wants to be where no guest has RAM for it.
    Misplaced {
        /// What.
        what: &'static str,
        /// Guest-physical address.
        address: u64,
    },
    /// The command line is longer than the kernel accepts.
    CommandLineTooLong {
        /// Its bytes.
        length: u64,
        /// Bytes that are accepted.
        max: u64,
    },
    /// The manifest hides a CPU feature that does not exist.
    UnknownFeature {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Unrecognized { looks_like } => write!(
                f,
                "the kernel is {looks_like}; give a Linux bzImage, an ELF with a PVH note, or a Multiboot 1 kernel"
            ),
            LoadError::Truncated { what, needs, has } => write!(
                f,
                "the kernel image is cut off in {what}: it should have at least {needs} bytes and has {has}; \
                 fetch or build it again"
            ),
            LoadError::Damaged { what, value } => {
                write!(f, "the kernel image is damaged: {what} is {value:#x}; fetch or build it again")
            }
            LoadError::Unsupported { what, advice } => write!(f, "the kernel {what}; {advice}"),
            LoadError::TooLittleMemory { what, needs, has } => write!(
                f,
                "too little guest memory for {what}: it needs {} MiB and there are {} MiB; raise --memory \
                 (memory_mib in a manifest)",
                needs.div_ceil(MIB),
                has / MIB
            ),
            LoadError::Misplaced { what, address } => write!(
                f,
                "{what} wants to be at {address:#x}; guests have RAM for it from 1 MiB to 3 GiB: link it elsewhere"
            ),
            LoadError::CommandLineTooLong { length, max } => {
                write!(f, "the kernel command line has {length} bytes, the kernel accepts {max}; shorten it")
            }
            LoadError::UnknownFeature { name } => write!(
                f,
                "hide_features names {name:?}, which is no CPU feature that guests could have; use the names of \
                 Linux's /proc/cpuinfo"
            ),
        }
    }
}

impl core::error::Error for LoadError {}
