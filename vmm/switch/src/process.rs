//! The process.

use crate::forward::Switch;
use alloc::format;
use alloc::vec::Vec;
use net_channel::End;
use usys::abi::Selector;
use usys::cap::{Cap, Ntfn};
use usys::cpu;
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use vmm_protocol::net::Side;
use vmm_protocol::process::{CHANNEL, SwitchConfig, switch};

/// Runs the switch.
pub fn main(info: &'static ProcessInfo) -> ! {
    usys::logger::to_kernel();
    match open(info) {
        Ok(switch) => serve(switch),
        Err(what) => {
            log::error!("{what}");
            usys::start::fault()
        }
    }
}

fn open(info: &'static ProcessInfo) -> Result<Switch<Cap<Ntfn>>, &'static str> {
    let config: SwitchConfig =
        postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")?;
    let mut ports = Vec::with_capacity(config.ports.len());
    for (index, port) in config.ports.into_iter().enumerate() {
        let channel = info.window(&format!("{CHANNEL}{index}")).ok_or("a channel is missing")?;
        let peer = Cap::new(Selector(switch::PORTS + index as u32));
        let end = End::new(channel, Side::Switch, peer).map_err(|_| "a channel is too short")?;
        ports.push((port, end));
    }
    Ok(Switch::new(ports, info.header.tsc_hz))
}

fn serve(mut switch: Switch<Cap<Ntfn>>) -> ! {
    // A predecessor may have left every port asleep.
    let mut pending = u64::MAX;
    loop {
        pending = switch.round(pending, cpu::now());
        let deadline = if pending == 0 { FOREVER } else { 0 };
        pending |= process::events().wait(deadline).unwrap_or(0);
    }
}
