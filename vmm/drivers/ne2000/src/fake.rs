//! A card for tests: it does what the data sheet says, and says what its user did wrong.

use crate::registers::{Bus, COMMAND, DATA, RESET, WORDS, command, interrupt, page0, page1, transmit};
use alloc::vec;
use alloc::vec::Vec;

/// How a card behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) address: [u8; 6],
    /// There is nothing.
    pub(crate) is_absent: bool,
    /// It never ends a remote DMA.
    pub(crate) hangs: bool,
    /// It transmits only when it is told to.
    pub(crate) is_slow: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour { address: [0x52, 0x54, 0, 1, 2, 3], is_absent: false, hangs: false, is_slow: false }
    }
}

#[derive(Debug)]
pub(crate) struct FakeCard {
    pub(crate) behaviour: Behaviour,
    /// What left for the wire.
    pub(crate) sent: Vec<Vec<u8>>,
    pub(crate) resets: u32,
    pub(crate) memory: Vec<u8>,
    command: u8,
    interrupts: u8,
    /// What was written to each register of page 0, and all of page 1.
    page0: [u8; 16],
    pub(crate) page1: [u8; 16],
    remote: usize,
    remote_left: usize,
}

impl FakeCard {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        FakeCard {
            behaviour,
            sent: Vec::new(),
            resets: 0,
            memory: vec![0; 0x8000],
            command: command::STOP | command::NO_REMOTE,
            interrupts: interrupt::RESET,
            page0: [0; 16],
            page1: [0; 16],
            remote: 0,
            remote_left: 0,
        }
    }

    /// The interrupt line.
    pub(crate) fn interrupts(&self) -> bool {
        self.interrupts & self.page0[usize::from(page0::INTERRUPT_MASK)] != 0
    }

    fn is_on_wire(&self) -> bool {
        self.command & command::STOP == 0 && self.page0[usize::from(page0::TRANSMIT)] == transmit::NORMAL
    }

    /// A frame comes from the wire; says whether it was kept.
    pub(crate) fn arrive(&mut self, frame: &[u8]) -> bool {
        if !self.is_on_wire() {
            return false;
        }
        let ring = self.page0[usize::from(page0::PAGE_START)]..self.page0[usize::from(page0::PAGE_STOP)];
        let (boundary, current) =
            (self.page0[usize::from(page0::BOUNDARY)], self.page1[usize::from(page1::CURRENT)]);
        let size = usize::from(ring.end - ring.start);
        let bytes = frame.len() + 4;
        let pages = (bytes + 4).div_ceil(256);
        // The boundary's own page is not written.
        let free = (size + usize::from(boundary) - usize::from(current)) % size;
        if pages > free {
            self.interrupts |= interrupt::OVERFLOW;
            return false;
        }
        let next = ring.start + ((usize::from(current - ring.start) + pages) % size) as u8;
        let header = [1, next, bytes as u8, (bytes >> 8) as u8];
        let start = usize::from(current) * 256;
        for (index, byte) in header.iter().chain(frame).chain(&[0xee; 4]).enumerate() {
            let at = start + index;
            let end = usize::from(ring.end) * 256;
            self.memory[if at < end { at } else { at - size * 256 }] = *byte;
        }
        self.page1[usize::from(page1::CURRENT)] = next;
        self.interrupts |= interrupt::RECEIVED;
        true
    }

    /// What it is told to transmit leaves.
    pub(crate) fn finish_transmission(&mut self, error: bool) {
        assert!(self.command & command::TRANSMIT != 0, "nothing is transmitted");
        self.command &= !command::TRANSMIT;
        self.interrupts |= if error { interrupt::TRANSMIT_ERROR } else { interrupt::TRANSMITTED };
        if error {
            return;
        }
        let start = usize::from(self.page0[usize::from(page0::TRANSMIT_PAGE)]) * 256;
        let [low, high] = page0::TRANSMIT_COUNT.map(|register| self.page0[usize::from(register)]);
        self.sent.push(self.memory[start..start + usize::from(u16::from_le_bytes([low, high]))].to_vec());
    }

    pub(crate) fn is_transmitting(&self) -> bool {
        self.command & command::TRANSMIT != 0
    }

    fn write_command(&mut self, value: u8) {
        let was_transmitting = self.is_transmitting();
        self.command = value | if was_transmitting { command::TRANSMIT } else { 0 };
        if value & command::STOP != 0 {
            // A frame on its way is cut off.
            self.command &= !command::TRANSMIT;
            self.interrupts |= interrupt::RESET;
            return;
        }
        self.interrupts &= !interrupt::RESET;
        if value & (command::REMOTE_READ | command::REMOTE_WRITE) != 0 && value & command::NO_REMOTE == 0 {
            let word = |[low, high]: [u8; 2]| {
                usize::from(self.page0[usize::from(low)]) | usize::from(self.page0[usize::from(high)]) << 8
            };
            (self.remote, self.remote_left) = (word(page0::REMOTE_ADDRESS), word(page0::REMOTE_COUNT));
            assert!(self.remote_left > 0, "a remote DMA of nothing");
        }
        if value & command::TRANSMIT != 0 {
            assert!(!was_transmitting, "two frames at once");
            assert!(self.is_on_wire(), "a frame is transmitted into the loopback");
            if !self.behaviour.is_slow {
                self.finish_transmission(false);
            }
        }
    }

    fn check_remote(&mut self, bytes: usize, direction: u8) {
        assert_eq!(self.page0[usize::from(page0::DATA)], WORDS);
        assert_eq!(self.command & (7 << 3), direction, "no such remote DMA was begun");
        assert!(self.command & command::STOP == 0, "a chip that is stopped does no remote DMA");
        assert!(bytes.is_multiple_of(2) && bytes <= self.remote_left);
        self.remote_left -= bytes;
        if self.remote_left == 0 && !self.behaviour.hangs {
            self.interrupts |= interrupt::REMOTE_DONE;
        }
    }

    fn byte(&self, address: usize) -> u8 {
        match address {
            0..12 => self.behaviour.address[address / 2],
            28..32 => b'W',
            address => self.memory.get(address).copied().unwrap_or(0xff),
        }
    }
}

