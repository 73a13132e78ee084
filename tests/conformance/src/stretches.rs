//! The longest stretches with interrupts off, for the benchmark: what the kernel does for the tests is recorded, test by test.

use crate::layout::{RING, RING_PAGES};
use crate::run::say;
use bench_protocol::{Line, STRETCHES};
use usys::Cap;
use usys::abi::Selector;
use usys::abi::boot_info::BootInfo;
use usys::process::unpadded;
use usys::trace::{Ring, Stretches};

/// Ticks of a stretch that is worth a line of the log.
const LONG: u64 = 10_000;

/// Recording of the CPU that runs the tests.
#[derive(Debug)]
pub struct Recorder {
    ring: Ring,
    stretches: Stretches,
}

/// Whether the machine was started for this.
pub fn is_wanted(info: &BootInfo) -> bool {
    info.modules[..info.module_count as usize].iter().any(|module| unpadded(&module.name) == STRETCHES)
}

impl Recorder {
    /// A recorder, if one is wanted.
    pub fn new(info: &BootInfo) -> Option<Self> {
        let memory = Cap::new(Selector(RING as u32));
        let ring = is_wanted(info).then(|| Ring::new(memory, RING_PAGES).ok()).flatten()?;
        Some(Recorder { ring, stretches: Stretches::default() })
    }

    /// Runs `test` and adds what it was recorded to do. The log names tests with long stretches.
    pub fn record(&mut self, name: &str, test: impl FnOnce()) {
        let is_recorded = self.ring.start(0).is_ok();
        test();
        if is_recorded && self.ring.stop().is_ok() {
            let mut own = Stretches::default();
            own.add(self.ring.records());
            if own.longest() >= LONG {
                say(format_args!("stretch: {} ticks in {name}", own.longest()));
            }
            self.stretches.merge(&own);
        }
    }

    /// Says what came of it.
    pub fn say(&self) {
        for (event, ticks) in self.stretches.iter() {
            say(format_args!("{}", Line::Stretch { event, ticks }));
        }
        say(format_args!("{}", Line::End));
    }
}
