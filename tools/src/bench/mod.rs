//! `bench`: what Nacre's operations cost in instructions, beside what its peers need on the same emulators.
//!
//! The benchmark runs in place of the root task (`tests/bench`) on a machine where a TSC tick is an instruction: once without
//! mitigations, as the peers were measured, once with those that the CPU needs, and once more to see which instructions an
//! operation is made of.

pub mod bochs_trace;
pub mod catalogue;
pub mod chart;
pub mod gdb;
pub mod growth;
pub mod heavy;
pub mod irqoff;
pub mod linux;
pub mod machine;
pub mod qemu_trace;
pub mod readme;
pub mod release;
pub mod size;
pub mod table;
pub mod udp;
pub mod virtio;

use self::catalogue::{OPERATIONS, Op};
use self::heavy::Counts;
use self::machine::{MEMORY_MIB, Measurements, Plan, Purpose};
use crate::run::machine::Machine;
use crate::{compile, failure, progress, setup, workspace};
use anyhow::{Context, Result, bail};
use bench_protocol::{FIRST_MODULE, GUEST_MODULE, Summary, USER_BYTES};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::process::Stdio;

/// The operation that needs a second CPU.
const TWO_CPUS: &str = "signal.cross_cpu";
/// The operation that a CPU may do by itself, and its name where the kernel has to.
const SELF_IPI: &str = "ipi.self";
const NO_APICV: &str = "ipi.self_noapicv";
/// Words for the kernel that has to.
const NO_APICV_LINE: &str = "noapicv";
/// Operations of two VMs. QEMU's gdb server, which steps without interrupts, does not get from one to the other.
const TWO_VMS: &str = "pv.net_";
/// The operation that is what user space does not have.
const KERNEL_BYTES: &str = "mem.kernel_bytes";

/// Programs that the benchmark consists of: package and binary.
const PROGRAMS: [(&str, &str); 7] = [
    ("kernel", "kernel"),
    ("bench", "bench"),
    ("conformance", "conformance"),
    ("monitor", "monitor"),
    ("switch", "switch"),
    ("bench-guest", FIRST_MODULE),
    ("bench-guest", GUEST_MODULE),
];

/// Options of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// The machine: its TSC counts instructions
    #[arg(long, value_enum, default_value_t = BenchMachine::Vtx)]
    machine: BenchMachine,
    /// Only operations whose names begin with one of these
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Print the results as JSON, and nothing else, on stdout
    #[arg(long)]
    pub json: bool,
    /// Write the results into README.md and tests/bench/doc
    #[arg(long, conflicts_with = "only")]
    pub update_readme: bool,
}

/// A machine that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BenchMachine {
    /// Bochs with VT-x and EPT
    Vtx,
    /// QEMU's emulator with AMD-V and NPT
    Svm,
}

/// An operation's results.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation.
    pub op: &'static Op,
    /// Without mitigations; `None` if it was not measured.
    pub summary: Option<Summary>,
    /// The median with the mitigations that the CPU needs.
    pub auto: Option<u64>,
    /// Why it was not measured, if it should have been.
    pub why_not: Option<String>,
    /// What it executed of the instructions that are dear.
    pub heavy: Counts,
}

/// Measures, and prints what came of it.
pub fn bench(args: &BenchArgs) -> Result<()> {
    check_names(&args.only)?;
    release::refuse_other_builds()?;
    progress::timed("building the kernel and the benchmark", build)?;
    let machine = match args.machine {
        BenchMachine::Vtx => Machine::Vtx,
        BenchMachine::Svm => Machine::Svm,
    };
    let rows = measure(machine, &args.only)?;
    let chart = workspace::own_dir("")?.join(format!("bench-{}.svg", machine.name()));
    workspace::write(&chart, chart::svg(machine, &rows))?;
    progress::step(format_args!("wrote {}", chart.display()));
    if let Some(plot) = growth::svg(machine, &rows) {
        let file = chart.with_file_name(format!("bench-growth-{}.svg", machine.name()));
        workspace::write(&file, plot)?;
        progress::step(format_args!("wrote {}", file.display()));
    }
    if args.update_readme {
        readme::update(machine, &rows)?;
    }
    if args.json {
        println!("{}", report(machine, &rows));
    } else {
        print!("{}", table::markdown(machine, &rows));
    }
    Ok(())
}

fn check_names(only: &[String]) -> Result<()> {
    for name in only {
        if !OPERATIONS.iter().any(|op| op.name.starts_with(name.as_str())) {
            let names: Vec<&str> = OPERATIONS.iter().map(|op| op.name).collect();
            return Err(failure::usage(format!(
                "no operation begins with `{name}`; there are: {}",
                names.join(" ")
            )));
        }
    }
    Ok(())
}

