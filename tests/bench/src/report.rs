//! What is said to the host.

use crate::error::{Failure, Result};
use alloc::format;
use alloc::string::String;
use bench_protocol::{Line, STRETCHES, Samples, Summary, VMS};
use usys::trace::{Ring, Stretches};

/// Says results, of the operations that were asked for.
#[derive(Clone, Debug)]
pub struct Report {
    /// Words; empty for everything.
    wanted: String,
}

impl Report {
    /// A report on the operations that the words in `request` are the beginning of the names of.
    pub fn new(request: &str) -> Self {
        Report { wanted: request.into() }
    }

    /// The words, for another process.
    pub fn request(&self) -> &str {
        &self.wanted
    }

    /// How many other VMs are to be there: one less than what follows `vms=` in the request.
    pub fn other_vms(&self) -> u64 {
        let words = self.wanted.split_whitespace();
        let count = words.filter_map(|word| word.strip_prefix(VMS)?.parse().ok()).next();
        count.map_or(0, |count: u64| count.saturating_sub(1))
    }

    /// Whether the longest stretches with interrupts off are asked for.
    pub fn wants_stretches(&self) -> bool {
        self.wanted.split_whitespace().any(|word| word == STRETCHES)
    }

    /// Whether an operation was asked for.
    pub fn wants(&self, op: &str) -> bool {
        self.wanted.is_empty() || self.wanted.split_whitespace().any(|word| op.starts_with(word))
    }

    /// Whether some operation of a group was asked for.
    pub fn wants_some(&self, group: &str) -> bool {
        let matches = |word: &str| word.starts_with(group) || group.starts_with(word);
        self.wanted.is_empty() || self.wanted.split_whitespace().any(matches)
    }

    /// Measures an operation, if it was asked for, and says what came of it.
    pub fn measure(&self, op: &str, work: impl FnOnce() -> Result<Summary>) {
        if self.wants(op) {
            Self::begin(op);
            self.say(op, work());
        }
    }

    /// Says what is measured from here on, for whoever waits for it.
    pub fn begin(op: &str) {
        log::info!("{}", Line::Begin { op });
    }

    /// Says that the next two markers, of which nothing was said yet, enclose this operation.
    pub fn announce(op: &str) {
        log::info!("{}", Line::Window { op });
    }

    /// As [`Self::measure`], for work that gives several operations.
    pub fn say(&self, op: &str, result: Result<Summary>) {
        if !self.wants(op) {
            return;
        }
        match result {
            Ok(summary) => log::info!("{}", Line::Result { op, summary }),
            Err(failure) => {
                let why = format!("{failure}");
                log::info!("{}", Line::Failed { op, why: &why });
            }
        }
    }

    /// Says how long the stretches were while `ring` was recorded.
    pub fn say_stretches(ring: &Ring) -> Result<()> {
        ring.stop()?;
        let mut stretches = Stretches::default();
        stretches.add(ring.records());
        for (event, ticks) in stretches.iter() {
            log::info!("{}", Line::Stretch { event, ticks });
        }
        Ok(())
    }

    /// Says that this was all.
    pub fn end(&self) {
        log::info!("{}", Line::End);
    }
}

/// The summary of full samples.
pub fn summary(mut samples: Samples, overhead: u64) -> Result<Summary> {
    samples.summary(overhead).ok_or_else(|| Failure::new("no samples"))
}
