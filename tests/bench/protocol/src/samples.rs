//! Samples, and what is said about them.

use crate::{SAMPLES, WARM_UP};

/// Durations of one operation in TSC ticks.
#[derive(Clone, Debug)]
pub struct Samples {
    ticks: [u32; SAMPLES],
    seen: usize,
}

/// What is said about samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The fewest ticks.
    pub min: u64,
    /// The median: of an even number of samples the lower one of the two in the middle.
    pub median: u64,
    /// The most ticks.
    pub max: u64,
    /// How many samples.
    pub n: u64,
}

impl Summary {
    /// A figure that there is only one of.
    pub const fn single(value: u64) -> Self {
        Summary { min: value, median: value, max: value, n: 1 }
    }
}

impl Default for Samples {
    fn default() -> Self {
        Self::new()
    }
}

impl Samples {
    /// No samples.
    pub const fn new() -> Self {
        Samples { ticks: [0; SAMPLES], seen: 0 }
    }

    /// How many samples have to be taken until [`Self::is_full`].
    pub const TOTAL: usize = WARM_UP + SAMPLES;

    /// Takes a sample; the first [`WARM_UP`] and those beyond [`SAMPLES`] are dropped.
    pub fn push(&mut self, ticks: u32) {
        if let Some(slot) = self.seen.checked_sub(WARM_UP).and_then(|index| self.ticks.get_mut(index)) {
            *slot = ticks;
        }
        self.seen += 1;
    }

    /// Whether there are [`SAMPLES`] samples.
    pub fn is_full(&self) -> bool {
        self.seen >= Self::TOTAL
    }

    /// The samples with `overhead` subtracted from each; `None` before there is one.
    pub fn summary(&mut self, overhead: u64) -> Option<Summary> {
        let count = self.seen.saturating_sub(WARM_UP).min(SAMPLES);
        let ticks = &mut self.ticks[..count];
        ticks.sort_unstable();
        let net = |ticks: &u32| u64::from(*ticks).saturating_sub(overhead);
        Some(Summary {
            min: net(ticks.first()?),
            median: net(ticks.get((count - 1) / 2)?),
            max: net(ticks.last()?),
            n: count as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_is_dropped_and_the_overhead_subtracted() {
        let mut samples = Samples::new();
        for index in 0..Samples::TOTAL {
            assert!(!samples.is_full());
            samples.push(if index < WARM_UP { 9999 } else { 100 + index as u32 });
        }
        assert!(samples.is_full());
        samples.push(7);
        let first = (100 + WARM_UP) as u64;
        assert_eq!(
            samples.summary(10),
            Some(Summary {
                min: first - 10,
                median: first - 10 + (SAMPLES as u64 - 1) / 2,
                max: first - 10 + SAMPLES as u64 - 1,
                n: SAMPLES as u64,
            })
        );
    }

    #[test]
    fn nothing_is_said_about_no_samples() {
        let mut samples = Samples::new();
        samples.push(1);
        assert_eq!(samples.summary(0), None);
    }
}
