//! Guests: Debian's kernel with an initial file system of ours, and telling kernel files apart.

pub mod debian;
pub mod initramfs;
pub mod kernel_file;
pub mod modules;

use vmm_protocol::manifest::ConsoleInterface;

/// The guest that is Debian's kernel; every other name is a test guest.
pub const LINUX: &str = "linux";

/// What the command line for Linux has beside its console. `panic=-1` reboots at once, which ends the VM; the crypto self-tests cost a billion
/// instructions in an emulator; mitigations protect a guest's users from each other, and here there is one.
pub const CMDLINE: &str = "panic=-1 cryptomgr.notests mitigations=off";

/// Command line for Linux with this console. The driver of a virtio console is a module: until it is loaded, what the kernel
/// says goes out by the serial port's early console, which the kernel then leaves.
pub fn cmdline(console: ConsoleInterface) -> String {
    let console = match console {
        ConsoleInterface::Serial => "console=ttyS0",
        ConsoleInterface::Virtio => "console=hvc0 earlycon=uart8250,io,0x3f8",
    };
    format!("{console} {CMDLINE}")
}
