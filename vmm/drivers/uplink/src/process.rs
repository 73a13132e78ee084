//! The process: interrupts, deadlines, and the channel to the switch.

use crate::{Card, Pump};
use net_channel::End;
use usys::abi::Selector;
use usys::cap::{Cap, Irqs, Ntfn};
use usys::cpu;
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use vmm_protocol::net::Side;
use vmm_protocol::process::driver::{self, IRQ_BIT};
use vmm_protocol::process::{CHANNEL, UplinkConfig};

/// How long a frame may take to leave, in ms.
const PATIENCE_MS: u64 = 1000;
/// How long the interrupt for a frame that leaves is waited for before the card is looked at anyway, in ms.
const WATCHDOG_MS: u64 = 50;
/// How many failures are written to the log.
const MAX_COMPLAINTS: u32 = 20;

/// How a card interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// By a line, which is masked until its interrupt is acknowledged.
    Line,
    /// By messages.
    Message,
}

/// Reads the configuration.
///
/// # Errors
/// It is damaged.
pub fn config(info: &'static ProcessInfo) -> Result<UplinkConfig, &'static str> {
    postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")
}

/// The device's interrupt.
pub const IRQ: Cap<Irqs> = Cap::new(Selector(driver::IRQ));
/// What it signals.
pub const IRQ_NTFN: Cap<Ntfn> = Cap::new(Selector(driver::IRQ_NTFN));

/// Moves frames between a card, whose interrupt is bound, and the switch.
///
/// # Errors
/// There is no channel to the switch.
pub fn serve<C: Card>(
    info: &'static ProcessInfo,
    card: C,
    interrupt: Interrupt,
) -> Result<core::convert::Infallible, &'static str> {
    let channel = info.window(CHANNEL).ok_or("the channel is missing")?;
    let switch: Cap<Ntfn> = Cap::new(Selector(driver::USER));
    let link = End::new(channel, Side::Card, switch).map_err(|_| "the channel is too short")?;
    let pump = Pump::new(card, link);
    Driver { pump, interrupt, tsc_hz: info.header.tsc_hz, leaving: None, complaints: 0 }.serve()
}

/// Ends the process with a message.
pub fn end(what: &str) -> ! {
    log::error!("{what}");
    usys::start::fault()
}

struct Driver<C> {
    pump: Pump<C, End<Cap<Ntfn>>>,
    interrupt: Interrupt,
    tsc_hz: u64,
    /// The frame that leaves, and when it has to have left.
    leaving: Option<(u32, u64)>,
    complaints: u32,
}

impl<C: Card> Driver<C> {
    fn serve(mut self) -> ! {
        loop {
            let is_more = match self.pump.turn() {
                Ok(is_more) => is_more,
                Err(failure) => {
                    self.restart(&failure);
                    true
                }
            };
            if let Some(pause) = self.pump.card().pause_ms() {
                self.pause(pause);
                self.pump.card().resume();
            } else {
                self.wait(is_more);
            }
        }
    }

    /// Begins anew with the card. One that does not come back is for a new driver to try, if the root task starts one.
    fn restart(&mut self, why: &impl core::fmt::Display) {
        self.complaints += 1;
        if self.complaints <= MAX_COMPLAINTS {
            log::warn!("{why}: starting the card again");
        }
        self.leaving = None;
        if let Err(failure) = self.pump.card().restart() {
            log::error!("{failure}");
            usys::start::fault()
        }
    }

    /// Waits for the card or the switch, unless there `is_more` to do.
    fn wait(&mut self, is_more: bool) {
        let deadline = match self.check_leaving() {
            _ if is_more => 0,
            Some(deadline) => deadline.min(cpu::deadline_in(WATCHDOG_MS, self.tsc_hz)),
            None => FOREVER,
        };
        let bits = process::events().wait(deadline).unwrap_or(0);
        if bits & IRQ_BIT != 0 && self.interrupt == Interrupt::Line {
            // The reasons first, that the line goes down.
            self.pump.card().look();
            let _ = IRQ.acknowledge(0);
        }
    }

    /// Until when the frame that leaves has to have left.
    fn check_leaving(&mut self) -> Option<u64> {
        let Some(number) = self.pump.card().leaving() else {
            self.leaving = None;
            return None;
        };
        match self.leaving {
            Some((same, deadline)) if same == number => {
                if cpu::now() >= deadline {
                    self.restart(&"a frame does not leave");
                    return None;
                }
                Some(deadline)
            }
            _ => {
                let deadline = cpu::deadline_in(PATIENCE_MS, self.tsc_hz);
                self.leaving = Some((number, deadline));
                Some(deadline)
            }
        }
    }

    /// Lets time pass. What the switch has is looked at afterwards, and the card interrupts for nothing.
    fn pause(&self, milliseconds: u64) {
        let deadline = cpu::deadline_in(milliseconds, self.tsc_hz);
        while cpu::now() < deadline {
            let bits = process::events().wait(deadline).unwrap_or(0);
            if bits & IRQ_BIT != 0 && self.interrupt == Interrupt::Line {
                let _ = IRQ.acknowledge(0);
            }
        }
    }
}
