//! What a recording comes to: how often and how long, by exit, by hypercall, by owner.

use super::recording::{Event, Recording};
use super::timeline::{Owner, Span};
use hypercall_abi::exit::ExitKind;
use hypercall_abi::trace::Kind;
use hypercall_abi::{Hypercall, Status};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// How often something was, and for how many ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// Ticks in all.
    pub ticks: u64,
    /// Ticks of the longest.
    pub longest: u64,
}

impl Tally {
    fn add(&mut self, ticks: u64) {
        self.count += 1;
        self.ticks += ticks;
        self.longest = self.longest.max(ticks);
    }
}

/// Tallies by name.
pub type Tallies = BTreeMap<String, Tally>;

/// The summary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Exits to a VMM: ticks until the guest ran again.
    pub exits: Tallies,
    /// Exits that the kernel answered.
    pub answered: Tallies,
    /// Hypercalls but for `VcpuRun`: ticks until the thread went on, waiting included.
    pub hypercalls: Tallies,
    /// Interrupts of the host, by vector.
    pub interrupts: Tallies,
    /// Ticks by owner, in all CPUs.
    pub owners: Tallies,
    /// The longest stretch of the kernel: ticks, when, and what it began with.
    pub longest: Option<(u64, u64, String)>,
}

impl Summary {
    /// Sums up.
    pub fn of(recording: &Recording, spans: &[Vec<Span>]) -> Self {
        let mut summary = Summary::default();
        for (events, spans) in recording.cpus.iter().zip(spans) {
            summary.add_events(events);
            for span in spans {
                summary.add_span(recording, span, &events[span.event]);
            }
        }
        summary
    }

    fn add_events(&mut self, events: &[Event]) {
        // What each thread is in: a hypercall, or, after an exit, its VMM's work.
        let mut calls: BTreeMap<u32, (Hypercall, u64)> = BTreeMap::new();
        let mut outside: BTreeMap<u32, (String, u64)> = BTreeMap::new();
        for event in events {
            let since = |tallies: &mut Tallies, name: String, at: u64| {
                tallies.entry(name).or_default().add(event.at - at);
            };
            match event.kind {
                Kind::Interrupt => since(&mut self.interrupts, format!("{:#x}", event.first), event.at),
                Kind::Enter => {
                    if let Some(name) = answered(event) {
                        since(&mut self.answered, name, event.at);
                    }
                }
                Kind::Hypercall | Kind::Return => {
                    match calls.remove(&event.ec) {
                        Some((Hypercall::VcpuRun, _)) => {
                            outside.insert(event.ec, (exit(event), event.at));
                        }
                        // The handler's next event is of its next call.
                        Some((call @ (Hypercall::Reply | Hypercall::ReplyMessage), _)) => {
                            since(&mut self.hypercalls, format!("{call:?}"), event.at);
                        }
                        Some((call, at)) => since(&mut self.hypercalls, format!("{call:?}"), at),
                        None => {}
                    }
                    if let Some(call) = event.hypercall() {
                        if call == Hypercall::VcpuRun
                            && let Some((name, at)) = outside.remove(&event.ec)
                        {
                            since(&mut self.exits, name, at);
                        }
                        calls.insert(event.ec, (call, event.at));
                    }
                }
                Kind::Fault | Kind::Wake | Kind::Idle | Kind::Window => {}
            }
        }
        // A VMM whose guest never ran again after its last exit.
        for (name, _) in outside.into_values() {
            self.exits.entry(name).or_default().add(0);
        }
    }

    fn add_span(&mut self, recording: &Recording, span: &Span, first: &Event) {
        let ticks = span.to - span.from;
        self.owners.entry(owner_name(recording, span.owner)).or_default().add(ticks);
        if span.owner == Owner::Kernel && self.longest.as_ref().is_none_or(|longest| ticks > longest.0) {
            self.longest = Some((ticks, span.from, describe(recording, first)));
        }
    }

    /// The tables, for a person.
    pub fn text(&self, recording: &Recording) -> String {
        let mut text = String::new();
        let mut table = |title: &str, tallies: &Tallies| {
            if tallies.is_empty() {
                return;
            }
            let _ = writeln!(text, "{title:<34} {:>9} {:>14} {:>12}", "count", "time/µs", "longest/µs");
            let mut rows: Vec<(&String, &Tally)> = tallies.iter().collect();
            rows.sort_by_key(|(_, tally)| std::cmp::Reverse((tally.ticks, tally.count)));
            for (name, tally) in rows {
                let [all, longest] = [tally.ticks, tally.longest].map(|ticks| recording.microseconds(ticks));
                let _ = writeln!(text, "  {name:<32} {:>9} {all:>14.1} {longest:>12.1}", tally.count);
            }
        };
        table("exits, until the guest goes on", &self.exits);
        table("exits that the kernel answered", &self.answered);
        table("hypercalls, until they return", &self.hypercalls);
        table("interrupts", &self.interrupts);
        table("who had the CPUs", &self.owners);
        if let Some((ticks, at, what)) = &self.longest {
            let [ticks, at] = [*ticks, *at].map(|ticks| recording.microseconds(ticks));
            let _ = writeln!(text, "longest stretch of the kernel: {ticks:.1} µs at {at:.1} µs, {what}");
        }
        text
    }

