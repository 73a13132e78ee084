//! Debian's kernel as a guest: its shell, commands, and the ways in which it can end too early.

use super::Test;
use super::guests::{planned, verdict};
use super::record::Outcome;
use crate::guest::initramfs;
use crate::run::machine::Machine;
use crate::run::outcome::{Report, Verdict};
use crate::run::{self, Options, Resize, Script};
use anyhow::{Context, Result};
use std::time::Duration;
use vmm_protocol::link::TerminalSize;

/// What the names of these tests contain.
pub const TOPIC: &str = "/linux";

/// How long a boot may take on a loaded machine.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// Prints bytes of every kind, facts about the VM, and ends with a status of its own.
const COMMAND: &str = r#"printf 'a\000b\377\r\n'; printf 'e\200\n' >&2; uname -r; dmesg | grep -i -E 'kvm-clock|Linux version'
cat /proc/interrupts; exit 7"#;

/// A run of Linux and what it has to show.
struct Case {
    name: &'static str,
    shows: &'static str,
    options: &'static [&'static str],
    /// What the console shows first, and what is typed then.
    answer: Option<(&'static str, &'static str)>,
    judge: fn(&Report) -> Result<(), String>,
}

/// The cases that run on every machine.
const EVERYWHERE: &[Case] = &[
    Case {
        name: "exec",
        shows: "Debian's unmodified kernel runs a command; its stdout, stderr and status come back byte for byte",
        options: &["--exec", COMMAND],
        answer: None,
        judge: judge_command,
    },
    Case {
        name: "shell",
        shows: "Debian's unmodified kernel reaches a shell that answers on the console and powers off when it is left",
        options: &[],
        answer: Some(("~ # ", "echo $((6 * 7))-answers; exit\r")),
        judge: |report| {
            let console = String::from_utf8_lossy(&report.vms[0].console).into_owned();
            check(console.contains("42-answers"), "the shell did not answer")?;
            ended_with(report, &Verdict::PoweredOff)
        },
    },
    Case {
        name: "hvc",
        shows: "Debian's unmodified kernel has its console on virtio: its messages, and a shell that answers",
        options: &["--console", "virtio"],
        answer: Some((
            "~ # ",
            "cat /sys/class/tty/console/active; tty; dmesg | head -n 100; echo $((6 * 7))-answers; exit\r",
        )),
        judge: judge_hvc,
    },
];

/// What does not depend on the machine runs on the fastest.
const ON_SVM: &[Case] = &[
    Case {
        name: "early-poweroff",
        shows: "a guest that powers off before its command ends is told apart",
        options: &["--exec", "poweroff -f; sleep 100"],
        answer: None,
        judge: |report| ended_with(report, &Verdict::EndedEarly),
    },
    Case {
        name: "panic",
        shows: "a guest kernel's panic ends the run",
        options: &["--exec", "echo c > /proc/sysrq-trigger; sleep 100"],
        answer: None,
        judge: |report| ended_with(report, &Verdict::EndedEarly),
    },
];

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    let of_machine: &[Case] = if machine == Machine::Svm { ON_SVM } else { &[] };
    let mut tests: Vec<Test> = EVERYWHERE
        .iter()
        .chain(of_machine)
        .map(|case| {
            let name = format!("{}{TOPIC}-{}", machine.name(), case.name);
            Test::on(machine, name, case.shows, move |name| run(machine, case, name))
        })
        .collect();
    let name = format!("{}{TOPIC}-hvc-size", machine.name());
    let shows = "Debian's virtio console has the size of the terminal, and follows it";
    tests.push(Test::on(machine, name, shows, move |name| follow_size(machine, name)));
    if machine == Machine::Svm {
        let name = format!("{}{TOPIC}-own-initrd", machine.name());
        let shows = "a command runs in a user's own initial file system";
        tests.push(Test::on(machine, name, shows, |_| own_initrd()));
    }
    tests
}

fn run(machine: Machine, case: &Case, name: &str) -> Result<Outcome> {
    let words = [&["--machine", machine.name(), "--deterministic"], case.options].concat();
    let answer = case.answer.map(|(prompt, text)| (prompt.to_owned(), text.to_owned()));
    let (report, options) = boot(&words, answer, name)?;
    Ok(verdict(&report, &options.log, || (case.judge)(&report)))
}

