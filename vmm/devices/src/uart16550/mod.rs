//! 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Data path: a byte that the guest writes to THR is on the line at once, in [`Uart::take_output`]; a byte
//! from the line goes through [`Uart::receive`] into the receiver FIFO and from there to RBR. The line has no
//! speed: THR is always empty again when the guest can look, and the four character times of the time-out
//! indication have always passed. The divisor is kept and means nothing.
//!
//! The interrupt output is a level, gated by OUT2 as on a PC's serial card.

#[cfg(test)]
mod tests;

use alloc::{
    collections::VecDeque,
    vec::{Drain, Vec},
};
use bitflags::bitflags;

/// Bytes that the receiver FIFO holds.
pub const FIFO_BYTES: usize = 16;

/// Ports that the device occupies.
pub const PORTS: u8 = 8;

bitflags! {
    /// Interrupt enable register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Ier: u8 {
        const RECEIVED_DATA = 1 << 0;
        const THR_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    /// FIFO control register, without the trigger level.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Fcr: u8 {
        const ENABLE = 1 << 0;
        const CLEAR_RECEIVER = 1 << 1;
    }

    /// Modem control register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Mcr: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOP = 1 << 4;
    }

    /// Line status register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Lsr: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const THR_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
    }

    /// Modem status register.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Msr: u8 {
        const DELTA_CTS = 1 << 0;
        const DELTA_DSR = 1 << 1;
        const TRAILING_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

impl Msr {
    const DELTAS: Self =
        Self::DELTA_CTS.union(Self::DELTA_DSR).union(Self::TRAILING_RI).union(Self::DELTA_DCD);
    /// A peer that is there and always ready.
    const PEER_READY: Self = Self::CTS.union(Self::DSR).union(Self::DCD);
}

/// Line control register: offsets 0 and 1 are the divisor latch.
const LCR_DLAB: u8 = 1 << 7;
/// IIR: the FIFOs are enabled.
const IIR_FIFO_ENABLED: u8 = 0b1100_0000;

/// Why the UART interrupts; the discriminant is IIR bits 3:0, the order that of priority (data sheet, table
/// IV).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Cause {
    LineStatus = 0b0110,
    ReceivedData = 0b0100,
    CharacterTimeout = 0b1100,
    ThrEmpty = 0b0010,
    ModemStatus = 0b0000,
    None = 0b0001,
}

/// One serial port.
#[derive(Clone)]
pub struct Uart {
    ier: Ier,
    is_fifo_enabled: bool,
    /// Received bytes at which the data interrupt comes: 1, 4, 8 or 14.
    trigger_level: usize,
    lcr: u8,
    mcr: Mcr,
    /// The levels that the modem inputs had when last looked at, and what changed since MSR was read.
    msr: Msr,
    scratch: u8,
    divisor: u16,
    /// A received byte was lost since LSR was read.
    is_overrun: bool,
    /// THR became empty, and neither was IIR read with this as its cause nor THR written.
    is_thr_interrupt_pending: bool,
    received: VecDeque<u8>,
    output: Vec<u8>,
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    /// A port after master reset, with a peer that is always ready.
    pub fn new() -> Self {
        Self {
            ier: Ier::empty(),
            is_fifo_enabled: false,
            trigger_level: 1,
            lcr: 0,
            mcr: Mcr::empty(),
            msr: Msr::PEER_READY,
            scratch: 0,
            // 9600 baud, as PC firmware leaves it.
            divisor: 12,
            is_overrun: false,
            is_thr_interrupt_pending: false,
            received: VecDeque::with_capacity(FIFO_BYTES),
            output: Vec::new(),
        }
    }

    /// Reads the register at `offset` (bits 2:0 count). The time is not used by a line without speed.
    pub fn read(&mut self, offset: u8, _now: u64) -> u8 {
        match offset & 7 {
            0 if self.is_divisor_selected() => self.divisor.to_le_bytes()[0],
            0 => self.received.pop_front().unwrap_or(0),
            1 if self.is_divisor_selected() => self.divisor.to_le_bytes()[1],
            1 => self.ier.bits(),
            2 => self.read_iir(),
            3 => self.lcr,
            4 => self.mcr.bits(),
            5 => self.read_lsr(),
            6 => self.read_msr(),
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (bits 2:0 count).
    pub fn write(&mut self, offset: u8, value: u8) {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match offset & 7 {
            0 if self.is_divisor_selected() => self.divisor = u16::from_le_bytes([value, divisor_high]),
            0 => self.transmit(value),
            1 if self.is_divisor_selected() => self.divisor = u16::from_le_bytes([divisor_low, value]),
            1 => self.write_ier(value),
            2 => self.write_fcr(value),
            3 => self.lcr = value,
            4 => {
                self.mcr = Mcr::from_bits_truncate(value);
                self.update_modem_status();
            }
            // LSR and MSR: the data sheet leaves writes to factory tests.
            5 | 6 => {}
            _ => self.scratch = value,
        }
    }

    /// Level of the interrupt line.
    ///
    /// OUT2 gates it, and in loopback mode the OUT2 pin is inactive whatever MCR says.
    pub fn irq_level(&self) -> bool {
        self.cause() != Cause::None && self.mcr.contains(Mcr::OUT2) && !self.mcr.contains(Mcr::LOOP)
    }

    /// Takes what the guest has sent. The owner does so after every exit; until then it piles up.
    pub fn take_output(&mut self) -> Drain<'_, u8> {
        self.output.drain(..)
    }

    /// The guest has sent something.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The guest has read everything that [`Self::receive`] took.
    pub fn is_drained(&self) -> bool {
        self.received.is_empty()
    }

    /// Bytes that [`Self::receive`] would accept now; none in loopback mode, which disconnects the line.
    pub fn room(&self) -> usize {
        if self.mcr.contains(Mcr::LOOP) { 0 } else { self.capacity().saturating_sub(self.received.len()) }
    }

    /// Receives the first bytes of `bytes`, as many as there is room for, and says how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.received.extend(&bytes[..count]);
        count
    }

