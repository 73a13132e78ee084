//! Frames between two VMs by paravirtual cards and the switch: one of these guests asks, the other answers.
//!
//! Both sleep by HLT while there is nothing to do, and nothing is above their drivers: there is no network stack.

use crate::{sample, say, set_gate};
use bench_protocol::Line;
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{DirectNet, Error, Machine, OneToOne};
use trt::lapic::{Lapic, Mode};
use trt::{cpu, println};

/// A frame of 64 bytes, there and back.
const PING: &str = "pv.net_ping64";
/// Frames with packets of 1500 bytes, one after the other.
const STREAM: &str = "pv.net_stream1500";

const VECTOR: u8 = 0x47;
const HEADER: usize = 14;
const SHORT: usize = 64;
const LONG: usize = HEADER + 1500;
/// Frames that are sent together: as many as the driver has buffers.
const BURST: usize = 32;
/// Frames of a stream until the other says that they came.
const WINDOW: usize = 64;
/// Ticks of the copy of a frame of a stream, from channel to channel: each iteration of REP MOVSQ is one.
const COPY: u64 = LONG as u64 / 8;
/// An EtherType for experiments (IEEE 802, 9.2.4).
const TYPE: [u8; 2] = [0x88, 0xb5];
const ALL: [u8; 6] = [0xff; 6];

/// The byte behind the header: comes back; is counted, and comes back as every [`WINDOW`]th; ends the other.
const ECHO: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;

/// The number of frames that nobody waits for any more: some answers to [`Card::find_peer`] come late.
const NONE: u8 = 0;

/// A frame that came: what it is, its number, and whose it is.
#[derive(Clone, Copy)]
struct Frame {
    kind: u8,
    number: u8,
    source: [u8; 6],
}

unsafe extern "C" {
    fn bench_wake_handler();
}

/// A card, the address of the other, and the number of the last frame that was to come back.
struct Card {
    net: DirectNet<OneToOne>,
    peer: [u8; 6],
    number: u8,
}

/// Measures both operations; the other guest is [`answer`].
pub(crate) fn ask(overhead: u64) {
    let Some(mut card) = Card::open() else {
        for op in [PING, STREAM] {
            println!("{}", Line::Failed { op, why: "the VM has no paravirtual network card" });
        }
        return;
    };
    card.find_peer();
    println!("{}", Line::Window { op: PING });
    let ping = sample(|| card.ping().is_ok());
    say(PING, ping, overhead, 1);
    println!("{}", Line::Window { op: STREAM });
    let stream = sample(|| card.stream().is_ok());
    say(STREAM, stream, overhead + COPY * WINDOW as u64, WINDOW as u32);
    let _ = card.send(END, NONE, SHORT);
    card.net.flush();
    while !card.net.is_drained() {
        core::hint::spin_loop();
    }
}

/// Answers until it is told to end.
pub(crate) fn answer() {
    let Some(mut card) = Card::open() else { return };
    let mut count = 0;
    loop {
        let Ok(Frame { kind, number, source }) = card.receive() else { return };
        card.peer = source;
        count += usize::from(kind == DATA);
        if kind == ECHO || kind == DATA && count.is_multiple_of(WINDOW) {
            let _ = card.send(kind, number, SHORT);
            card.net.flush();
        }
        if kind == END {
            return;
        }
    }
}

impl Card {
    fn open() -> Option<Card> {
        let leaf = |leaf| {
            let regs = cpu::cpuid(leaf, 0);
            [regs.eax, regs.ebx, regs.ecx, regs.edx]
        };
        // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
        let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
        let at = Machine::detect(leaf)?.find(&hal, Kind::Net, 0)?;
        let mut net = DirectNet::new(hal, at).ok()?;
        let lapic = Lapic::enable(Mode::X2apic);
        set_gate(VECTOR, bench_wake_handler as *const () as u64);
        net.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: lapic.id() }));
        Some(Card { net, peer: ALL, number: NONE })
    }

    /// Asks everybody until somebody answers: the other may not have started yet.
    fn find_peer(&mut self) {
        const PATIENCE: u64 = 10_000_000;
        loop {
            let _ = self.send(ECHO, NONE, SHORT);
            self.net.flush();
            let start = cpu::rdtsc();
            while cpu::rdtsc() - start < PATIENCE {
                if let Some(frame) = self.take() {
                    self.peer = frame.source;
                    return;
                }
            }
        }
    }

    /// A frame, and the one that comes back.
    fn ping(&mut self) -> Result<(), Error> {
        self.number = self.number.wrapping_add(1).max(1);
        self.send(ECHO, self.number, SHORT)?;
        self.net.flush();
        self.await_answer()
    }

    /// A window of frames, and the one that says that they came.
    fn stream(&mut self) -> Result<(), Error> {
        self.number = self.number.wrapping_add(1).max(1);
        for _ in 0..WINDOW / BURST {
            for _ in 0..BURST {
                self.send(DATA, self.number, LONG)?;
            }
            self.net.flush();
        }
        self.await_answer()
    }

    fn await_answer(&mut self) -> Result<(), Error> {
        while self.receive()?.number != self.number {}
        Ok(())
    }

    fn send(&mut self, kind: u8, number: u8, len: usize) -> Result<(), Error> {
        while self.net.is_full() {
            core::hint::spin_loop();
        }
        let (from, to) = (self.net.address(), self.peer);
        self.net.send(len, |bytes| {
            bytes[..6].copy_from_slice(&to);
            bytes[6..12].copy_from_slice(&from);
            bytes[12..HEADER].copy_from_slice(&TYPE);
            bytes[HEADER] = kind;
            bytes[HEADER + 1] = number;
        })
    }

    /// The next frame, asleep until it comes.
    fn receive(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.take() {
                return Ok(frame);
            }
            if self.net.sleep_is_safe() {
                cpu::sti_hlt_cli();
            }
        }
    }

    fn take(&mut self) -> Option<Frame> {
        self.net.receive(|_, bytes| {
            let source = bytes.get(6..12).and_then(|source| source.try_into().ok()).unwrap_or(ALL);
            let byte = |at| bytes.get(at).copied().unwrap_or(0);
            Frame { kind: byte(HEADER), number: byte(HEADER + 1), source }
        })
    }
}
