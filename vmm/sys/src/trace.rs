//! What CPUs record (SPEC.md 4.10): rings, and what can be read from them.

use crate::abi::trace::{Kind, RECORD_BYTES, Record};
use crate::abi::{Hypercall, PAGE_SIZE, boot_info::root};
use crate::cap::{Cap, Memory, Trace};
use crate::error::Result;
use crate::memory::Mapping;
use alloc::collections::BTreeMap;

/// Memory that a CPU records into. For whoever has the trace of all CPUs: the root task.
#[derive(Debug)]
pub struct Ring {
    memory: Cap<Memory>,
    mapping: Mapping,
}

impl Ring {
    /// Makes all `pages` pages of a memory capability, which has no other use, a ring.
    pub fn new(memory: Cap<Memory>, pages: u64) -> Result<Self> {
        Ok(Ring { memory, mapping: Mapping::new(memory, 0, pages, true)? })
    }

    /// Empties it, and has a CPU record.
    pub fn start(&self, cpu: u64) -> Result<()> {
        let window = self.mapping.window();
        // The whole window is inside the window.
        let _ = window.zero(0, window.len());
        let trace: Cap<Trace> = Cap::new(root::TRACE);
        trace.record(cpu, self.memory)
    }

    /// Stops recording. What was recorded stays.
    pub fn stop(&self) -> Result<()> {
        self.memory.unmap(self.mapping.window().len() as u64 / PAGE_SIZE)
    }

    /// How many records it has room for.
    pub fn places(&self) -> usize {
        self.mapping.window().len() / RECORD_BYTES
    }

    fn at(&self, place: usize) -> Record {
        let mut bytes = [0; RECORD_BYTES];
        // Places are inside the window.
        let _ = self.mapping.window().read(place * RECORD_BYTES, &mut bytes);
        Record::from_bytes(bytes)
    }

    /// How many records it has, and where the oldest is.
    fn extent(&self) -> (usize, usize) {
        let (mut oldest, mut last) = (0, 0);
        for place in 0..self.places() {
            let tsc = self.at(place).tsc;
            if tsc == 0 {
                return (place, 0);
            }
            if tsc < last {
                oldest = place;
            }
            last = tsc;
        }
        (self.places(), oldest)
    }

    /// The records of a CPU that has stopped, oldest first.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record> + '_ {
        let (count, oldest) = self.extent();
        (0..count).map(move |index| self.at((oldest + index) % count))
    }
}

/// The longest stretches with interrupts off, by what the kernel was entered for: kind and number as in [`Record::event`], without
/// the selector. A stretch ends where user code or a guest goes on, interrupts are let in, or the CPU sleeps.
#[derive(Clone, Debug, Default)]
pub struct Stretches(BTreeMap<u16, u64>);

impl Stretches {
    /// Adds those in the records of a CPU, oldest first.
    pub fn add(&mut self, records: impl Iterator<Item = Record>) {
        let mut open: Option<Record> = None;
        // What a window is in.
        let mut call: Option<Record> = None;
        for record in records {
            let Some(kind) = record.kind().filter(|&kind| kind != Kind::Wake) else { continue };
            // Where the short way of a call was taken nothing says when it ended, but it is short.
            let is_known = kind != Kind::Hypercall
                && !(kind == Kind::Interrupt && open.as_ref().is_some_and(has_short_way));
            if let Some(first) = open.take().filter(|_| is_known) {
                let longest = self.0.entry(first.event as u16).or_default();
                *longest = (*longest).max(record.tsc.saturating_sub(first.tsc));
            }
            open = match kind {
                Kind::Hypercall => {
                    call = Some(record);
                    call.filter(|record| record.first() != Hypercall::VcpuRun as u8)
                }
                Kind::Interrupt | Kind::Fault => Some(record),
                Kind::Window => call.map(|call| Record { tsc: record.tsc, ..call }),
                _ => None,
            };
        }
    }

    /// Adds those of others.
    pub fn merge(&mut self, others: &Stretches) {
        for (event, ticks) in others.iter() {
            let longest = self.0.entry(event).or_default();
            *longest = ticks.max(*longest);
        }
    }

    /// The longest of all, in ticks.
    pub fn longest(&self) -> u64 {
        self.0.values().copied().max().unwrap_or(0)
    }

    /// Event and ticks.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.0.iter().map(|(&event, &ticks)| (event, ticks))
    }
}

/// Whether it is a hypercall that may leave the kernel without a record.
fn has_short_way(record: &Record) -> bool {
    let calls = [Hypercall::Call, Hypercall::Reply, Hypercall::CapInfo];
    record.kind() == Some(Kind::Hypercall) && calls.iter().any(|&call| call as u8 == record.first())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn record(tsc: u64, kind: Kind, first: u8) -> Record {
        Record { tsc, event: kind as u32 | (first as u32) << 8 | 7 << 16, ec: 1 }
    }

    fn longest(records: &[Record]) -> Vec<(u16, u64)> {
        let mut stretches = Stretches::default();
        stretches.add(records.iter().copied());
        stretches.iter().collect()
    }

    const REVOKE: u8 = Hypercall::Revoke as u8;
    const REVOKED: u16 = Kind::Hypercall as u16 | (REVOKE as u16) << 8;

    #[test]
    fn a_stretch_ends_where_user_code_goes_on_or_an_interrupt_comes() {
        let records = [
            record(10, Kind::Hypercall, REVOKE),
            record(20, Kind::Wake, 0),
            record(50, Kind::Return, 0),
            record(90, Kind::Hypercall, REVOKE),
            record(100, Kind::Interrupt, 0xf0),
            record(107, Kind::Return, 0),
        ];
        assert_eq!(longest(&records), [(REVOKED, 40), (Kind::Interrupt as u16 | 0xf000, 7)]);
    }

    #[test]
    fn a_window_divides_a_stretch() {
        let records = [
            record(10, Kind::Hypercall, REVOKE),
            record(40, Kind::Window, 0),
            record(60, Kind::Interrupt, 0xf0),
            record(65, Kind::Window, 0),
            record(100, Kind::Return, 0),
        ];
        assert_eq!(longest(&records), [(REVOKED, 35), (Kind::Interrupt as u16 | 0xf000, 5)]);
    }

    #[test]
    fn guests_and_short_ways_are_no_stretches() {
        let records = [
            record(10, Kind::Hypercall, Hypercall::VcpuRun as u8),
            record(500, Kind::Return, 0),
            record(510, Kind::Hypercall, Hypercall::Call as u8),
            record(900, Kind::Hypercall, Hypercall::Reply as u8),
            record(1900, Kind::Interrupt, 0xf0),
            record(1903, Kind::Idle, 0),
        ];
        assert_eq!(longest(&records), [(Kind::Interrupt as u16 | 0xf000, 3)]);
    }
}