/// Boots what the options say, and types the answer when the console shows the prompt.
pub(super) fn boot(
    words: &[&str],
    answer: Option<(String, String)>,
    name: &str,
) -> Result<(Report, Options)> {
    boot_with(words, Script { answer, ..Script::default() }, name)
}

fn boot_with(words: &[&str], script: Script, name: &str) -> Result<(Report, Options)> {
    let (plan, options) = planned(words, name)?;
    let options = Options { timeout: Some(TIME_LIMIT), script, ..options };
    Ok((run::run(&plan, &options)?, options))
}

fn own_initrd() -> Result<Outcome> {
    const NAME: &str = "svm/linux-own-initrd";
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let initrd = folder.path().join("initrd");
    crate::workspace::write(&initrd, initramfs::with_file("etc/whose", b"mine\n"))?;
    let initrd = initrd.to_string_lossy();
    let words = [
        "--machine",
        "svm",
        "--deterministic",
        "--initrd",
        &*initrd,
        "--exec",
        "read line < /etc/whose; echo $line",
    ];
    let (report, options) = boot(&words, None, NAME)?;
    Ok(verdict(&report, &options.log, || {
        check(report.stdout == b"mine\n", "the command did not see the user's file")?;
        ended_with(&report, &Verdict::Command(0))
    }))
}

/// Shows the terminal's size as soon as it is another than the last one.
fn follow_size(machine: Machine, name: &str) -> Result<Outcome> {
    const WATCH: &str =
        "w() { while [ \"$(stty size)\" = \"$1\" ]; do :; done; stty size; }; w '0 0'; w '30 100'; exit\r";
    let size = |rows, columns| TerminalSize { columns, rows };
    let terminal = Resize { first: size(30, 100), when: "\n30 100\r\n".to_owned(), then: size(50, 132) };
    let answer = Some(("~ # ".to_owned(), WATCH.to_owned()));
    let script = Script { answer, terminal: Some(terminal), until: None };
    let words = ["--machine", machine.name(), "--deterministic", "--console", "virtio"];
    let (report, options) = boot_with(&words, script, name)?;
    Ok(verdict(&report, &options.log, || {
        let console = String::from_utf8_lossy(&report.vms[0].console).into_owned();
        let shows = |size: &str| console.lines().any(|line| line == size);
        check(shows("30 100"), "the guest does not know the size of its terminal")?;
        check(shows("50 132"), "the guest does not know that its terminal has another size")?;
        ended_with(&report, &Verdict::PoweredOff)
    }))
}

fn judge_command(report: &Report) -> Result<(), String> {
    check(report.stdout.starts_with(b"a\0b\xff\r\n"), "stdout is not what the command wrote")?;
    check(report.stderr == b"e\x80\n", "stderr is not what the command wrote")?;
    let text = String::from_utf8_lossy(&report.stdout);
    check(text.contains("cloud-amd64"), "uname did not answer")?;
    check(text.contains("kvm-clock"), "Linux did not find kvm-clock")?;
    check(text.contains("LOC:"), "/proc/interrupts is not there")?;
    ended_with(report, &Verdict::Command(7))
}

fn judge_hvc(report: &Report) -> Result<(), String> {
    let console = String::from_utf8_lossy(&report.vms[0].console).into_owned();
    let times = |text: &str| console.lines().filter(|line| line.contains(text)).count();
    check(times("/dev/hvc0") >= 1, "the shell is not on /dev/hvc0")?;
    check(times("42-answers") == 1, "the shell did not answer, or more than once")?;
    // Once by the early console and once by the command.
    check(times("Linux version") == 2, "the kernel's messages are not there once before the shell's")?;
    ended_with(report, &Verdict::PoweredOff)
}

pub(super) fn check(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

pub(super) fn ended_with(report: &Report, wanted: &Verdict) -> Result<(), String> {
    if report.verdict == *wanted {
        Ok(())
    } else {
        Err(format!("the run ended with {:?}, not {wanted:?}", report.verdict))
    }
}
