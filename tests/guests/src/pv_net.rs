//! A network card by its driver: two of these guests on one network, of which `role=ping` talks and `role=pong` answers. The driver is an
//! end of the channel to the switch, or, with `by=queues`, has the VMM in between.
//!
//! The byte behind the Ethernet header says what a frame is: `ECHO` comes back, `DATA` is counted, `ACK` says how many came,
//! `END` comes back and ends the guest.

use core::cell::UnsafeCell;
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{Error, Ethernet, Machine, Net, NetMemory, OneToOne, Result};
use trt::lapic::Lapic;
use trt::{check, clock, cpu, irq, pvh};

const VECTOR: u8 = 0x47;
const ALL: [u8; 6] = [0xff; 6];
/// An EtherType for experiments (IEEE 802, 9.2.4).
const TYPE: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = 14;
/// Ethernet's header and 50 bytes.
const SHORT: usize = 64;
/// A packet of 1500 bytes.
const LONG: usize = 1514;
/// Round trips.
const PINGS: u32 = 64;
/// Frames that are sent together, and how often.
const BURST: u32 = 16;
const BURSTS: u32 = 16;

const ECHO: u8 = 1;
const DATA: u8 = 2;
const ACK: u8 = 3;
const END: u8 = 4;
/// Number of an echo that only asks who is there. Some answers may come late.
const WHO: u32 = u32::MAX;

struct Memory(UnsafeCell<NetMemory>);

// SAFETY: one CPU, and it is taken once.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(NetMemory::new()));

/// A frame that came.
struct Frame {
    bytes: [u8; LONG],
    len: usize,
}

impl Frame {
    fn kind(&self) -> u8 {
        self.bytes[HEADER]
    }

    fn source(&self) -> [u8; 6] {
        self.bytes[6..12].try_into().unwrap_or(ALL)
    }
}

/// The guest.
pub fn run() {
    let leaf = |leaf| {
        let regs = cpu::cpuid(leaf, 0);
        [regs.eax, regs.ebx, regs.ecx, regs.edx]
    };
    let is_intel = cpu::cpuid(0, 0).ebx == u32::from_le_bytes(*b"Genu");
    let instruction = if is_intel { Instruction::Vmcall } else { Instruction::Vmmcall };
    // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
    let hal = unsafe { OneToOne::new(instruction) };
    // SAFETY: this is the only place that uses the memory, once.
    let memory = unsafe { &mut *MEMORY.0.get() };
    let at = Machine::detect(leaf).and_then(|machine| machine.find(&hal, Kind::Net, 0));
    let by_queues = pvh::option("by") == Some("queues");
    let net = match at {
        Some(at) if by_queues => Net::new(hal, at, memory).map(Ethernet::Queued),
        Some(at) => Ethernet::new(hal, at, memory),
        None => Err(Error::NoDevice),
    };
    let Ok(mut net) = net else {
        check!(false, "there is a network card");
        return;
    };
    check!(eq matches!(net, Ethernet::Queued(_)), by_queues, "it offers the channel to the switch");
    check!(eq net.mtu(), 1500, "it carries packets of a usual size");
    check!(net.address()[0] & 3 == 2, "its address is that of a station, locally administered");
    Lapic::enable_best();
    irq::count(VECTOR);
    net.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: Lapic::current().id() }));
    match pvh::option("role") {
        Some("ping") => ping(&mut net),
        _ => pong(&mut net),
    }
}

/// The next frame, asleep until it comes.
fn receive(net: &mut Ethernet<OneToOne>, into: &mut Frame) -> bool {
    loop {
        let taken = net.receive(|bytes| {
            into.len = bytes.len().min(LONG);
            into.bytes[..into.len].copy_from_slice(&bytes[..into.len]);
        });
        match taken.map(|taken| taken.is_some()) {
            Ok(true) => return true,
            Ok(false) if net.sleep_is_safe() == Ok(true) => cpu::sti_hlt_cli(),
            Ok(false) => {}
            Err(error) => {
                check!(false, "the card works: {error:?}");
                return false;
            }
        }
    }
}

