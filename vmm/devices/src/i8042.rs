//! Keyboard controller of a PC without keyboard (IBM PC/AT technical reference, 8042).
//!
//! It exists so that software can reset the machine through it: command FEH, or bit 0 of its output port. It
//! answers its own commands as a controller does, and nothing ever comes from a keyboard or a mouse.

use crate::Request;
use bitflags::bitflags;

/// Data port.
pub const DATA_PORT: u16 = 0x60;
/// Status on reading, command on writing.
pub const COMMAND_PORT: u16 = 0x64;

bitflags! {
    #[derive(Clone, Copy)]
    struct Status: u8 {
        const OUTPUT_FULL = 1 << 0;
        const SELF_TEST_PASSED = 1 << 2;
        const LAST_WRITE_WAS_COMMAND = 1 << 3;
        const KEYBOARD_UNLOCKED = 1 << 4;
    }
}

/// Output port: the CPU's reset line, low active.
const OUTPUT_PORT_RESET: u8 = 1 << 0;
/// Output port: address line 20.
const OUTPUT_PORT_A20: u8 = 1 << 1;
/// Configuration: keyboard and mouse disabled, self test passed.
const CONFIGURATION_AT_RESET: u8 = 0x34;

/// A command whose parameter comes through the data port.
#[derive(Clone, Copy)]
enum Awaited {
    Configuration,
    OutputPort,
    /// A byte for a device that is not there.
    Ignored,
}

/// The keyboard controller.
#[derive(Clone)]
pub struct I8042 {
    configuration: u8,
    /// Answer to the last command, until it is read.
    answer: Option<u8>,
    last_answer: u8,
    awaited: Option<Awaited>,
    was_command: bool,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// A controller as firmware leaves it.
    pub fn new() -> Self {
        Self {
            configuration: CONFIGURATION_AT_RESET,
            answer: None,
            last_answer: 0,
            awaited: None,
            was_command: false,
        }
    }

    /// Reads [`DATA_PORT`] or [`COMMAND_PORT`]; other ports float.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            DATA_PORT => {
                // An empty buffer still shows what was in it.
                self.last_answer = self.answer.take().unwrap_or(self.last_answer);
                self.last_answer
            }
            COMMAND_PORT => {
                let mut status = Status::SELF_TEST_PASSED | Status::KEYBOARD_UNLOCKED;
                status.set(Status::OUTPUT_FULL, self.answer.is_some());
                status.set(Status::LAST_WRITE_WAS_COMMAND, self.was_command);
                status.bits()
            }
            _ => 0xff,
        }
    }

    /// Writes [`DATA_PORT`] or [`COMMAND_PORT`].
    pub fn write(&mut self, port: u16, value: u8) -> Option<Request> {
        match port {
            DATA_PORT => {
                self.was_command = false;
                self.take_parameter(value)
            }
            COMMAND_PORT => {
                self.was_command = true;
                self.run_command(value)
            }
            _ => None,
        }
    }

    fn take_parameter(&mut self, value: u8) -> Option<Request> {
        match self.awaited.take()? {
            Awaited::Configuration => self.configuration = value,
            Awaited::OutputPort if value & OUTPUT_PORT_RESET == 0 => return Some(Request::Reset),
            Awaited::OutputPort | Awaited::Ignored => {}
        }
        None
    }

    fn run_command(&mut self, command: u8) -> Option<Request> {
        self.awaited = None;
        match command {
            0x20 => self.answer = Some(self.configuration),
            0x60 => self.awaited = Some(Awaited::Configuration),
            // Self test passed.
            0xaa => self.answer = Some(0x55),
            // Keyboard interface test: no error.
            0xab => self.answer = Some(0x00),
            // Mouse interface test: there is none.
            0xa9 => self.answer = Some(0xff),
            0xd0 => self.answer = Some(OUTPUT_PORT_RESET | OUTPUT_PORT_A20),
            0xd1 => self.awaited = Some(Awaited::OutputPort),
            0xd2..=0xd4 => self.awaited = Some(Awaited::Ignored),
            // Pulses the output port's bits that are 0 in the command.
            0xf0..=0xff if command & OUTPUT_PORT_RESET == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn the_pulse_command_and_the_output_port_reset_the_machine() {
        let mut controller = I8042::new();
        assert_eq!(controller.write(COMMAND_PORT, 0xfe), Some(Request::Reset));
        assert_eq!(controller.write(COMMAND_PORT, 0xff), None, "pulses nothing");
        assert_eq!(controller.write(COMMAND_PORT, 0xd1), None);
        assert_eq!(controller.write(DATA_PORT, 0xdf), None, "A20 only");
        assert_eq!(controller.write(DATA_PORT, 0xfe), None, "no parameter awaited");
        assert_eq!(controller.write(COMMAND_PORT, 0xd1), None);
        assert_eq!(controller.write(DATA_PORT, 0xfe), Some(Request::Reset));
    }

    #[test]
    fn the_controller_is_there_and_no_keyboard_is() {
        let mut controller = I8042::new();
        assert_eq!(controller.read(COMMAND_PORT), 0x14);
        controller.write(COMMAND_PORT, 0xaa);
        assert_eq!(controller.read(COMMAND_PORT) & 1, 1);
        assert_eq!(controller.read(DATA_PORT), 0x55);
        assert_eq!(controller.read(COMMAND_PORT) & 1, 0);
        controller.write(COMMAND_PORT, 0x60);
        controller.write(DATA_PORT, 0x45);
        controller.write(COMMAND_PORT, 0x20);
        assert_eq!(controller.read(DATA_PORT), 0x45);
        controller.write(COMMAND_PORT, 0xab);
        assert_eq!(controller.read(DATA_PORT), 0);
        // A reset command for the keyboard stays without answer.
        controller.write(DATA_PORT, 0xff);
        assert_eq!(controller.read(COMMAND_PORT) & 1, 0);
    }

    proptest! {
        #[test]
        fn any_access_sequence_is_survived(
            accesses in prop::collection::vec((any::<u16>(), any::<u8>()), 0..200),
        ) {
            let mut controller = I8042::new();
            let resets: Vec<_> = accesses.into_iter().filter_map(|(port, value)| {
                let _ = controller.read(if value & 1 == 0 { DATA_PORT } else { port });
                controller.write(if port & 1 == 0 { DATA_PORT | port & 4 } else { port }, value)
            }).collect();
            prop_assert!(resets.iter().all(|request| *request == Request::Reset));
        }
    }
}
