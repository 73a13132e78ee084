//! A guest that means harm to its switch and to the others on its network, by what the channel gives it. In the end it behaves, and is
//! served as they are.

use crate::card::{self, Card, END, Frame, HEADER, SHORT, TYPE};
use core::ptr::NonNull;
use guest_pv_driver::abi::DOORBELL_CALL;
use guest_pv_driver::abi::channel::{CHANNEL_BYTES, FRAME, MAX_FRAME, SLOT_BYTES, SLOTS, Side};
use guest_pv_driver::abi::device::{Kind, NET_CHANNEL_DOORBELL, config, feature, reg};
use guest_pv_driver::{Device, DirectNet, Hal, OneToOne};
use trt::{check, clock, cpu};

/// Words that are written at random before the doorbell is rung again, and how often.
const WORDS: u64 = 16;
const ROUNDS: u32 = 2000;
/// Times that all slots are changed while the switch may read them.
const CHANGES: u32 = 100;
/// A type of frames that nobody waits for (IEEE 802, 9.2.4).
const OTHER_TYPE: [u8; 2] = [0x88, 0xb6];

/// The guest.
pub fn run() {
    let Some((hal, at)) = card::find() else {
        check!(false, "there is a network card");
        return;
    };
    let mut frame = Frame::new();
    let peer = Card::open().and_then(|mut card| card.find_peer(&mut frame));
    check!(peer.is_some(), "a guest that behaves is served");
    check!(scribble(hal, at).is_some(), "nonsense is written all over the channel, and rung");
    check!(
        forge(hal, at).is_some(),
        "frames from the addresses of others are sent, and changed while they are read"
    );
    let mut again = Card::open();
    let Some((card, peer)) = again.as_mut().zip(peer) else {
        check!(false, "the card can be used again");
        return;
    };
    check!(card.find_peer(&mut frame).is_some(), "a guest that behaves again is served again");
    card.send(peer, END, 0, SHORT);
    card.0.flush();
    let is_end = |frame: &Frame| (frame.kind(), frame.source()) == (END, peer);
    let has_end = clock::wait_until(1000, || card.take(&mut frame) == Ok(true) && is_end(&frame));
    check!(has_end, "the other one says good-bye");
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A word that may be right, or nearly, or nonsense.
    fn word(&mut self) -> u64 {
        let word = self.next();
        match word >> 62 {
            0 => word & 0xff,
            1 => 60 | 1 << 16 | word << 32,
            2 => word & 0xff | (word >> 8 & 0xff) << 32,
            // A long frame's, of some length.
            3 if word & 1 != 0 => 4 | 1000 << 16 | 34 << 32 | word << 48,
            _ => word,
        }
    }

    /// Where it does most harm, or anywhere: a multiple of 8.
    fn place(&mut self) -> usize {
        let word = self.next() as usize;
        match word >> 61 {
            0 => Side::Card.session(),
            1 => Side::Card.put(),
            2 => Side::Switch.taken(),
            3 => Side::Switch.session(),
            4 => Side::Card.takes(),
            5 | 6 => Side::Card.slot(word as u32),
            _ => (word % CHANNEL_BYTES) & !7,
        }
    }
}

/// Writes where only nonsense can come of it, and has the switch look.
fn scribble(hal: OneToOne, at: u64) -> Option<()> {
    let mut device = Device::open_kind(hal, at, Kind::Net).ok()?;
    device.negotiate(feature::NET_DIRECT);
    let channel: NonNull<u8> = hal.map_shared(device.read_u64(config::NET_CHANNEL), CHANNEL_BYTES)?;
    let call = DOORBELL_CALL + u64::from(device.read(reg::DOORBELL) as u16 + NET_CHANNEL_DOORBELL);
    device.start().ok()?;
    let mut random = Random(cpu::rdtsc() | 1);
    for _ in 0..ROUNDS {
        for _ in 0..random.next() % WORDS {
            let (place, word) = (random.place(), random.word());
            // SAFETY: inside of the channel, of which there are no references.
            unsafe { channel.add(place).cast::<u64>().write_volatile(word) };
        }
        hal.ring(call);
    }
    Some(())
}

/// Sends frames that are not its own to send, and turns those that are into such while they wait.
fn forge(hal: OneToOne, at: u64) -> Option<()> {
    let mut net = DirectNet::new(hal, at).ok()?;
    let own = net.address();
    // The VMs have the numbers from 0 on (`CardConfig::address`).
    let others = [0, 1].map(|vm| [own[0], own[1], own[2], own[3], vm, own[5]]);
    let mut slots = None;
    for number in 0..10 * SLOTS {
        let other = others[number % 2];
        // The switch is to see them: there is room when it has taken some.
        if !clock::wait_until(5000, || !net.is_full()) {
            return None;
        }
        net.send(SHORT, |bytes| {
            write_frame(bytes, others[1 - number % 2], other, TYPE);
            slots.get_or_insert(bytes.as_mut_ptr());
        })
        .ok()?;
        net.flush();
    }
    // The first one that was sent was in slot 0, where each session begins.
    let first: *mut u8 = slots?;
    for change in 0..CHANGES {
        for slot in 0..SLOTS {
            let _ = net.send(SHORT, |bytes| write_frame(bytes, own, own, OTHER_TYPE));
            let frame = first.wrapping_add(slot * SLOT_BYTES);
            // SAFETY: the header and the first bytes of a slot of the channel, which the driver touches in `send` and `flush` alone.
            let (header, bytes) = unsafe {
                (frame.wrapping_sub(FRAME).cast::<u64>(), core::slice::from_raw_parts_mut(frame, SHORT))
            };
            write_frame(bytes, others[1 - slot % 2], others[slot % 2], TYPE);
            let len = if change % 2 == 0 { MAX_FRAME + slot } else { slot };
            // SAFETY: as above.
            unsafe { header.write_volatile(len as u64) };
            net.flush();
            write_frame(bytes, own, own, OTHER_TYPE);
            // SAFETY: as above.
            unsafe { header.write_volatile(SHORT as u64) };
        }
    }
    Some(())
}

/// A frame that says good-bye, where its type is that of these guests.
fn write_frame(bytes: &mut [u8], to: [u8; 6], from: [u8; 6], kind: [u8; 2]) {
    bytes[..6].copy_from_slice(&to);
    bytes[6..12].copy_from_slice(&from);
    bytes[12..HEADER].copy_from_slice(&kind);
    bytes[HEADER] = END;
}
