//! Several pairs of queues of a network card, and their number changed while it works.

use super::Test;
use super::guests::judge_end;
use super::networks::{self, console};
use super::record::Outcome as Verdict;
use crate::compile;
use crate::guest::initramfs;
use crate::run::machine::Machine;
use crate::run::outcome::Report;
use anyhow::Result;
use vmm_protocol::manifest::OnCrash;
use vmm_protocol::outcome::Outcome;

/// The program, in the crate of that name, and where it is in the guests.
const PACKAGE: &str = "test-linux";
const PROGRAM: &str = "flows";

/// The tests of a machine.
pub fn tests(machine: Machine) -> Vec<Test> {
    vec![Test::on(
        machine,
        format!("{}/net-linux-queues", machine.name()),
        "flows of Debian's virtio driver use both pairs of its card's queues; nothing is lost while it uses more or fewer",
        move |name| run(machine, name),
    )]
}

fn run(machine: Machine, name: &str) -> Result<Verdict> {
    let program = compile::linux_program(PACKAGE, PROGRAM)?;
    let files = initramfs::with_program(&format!("bin/{PROGRAM}"), &program);
    let command = |role: &str, address: &str| {
        format!(
            "exec >/dev/console 2>&1; ip link set eth0 up; ip addr add {address}/24 dev eth0; {PROGRAM} {role}"
        )
    };
    let (answer, ask) = (command("answer", "10.9.0.1"), command("ask", "10.9.0.2"));
    let guests = [("answer", &*answer), ("ask", &*ask)];
    let plan = networks::linux_guests(machine, OnCrash::Report, &files, &guests)?;
    networks::run(machine, name, plan, judge)
}

fn judge(report: &Report) -> Result<(), String> {
    report.vms.iter().try_for_each(|vm| judge_end(vm, &Outcome::PoweredOff))?;
    let ask = report.vms.last().map(console).unwrap_or_default();
    let stages = stages(&ask);
    let pairs: Vec<usize> = stages.iter().map(|stage| stage.pairs.len()).collect();
    if pairs != [2, 1, 2] {
        return Err(format!("the one that asks did not get all answers; by pairs: {pairs:?}"));
    }
    for stage in &stages {
        let came: u64 = stage.pairs.iter().map(|pair| pair.1).sum();
        if came < stage.answers {
            return Err(format!("{came} of {} answers came by the pairs in use", stage.answers));
        }
        if stage.pairs.iter().any(|&(sent, came)| sent == 0 || came == 0) {
            return Err(format!("a pair in use carried nothing one way: {:?}", stage.pairs));
        }
    }
    Ok(())
}

/// While the card used so many pairs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stage {
    answers: u64,
    /// What was sent and what came by each.
    pairs: Vec<(u64, u64)>,
}

/// What the program said; nothing that is no number.
fn stages(console: &str) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for line in console.lines() {
        if let Some((_, answers)) =
            line.strip_prefix("pairs: ").and_then(|text| text.split_once(", answers: "))
        {
            stages.extend(answers.parse().ok().map(|answers| Stage { answers, pairs: Vec::new() }));
        }
        let pair = line.strip_prefix("pair ").and_then(|text| text.split_once(": sent "));
        let figures = pair.and_then(|(_, figures)| figures.split_once(", came "));
        if let Some((stage, (sent, came))) = stages.last_mut().zip(figures) {
            stage.pairs.extend(sent.parse().ok().zip(came.parse().ok()));
        }
    }
    stages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_said_is_read() {
        let console = "pairs: 2, answers: 256\npair 0: sent 120, came 121\r\npair 1: sent 130, came 135\npairs: 1, answers: 7\n";
        let wanted = [
            Stage { answers: 256, pairs: vec![(120, 121), (130, 135)] },
            Stage { answers: 7, pairs: vec![] },
        ];
        assert_eq!(stages(console), wanted);
    }
}