impl Bus for FakeCard {
    fn read(&mut self, port: u8) -> u8 {
        if self.behaviour.is_absent {
            return 0xff;
        }
        let is_page_1 = self.command & command::PAGE_1 != 0;
        match port {
            COMMAND => self.command,
            RESET => {
                self.resets += 1;
                (self.command, self.interrupts) = (command::STOP | command::NO_REMOTE, interrupt::RESET);
                self.page0 = [0; 16];
                0
            }
            DATA..RESET => panic!("the data port is for words"),
            register if is_page_1 => self.page1[usize::from(register)],
            page0::INTERRUPTS => self.interrupts,
            page0::BOUNDARY => self.page0[usize::from(page0::BOUNDARY)],
            register => panic!("register {register} of page 0 is of no use"),
        }
    }

    fn write(&mut self, port: u8, value: u8) {
        let is_page_1 = self.command & command::PAGE_1 != 0;
        match port {
            COMMAND => self.write_command(value),
            RESET => {}
            DATA..RESET => panic!("the data port is for words"),
            register if is_page_1 => self.page1[usize::from(register)] = value,
            page0::INTERRUPTS => self.interrupts &= !(value & 0x7f),
            register => self.page0[usize::from(register)] = value,
        }
    }

    fn read_data(&mut self, into: &mut [u8]) {
        self.check_remote(into.len(), command::REMOTE_READ);
        for byte in into {
            *byte = self.byte(self.remote);
            self.remote += 1;
        }
    }

    fn write_data(&mut self, from: &[u8]) {
        self.check_remote(from.len(), command::REMOTE_WRITE);
        self.memory[self.remote..self.remote + from.len()].copy_from_slice(from);
        self.remote += from.len();
    }
}