fn build() -> Result<()> {
    setup::rust_target()?;
    let mut command = compile::cargo();
    command.args(["build", "--release", "--target", compile::BARE_TARGET]);
    for (package, binary) in PROGRAMS {
        command.args(["-p", package, "--bin", binary]);
    }
    let status = command.stdin(Stdio::null()).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the build failed; cargo's messages above say where");
    }
    Ok(())
}

/// What the benchmark is asked for: the names, and what others are computed from.
fn request(only: &[String]) -> Vec<String> {
    let mut request = only.to_vec();
    if only.iter().any(|name| KERNEL_BYTES.starts_with(name.as_str())) {
        request.push(USER_BYTES.to_owned());
    }
    request
}

fn measure(machine: Machine, only: &[String]) -> Result<Vec<Row>> {
    let wanted: Vec<&'static Op> = OPERATIONS
        .iter()
        .filter(|op| only.is_empty() || only.iter().any(|name| op.name.starts_with(name.as_str())))
        .collect();
    let wants = |name: &str| wanted.iter().any(|op| op.name == name);
    let plan =
        Plan { machine, program: "bench", only: request(only), mitigations: "off", cpus: 1, cmdline: "" };
    let run = |what: &str, plan: &Plan, purpose| {
        progress::timed(&format!("{what} on {}", machine.name()), || machine::run(plan, purpose))
    };
    let both = |mitigations| -> Result<Measurements> {
        let plan = Plan { mitigations, ..plan.clone() };
        let mut measurements =
            run(&format!("measuring, mitigations={mitigations},"), &plan, Purpose::Measure)?;
        if wants(TWO_CPUS) {
            let plan = Plan { cpus: 2, only: vec![TWO_CPUS.to_owned()], ..plan.clone() };
            measurements.merge(run("measuring with two CPUs", &plan, Purpose::Measure)?);
        }
        if wants(NO_APICV) {
            let plan = Plan { only: vec![SELF_IPI.to_owned()], cmdline: NO_APICV_LINE, ..plan.clone() };
            let mut without = run("measuring without APIC virtualization", &plan, Purpose::Measure)?;
            let result = without.results.remove(SELF_IPI);
            measurements.results.extend(result.map(|result| (NO_APICV.to_owned(), result)));
        }
        if linux::OPERATIONS.iter().any(|op| wants(op)) {
            measurements.merge(boot_linux(machine, mitigations));
        }
        // These boot three times each, so once must do.
        if mitigations == "off" && virtio::OPERATIONS.iter().any(|op| wants(op)) {
            measurements.merge(read_disks(machine, mitigations));
        }
        if udp::OPERATIONS.iter().any(|op| wants(op)) {
            measurements.merge(talk_by_udp(machine, mitigations));
        }
        Ok(measurements)
    };
    let mut off = both("off")?;
    if growth::FLAT.iter().any(|(_, many)| wants(many)) {
        let plan = Plan {
            only: growth::request(),
            // For the objects of so many VMs.
            cmdline: "kmem=64",
            ..plan.clone()
        };
        let mut crowded = run("measuring with many VMs", &plan, Purpose::Measure)?;
        for (one, many) in growth::FLAT {
            let result = crowded.results.remove(one);
            off.results.extend(result.map(|result| (many.to_owned(), result)));
        }
    }
    let auto = both("auto")?;
    // What grows is long, and says nothing new.
    let is_traced =
        |op: &&str| !(growth::is_growth(op) || machine == Machine::Svm && op.starts_with(TWO_VMS));
    let named: Vec<_> = wanted.iter().map(|op| op.name).filter(is_traced).map(str::to_owned).collect();
    // No names are all names.
    if !named.is_empty() {
        let plan = Plan { only: named, ..plan.clone() };
        off.heavy.extend(run("tracing", &plan, Purpose::Trace)?.heavy);
    }
    if wants(irqoff::OPERATION) {
        // What Bochs does with APIC virtualization ([`Machine::kernel_cmdline`]) keeps the recorded benchmark from its end.
        let plan = Plan { only: irqoff_request(), cmdline: NO_APICV_LINE, ..plan };
        off.merge(irqoff::measure(&plan));
    }
    wanted.into_iter().map(|op| row(op, &off, &auto)).collect()
}

/// What is recorded for the longest stretch: all that the benchmark does on one CPU.
fn irqoff_request() -> Vec<String> {
    let names = OPERATIONS.iter().map(|op| op.name);
    names.filter(|name| !growth::is_growth(name)).map(str::to_owned).collect()
}

