//! The switch, but that a frame of [`tproto::switch::CRASH_LEN`] bytes makes it crash.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;
use tproto::switch::CRASH_LEN;
use usys::Window;
use usys::process::ProcessInfo;
use vmm_protocol::net::{Long, SLOTS, Side, Taken};
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
    let mut index = 0;
    while index < waiting {
        let header = word(Side::Card.slot(taken.wrapping_add(index)));
        if header as u16 == CRASH_LEN {
            return true;
        }
        // Where a long frame goes on there are no headers.
        index += Long::decode(header).map_or(1, Long::slots);
    }
    false
}