    fn is_divisor_selected(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn capacity(&self) -> usize {
        if self.is_fifo_enabled { FIFO_BYTES } else { 1 }
    }

    fn cause(&self) -> Cause {
        let is_data_ready = !self.received.is_empty();
        let is_triggered = !self.is_fifo_enabled || self.received.len() >= self.trigger_level;
        if self.ier.contains(Ier::LINE_STATUS) && self.is_overrun {
            Cause::LineStatus
        } else if self.ier.contains(Ier::RECEIVED_DATA) && is_data_ready && is_triggered {
            Cause::ReceivedData
        } else if self.ier.contains(Ier::RECEIVED_DATA) && is_data_ready {
            Cause::CharacterTimeout
        } else if self.ier.contains(Ier::THR_EMPTY) && self.is_thr_interrupt_pending {
            Cause::ThrEmpty
        } else if self.ier.contains(Ier::MODEM_STATUS) && self.msr.intersects(Msr::DELTAS) {
            Cause::ModemStatus
        } else {
            Cause::None
        }
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Cause::ThrEmpty {
            self.is_thr_interrupt_pending = false;
        }
        cause as u8 | if self.is_fifo_enabled { IIR_FIFO_ENABLED } else { 0 }
    }

    fn read_lsr(&mut self) -> u8 {
        let mut lsr = Lsr::THR_EMPTY | Lsr::TRANSMITTER_EMPTY;
        lsr.set(Lsr::DATA_READY, !self.received.is_empty());
        lsr.set(Lsr::OVERRUN, self.is_overrun);
        self.is_overrun = false;
        lsr.bits()
    }

    fn read_msr(&mut self) -> u8 {
        let msr = self.msr;
        self.msr.remove(Msr::DELTAS);
        msr.bits()
    }

    fn transmit(&mut self, value: u8) {
        if self.mcr.contains(Mcr::LOOP) {
            self.loop_back(value);
        } else {
            self.output.push(value);
        }
        // The write took the interrupt away, and THR is empty again already.
        self.is_thr_interrupt_pending = true;
    }

    fn loop_back(&mut self, value: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(value);
            return;
        }
        self.is_overrun = true;
        // The FIFO keeps what it has and loses the new byte; without FIFO the new byte overwrites RBR.
        if !self.is_fifo_enabled {
            self.received.clear();
            self.received.push_back(value);
        }
    }

    fn write_ier(&mut self, value: u8) {
        let ier = Ier::from_bits_truncate(value);
        // Enabling the interrupt while THR is empty raises it. Drivers start transmission that way.
        if ier.contains(Ier::THR_EMPTY) && !self.ier.contains(Ier::THR_EMPTY) {
            self.is_thr_interrupt_pending = true;
        }
        self.ier = ier;
    }

    fn write_fcr(&mut self, value: u8) {
        let fcr = Fcr::from_bits_truncate(value);
        let is_fifo_enabled = fcr.contains(Fcr::ENABLE);
        // Both ways of switching clear the FIFO; the other bits count only where the FIFO is enabled.
        if is_fifo_enabled != self.is_fifo_enabled || (is_fifo_enabled && fcr.contains(Fcr::CLEAR_RECEIVER)) {
            self.received.clear();
        }
        self.is_fifo_enabled = is_fifo_enabled;
        if is_fifo_enabled {
            self.trigger_level = match value >> 6 {
                0 => 1,
                1 => 4,
                2 => 8,
                _ => 14,
            };
        }
    }

    /// Looks at the modem inputs: the peer's lines, or in loopback mode the four modem outputs.
    fn update_modem_status(&mut self) {
        let mut levels = Msr::PEER_READY;
        if self.mcr.contains(Mcr::LOOP) {
            levels.set(Msr::CTS, self.mcr.contains(Mcr::RTS));
            levels.set(Msr::DSR, self.mcr.contains(Mcr::DTR));
            levels.set(Msr::RI, self.mcr.contains(Mcr::OUT1));
            levels.set(Msr::DCD, self.mcr.contains(Mcr::OUT2));
        }
        let changed = self.msr.symmetric_difference(levels);
        let mut deltas = self.msr.intersection(Msr::DELTAS);
        deltas.set(Msr::DELTA_CTS, deltas.contains(Msr::DELTA_CTS) || changed.contains(Msr::CTS));
        deltas.set(Msr::DELTA_DSR, deltas.contains(Msr::DELTA_DSR) || changed.contains(Msr::DSR));
        deltas.set(Msr::DELTA_DCD, deltas.contains(Msr::DELTA_DCD) || changed.contains(Msr::DCD));
        let did_ring_end = changed.contains(Msr::RI) && !levels.contains(Msr::RI);
        deltas.set(Msr::TRAILING_RI, deltas.contains(Msr::TRAILING_RI) || did_ring_end);
        self.msr = levels | deltas;
    }
}
