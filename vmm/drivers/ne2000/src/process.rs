//! The process: its card, and the ports.

use crate::card::Card;
use crate::registers::{Bus, DATA, PORTS};
use uplink::process::{IRQ, IRQ_NTFN, Interrupt, config, end, serve};
use usys::object::Trigger;
use usys::port::PortRange;
use usys::process::ProcessInfo;
use vdev::net::MAX_FRAME;

/// Runs the driver.
pub fn main(info: &'static ProcessInfo) -> ! {
    usys::logger::to_kernel();
    match run(info) {
        Ok(never) => match never {},
        Err(what) => end(what),
    }
}

fn run(info: &'static ProcessInfo) -> Result<core::convert::Infallible, &'static str> {
    let base = config(info)?.ports.ok_or("the machine has no such card")?;
    IRQ.bind(0, IRQ_NTFN, Trigger::Level).map_err(|_| "the kernel refused the interrupt")?;
    let card = Card::new(Ports(PortRange::new(base, PORTS))).map_err(|failure| {
        log::error!("{failure}");
        "the card cannot be used"
    })?;
    let [a, b, c, d, e, f] = card.address();
    log::info!(
        "NE2000, address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}, frames of up to {MAX_FRAME} bytes"
    );
    serve(info, card, Interrupt::Line)
}

/// The card's ports.
#[derive(Debug)]
struct Ports(PortRange);

impl Bus for Ports {
    fn read(&mut self, port: u8) -> u8 {
        self.0.read(port.into())
    }

    fn write(&mut self, port: u8, value: u8) {
        self.0.write(port.into(), value);
    }

    fn read_data(&mut self, into: &mut [u8]) {
        self.0.read_words(DATA.into(), into);
    }

    fn write_data(&mut self, from: &[u8]) {
        self.0.write_words(DATA.into(), from);
    }
}
