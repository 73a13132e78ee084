//! A network card by its driver, and the frames of guests that test it. For [`crate::pv_net`] and [`crate::pv_hostile`].
//!
//! The byte behind the Ethernet header says what a frame is: [`ECHO`] comes back, [`DATA`] is counted, [`ACK`] says how many came,
//! [`END`] comes back and ends the guest.

use core::cell::UnsafeCell;
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{Error, Ethernet, Machine, Net, NetMemory, OneToOne, Result};
use trt::lapic::Lapic;
use trt::{check, clock, cpu, irq, pvh};

const VECTOR: u8 = 0x47;
pub(crate) const ALL: [u8; 6] = [0xff; 6];
/// An EtherType for experiments (IEEE 802, 9.2.4).
pub(crate) const TYPE: [u8; 2] = [0x88, 0xb5];
pub(crate) const HEADER: usize = 14;
/// Ethernet's header and 50 bytes.
pub(crate) const SHORT: usize = 64;
/// A packet of 1500 bytes.
pub(crate) const LONG: usize = 1514;

pub(crate) const ECHO: u8 = 1;
pub(crate) const DATA: u8 = 2;
pub(crate) const ACK: u8 = 3;
pub(crate) const END: u8 = 4;
/// Number of an echo that only asks who is there. Some answers may come late.
pub(crate) const WHO: u32 = u32::MAX;

struct Memory(UnsafeCell<NetMemory>);

// SAFETY: one CPU, and one card at a time.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(NetMemory::new()));

/// A frame that came.
pub(crate) struct Frame {
    bytes: [u8; LONG],
    pub(crate) len: usize,
}

impl Frame {
    pub(crate) const fn new() -> Self {
        Frame { bytes: [0; LONG], len: 0 }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.bytes[HEADER]
    }

    pub(crate) fn number(&self) -> u32 {
        u32::from_le_bytes([1, 2, 3, 4].map(|at| self.bytes[HEADER + at]))
    }

    pub(crate) fn source(&self) -> [u8; 6] {
        self.bytes[6..12].try_into().unwrap_or(ALL)
    }
}

/// How the hypervisor is called, and where the page of the first network card is.
pub(crate) fn find() -> Option<(OneToOne, u64)> {
    let leaf = |leaf| {
        let regs = cpu::cpuid(leaf, 0);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    };
    // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
    let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
    Some((hal, Machine::detect(leaf)?.find(&hal, Kind::Net, 0)?))
}

/// A card whose interrupts come.
pub(crate) struct Card(pub(crate) Ethernet<OneToOne>);

impl Card {
    /// The first card, called when there is no other of these: an end of the channel to the switch, or, with `by=queues` on the command line, with the VMM
    /// in between.
    pub(crate) fn open() -> Option<Self> {
        let (hal, at) = find()?;
        // SAFETY: this is the only place that uses the memory; whoever had it before is gone.
        let memory = unsafe { &mut *MEMORY.0.get() };
        let by_queues = pvh::option("by") == Some("queues");
        let mut net = if by_queues {
            Net::new(hal, at, memory).map(Ethernet::Queued)
        } else {
            Ethernet::new(hal, at, memory)
        }
        .ok()?;
        check!(eq matches!(net, Ethernet::Queued(_)), by_queues, "it offers the channel to the switch");
        Lapic::enable_best();
        irq::count(VECTOR);
        net.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: Lapic::current().id() }));
        Some(Card(net))
    }

    /// Submits a frame of `len` bytes.
    pub(crate) fn try_send(&mut self, to: [u8; 6], kind: u8, number: u32, len: usize) -> Result<()> {
        let from = self.0.address();
        self.0.send(len, |bytes| {
            bytes[..6].copy_from_slice(&to);
            bytes[6..12].copy_from_slice(&from);
            bytes[12..HEADER].copy_from_slice(&TYPE);
            bytes[HEADER] = kind;
            bytes[HEADER + 1..HEADER + 5].copy_from_slice(&number.to_le_bytes());
        })
    }

    /// As [`Self::try_send`], where there is room.
    pub(crate) fn send(&mut self, to: [u8; 6], kind: u8, number: u32, len: usize) {
        let sent = self.try_send(to, kind, number, len);
        if sent.is_err() {
            check!(false, "a frame is sent: {sent:?}");
        }
    }

    /// The next frame of these guests, if one has come.
    pub(crate) fn take(&mut self, into: &mut Frame) -> Result<bool> {
        let taken = self.0.receive(|bytes| {
            into.len = bytes.len().min(LONG);
            into.bytes[..into.len].copy_from_slice(&bytes[..into.len]);
        });
        Ok(taken?.is_some() && into.bytes[12..HEADER] == TYPE)
    }

    /// The next frame, asleep until it comes.
    pub(crate) fn receive(&mut self, into: &mut Frame) -> bool {
        loop {
            match self.take(into) {
                Ok(true) => return true,
                Ok(false) if self.0.sleep_is_safe() == Ok(true) => cpu::sti_hlt_cli(),
                Ok(false) => {}
                Err(error) => {
                    check!(false, "the card works: {error:?}");
                    return false;
                }
            }
        }
    }

    /// Asks all, again and again, until one answers: it may not have started yet, nor the switch.
    pub(crate) fn find_peer(&mut self, frame: &mut Frame) -> Option<[u8; 6]> {
        self.ask_until(frame, |frame| frame.bytes[..6] != ALL)
    }

    /// Asks all, again and again, until such a frame comes, and says from where.
    pub(crate) fn ask_until(&mut self, frame: &mut Frame, is_it: fn(&Frame) -> bool) -> Option<[u8; 6]> {
        for _ in 0..1000 {
            self.ask_all();
            if clock::wait_until(20, || self.take(frame) == Ok(true) && is_it(frame)) {
                return Some(frame.source());
            }
        }
        None
    }

    /// Asks all who is there. Without a switch there is no room for that.
    pub(crate) fn ask_all(&mut self) {
        let sent = self.try_send(ALL, ECHO, WHO, SHORT);
        if !matches!(sent, Ok(()) | Err(Error::Full)) {
            check!(false, "a frame is sent: {sent:?}");
        }
        self.0.flush();
    }
}
