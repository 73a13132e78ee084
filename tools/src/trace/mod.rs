//! `trace`: boots with every CPU recording what it does, and draws the time line.

pub mod recording;
pub mod summary;
pub mod svg;
pub mod timeline;

use self::recording::Recording;
use self::summary::Summary;
use self::timeline::Span;
use crate::failure;
use crate::request::{self, RunArgs};
use crate::run::outcome::Report;
use crate::{progress, workspace};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use vmm_protocol::manifest::{MAX_TRACE_EVENTS, TraceConfig};

/// Options of `trace`, beside those of `run`.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Where the picture goes
    #[arg(short, long, value_name = "FILE.svg")]
    output: Option<PathBuf>,
    /// Record from here on, in ms since the root task started
    #[arg(long, value_name = "MS", default_value_t = 0)]
    from: u64,
    /// Record until here, in ms since the root task started
    #[arg(long, value_name = "MS")]
    to: Option<u64>,
    /// Keep so many events for each CPU: the last ones
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TRACE_EVENTS)))]
    events: u32,
    /// What to run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Runs, draws, and prints what it came to; the exit code is the run's.
pub fn trace(args: &TraceArgs) -> Result<u8> {
    if args.to.is_some_and(|to| to <= args.from) {
        return Err(failure::usage("--to must be later than --from"));
    }
    let config = TraceConfig {
        events: args.events,
        from_us: args.from.saturating_mul(1000),
        to_us: args.to.map(|ms| ms.saturating_mul(1000)),
    };
    let log = args.run.log.clone().map_or_else(default_log, Ok)?;
    let run = RunArgs { trace: Some(config), log: Some(log.clone()), ..args.run.clone() };
    let report = request::run(&run, run.output())?;
    let text = String::from_utf8_lossy(&workspace::read(&log)?).into_owned();
    let recording = Recording::parse(&text).with_context(|| {
        format!("the run ended so: {:?} {}; the log is {}", report.verdict, report.detail, log.display())
    })?;
    let spans: Vec<Vec<Span>> = recording.cpus.iter().map(|events| timeline::spans(events)).collect();
    let summary = Summary::of(&recording, &spans);
    let machine = run.machine.resolve().name();
    let what = run.kernel.as_ref().map_or_else(|| run.guest.clone(), |path| path.display().to_string());
    let picture = match &args.output {
        Some(path) => path.clone(),
        None => workspace::own_dir("")?.join(format!("trace-{machine}.svg")),
    };
    workspace::write(&picture, svg::svg(&recording, &spans, &format!("Nacre on {machine}: {what}")))?;
    progress::step(format_args!("wrote {}", picture.display()));
    if args.run.json {
        println!("{}", json(machine, &report, &recording, &summary));
    } else {
        print!("{}", summary.text(&recording));
    }
    Ok(report.verdict.code())
}

fn default_log() -> Result<PathBuf> {
    Ok(workspace::own_dir("log")?.join("trace.log"))
}

/// Everything, for a program: times in ticks since the root task started.
fn json(machine: &str, report: &Report, recording: &Recording, summary: &Summary) -> Value {
    let cpus: Vec<Vec<Value>> = recording
        .cpus
        .iter()
        .map(|events| {
            let event = |event: &recording::Event| {
                json!({
                    "at": event.at,
                    "kind": format!("{:?}", event.kind),
                    "detail": [u16::from(event.first), event.second],
                    "ec": event.ec,
                    "what": summary::describe(recording, event),
                })
            };
            events.iter().map(event).collect()
        })
        .collect();
    json!({
        "machine": machine,
        "outcome": report.verdict.name(),
        "hz": recording.hz,
        "names": recording.names,
        "summary": summary.json(),
        "cpus": cpus,
    })
}
