//! The time line as a picture, SVG: a lane for each CPU, coloured by who has it, with the exits of guests named above.

use super::recording::{Event, Recording};
use super::summary::{answered, exit, owner_name};
use super::timeline::{Owner, Span};
use hypercall_abi::Hypercall;
use hypercall_abi::trace::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const LEFT: f64 = 64.0;
const WIDTH: usize = 1200;
const LANE: f64 = 36.0;
/// Above each lane, for the names of exits.
const NAMES: f64 = 84.0;
const TOP: f64 = 64.0;
/// Pixels from one name to the next.
const SPACING: f64 = 11.0;

const IDLE: &str = "#eeeeee";
const KERNEL: &str = "#c0392b";
const GUESTS: [&str; 4] = ["#1e8449", "#52be80", "#148f77", "#7d9b2c"];
const THREADS: [&str; 6] = ["#1b6ca8", "#e0a800", "#8e44ad", "#d35400", "#5d6d7e", "#16a3c4"];

/// The picture: of the time from the first entry of a guest to the last exit, with a margin; of all, if no guest ran.
pub fn svg(recording: &Recording, spans: &[Vec<Span>], title: &str) -> String {
    let colours = colours(spans);
    let (from, to) = range(recording);
    let scale = WIDTH as f64 / (to - from).max(1) as f64;
    let height = TOP + (NAMES + LANE) * spans.len() as f64 + 40.0;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{w}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">{}</text>",
        escape(title),
        w = WIDTH as f64 + LEFT + 16.0,
    );
    legend(&mut text, recording, &colours);
    for (cpu, (events, spans)) in recording.cpus.iter().zip(spans).enumerate() {
        let y = TOP + NAMES + (NAMES + LANE) * cpu as f64;
        let _ = writeln!(text, "<text x=\"8\" y=\"{:.1}\">CPU {cpu}</text>", y + LANE / 2.0 + 4.0);
        lane(&mut text, spans, &colours, (from, scale, y));
        exits(&mut text, events, (from, scale, y));
    }
    axis(&mut text, recording, (from, to, height - 34.0));
    text.push_str("</svg>\n");
    text
}

fn range(recording: &Recording) -> (u64, u64) {
    let all = recording.range();
    let runs = |event: &&Event| event.hypercall() == Some(Hypercall::VcpuRun);
    let of_guests = recording.cpus.iter().filter_map(|events| {
        let first = events.iter().find(runs)?;
        let last = events.iter().rposition(|event| runs(&event) || event.kind == Kind::Enter)?;
        // What follows an entry is its exit.
        Some((first.at, events.get(last + 1).unwrap_or(&events[last]).at))
    });
    let Some((first, last)) = of_guests.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1))) else {
        return all;
    };
    let margin = (last - first) / 20;
    (first.saturating_sub(margin).max(all.0), (last + margin).min(all.1))
}

fn colours(spans: &[Vec<Span>]) -> BTreeMap<Owner, &'static str> {
    let owners: BTreeSet<Owner> = spans.iter().flatten().map(|span| span.owner).collect();
    let (mut guests, mut threads) = (GUESTS.iter().cycle(), THREADS.iter().cycle());
    let colour = |owner| match owner {
        Owner::Idle => IDLE,
        Owner::Kernel => KERNEL,
        Owner::Guest(_) => guests.next().copied().unwrap_or(IDLE),
        Owner::User(_) => threads.next().copied().unwrap_or(IDLE),
    };
    let mut colour = colour;
    owners.into_iter().map(|owner| (owner, colour(owner))).collect()
}

fn legend(text: &mut String, recording: &Recording, colours: &BTreeMap<Owner, &str>) {
    let mut x = 8.0;
    for (&owner, colour) in colours {
        let name = owner_name(recording, owner);
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"32\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"42\">{}</text>",
            x + 17.0,
            escape(&name)
        );
        x += 34.0 + 6.5 * name.chars().count() as f64;
    }
}

