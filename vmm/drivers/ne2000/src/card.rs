//! What a card does: a state machine that is driven by interrupts and the passing of time.
//!
//! Its memory holds two frames to transmit, so that one is written while the other leaves, and the ring of pages in which frames
//! arrive. An interrupt means no more than that it is time to look: its `look` looks at the status itself, and one that
//! is spurious, or lost and replaced by a poll, does no harm.

use crate::registers::{Bus, COMMAND, RESET, WORDS, command, interrupt, page0, page1, receive, transmit};
use core::fmt;
use vdev::net::{MAX_FRAME, MIN_FRAME};

/// Bytes of a page of the card's memory.
const PAGE_BYTES: usize = 256;
/// First page of each frame to transmit.
const TRANSMIT_PAGES: [u8; 2] = [0x40, 0x46];
/// First page of the ring, and the page behind it: what is left of 16 KiB from 4000H.
const RING: core::ops::Range<u8> = 0x4c..0x80;
/// A shorter frame is filled up with zeroes (IEEE 802.3, 4A.4.2.1: 64 bytes with the check sequence).
const SHORTEST: usize = 60;
/// What a frame in the ring has before it: status, next page, and its bytes (7.0, with the check sequence).
const HEADER_BYTES: usize = 4;
const CHECK_BYTES: usize = 4;
/// Status of a frame that is whole.
const INTACT: u8 = 1 << 0;

/// How often the status is read until a reset, or a remote DMA, is done: a read takes 100 ns at least.
const SPINS: u32 = 100_000;
/// How long the chip may still be at a frame when it is stopped, in ms: 1.6 at most (DP8390D, 7.0, "Buffer Ring Overflow").
const STOP_MS: u64 = 2;

/// The interrupts that are asked for.
const ENABLED: u8 = interrupt::RECEIVED | SENT | interrupt::OVERFLOW;
/// A frame has left, or will not.
const SENT: u8 = interrupt::TRANSMITTED | interrupt::TRANSMIT_ERROR;

/// Why a card cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No card answers.
    Absent,
    /// Its address is none of a station.
    Address,
    /// It does not end a transfer.
    Transfer,
    /// The ring of received frames is damaged.
    Ring,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Absent => "no card answers",
            Failure::Address => "the card's address is none of a station",
            Failure::Transfer => "the card does not end a transfer",
            Failure::Ring => "the ring of received frames is damaged",
        })
    }
}

impl core::error::Error for Failure {}

/// What the card has been seen to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that left, or could not.
    pub transmitted: u32,
    /// Frames that could not be transmitted.
    pub not_sent: u32,
    /// Times that the ring was full: frames were lost.
    pub overflows: u32,
}

/// Where the chip is in the procedure after an overflow of the ring (DP8390D, 7.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There was none.
    Runs,
    /// Stopped, for [`STOP_MS`]. `was_sending`: a frame was on its way out.
    Stops { was_sending: bool },
    /// Cut off from the wire until the ring is empty. `resends`: the frame on its way out was cut off, too.
    Drains { resends: bool },
}

/// The frames to transmit.
#[derive(Clone, Copy, Debug, Default)]
struct Sender {
    /// Bytes of each that is in the card's memory; 0 if there is none.
    bytes: [u16; 2],
    /// The one that leaves, or leaves next.
    first: usize,
    is_sending: bool,
}

/// One card.
#[derive(Debug)]
pub struct Card<B> {
    bus: B,
    address: [u8; 6],
    /// Page of the next frame in the ring.
    next: u8,
    state: State,
    sender: Sender,
    counts: Counts,
}

impl<B: Bus> Card<B> {
    /// Resets a card, reads its address, and starts it.
    ///
    /// # Errors
    /// There is no card, or it does not work.
    pub fn new(bus: B) -> Result<Self, Failure> {
        let mut card = Card {
            bus,
            address: [0; 6],
            next: 0,
            state: State::Runs,
            sender: Sender::default(),
            counts: Counts::default(),
        };
        card.reset()?;
        card.address = card.read_address()?;
        card.start();
        Ok(card)
    }