fn boot_linux(machine: Machine, mitigations: &str) -> Measurements {
    let what = format!("booting Debian, mitigations={mitigations}, on {}", machine.name());
    let boot = progress::timed(&what, || linux::boot(machine, mitigations));
    let mut measurements = Measurements::default();
    match boot {
        Ok(boot) => {
            for (op, ticks) in linux::OPERATIONS.into_iter().zip([boot.outside, boot.since_entry]) {
                let result = Ok(Summary::single(ticks));
                measurements.results.insert(op.to_owned(), result);
            }
            let op = linux::OPERATIONS[0].to_owned();
            measurements.heavy.insert(op, boot.exits);
        }
        // Without Debian's kernel, say, the rest is still worth having.
        Err(error) => measurements
            .results
            .extend(linux::OPERATIONS.map(|op| (op.to_owned(), Err(format!("{error:#}"))))),
    }
    measurements
}

fn read_disks(machine: Machine, mitigations: &str) -> Measurements {
    let what = format!("booting Debian with a disk, mitigations={mitigations}, on {}", machine.name());
    let costs = progress::timed(&what, || virtio::measure(machine, mitigations));
    let mut measurements = Measurements::default();
    match costs {
        Ok(costs) => {
            for (op, cost) in virtio::OPERATIONS.into_iter().zip(costs) {
                measurements.results.insert(op.to_owned(), Ok(Summary::single(cost.outside)));
                measurements.heavy.insert(op.to_owned(), cost.heavy);
            }
        }
        Err(error) => measurements
            .results
            .extend(virtio::OPERATIONS.map(|op| (op.to_owned(), Err(format!("{error:#}"))))),
    }
    measurements
}

fn talk_by_udp(machine: Machine, mitigations: &str) -> Measurements {
    let what = format!("booting two Debians, mitigations={mitigations}, on {}", machine.name());
    let ticks = progress::timed(&what, || udp::measure(machine, mitigations));
    let results = match ticks {
        Ok(ticks) => ticks.map(|ticks| Ok(Summary::single(ticks))),
        Err(error) => [0; 2].map(|_| Err(format!("{error:#}"))),
    };
    let results = udp::OPERATIONS.into_iter().map(str::to_owned).zip(results).collect();
    Measurements { results, ..Measurements::default() }
}

fn row(op: &'static Op, off: &Measurements, auto: &Measurements) -> Result<Row> {
    let (summary, why_not) = match off.results.get(op.name) {
        Some(Ok(summary)) => (Some(*summary), None),
        Some(Err(why)) => (None, Some(why.clone())),
        None => (computed(op, off)?.map(Summary::single), None),
    };
    Ok(Row {
        op,
        summary,
        auto: auto.median(op.name),
        why_not,
        heavy: off.heavy.get(op.name).cloned().unwrap_or_default(),
    })
}

/// What is not measured, but follows from the files or from what was measured.
fn computed(op: &Op, measurements: &Measurements) -> Result<Option<u64>> {
    Ok(match op.name {
        KERNEL_BYTES => {
            measurements.median(USER_BYTES).map(|user| (u64::from(MEMORY_MIB) << 20).saturating_sub(user))
        }
        "size.kernel_lines" => Some(size::kernel_lines()?),
        "size.text_rodata" => Some(size::text_and_rodata()?),
        _ => None,
    })
}

/// The results as JSON; operations that are not there are not in it.
fn report(machine: Machine, rows: &[Row]) -> Value {
    let results: Vec<Value> = rows
        .iter()
        .filter_map(|row| {
            let summary = row.summary?;
            let best = row.op.best_peer();
            let elsewhere = |name: &str, is_here: bool| match is_here {
                true => name.to_owned(),
                false => format!("{name} (measured on the other machine)"),
            };
            Some(json!({
                "op": row.op.name,
                "median": summary.median,
                "min": summary.min,
                "max": summary.max,
                "n": summary.n,
                "best_peer": best.map(|peer| peer.value),
                "peer_name": best.map(|peer| elsewhere(peer.name, peer.on.is(machine))),
                "heavy": row.heavy,
            }))
        })
        .collect();
    json!({ "machine": machine.name(), "results": results })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_exactly_the_documented_fields() {
        let op = OPERATIONS.iter().find(|op| op.name == "sm.signal").unwrap();
        let there = Row {
            op,
            summary: Some(Summary::single(140)),
            auto: Some(141),
            why_not: None,
            heavy: Counts::from([("swapgs".to_owned(), 2)]),
        };
        let missing = Row { summary: None, ..there.clone() };
        assert_eq!(
            report(Machine::Svm, &[there, missing]),
            json!({ "machine": "svm", "results": [{
                "op": "sm.signal", "median": 140, "min": 140, "max": 140, "n": 1,
                "best_peer": 142, "peer_name": "NOVA", "heavy": { "swapgs": 2 },
            }]})
        );
    }

    #[test]
    fn a_name_that_no_operation_begins_with_is_refused() {
        assert!(check_names(&["ipc".into(), "exit.cpuid".into()]).is_ok());
        let error = check_names(&["exit.nothing".into()]).unwrap_err();
        assert_eq!(failure::kind(&error), failure::Kind::Usage);
    }
}
