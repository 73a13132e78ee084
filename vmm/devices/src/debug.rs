//! Ports that help whoever debugs a guest.
//!
//! | Port | Device |
//! |---|---|
//! | 80H | POST code: reads back what was written, as the DMA page register there does on a PC |
//! | E9H | debug console of Bochs and QEMU |
//! | 402H | debug console of firmware (SeaBIOS, OVMF) |
//! | F4H | exit device (QEMU's isa-debug-exit) |
//!
//! A debug console is found by reading E9H from its port.

use crate::Request;

/// POST code.
pub const POST_PORT: u16 = 0x80;
/// Debug console.
pub const CONSOLE_PORT: u16 = 0xe9;
/// Firmware's debug console.
pub const FIRMWARE_PORT: u16 = 0x402;
/// First of the [`EXIT_PORTS`] ports of the exit device.
pub const EXIT_PORT: u16 = 0xf4;
/// Ports of the exit device.
pub const EXIT_PORTS: u16 = 4;

/// What both consoles read as.
const CONSOLE_PRESENT: u8 = 0xe9;

/// What a write to a debug port was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugEvent {
    /// A new POST code.
    Post(u8),
    /// A byte for the debug console.
    Console(u8),
    /// A byte for firmware's debug console.
    Firmware(u8),
    /// The end of the VM; always [`Request::Exit`].
    Request(Request),
}

/// The debug ports.
#[derive(Clone, Default)]
pub struct DebugPorts {
    post_code: u8,
}

impl DebugPorts {
    /// Debug ports, with POST code 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last POST code.
    pub fn post_code(&self) -> u8 {
        self.post_code
    }

    /// Reads a byte; ports that are none of these float.
    pub fn read(&self, port: u16) -> u8 {
        match port {
            POST_PORT => self.post_code,
            CONSOLE_PORT | FIRMWARE_PORT => CONSOLE_PRESENT,
            _ if is_exit(port) => 0,
            _ => 0xff,
        }
    }

    /// Writes `value`, zero-extended from the width of the access; the consoles take its lowest byte.
    pub fn write(&mut self, port: u16, value: u32) -> Option<DebugEvent> {
        let [byte, ..] = value.to_le_bytes();
        match port {
            POST_PORT => {
                self.post_code = byte;
                Some(DebugEvent::Post(byte))
            }
            CONSOLE_PORT => Some(DebugEvent::Console(byte)),
            FIRMWARE_PORT => Some(DebugEvent::Firmware(byte)),
            _ if is_exit(port) => Some(DebugEvent::Request(Request::Exit(value))),
            _ => None,
        }
    }
}

fn is_exit(port: u16) -> bool {
    (EXIT_PORT..EXIT_PORT + EXIT_PORTS).contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn consoles_announce_themselves_and_take_bytes() {
        let mut ports = DebugPorts::new();
        assert_eq!((ports.read(CONSOLE_PORT), ports.read(FIRMWARE_PORT)), (0xe9, 0xe9));
        assert_eq!(ports.write(CONSOLE_PORT, b'a'.into()), Some(DebugEvent::Console(b'a')));
        assert_eq!(ports.write(FIRMWARE_PORT, b'b'.into()), Some(DebugEvent::Firmware(b'b')));
    }

    #[test]
    fn the_post_code_reads_back() {
        let mut ports = DebugPorts::new();
        assert_eq!(ports.write(POST_PORT, 0x55), Some(DebugEvent::Post(0x55)));
        assert_eq!((ports.read(POST_PORT), ports.post_code()), (0x55, 0x55));
    }

    #[test]
    fn the_exit_device_hands_over_the_whole_value() {
        let exit = DebugPorts::new().write(EXIT_PORT, 0x1234_5678);
        assert_eq!(exit, Some(DebugEvent::Request(Request::Exit(0x1234_5678))));
    }

    proptest! {
        #[test]
        fn any_access_is_survived(port: u16, value: u32) {
            let mut ports = DebugPorts::new();
            let event = ports.write(port, value);
            prop_assert!(event.is_some() || ports.read(port) == 0xff);
        }
    }
}
