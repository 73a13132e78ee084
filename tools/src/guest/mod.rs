//! Guests: Debian's kernel with an initial file system of ours, and telling kernel files apart.

pub mod debian;
pub mod initramfs;
pub mod kernel_file;
pub mod modules;

/// The guest that is Debian's kernel; every other name is a test guest.
pub const LINUX: &str = "linux";

/// Command line for Linux. `panic=-1` reboots at once, which ends the VM; the crypto self-tests cost a billion
/// instructions in an emulator; mitigations protect a guest's users from each other, and here there is one.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 cryptomgr.notests mitigations=off";