    /// Its address.
    pub const fn address(&self) -> [u8; 6] {
        self.address
    }

    /// What it has been seen to do.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Its ports.
    pub fn bus(&mut self) -> &mut B {
        &mut self.bus
    }

    const fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stops { .. })
    }

    const fn can_send(&self) -> bool {
        matches!(self.state, State::Runs) && (self.sender.bytes[0] == 0 || self.sender.bytes[1] == 0)
    }

    /// Stops the chip, whose ring has no room.
    fn stop(&mut self) {
        self.counts.overflows = self.counts.overflows.wrapping_add(1);
        let was_sending = self.bus.read(COMMAND) & command::TRANSMIT != 0;
        self.bus.write(COMMAND, command::STOP | command::NO_REMOTE);
        // The reason to interrupt stays until the ring is empty.
        self.bus.write(page0::INTERRUPT_MASK, 0);
        self.state = State::Stops { was_sending };
    }

    /// The ring is empty: if the chip was cut off from the wire for that, it no longer is.
    fn end_overflow(&mut self) {
        let State::Drains { resends } = self.state else { return };
        self.bus.write(page0::INTERRUPTS, interrupt::OVERFLOW);
        self.bus.write(page0::TRANSMIT, transmit::NORMAL);
        self.bus.write(page0::INTERRUPT_MASK, ENABLED);
        self.state = State::Runs;
        if resends {
            self.transmit();
        }
    }

    /// Resets the card by its reset port.
    fn reset(&mut self) -> Result<(), Failure> {
        let value = self.bus.read(RESET);
        self.bus.write(RESET, value);
        // An absent card reads as ones: that it has stopped, and everything else as well.
        let mut is_done = |_| self.bus.read(page0::INTERRUPTS) & interrupt::RESET != 0;
        if !(0..SPINS).any(&mut is_done) {
            return Err(Failure::Absent);
        }
        self.bus.write(COMMAND, command::STOP | command::NO_REMOTE);
        match self.bus.read(COMMAND) {
            state if state == command::STOP | command::NO_REMOTE => Ok(()),
            _ => Err(Failure::Absent),
        }
    }

    /// Reads the address out of the PROM, each of whose bytes is there twice. The chip is started for that, but cut off from the wire.
    fn read_address(&mut self) -> Result<[u8; 6], Failure> {
        let bus = &mut self.bus;
        bus.write(page0::DATA, WORDS);
        bus.write(page0::RECEIVE, receive::MONITOR);
        bus.write(page0::TRANSMIT, transmit::LOOPBACK);
        let mut prom = [0; 12];
        self.read_memory(0, &mut prom)?;
        let address = core::array::from_fn(|index| prom[2 * index]);
        let is_group = address[0] & 1 != 0;
        if is_group || address == [0; 6] { Err(Failure::Address) } else { Ok(address) }
    }

    /// Initializes the card, which is stopped, and starts it (DP8390D, 10.4, "Initialization Procedure").
    fn start(&mut self) {
        (self.state, self.sender) = (State::Runs, Sender::default());
        self.next = RING.start + 1;
        let bus = &mut self.bus;
        bus.write(COMMAND, command::STOP | command::NO_REMOTE);
        bus.write(page0::DATA, WORDS);
        page0::REMOTE_COUNT.into_iter().for_each(|register| bus.write(register, 0));
        bus.write(page0::RECEIVE, receive::EVERYTHING);
        bus.write(page0::TRANSMIT, transmit::LOOPBACK);
        bus.write(page0::TRANSMIT_PAGE, TRANSMIT_PAGES[0]);
        bus.write(page0::PAGE_START, RING.start);
        bus.write(page0::PAGE_STOP, RING.end);
        bus.write(page0::BOUNDARY, RING.start);
        bus.write(page0::INTERRUPTS, u8::MAX);
        bus.write(page0::INTERRUPT_MASK, ENABLED);
        bus.write(COMMAND, command::STOP | command::NO_REMOTE | command::PAGE_1);
        for (register, byte) in (page1::ADDRESS..).zip(self.address) {
            bus.write(register, byte);
        }
        (page1::MULTICAST..page1::MULTICAST + 8).for_each(|register| bus.write(register, u8::MAX));
        bus.write(page1::CURRENT, RING.start + 1);
        bus.write(COMMAND, command::START | command::NO_REMOTE);
        bus.write(page0::TRANSMIT, transmit::NORMAL);
    }

    /// Lets the first frame leave.
    fn transmit(&mut self) {
        let Sender { bytes, first, .. } = self.sender;
        let bytes = bytes[first].to_le_bytes();
        self.bus.write(page0::TRANSMIT_PAGE, TRANSMIT_PAGES[first]);
        for (register, byte) in page0::TRANSMIT_COUNT.into_iter().zip(bytes) {
            self.bus.write(register, byte);
        }
        self.bus.write(COMMAND, command::START | command::NO_REMOTE | command::TRANSMIT);
        self.sender.is_sending = true;
    }

    /// The first frame has left, or will not; the other is next.
    fn sent(&mut self, has_failed: bool) {
        if has_failed {
            self.counts.not_sent = self.counts.not_sent.wrapping_add(1);
        }
        self.counts.transmitted = self.counts.transmitted.wrapping_add(1);
        let sender = &mut self.sender;
        sender.bytes[sender.first] = 0;
        sender.first = 1 - sender.first;
        sender.is_sending = false;
        if sender.bytes[sender.first] != 0 {
            self.transmit();
        }
    }

    /// The page that is received into next.
    fn current(&mut self) -> u8 {
        self.bus.write(COMMAND, command::START | command::NO_REMOTE | command::PAGE_1);
        let current = self.bus.read(page1::CURRENT);
        self.bus.write(COMMAND, command::START | command::NO_REMOTE);
        current
    }

    /// Takes the frame at the next page, and gives its pages back. `None`: a frame that nobody wants.
    fn take(&mut self, into: &mut [u8]) -> Result<Option<usize>, Failure> {
        let start = usize::from(self.next) * PAGE_BYTES;
        let mut header = [0; HEADER_BYTES];
        self.read_memory(start, &mut header)?;
        let [status, next, low, high] = header;
        let bytes = usize::from(u16::from_le_bytes([low, high])).checked_sub(CHECK_BYTES);
        let bytes = bytes.ok_or(Failure::Ring)?;
        if !RING.contains(&next) || HEADER_BYTES + bytes > ring_bytes(self.next, next) {
            return Err(Failure::Ring);
        }
        let is_wanted = status & INTACT != 0 && (MIN_FRAME..=MAX_FRAME.min(into.len())).contains(&bytes);
        if is_wanted {
            self.read_ring(start + HEADER_BYTES, &mut into[..bytes])?;
        }
        self.next = next;
        let boundary = if next == RING.start { RING.end - 1 } else { next - 1 };
        self.bus.write(page0::BOUNDARY, boundary);
        Ok(is_wanted.then_some(bytes))
    }

    /// Reads out of the ring, from its end on at its start.
    fn read_ring(&mut self, address: usize, into: &mut [u8]) -> Result<(), Failure> {
        let end = usize::from(RING.end) * PAGE_BYTES;
        let (first, rest) = into.split_at_mut(into.len().min(end - address));
        self.read_memory(address, first)?;
        if rest.is_empty() { Ok(()) } else { self.read_memory(usize::from(RING.start) * PAGE_BYTES, rest) }
    }

    /// Reads the card's memory, from an even address.
    fn read_memory(&mut self, address: usize, into: &mut [u8]) -> Result<(), Failure> {
        self.begin_remote(address, into.len().next_multiple_of(2), command::REMOTE_READ);
        let even = into.len() & !1;
        self.bus.read_data(&mut into[..even]);
        if let [last] = &mut into[even..] {
            let mut word = [0; 2];
            self.bus.read_data(&mut word);
            *last = word[0];
        }
        self.end_remote()
    }

    /// Writes the card's memory: an even number of bytes to an even address.
    fn write_memory(&mut self, address: usize, from: &[u8]) -> Result<(), Failure> {
        self.begin_remote(address, from.len(), command::REMOTE_WRITE);
        self.bus.write_data(from);
        self.end_remote()
    }

    /// Begins a remote DMA (DP8390D, 8.0), for which the chip has to be started.
    fn begin_remote(&mut self, address: usize, bytes: usize, direction: u8) {
        let bus = &mut self.bus;
        bus.write(COMMAND, command::START | command::NO_REMOTE);
        bus.write(page0::INTERRUPTS, interrupt::REMOTE_DONE);
        for (register, byte) in page0::REMOTE_COUNT.into_iter().zip((bytes as u16).to_le_bytes()) {
            bus.write(register, byte);
        }
        for (register, byte) in page0::REMOTE_ADDRESS.into_iter().zip((address as u16).to_le_bytes()) {
            bus.write(register, byte);
        }
        bus.write(COMMAND, command::START | direction);
    }

    fn end_remote(&mut self) -> Result<(), Failure> {
        let mut is_done = |_| self.bus.read(page0::INTERRUPTS) & interrupt::REMOTE_DONE != 0;
        if !(0..SPINS).any(&mut is_done) {
            return Err(Failure::Transfer);
        }
        self.bus.write(page0::INTERRUPTS, interrupt::REMOTE_DONE);
        Ok(())
    }
}

