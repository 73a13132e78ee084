//! Steal time: how long the guest's CPU was kept from running.
//!
//! The kernel counts it, since nobody else can see when a thread does not run. The guest is told where it has time: when its
//! timer was due, so that it knows before it accounts for the tick.

use vdev::guest_mem::GuestMemory;
use vdev::pvclock::{PvClock, VcpuClock};

/// How often the guest is told at most, in a second. Linux looks at every tick of its own, 4 ms or 10 ms, and accounts for whole
/// ticks.
const TELLINGS: u64 = 100;
/// Less than this part of a second waits until it is more: between two processes of one guest it is nothing.
const LEAST: u64 = 100_000;

/// What the guest was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StealTime {
    /// TSC ticks for which the vCPU's thread was ready and did not run, in all.
    waited: fn() -> u64,
    /// As many of them are over.
    told: u64,
    /// Host TSC at which the guest may be told more.
    due: u64,
    interval: u64,
    least: u64,
}

impl StealTime {
    /// Nothing was stolen yet from a guest that begins now. `waited` tells of the TSC ticks for which the vCPU's thread was ready
    /// and did not run.
    pub(crate) fn new(waited: fn() -> u64, tsc_hz: u64) -> Self {
        StealTime { waited, told: waited(), due: 0, interval: tsc_hz / TELLINGS, least: tsc_hz / LEAST }
    }

    /// Tells the guest at host TSC `now`, if it wants to know and was not told just before.
    pub(crate) fn tell<M: GuestMemory>(
        &mut self,
        vcpu: &VcpuClock,
        clock: &PvClock,
        memory: &mut M,
        now: u64,
    ) {
        if now < self.due || !vcpu.has_steal_time() {
            return;
        }
        self.due = now.saturating_add(self.interval);
        let waited = (self.waited)();
        let stolen = waited.saturating_sub(self.told);
        if stolen > self.least {
            self.told = waited;
            vcpu.add_steal_time(clock.duration_ns(stolen), memory);
        }
    }
}
