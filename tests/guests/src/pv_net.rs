//! A network card by its driver: two of these guests on one network, of which `role=ping` talks and `role=pong` answers.
//!
//! With `crash=yes`, the one that talks makes the test switch crash, and goes on when that is back. `role=last` is for a network whose
//! switch crashes once and for all.

use crate::card::{ACK, ALL, Card, DATA, ECHO, END, Frame, LONG, SHORT, WHO};
use guest_pv_driver::{Error, Ethernet};
use tproto::switch::CRASH_LEN;
use trt::{check, clock, cpu, pvh};

/// Round trips.
const PINGS: u32 = 64;
/// Frames that are sent together, and how often.
const BURST: u32 = 16;
const BURSTS: u32 = 16;
/// For how long to wait for the switch in the end. There may be none any more.
const GOODBYE_MS: u64 = 100;
/// More frames than a channel holds.
const MANY: u32 = 300;

/// The guest.
pub fn run() {
    let Some(mut card) = Card::open() else {
        check!(false, "there is a network card");
        return;
    };
    check!(eq card.0.mtu(), 1500, "it carries packets of a usual size");
    check!(card.0.address()[0] & 3 == 2, "its address is that of a station, locally administered");
    match pvh::option("role") {
        Some("ping") => ping(&mut card),
        Some("last") => last(&mut card),
        _ => pong(&mut card),
    }
    // What the switch has not taken is lost with this guest.
    clock::wait_until(GOODBYE_MS, || card.0.is_drained());
}

fn crashes() -> bool {
    pvh::option("crash") == Some("yes")
}

fn ping(card: &mut Card) {
    let mut frame = Frame::new();
    let streams = if crashes() { 2 } else { 1 };
    for stream in 0..streams {
        let Some(peer) = card.find_peer(&mut frame) else {
            check!(false, "somebody answers");
            return;
        };
        if !talk(card, peer, stream * BURSTS, &mut frame) {
            return;
        }
        if stream + 1 < streams {
            card.send(peer, DATA, 0, CRASH_LEN.into());
            card.0.flush();
        } else {
            card.send(peer, END, 0, SHORT);
            card.0.flush();
        }
    }
    check!(card.receive(&mut frame) && frame.kind() == END, "the other says good-bye");
}

/// Round trips and a stream, behind so many bursts. Whether all of it arrived.
fn talk(card: &mut Card, peer: [u8; 6], bursts: u32, frame: &mut Frame) -> bool {
    let start = cpu::rdtsc();
    for round in 0..PINGS {
        card.send(peer, ECHO, round, SHORT);
        card.0.flush();
        while card.receive(frame) && frame.number() == WHO {}
        if (frame.kind(), frame.number(), frame.len) != (ECHO, round, SHORT) {
            check!(false, "echo {round} comes back as it was sent");
            return false;
        }
    }
    let ticks = (cpu::rdtsc() - start) / u64::from(PINGS);
    check!(true, "{PINGS} frames of {SHORT} bytes came back, each after {ticks} ticks");
    let start = cpu::rdtsc();
    for burst in bursts + 1..=bursts + BURSTS {
        for _ in 0..BURST {
            card.send(peer, DATA, 0, LONG);
        }
        card.0.flush();
        if !card.receive(frame) || (frame.kind(), frame.number()) != (ACK, burst * BURST) {
            check!(false, "all frames of burst {burst} arrive");
            return false;
        }
    }
    let ticks = (cpu::rdtsc() - start) / u64::from(BURST * BURSTS);
    check!(true, "{} frames of {LONG} bytes arrived, {ticks} ticks each", BURST * BURSTS);
    true
}

/// Answers until as many as `clients=` says have said good-bye. They send `streams=` streams.
fn pong(card: &mut Card) {
    let option = |name| pvh::option(name).and_then(|count| count.parse::<u32>().ok()).unwrap_or(1);
    let (mut clients, streams) = (option("clients"), option("streams"));
    let mut frame = Frame::new();
    let mut count = 0;
    while clients > 0 && card.receive(&mut frame) {
        let (peer, kind) = (frame.source(), frame.kind());
        match kind {
            DATA => {
                count += 1;
                if count % BURST != 0 {
                    continue;
                }
                card.send(peer, ACK, count, SHORT);
            }
            _ => card.send(peer, kind, frame.number(), frame.len),
        }
        card.0.flush();
        clients -= u32::from(kind == END);
    }
    check!(eq count, BURST * BURSTS * streams, "every frame of the stream came");
}

/// One of two that find each other; then one makes the switch crash, and no other one is started.
fn last(card: &mut Card) {
    let mut frame = Frame::new();
    // The other one asks, too, and nobody answers.
    check!(card.ask_until(&mut frame, |_| true).is_some(), "there is another");
    for _ in 0..5 {
        card.ask_all();
        clock::wait(5);
    }
    if crashes() {
        card.send(ALL, DATA, 0, CRASH_LEN.into());
        card.0.flush();
    }
    clock::wait(60);
    while card.take(&mut frame) == Ok(true) {}
    let mut sent = Ok(());
    for _ in 0..MANY {
        sent = card.try_send(ALL, ECHO, WHO, SHORT);
        card.0.flush();
    }
    // The VMM takes them, and loses them.
    let expected = if matches!(card.0, Ethernet::Direct(_)) { Err(Error::Full) } else { Ok(()) };
    check!(eq sent, expected, "what is sent without a switch is lost, and a driver that is the channel's end knows");
    check!(!clock::wait_until(20, || card.take(&mut frame) == Ok(true)), "nothing arrives any more");
}