/// One column for each pixel, divided among those who had the CPU in that time; equal columns in a row are one.
fn lane(
    text: &mut String,
    spans: &[Span],
    colours: &BTreeMap<Owner, &str>,
    (from, scale, y): (u64, f64, f64),
) {
    let mut columns: Vec<BTreeMap<Owner, f64>> = vec![BTreeMap::new(); WIDTH];
    for span in spans {
        let [start, end] = [span.from, span.to].map(|at| at.saturating_sub(from) as f64 * scale);
        for (column, shares) in columns.iter_mut().enumerate().take(end.ceil() as usize).skip(start as usize)
        {
            let share = end.min(column as f64 + 1.0) - start.max(column as f64);
            *shares.entry(span.owner).or_default() += share.max(0.0);
        }
    }
    let mut column = 0;
    while column < WIDTH {
        let shares = &columns[column];
        let is_whole = shares.len() == 1;
        let same = columns[column..].iter().take_while(|other| is_whole && other.keys().eq(shares.keys()));
        let length = same.count().max(1);
        let all: f64 = shares.values().sum();
        let mut below = y;
        for (owner, share) in shares {
            let part = share / all.max(f64::MIN_POSITIVE) * LANE;
            let _ = writeln!(
                text,
                "<rect x=\"{}\" y=\"{below:.1}\" width=\"{length}\" height=\"{part:.1}\" fill=\"{}\"/>",
                LEFT + column as f64,
                colours.get(owner).copied().unwrap_or(IDLE)
            );
            below += part;
        }
        column += length;
    }
}

/// Exits of guests: a mark for each that has a pixel of its own, and a name where there is room.
fn exits(text: &mut String, events: &[Event], (from, scale, y): (u64, f64, f64)) {
    let mut running = BTreeSet::new();
    let (mut last_mark, mut last_name) = (f64::MIN, f64::MIN);
    for event in events {
        let name = match event.kind {
            Kind::Hypercall if event.hypercall() == Some(Hypercall::VcpuRun) => {
                running.insert(event.ec);
                None
            }
            Kind::Return if running.remove(&event.ec) => Some(exit(event)),
            Kind::Enter => answered(event),
            _ => None,
        };
        let x = LEFT + event.at.saturating_sub(from) as f64 * scale;
        let is_seen = event.at >= from && x <= LEFT + WIDTH as f64 && x >= last_mark + 1.0;
        let Some(name) = name.filter(|_| is_seen) else { continue };
        last_mark = x;
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\" stroke=\"#555\"><title>{name}</title></line>",
            y - 6.0
        );
        if x >= last_name + SPACING {
            last_name = x;
            let _ = writeln!(
                text,
                "<text transform=\"translate({:.1} {:.1}) rotate(-65)\" fill=\"#333\">{name}</text>",
                x + 3.0,
                y - 8.0
            );
        }
    }
}

fn axis(text: &mut String, recording: &Recording, (from, to, y): (u64, u64, f64)) {
    let [start, end] = [from, to].map(|at| recording.microseconds(at) / 1000.0);
    let step = step((end - start) / 8.0);
    let mut at = (start / step).ceil() * step;
    while at <= end && step > 0.0 {
        let x = LEFT + (at - start) / (end - start).max(f64::MIN_POSITIVE) * WIDTH as f64;
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\" stroke=\"#999\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{at:.decimals$} ms</text>",
            y - 6.0,
            y + 14.0
        );
        at += step;
    }
}

/// The round number (1, 2 or 5 times a power of ten) that is `least` or the next above.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|&step| step >= least).unwrap_or(power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::timeline::spans;
    use super::super::timeline::tests::event;
    use super::*;
    use hypercall_abi::exit::ExitKind;

    #[test]
    fn the_picture_names_exits_and_owners() {
        let events = vec![
            event(5, Kind::Hypercall, Hypercall::VcpuRun as u8, 9, 3),
            event(5000, Kind::Return, 0, ExitKind::Cpuid as u16, 3),
            event(9000, Kind::Idle, 0, 0, 0),
        ];
        let names = [(3, "a<b".to_owned())].into();
        let recording = Recording { hz: 1_000_000, cpus: vec![events], names };
        let spans: Vec<_> = recording.cpus.iter().map(|events| spans(events)).collect();
        let text = svg(&recording, &spans, "a title");
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        for part in [">Cpuid<", "a&lt;b's VM", "CPU 0", "a title", "2 ms"] {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.3, 1.1, 4.0, 70.0].map(step), [0.5, 2.0, 5.0, 100.0]);
    }
}
