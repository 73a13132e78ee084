//! A 16550 UART (PC16550D), driven by interrupts: every access is one register, nothing is waited for.

use alloc::collections::VecDeque;
use usys::port::PortRange;

/// The eight registers of a UART.
pub trait Registers {
    /// Reads a register.
    fn read(&self, register: u16) -> u8;
    /// Writes a register.
    fn write(&self, register: u16, value: u8);
}

impl Registers for PortRange {
    fn read(&self, register: u16) -> u8 {
        PortRange::read(self, register)
    }

    fn write(&self, register: u16, value: u8) {
        PortRange::write(self, register, value);
    }
}

const DATA: u16 = 0;
const DIVISOR_LOW: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const DIVISOR_HIGH: u16 = 1;
const INTERRUPT_IDENTIFICATION: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_SENT: u8 = 1 << 1;
const NO_REASON: u8 = 1 << 0;
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVED: u8 = 1 << 1;
const EIGHT_BITS: u8 = 3;
const DIVISOR_ACCESS: u8 = 1 << 7;
/// DTR, RTS, and OUT2, which on a PC connects the interrupt.
const MODEM_ON: u8 = 0b1011;
const DATA_READY: u8 = 1 << 0;
const TRANSMITTER_READY: u8 = 1 << 5;
const TRANSMITTER_EMPTY: u8 = 1 << 6;

/// Bytes that the transmitter takes at once.
const FIFO_BYTES: usize = 16;
/// Most bytes to take in one call, so that a line that never falls silent does not keep the server.
const RECEIVE_LIMIT: usize = 256;

/// A 16550 UART.
#[derive(Debug)]
pub struct Uart<R> {
    registers: R,
    is_present: bool,
    interrupts: u8,
}

impl<R: Registers> Uart<R> {
    /// A UART with these registers, which are not touched yet.
    pub const fn new(registers: R) -> Self {
        Uart { registers, is_present: false, interrupts: 0 }
    }

    /// Looks whether it is there, and sets it to 115200 baud, 8 bits, no parity, with interrupts for received bytes. What it is
    /// sending goes on.
    pub fn init(&mut self) {
        const PROBE: u8 = 0x5a;
        self.registers.write(SCRATCH, PROBE);
        self.is_present = self.registers.read(SCRATCH) == PROBE;
        if !self.is_present {
            return;
        }
        self.registers.write(LINE_CONTROL, DIVISOR_ACCESS | EIGHT_BITS);
        self.registers.write(DIVISOR_LOW, 1);
        self.registers.write(DIVISOR_HIGH, 0);
        self.registers.write(LINE_CONTROL, EIGHT_BITS);
        self.registers.write(FIFO_CONTROL, FIFO_ENABLE | FIFO_CLEAR_RECEIVED);
        self.registers.write(MODEM_CONTROL, MODEM_ON);
        self.interrupts = ENABLE_RECEIVED;
        self.registers.write(INTERRUPT_ENABLE, self.interrupts);
    }

    /// Whether [`Self::init`] found it.
    pub fn is_present(&self) -> bool {
        self.is_present
    }

    /// Whether everything has left it, the last bit included.
    pub fn is_idle(&self) -> bool {
        self.registers.read(LINE_STATUS) & TRANSMITTER_EMPTY != 0
    }

    /// Whether it has a reason to interrupt. Looking ends the reasons "sent" and "modem status".
    pub fn has_reason(&self) -> bool {
        if !self.is_present {
            return false;
        }
        let reason = self.registers.read(INTERRUPT_IDENTIFICATION) & NO_REASON == 0;
        self.registers.read(MODEM_STATUS);
        reason
    }

    /// Takes what it received.
    pub fn receive(&mut self, mut take: impl FnMut(u8)) {
        if !self.is_present {
            return;
        }
        for _ in 0..RECEIVE_LIMIT {
            if self.registers.read(LINE_STATUS) & DATA_READY == 0 {
                break;
            }
            take(self.registers.read(DATA));
        }
    }

