//! What the CPUs recorded, read from the lines that the root task prints.

use anyhow::{Context, Result, bail};
use hypercall_abi::Hypercall;
use hypercall_abi::trace::{Kind, Record};
use std::collections::BTreeMap;
use vmm_protocol::trace::Line;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When: TSC ticks since the root task started.
    pub at: u64,
    /// What happened.
    pub kind: Kind,
    /// First part of its detail: a number, a status or a vector.
    pub first: u8,
    /// Second part: a selector or a result.
    pub second: u16,
    /// Number of the execution context, 0 for none.
    pub ec: u32,
}

impl Event {
    /// The hypercall that it is.
    pub fn hypercall(&self) -> Option<Hypercall> {
        (self.kind == Kind::Hypercall).then(|| Hypercall::from_raw(self.first)).flatten()
    }
}

/// A whole recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// TSC ticks in a second.
    pub hz: u64,
    /// Processes by the number of their main thread.
    pub names: BTreeMap<u32, String>,
    /// Events of each CPU, oldest first.
    pub cpus: Vec<Vec<Event>>,
}

impl Recording {
    /// Reads the lines in a log.
    ///
    /// # Errors
    /// There is no recording in it, or not all of one.
    pub fn parse(log: &str) -> Result<Self> {
        let mut recording = Recording::default();
        let mut promised = Vec::new();
        let mut now = 0;
        let mut is_complete = false;
        for line in log.lines().filter_map(Line::parse) {
            match line {
                Line::Clock { hz, .. } => recording.hz = hz,
                Line::Thread { number, name } => {
                    recording.names.insert(number, name.to_owned());
                }
                Line::Cpu { count, .. } => {
                    promised.push(count as usize);
                    recording.cpus.push(Vec::new());
                    now = 0;
                }
                Line::Record { ticks, event, ec } => {
                    now += ticks;
                    let cpu = recording.cpus.last_mut().context("a record came before its CPU")?;
                    cpu.extend(decode(Record { tsc: now, event, ec }));
                }
                Line::End => is_complete = true,
            }
        }
        if !is_complete || recording.hz == 0 {
            bail!("the machine ended before it had printed what was recorded");
        }
        if let Some(cpu) = (0..promised.len()).find(|&cpu| recording.cpus[cpu].len() > promised[cpu]) {
            bail!("CPU {cpu} has more records than it said");
        }
        Ok(recording)
    }

    /// What to call a thread.
    pub fn name(&self, ec: u32) -> String {
        self.names.get(&ec).cloned().unwrap_or_else(|| format!("thread {ec}"))
    }

    /// Ticks as µs.
    pub fn microseconds(&self, ticks: u64) -> f64 {
        ticks as f64 * 1e6 / self.hz as f64
    }

    /// When the first event was and when the last, of all CPUs.
    pub fn range(&self) -> (u64, u64) {
        let firsts = self.cpus.iter().filter_map(|events| events.first());
        let lasts = self.cpus.iter().filter_map(|events| events.last());
        (
            firsts.map(|event| event.at).min().unwrap_or_default(),
            lasts.map(|event| event.at).max().unwrap_or_default(),
        )
    }
}

/// An event of a kind that this tool knows.
fn decode(record: Record) -> Option<Event> {
    let (first, second) = (record.first(), record.second());
    Some(Event { at: record.tsc, kind: record.kind()?, first, second, ec: record.ec })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[kernel INFO] Nacre\ntrace: clock 3e8 64\ntrace: thread 2 vm\ntrace: cpu 0 2\n\
                       trace: a 120401 2\ntrace: 5 50002 2\ntrace: cpu 1 1\ntrace: 7 7 0\ntrace: end\n";

    #[test]
    fn times_are_sums_and_details_are_taken_apart() {
        let recording = Recording::parse(LOG).unwrap();
        assert_eq!(recording.name(2), "vm");
        assert_eq!(recording.name(9), "thread 9");
        let [first, second] = recording.cpus[0][..] else { panic!("two events") };
        assert_eq!((first.at, first.hypercall(), first.second), (10, Some(Hypercall::VcpuRun), 0x12));
        assert_eq!((second.at, second.kind, second.first, second.second), (15, Kind::Return, 0, 5));
        assert_eq!(recording.cpus[1][0].kind, Kind::Idle);
        assert_eq!(recording.range(), (7, 15));
    }

    #[test]
    fn a_recording_that_breaks_off_is_refused() {
        assert!(Recording::parse(&LOG.replace("trace: end\n", "")).is_err());
        assert!(Recording::parse("").is_err());
        assert!(Recording::parse(&LOG.replace("cpu 0 2", "cpu 0 1")).is_err());
    }
}
