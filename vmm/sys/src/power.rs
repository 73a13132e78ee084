//! Turning the machine off, for whoever has its ports: the root task.

use crate::cap::{Cap, Ports};
use crate::object::{FOREVER, yield_now};
use crate::port::PortRange;
use crate::process;
use hypercall_abi::boot_info::root;

/// Whether the system did what it was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Yes: QEMU's exit status is 33.
    Done,
    /// No: QEMU's exit status is 35.
    Failed,
}

/// QEMU's isa-debug-exit: a write of n ends the emulator with status 2n + 1.
const DEBUG_EXIT: u16 = 0xf4;
/// Bochs: the text `Shutdown` ends the emulator.
const BOCHS_SHUTDOWN: u16 = 0x8900;
/// PM1a control registers of emulated PCs (QEMU; Bochs and older QEMU); there, S5 is sleep type 0.
const PM1A_CONTROL: [u16; 2] = [0x604, 0xb004];
/// Sleep enable (ACPI 4.8.3.2.1).
const SLEEP_ENABLE: u16 = 1 << 13;

/// Turns the machine off; where that is not possible, says so and stops.
pub fn off(ending: Ending) -> ! {
    let code = match ending {
        Ending::Done => 0x10,
        Ending::Failed => 0x11,
    };
    if let Some(port) = open(DEBUG_EXIT, 1) {
        port.write(0, code);
    }
    if let Some(port) = open(BOCHS_SHUTDOWN, 1) {
        for byte in *b"Shutdown" {
            port.write(0, byte);
        }
    }
    for base in PM1A_CONTROL {
        if let Some(port) = open(base, 2) {
            port.write16(0, SLEEP_ENABLE);
        }
    }
    log::info!("done: the machine can be switched off");
    loop {
        // Nothing signals any more what would be acted on.
        if process::events().wait(FOREVER).is_err() {
            yield_now();
        }
    }
}

/// Ports for this process's own use, unless the kernel keeps them.
pub fn open(base: u16, count: u16) -> Option<PortRange> {
    let ports: Cap<Ports> = Cap::new(root::PORTS);
    ports.map(process::pd(), base.into(), count.into()).ok()?;
    Some(PortRange::new(base, count))
}
