//! The process.

use crate::forward::Switch;
use crate::relay::Relay;
use alloc::format;
use alloc::vec::Vec;
use net_channel::End;
use usys::abi::Selector;
use usys::cap::{Cap, Ntfn};
use usys::cpu;
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use vmm_protocol::net::Side;
use vmm_protocol::process::{CHANNEL, PortConfig, SwitchConfig, switch};

/// The two parts of a switch.
struct Parts {
    frames: Switch<Cap<Ntfn>>,
    packets: Relay<Cap<Ntfn>>,
    /// Number of the first port of a socket device, if there is one: those of cards come before.
    first: Option<u32>,
}

/// Runs the switch.
pub fn main(info: &'static ProcessInfo) -> ! {
    run(info, || {})
}

/// Runs the switch, with somebody who looks before each round: tests of what its crash does.
pub fn run(info: &'static ProcessInfo, look: impl FnMut()) -> ! {
    usys::logger::to_kernel();
    match open(info) {
        Ok(Parts { frames, first: None, .. }) => serve(frames, look),
        Ok(Parts { frames, packets, first: Some(first) }) => serve_both(frames, packets, first, look),
        Err(what) => {
            log::error!("{what}");
            usys::start::fault()
        }
    }
}

fn open(info: &'static ProcessInfo) -> Result<Parts, &'static str> {
    let config: SwitchConfig =
        postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")?;
    let (mut frames, mut packets) = (Vec::with_capacity(config.ports.len()), Vec::new());
    for (index, port) in config.ports.into_iter().enumerate() {
        let channel = info.window(&format!("{CHANNEL}{index}")).ok_or("a channel is missing")?;
        let peer = Cap::new(Selector(switch::PORTS + index as u32));
        let end = End::new(channel, Side::Switch, peer).map_err(|_| "a channel is too short")?;
        match port {
            PortConfig::Vsock { cid } => packets.push((cid, end)),
            _ => frames.push((port, end)),
        }
    }
    let hz = info.header.tsc_hz;
    let first = (!packets.is_empty()).then_some(frames.len() as u32);
    Ok(Parts { frames: Switch::new(frames, hz), packets: Relay::new(packets, hz), first })
}

fn serve(mut switch: Switch<Cap<Ntfn>>, mut look: impl FnMut()) -> ! {
    // A predecessor may have left every port asleep.
    let mut pending = u64::MAX;
    loop {
        look();
        pending = switch.round(pending, cpu::now());
        let deadline = if pending == 0 { FOREVER } else { 0 };
        pending |= process::events().wait(deadline).unwrap_or(0);
    }
}

/// As [`serve`], with the ports of socket devices from `first` on.
fn serve_both(
    mut frames: Switch<Cap<Ntfn>>,
    mut packets: Relay<Cap<Ntfn>>,
    first: u32,
    mut look: impl FnMut(),
) -> ! {
    let mut pending = u64::MAX;
    loop {
        look();
        let now = cpu::now();
        let rest = packets.round(pending.checked_shr(first).unwrap_or(0), now);
        pending = frames.round(pending, now) | rest << first;
        let deadline = if pending == 0 { packets.deadline().unwrap_or(FOREVER) } else { 0 };
        pending |= process::events().wait(deadline).unwrap_or(0);
    }
}