/// Submits a frame of `len` bytes, for which there is room.
fn send(net: &mut Ethernet<OneToOne>, to: [u8; 6], kind: u8, number: u32, len: usize) {
    let sent = try_send(net, to, kind, number, len);
    if sent.is_err() {
        check!(false, "a frame is sent: {sent:?}");
    }
}

fn try_send(net: &mut Ethernet<OneToOne>, to: [u8; 6], kind: u8, number: u32, len: usize) -> Result<()> {
    let from = net.address();
    net.send(len, |bytes| {
        bytes[..6].copy_from_slice(&to);
        bytes[6..12].copy_from_slice(&from);
        bytes[12..HEADER].copy_from_slice(&TYPE);
        bytes[HEADER] = kind;
        bytes[HEADER + 1..HEADER + 5].copy_from_slice(&number.to_le_bytes());
    })
}

fn number(frame: &Frame) -> u32 {
    u32::from_le_bytes([1, 2, 3, 4].map(|at| frame.bytes[HEADER + at]))
}

fn ping(net: &mut Ethernet<OneToOne>) {
    let mut frame = Frame { bytes: [0; LONG], len: 0 };
    let Some(peer) = find_peer(net, &mut frame) else {
        check!(false, "somebody answers");
        return;
    };
    let start = cpu::rdtsc();
    for round in 0..PINGS {
        send(net, peer, ECHO, round, SHORT);
        net.flush();
        while receive(net, &mut frame) && number(&frame) == WHO {}
        if (frame.kind(), number(&frame), frame.len) != (ECHO, round, SHORT) {
            check!(false, "echo {round} comes back as it was sent");
            return;
        }
    }
    let ticks = (cpu::rdtsc() - start) / u64::from(PINGS);
    check!(true, "{PINGS} frames of {SHORT} bytes came back, each after {ticks} ticks");
    let start = cpu::rdtsc();
    for burst in 1..=BURSTS {
        for _ in 0..BURST {
            send(net, peer, DATA, 0, LONG);
        }
        net.flush();
        if !receive(net, &mut frame) || (frame.kind(), number(&frame)) != (ACK, burst * BURST) {
            check!(false, "all frames of burst {burst} arrive");
            return;
        }
    }
    let ticks = (cpu::rdtsc() - start) / u64::from(BURST * BURSTS);
    check!(true, "{} frames of {LONG} bytes arrived, {ticks} ticks each", BURST * BURSTS);
    send(net, peer, END, 0, SHORT);
    net.flush();
    check!(receive(net, &mut frame) && frame.kind() == END, "the other says good-bye");
}

/// Asks all, again and again, until one answers: it may not have started yet.
fn find_peer(net: &mut Ethernet<OneToOne>, frame: &mut Frame) -> Option<[u8; 6]> {
    for _ in 0..1000 {
        // There is no room before the switch has started.
        let sent = try_send(net, ALL, ECHO, WHO, SHORT);
        if !matches!(sent, Ok(()) | Err(Error::Full)) {
            check!(false, "a frame is sent: {sent:?}");
        }
        net.flush();
        let has_answer = clock::wait_until(20, || {
            let taken = net.receive(|bytes| {
                frame.len = bytes.len().min(LONG);
                frame.bytes[..frame.len].copy_from_slice(&bytes[..frame.len]);
            });
            matches!(taken, Ok(Some(())))
        });
        if has_answer {
            return Some(frame.source());
        }
    }
    None
}

fn pong(net: &mut Ethernet<OneToOne>) {
    let mut frame = Frame { bytes: [0; LONG], len: 0 };
    let mut count = 0;
    while receive(net, &mut frame) {
        let (peer, kind) = (frame.source(), frame.kind());
        match kind {
            DATA => {
                count += 1;
                if count % BURST != 0 {
                    continue;
                }
                send(net, peer, ACK, count, SHORT);
            }
            _ => send(net, peer, kind, number(&frame), frame.len),
        }
        net.flush();
        if kind == END {
            break;
        }
    }
    check!(eq count, BURST * BURSTS, "every frame of the stream came");
}
