//! `irqoff.max`: the longest stretch that the kernel keeps interrupts off, with everything that it does for the benchmark and for
//! the conformance task recorded (SPEC.md 4.10).
//!
//! A tick is an instruction, so that the difference of two records is the length of the stretch but for the instructions before the
//! first record and behind the last, some dozens, and those of the records themselves.

use super::heavy::Counts;
use super::machine::{self, Measurements, Plan, Purpose};
use crate::progress;
use anyhow::{Result, bail};
use bench_protocol::{STRETCHES, Summary};
use hypercall_abi::Hypercall;
use hypercall_abi::trace::Kind;

/// The operation.
pub const OPERATION: &str = "irqoff.max";
/// How many of what the kernel is entered for are named.
const NAMED: usize = 8;

/// Records the benchmark of the operations in `plan`, and the conformance task: the longest stretch, and the longest by what the kernel
/// was entered for.
pub fn measure(plan: &Plan) -> Measurements {
    let mut measurements = Measurements::default();
    let result = longest(plan).map(|longest| {
        let most = longest.first().map_or(0, |(_, ticks)| *ticks);
        measurements.heavy.insert(OPERATION.to_owned(), longest.into_iter().take(NAMED).collect());
        Summary::single(most)
    });
    measurements.results.insert(OPERATION.to_owned(), result.map_err(|error| format!("{error:#}")));
    measurements
}

/// The longest stretch by what the kernel was entered for, the longest of all first.
fn longest(plan: &Plan) -> Result<Vec<(String, u64)>> {
    let name = plan.machine.name();
    let mut longest = Counts::new();
    for (program, what) in [("bench", "the benchmark"), ("conformance", "the conformance task")] {
        let only = plan.only.iter().cloned().chain([STRETCHES.to_owned()]).collect();
        let plan = Plan { program, only, ..plan.clone() };
        let run = progress::timed(&format!("recording {what} on {name}"), || {
            machine::run(&plan, Purpose::Measure)
        })?;
        for (event, ticks) in run.stretches {
            let ticks_before = longest.entry(name_of(event)).or_default();
            *ticks_before = ticks.max(*ticks_before);
        }
    }
    if longest.is_empty() {
        bail!("nothing was recorded");
    }
    let mut by_length: Vec<(String, u64)> = longest.into_iter().collect();
    by_length.sort_by_key(|(_, ticks)| std::cmp::Reverse(*ticks));
    Ok(by_length)
}

/// What the kernel was entered for, by the low half of its record.
fn name_of(event: u16) -> String {
    let [kind, number] = event.to_le_bytes();
    match (Kind::from_raw(kind), Hypercall::from_raw(number)) {
        (Some(Kind::Hypercall), Some(call)) => format!("{call:?}"),
        (Some(Kind::Hypercall), None) => format!("hypercall {number}"),
        (Some(Kind::Interrupt), _) => format!("interrupt {number:#x}"),
        (Some(Kind::Fault), _) => format!("exception {number}"),
        _ => format!("event {event:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_names_of_the_contract() {
        assert_eq!(name_of(0x0b01), "Revoke");
        assert_eq!(name_of(0xff01), "hypercall 255");
        assert_eq!([name_of(0xf004), name_of(0x0e05)], ["interrupt 0xf0", "exception 14"]);
    }
}