impl<B: Bus> uplink::Card for Card<B> {
    type Failure = Failure;

    fn look(&mut self) {
        if self.state != State::Runs {
            return;
        }
        let status = self.bus.read(page0::INTERRUPTS);
        // Before what they announce is looked at: what comes after that is announced anew.
        self.bus.write(page0::INTERRUPTS, status & !interrupt::OVERFLOW);
        if status & SENT != 0 && self.sender.is_sending {
            self.sent(status & interrupt::TRANSMIT_ERROR != 0);
        }
        if status & interrupt::OVERFLOW != 0 {
            self.stop();
        }
    }

    /// Out of the ring.
    fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>, Failure> {
        if self.is_stopped() {
            return Ok(None);
        }
        loop {
            let current = self.current();
            if !RING.contains(&current) {
                return Err(Failure::Ring);
            }
            if current == self.next {
                self.end_overflow();
                return Ok(None);
            }
            if let Some(bytes) = self.take(into)? {
                return Ok(Some(bytes));
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> Result<bool, Failure> {
        if !self.can_send() || !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            return Ok(false);
        }
        let slot =
            if self.sender.bytes[self.sender.first] == 0 { self.sender.first } else { 1 - self.sender.first };
        let bytes = frame.len().max(SHORTEST).next_multiple_of(2);
        let mut padded = [0; MAX_FRAME.next_multiple_of(2)];
        padded[..frame.len()].copy_from_slice(frame);
        self.write_memory(usize::from(TRANSMIT_PAGES[slot]) * PAGE_BYTES, &padded[..bytes])?;
        self.sender.bytes[slot] = frame.len().max(SHORTEST) as u16;
        if !self.sender.is_sending {
            self.transmit();
        }
        Ok(true)
    }

    fn pause_ms(&self) -> Option<u64> {
        self.is_stopped().then_some(STOP_MS)
    }

    fn resume(&mut self) {
        let State::Stops { was_sending } = self.state else { return };
        let bus = &mut self.bus;
        page0::REMOTE_COUNT.into_iter().for_each(|register| bus.write(register, 0));
        let resends = was_sending && bus.read(page0::INTERRUPTS) & SENT == 0;
        bus.write(page0::TRANSMIT, transmit::LOOPBACK);
        bus.write(COMMAND, command::START | command::NO_REMOTE);
        self.state = State::Drains { resends };
    }

    fn leaving(&self) -> Option<u32> {
        self.sender.is_sending.then_some(self.counts.transmitted)
    }

    fn restart(&mut self) -> Result<(), Failure> {
        self.reset()?;
        self.start();
        Ok(())
    }
}

/// Bytes from one page of the ring to another, behind it.
fn ring_bytes(from: u8, to: u8) -> usize {
    let pages = if to >= from { to - from } else { RING.end - from + (to - RING.start) };
    usize::from(pages) * PAGE_BYTES
}