    /// The same for a program, in ticks.
    pub fn json(&self) -> Value {
        let object = |tallies: &Tallies| -> Value {
            tallies
                .iter()
                .map(|(name, tally)| {
                    let Tally { count, ticks, longest } = tally;
                    (name.clone(), json!({ "count": count, "ticks": ticks, "longest": longest }))
                })
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "exits": object(&self.exits),
            "answered": object(&self.answered),
            "hypercalls": object(&self.hypercalls),
            "interrupts": object(&self.interrupts),
            "owners": object(&self.owners),
            "longest": self.longest.as_ref().map(|(ticks, at, what)| {
                json!({ "ticks": ticks, "at": at, "what": what })
            }),
        })
    }
}

/// How a `VcpuRun` ended.
pub fn exit(returned: &Event) -> String {
    match Status::from_raw(returned.first.into()) {
        Some(Status::Success) => match ExitKind::from_raw(returned.second.into()) {
            Some(kind) => format!("{kind:?}"),
            None => format!("exit {}", returned.second),
        },
        Some(status) => format!("{status:?}"),
        None => format!("status {}", returned.first),
    }
}

/// The exit that the kernel answered before it entered the guest again.
pub fn answered(entered: &Event) -> Option<String> {
    ExitKind::from_raw(entered.first.into()).map(|kind| format!("{kind:?}"))
}

/// What to call an owner.
pub fn owner_name(recording: &Recording, owner: Owner) -> String {
    match owner {
        Owner::Idle => "idle".into(),
        Owner::Kernel => "kernel".into(),
        Owner::User(ec) => recording.name(ec),
        Owner::Guest(ec) => format!("{}'s VM", recording.name(ec)),
    }
}

/// An event in words.
pub fn describe(recording: &Recording, event: &Event) -> String {
    let name = recording.name(event.ec);
    match event.kind {
        Kind::Hypercall => match event.hypercall() {
            Some(call) => format!("{call:?} of {name}"),
            None => format!("hypercall {} of {name}", event.first),
        },
        Kind::Return => format!("{name} goes on"),
        Kind::Enter => format!("{name}'s guest goes on"),
        Kind::Interrupt => format!("interrupt {:#x}", event.first),
        Kind::Fault => format!("exception {} of {name}", event.first),
        Kind::Wake => format!("{name} wakes"),
        Kind::Idle => "idle".into(),
        Kind::Window => format!("{name}'s hypercall lets interrupts in"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::timeline::spans;
    use super::super::timeline::tests::event;
    use super::*;

    #[test]
    fn exits_are_counted_with_the_time_until_the_guest_goes_on() {
        let run = Hypercall::VcpuRun as u8;
        let events = vec![
            event(0, Kind::Hypercall, run, 9, 3),
            event(10, Kind::Return, 0, ExitKind::Cpuid as u16, 3),
            event(14, Kind::Hypercall, Hypercall::Signal as u8, 9, 3),
            event(20, Kind::Return, 0, 0, 3),
            event(25, Kind::Hypercall, run, 9, 3),
            event(30, Kind::Enter, ExitKind::PortIo as u8, 0, 3),
            event(40, Kind::Return, 0, ExitKind::Hlt as u16, 3),
        ];
        let recording = Recording { hz: 1_000_000, cpus: vec![events], ..Recording::default() };
        let spans: Vec<_> = recording.cpus.iter().map(|events| spans(events)).collect();
        let summary = Summary::of(&recording, &spans);
        assert_eq!(summary.exits["Cpuid"], Tally { count: 1, ticks: 15, longest: 15 });
        assert_eq!(summary.exits["Hlt"].count, 1);
        assert_eq!(summary.answered["PortIo"].count, 1);
        assert_eq!(summary.hypercalls["Signal"], Tally { count: 1, ticks: 6, longest: 6 });
        assert_eq!(summary.owners["thread 3's VM"].ticks, 25);
        assert_eq!(summary.longest, Some((6, 14, "Signal of thread 3".into())));
        assert!(summary.text(&recording).contains("Cpuid"));
    }
}
