//! The switch, but that a frame of [`tproto::switch::CRASH_LEN`] bytes makes it crash.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;
use tproto::switch::CRASH_LEN;
use usys::Window;
use usys::process::ProcessInfo;
use vmm_protocol::net::{SLOTS, Side, Taken};
use vmm_protocol::process::CHANNEL;

/// Runs it.
pub fn main(info: &'static ProcessInfo) -> ! {
    let channels: Vec<_> = (0..).map_while(|port| info.window(&format!("{CHANNEL}{port}"))).collect();
    switch::process::run(info, || {
        if channels.iter().any(has_bad_frame) {
            usys::start::fault();
        }
    })
}

/// Whether a frame for the switch that it has not taken has that length.
fn has_bad_frame(channel: &Window) -> bool {
    let word = |offset| channel.read_u64(offset).unwrap_or(0);
    let put = word(Side::Card.put()) as u32;
    let taken = Taken::decode(word(Side::Card.taken())).count;
    // A card may lie about how many there are.
    let waiting = put.wrapping_sub(taken).min(SLOTS as u32);
    (0..waiting).any(|index| word(Side::Card.slot(taken.wrapping_add(index))) as u16 == CRASH_LEN)
}
