//! Recording what the CPUs do, for `cargo nacre trace`: the rings, when to record, and printing them.

use crate::error::StartError;
use crate::memory::FreeMemory;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use usys::abi::PAGE_SIZE;
use usys::abi::boot_info::{BootInfo, root};
use usys::abi::trace::{RECORD_BYTES, Record};
use usys::cap::{Cap, Ec};
use usys::object::FOREVER;
use usys::trace::Ring;
use usys::{cpu, process};
use vmm_protocol::manifest::TraceConfig;
use vmm_protocol::trace::Line;

/// Name of this process's thread.
const OWN_NAME: &str = "root";
/// Text that is collected before it goes to the kernel's log.
const BUFFER: usize = 4000;

/// What is recorded, and when.
#[derive(Debug)]
pub struct Recorder {
    /// One for each CPU.
    rings: Vec<Ring>,
    /// When to begin, TSC.
    from: u64,
    /// When to stop, TSC.
    to: u64,
    state: State,
    /// Ticks in a second, and when this process started.
    clock: (u64, u64),
    /// Threads by number.
    names: Vec<(u32, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Recording,
    Stopped,
}

impl Recorder {
    /// Makes the rings, and begins if it is time.
    pub fn new(memory: &mut FreeMemory, info: &BootInfo, config: TraceConfig) -> Result<Self, StartError> {
        let pages = (u64::from(config.events) * RECORD_BYTES as u64).div_ceil(PAGE_SIZE);
        let mut ring =
            || -> Result<Ring, StartError> { Ok(Ring::new(memory.allocate(pages, 1)?.memory(), pages)?) };
        let rings = (0..info.cpu_count).map(|_| ring()).collect::<Result<_, _>>()?;
        let now = cpu::now();
        let after = |us: u64| now.saturating_add(us.saturating_mul(info.tsc_hz / 1_000_000));
        let mut recorder = Recorder {
            rings,
            from: after(config.from_us),
            to: config.to_us.map_or(FOREVER, after),
            state: State::Waiting,
            clock: (info.tsc_hz, now),
            names: Vec::new(),
        };
        recorder.name(Cap::new(root::EC), OWN_NAME);
        recorder.look()?;
        Ok(recorder)
    }

    /// Says what a thread is called.
    pub fn name(&mut self, ec: Cap<Ec>, name: &str) {
        if let Ok(number) = ec.number() {
            self.names.push((number as u32, name.to_string()));
        }
    }

    /// When [`Self::look`] has something to do, TSC.
    pub fn next(&self) -> u64 {
        match self.state {
            State::Waiting => self.from,
            State::Recording => self.to,
            State::Stopped => FOREVER,
        }
    }

    /// Begins, or stops, if it is time.
    pub fn look(&mut self) -> Result<(), StartError> {
        if self.state == State::Waiting && cpu::now() >= self.from {
            self.state = State::Recording;
            for (index, ring) in self.rings.iter().enumerate() {
                ring.start(index as u64)?;
            }
        }
        if self.state == State::Recording && cpu::now() >= self.to {
            self.stop()?;
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), StartError> {
        if self.state == State::Recording {
            for ring in &self.rings {
                ring.stop()?;
            }
        }
        self.state = State::Stopped;
        Ok(())
    }

    /// Stops, and prints everything to the kernel's log.
    pub fn print(&mut self) -> Result<(), StartError> {
        self.stop()?;
        let mut out = Out { text: String::with_capacity(BUFFER + 64) };
        let (hz, start) = self.clock;
        out.line(Line::Clock { hz, start });
        for (number, name) in &self.names {
            out.line(Line::Thread { number: *number, name });
        }
        for (index, ring) in self.rings.iter().enumerate() {
            print_ring(&mut out, index as u32, ring, start);
        }
        out.line(Line::End);
        out.flush();
        Ok(())
    }
}

/// The records of one CPU, from the oldest on.
fn print_ring(out: &mut Out, index: u32, ring: &Ring, start: u64) {
    let records = ring.records();
    out.line(Line::Cpu { index, count: records.len() as u32 });
    let mut last = start;
    for Record { tsc, event, ec } in records {
        out.line(Line::Record { ticks: tsc.saturating_sub(last), event, ec });
        last = tsc;
    }
}

/// Lines on their way to the kernel's log.
struct Out {
    text: String,
}

impl Out {
    fn line(&mut self, line: Line<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
        if self.text.len() >= BUFFER {
            self.flush();
        }
    }

    fn flush(&mut self) {
        // There is nobody to be told.
        let _ = process::kernel_log().write(self.text.as_bytes());
        self.text.clear();
    }
}
