//! What the user may say, and the exit code that comes of it.

use crate::bench::{self, BenchArgs};
use crate::failure::{self, Kind};
use crate::image::BootImage;
use crate::image::iso::{self, Firmware};
use crate::request::{self, RunArgs};
use crate::run::outcome::{Report, Verdict};
use crate::trace::{self, TraceArgs};
use crate::{compile, doctor, progress, setup, test};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

/// Builds, runs and tests Nacre, a microhypervisor.
#[derive(Debug, Parser)]
#[command(name = "cargo nacre", bin_name = "cargo nacre", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boots Nacre in an emulator and ends in a VM's console
    Run(RunArgs),
    /// Runs every test: host, and both emulators
    Test(test::TestArgs),
    /// Measures what operations cost, beside other hypervisors
    Bench(BenchArgs),
    /// Boots with every CPU recording what it does, and draws the time line
    Trace(TraceArgs),
    /// Says what this machine has, and what to do about what it lacks
    Doctor(doctor::DoctorArgs),
    /// Makes an image that boots on a PC, by BIOS and UEFI
    Image(ImageArgs),
    /// Builds the kernel and the programs of user space
    Build,
    /// Installs what is missing for `run`, `test` and `image`
    Setup,
}

/// Options of `image`.
#[derive(Debug, Args)]
struct ImageArgs {
    /// The image to write
    #[arg(short, long, value_name = "FILE.iso")]
    output: PathBuf,
    #[command(flatten)]
    run: RunArgs,
}

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_json = match &cli.command {
        Command::Run(args) => args.json,
        Command::Image(args) => args.run.json,
        Command::Bench(args) => args.json,
        Command::Trace(args) => args.run.json,
        Command::Test(_) | Command::Doctor(_) | Command::Build | Command::Setup => false,
    };
    let result = match cli.command {
        Command::Run(args) => run(&args),
        Command::Test(args) => test::test(&args),
        Command::Bench(args) => bench::bench(&args).map(|()| 0),
        Command::Trace(args) => trace::trace(&args),
        Command::Doctor(args) => doctor::doctor(&args).map(|()| 0),
        Command::Image(args) => image(&args).map(|()| 0),
        Command::Build => build().map(|()| 0),
        Command::Setup => set_up().map(|()| 0),
    };
    match result {
        Ok(code) => code.into(),
        Err(error) => fail(&error, is_json).into(),
    }
}

/// Says what failed; returns the exit code.
fn fail(error: &anyhow::Error, is_json: bool) -> u8 {
    let kind: Kind = failure::kind(error);
    eprintln!("nacre: {error:#}");
    if is_json {
        println!(
            "{}",
            json!({ "outcome": kind.name(), "code": kind.code(), "detail": format!("{error:#}") })
        );
    }
    kind.code()
}

fn run(args: &RunArgs) -> Result<u8> {
    let report = request::run(args, args.output())?;
    if args.json {
        let mut json = report.json();
        json["machine"] = args.machine.resolve().name().into();
        json["log"] = args.log_path()?.display().to_string().into();
        println!("{json}");
    }
    explain(&report, args)?;
    Ok(report.verdict.code())
}

/// Tells a person about an end that was not the expected one.
fn explain(report: &Report, args: &RunArgs) -> Result<()> {
    stdout().flush().context("cannot write to stdout")?;
    let went_well = matches!(report.verdict, Verdict::Command(_) | Verdict::PoweredOff | Verdict::Left);
    if went_well || report.detail.is_empty() {
        return Ok(());
    }
    progress::step(&report.detail);
    report.epitaph.iter().for_each(|line| eprintln!("{line}"));
    if !matches!(report.verdict, Verdict::NotStarted | Verdict::Refused | Verdict::ExitCode(_)) {
        progress::step(format_args!("the log is {}", args.log_path()?.display()));
    }
    Ok(())
}

fn image(args: &ImageArgs) -> Result<()> {
    setup::packages(&[setup::IMAGE, setup::UEFI_IMAGE])?;
    let plan = request::plan(&args.run, request::ForWhom::Person)?;
    let image = BootImage::collect(&plan, &args.run.kernel_cmdline)?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    iso::make(&image, Firmware::BiosAndUefi, scratch.path(), &args.output)?;
    print!("{}", image.size_table());
    progress::step(format_args!("wrote {}", args.output.display()));
    Ok(())
}

fn build() -> Result<()> {
    progress::timed("building the kernel and user space", || compile::system_and_guests(&[]))
}

fn set_up() -> Result<()> {
    setup::rust_target()?;
    setup::packages(&[
        setup::QEMU,
        setup::BOCHS,
        setup::IMAGE,
        setup::UEFI_IMAGE,
        setup::OVMF,
        setup::DISK,
        setup::QCOW2,
    ])?;
    crate::guest::debian::fetch()?;
    progress::step("everything is there");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