    /// Gives it what it can take of the queue, and lets it interrupt when it can take more, if there is more.
    pub fn transmit(&mut self, queue: &mut VecDeque<u8>) {
        if !self.is_present {
            return;
        }
        if !queue.is_empty() && self.registers.read(LINE_STATUS) & TRANSMITTER_READY != 0 {
            for byte in queue.drain(..FIFO_BYTES.min(queue.len())) {
                self.registers.write(DATA, byte);
            }
        }
        let interrupts = if queue.is_empty() { ENABLE_RECEIVED } else { ENABLE_RECEIVED | ENABLE_SENT };
        if interrupts != self.interrupts {
            self.interrupts = interrupts;
            self.registers.write(INTERRUPT_ENABLE, interrupts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    /// A UART whose transmitter is free or not, and which records.
    #[derive(Default)]
    struct Fake {
        sent: RefCell<Vec<u8>>,
        received: RefCell<VecDeque<u8>>,
        scratch: RefCell<u8>,
        interrupts: RefCell<u8>,
        is_busy: RefCell<bool>,
        is_absent: bool,
        divisor_access: RefCell<bool>,
    }

    impl Registers for &Fake {
        fn read(&self, register: u16) -> u8 {
            if self.is_absent {
                return 0xff;
            }
            match register {
                DATA => self.received.borrow_mut().pop_front().unwrap_or(0),
                INTERRUPT_IDENTIFICATION => NO_REASON,
                LINE_STATUS => {
                    let ready =
                        if *self.is_busy.borrow() { 0 } else { TRANSMITTER_READY | TRANSMITTER_EMPTY };
                    ready | u8::from(!self.received.borrow().is_empty())
                }
                SCRATCH => *self.scratch.borrow(),
                _ => 0,
            }
        }

        fn write(&self, register: u16, value: u8) {
            match register {
                LINE_CONTROL => *self.divisor_access.borrow_mut() = value & DIVISOR_ACCESS != 0,
                DATA | INTERRUPT_ENABLE if *self.divisor_access.borrow() => {}
                DATA => {
                    self.sent.borrow_mut().push(value);
                    *self.is_busy.borrow_mut() = true;
                }
                INTERRUPT_ENABLE => *self.interrupts.borrow_mut() = value,
                SCRATCH => *self.scratch.borrow_mut() = value,
                _ => {}
            }
        }
    }

    #[test]
    fn output_leaves_in_pieces_that_the_fifo_holds() {
        let fake = Fake::default();
        let mut uart = Uart::new(&fake);
        uart.init();
        let mut queue: VecDeque<u8> = (0..20).collect();
        uart.transmit(&mut queue);
        uart.transmit(&mut queue);
        assert_eq!((fake.sent.borrow().len(), queue.len()), (16, 4));
        assert_eq!(*fake.interrupts.borrow(), ENABLE_RECEIVED | ENABLE_SENT);
        assert!(!uart.is_idle());
        *fake.is_busy.borrow_mut() = false;
        uart.transmit(&mut queue);
        assert_eq!(*fake.sent.borrow(), (0..20).collect::<Vec<u8>>());
        assert_eq!(*fake.interrupts.borrow(), ENABLE_RECEIVED);
    }

    #[test]
    fn input_is_taken_as_it_comes() {
        let fake = Fake::default();
        let mut uart = Uart::new(&fake);
        uart.init();
        fake.received.borrow_mut().extend(b"ls\r");
        let mut taken = Vec::new();
        uart.receive(|byte| taken.push(byte));
        assert_eq!(taken, b"ls\r");
    }

    #[test]
    fn a_machine_without_the_port_is_noticed_and_left_alone() {
        let fake = Fake { is_absent: true, ..Fake::default() };
        let mut uart = Uart::new(&fake);
        uart.init();
        assert!(!uart.is_present());
        uart.receive(|_| panic!("nothing can arrive"));
        let mut queue: VecDeque<u8> = (0..20).collect();
        uart.transmit(&mut queue);
        assert_eq!(queue.len(), 20);
    }
}
