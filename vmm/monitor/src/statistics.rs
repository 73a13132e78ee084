//! What exits cost: how many of which kind, and how much time passed outside the guest.

use core::fmt;
use usys::abi::exit::ExitKind;
use usys::cpu;

/// Exit kinds have smaller numbers than this, a power of two; what this version does not know is under any of them.
const KINDS: usize = 64;

/// Runs that ended with one kind of exit.
#[derive(Clone, Copy, Debug)]
struct Kind {
    count: u64,
    /// TSC ticks from the hypercall that entered the guest to its return, in all.
    ticks: u64,
    /// The same of the shortest run.
    least: u64,
}

/// Statistics of a VM.
#[derive(Clone, Debug)]
pub struct Statistics {
    start: u64,
    entered: u64,
    /// Times are taken, too: that costs two or three dozen instructions at each exit.
    is_timed: bool,
    kinds: [Kind; KINDS],
}

impl Statistics {
    /// Nothing happened yet at TSC `now`.
    pub const fn new(now: u64, is_timed: bool) -> Self {
        let nothing = Kind { count: 0, ticks: 0, least: u64::MAX };
        Statistics { start: now, entered: now, is_timed, kinds: [nothing; KINDS] }
    }

    /// The guest is about to be entered.
    #[inline]
    pub fn enter(&mut self) {
        if self.is_timed {
            self.enter_at(cpu::now());
        }
    }

    fn enter_at(&mut self, now: u64) {
        self.entered = now;
    }

    /// It exited at TSC `now`, with this number of an [`ExitKind`].
    #[inline]
    pub fn exit(&mut self, number: u32, now: u64) {
        let kind = &mut self.kinds[number as usize % KINDS];
        kind.count += 1;
        if self.is_timed {
            let ticks = now - self.entered;
            kind.ticks += ticks;
            kind.least = kind.least.min(ticks);
        }
    }

    /// Ticks that did not pass in the guest. The shortest run of a kind is taken to be the kernel's share in all of
    /// that kind, unless it is much longer than that of others: then the guest always ran for a while.
    fn outside(&self, now: u64) -> u64 {
        const MUCH: u64 = 3;
        let least = self.kinds.iter().map(|kind| kind.least).min().unwrap_or(0);
        let share = |kind: &Kind| kind.count * kind.least.min(least.saturating_mul(MUCH));
        let inside: u64 = self
            .kinds
            .iter()
            .filter(|kind| kind.count > 0)
            .map(|kind| kind.ticks.saturating_sub(share(kind)))
            .sum();
        (now - self.start).saturating_sub(inside)
    }

    /// A line about the time until TSC `now`.
    pub fn at(&self, now: u64) -> impl fmt::Display {
        struct Line<'a>(&'a Statistics, u64);
        impl fmt::Display for Line<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Line(statistics, now) = self;
                let kinds = || statistics.kinds.iter().enumerate();
                let exits: u64 = kinds().map(|(_, kind)| kind.count).sum();
                write!(f, "{exits} exits")?;
                if statistics.is_timed {
                    let (outside, all) = (statistics.outside(*now), now - statistics.start);
                    write!(f, ", {outside} of {all} ticks outside the guest")?;
                }
                f.write_str(":")?;
                for (number, kind) in kinds().filter(|(_, kind)| kind.count > 0) {
                    match ExitKind::from_raw(number as u32) {
                        Some(name) => write!(f, " {name:?} {}", kind.count)?,
                        None => write!(f, " others {}", kind.count)?,
                    }
                }
                Ok(())
            }
        }
        Line(self, now)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn the_kernels_share_of_a_run_is_that_of_the_shortest_of_its_kind() {
        let mut statistics = Statistics::new(1000, true);
        for (entered, exited, kind) in
            [(1100, 1600, ExitKind::Cpuid), (1700, 2700, ExitKind::Cpuid), (3000, 9000, ExitKind::Deadline)]
        {
            statistics.enter_at(entered);
            statistics.exit(kind as u32, exited);
        }
        // In the guest: nothing, 500, and 6000 less three times 500.
        let line = format!("{}", statistics.at(10_000));
        assert_eq!(line, "3 exits, 4000 of 9000 ticks outside the guest: Deadline 1 Cpuid 2");
    }

    #[test]
    fn kinds_are_counted_without_times() {
        let mut statistics = Statistics::new(0, false);
        for number in [ExitKind::Hlt as u32, ExitKind::Hlt as u32, u32::MAX] {
            statistics.enter();
            statistics.exit(number, 5);
        }
        assert_eq!(format!("{}", statistics.at(10)), "3 exits: Hlt 2 others 1");
    }
}
