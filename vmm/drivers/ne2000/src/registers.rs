//! Registers (DP8390D, 10) and the card's other ports.

/// First of two ports, a word: data of a remote DMA.
pub const DATA: u8 = 0x10;
/// Reading this port resets the card; writing what was read ends that.
pub const RESET: u8 = 0x1f;
/// Ports of a card.
pub const PORTS: u16 = 0x20;

/// The command register, which every page has.
pub const COMMAND: u8 = 0;

/// Bits of the command register (10.3).
pub mod command {
    /// The chip stops once it is done with a frame.
    pub const STOP: u8 = 1 << 0;
    /// The chip works.
    pub const START: u8 = 1 << 1;
    /// Transmit; reads as 1 until that is done.
    pub const TRANSMIT: u8 = 1 << 2;
    /// Remote DMA: read.
    pub const REMOTE_READ: u8 = 1 << 3;
    /// Remote DMA: write.
    pub const REMOTE_WRITE: u8 = 2 << 3;
    /// Remote DMA: none, or the end of it.
    pub const NO_REMOTE: u8 = 4 << 3;
    /// Page 1 of the registers.
    pub const PAGE_1: u8 = 1 << 6;
}

/// Registers of page 0 (10.2). Where reading and writing mean different registers, the name says which.
pub mod page0 {
    /// Written: first page of the receive ring.
    pub const PAGE_START: u8 = 1;
    /// Written: the page behind the receive ring.
    pub const PAGE_STOP: u8 = 2;
    /// The page that the chip does not write to: the last that the host has read.
    pub const BOUNDARY: u8 = 3;
    /// Written: first page of the frame to transmit.
    pub const TRANSMIT_PAGE: u8 = 4;
    /// Written: its bytes, low and high.
    pub const TRANSMIT_COUNT: [u8; 2] = [5, 6];
    /// Interrupt status: writing a bit clears it.
    pub const INTERRUPTS: u8 = 7;
    /// Written: start of a remote DMA.
    pub const REMOTE_ADDRESS: [u8; 2] = [8, 9];
    /// Written: its bytes.
    pub const REMOTE_COUNT: [u8; 2] = [10, 11];
    /// Written: what is received.
    pub const RECEIVE: u8 = 12;
    /// Written: how it is transmitted.
    pub const TRANSMIT: u8 = 13;
    /// Written: the width of data.
    pub const DATA: u8 = 14;
    /// Written: which interrupts there are.
    pub const INTERRUPT_MASK: u8 = 15;
}

/// Registers of page 1.
pub mod page1 {
    /// First byte of the station's address.
    pub const ADDRESS: u8 = 1;
    /// The page that is received into next.
    pub const CURRENT: u8 = 7;
    /// First byte of the filter of multicast addresses.
    pub const MULTICAST: u8 = 8;
}

/// Bits of the interrupt status and its mask.
pub mod interrupt {
    /// A frame was received.
    pub const RECEIVED: u8 = 1 << 0;
    /// A frame was transmitted.
    pub const TRANSMITTED: u8 = 1 << 1;
    /// A frame could not be transmitted.
    pub const TRANSMIT_ERROR: u8 = 1 << 3;
    /// The receive ring is full.
    pub const OVERFLOW: u8 = 1 << 4;
    /// A remote DMA is done.
    pub const REMOTE_DONE: u8 = 1 << 6;
    /// The chip has stopped.
    pub const RESET: u8 = 1 << 7;
}

/// Values of the receive configuration.
pub mod receive {
    /// Every good frame: broadcasts, multicasts, and those to others, for there is a switch behind the card.
    pub const EVERYTHING: u8 = 1 << 2 | 1 << 3 | 1 << 4;
    /// Nothing is kept.
    pub const MONITOR: u8 = 1 << 5;
}

/// Values of the transmit configuration.
pub mod transmit {
    /// As on a wire.
    pub const NORMAL: u8 = 0;
    /// Inside the chip: nothing arrives.
    pub const LOOPBACK: u8 = 1 << 1;
}

/// Value of the data configuration: words, no loopback, and a FIFO threshold of eight bytes.
pub const WORDS: u8 = 1 << 0 | 1 << 3 | 2 << 5;

/// The card's ports, as the driver reaches them.
pub trait Bus {
    /// Reads a port.
    fn read(&mut self, port: u8) -> u8;
    /// Writes a port.
    fn write(&mut self, port: u8, value: u8);
    /// Fills `into`, an even number of bytes, from the data port.
    fn read_data(&mut self, into: &mut [u8]);
    /// Writes `from`, an even number of bytes, to the data port.
    fn write_data(&mut self, from: &[u8]);
}
