//! Sleeping until an interrupt or a time, whichever comes first.

use crate::lapic::Lapic;
use crate::{cpu, irq};

/// The local APIC's timer, to end the CPU's sleep.
#[derive(Debug)]
pub struct Alarm {
    vector: u8,
    ticks_per_ms: u64,
}

impl Alarm {
    /// Switches the local APIC on. Interrupts of `vector` do nothing but end the sleep from now on: devices may use it too.
    pub fn new(vector: u8) -> Self {
        irq::count(vector);
        Alarm { vector, ticks_per_ms: Lapic::enable_best().ticks_per_ms().into() }
    }

    /// Sleeps until the next interrupt; for `us` microseconds at most if there is a limit, or for less if that is longer than the
    /// timer counts. An interrupt that is pending already ends the sleep before it begins.
    pub fn sleep(&self, us: Option<u64>) {
        let lapic = Lapic::current();
        match us {
            Some(us) => {
                let ticks = us.saturating_mul(self.ticks_per_ms).div_ceil(1000);
                lapic.start_timer(self.vector, 0, u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
            }
            None => lapic.stop_timer(),
        }
        cpu::sti_hlt_cli();
    }
}
