//! The results as tables for people, in Markdown.

use super::Row;
use super::catalogue::{COLUMNS, Op, Peer, Unit};
use super::growth;
use crate::run::machine::Machine;
use std::fmt::Write;

/// Every table: the operations, how some of them grow, and which dear instructions are in them.
pub fn markdown(machine: Machine, rows: &[Row]) -> String {
    let peers = COLUMNS.map(|name| format!(" {name} |")).concat();
    let mut text = format!(
        "| {} | Nacre | min | max | n | auto |{peers} best peer / Nacre | must | goal |\n|---|{}\n",
        machine.name(),
        "--:|".repeat(8 + COLUMNS.len())
    );
    for row in rows.iter().filter(|row| !growth::is_growth(row.op.name)) {
        let _ = writeln!(text, "{}", full_row(machine, row));
    }
    let other = match machine {
        Machine::Svm => Machine::Vtx,
        _ => Machine::Svm,
    };
    let _ = writeln!(
        text,
        "\n`Nacre`, `min`, `max`: the median and the extremes of `n` samples with `mitigations=off`, as the peers were measured. \
         `auto`: the median with those that this CPU needs. `*`: measured on {}. A must in **bold** is not held.",
        other.name()
    );
    for table in [growth_table(rows), heavy(rows)] {
        if !table.is_empty() {
            let _ = write!(text, "\n{table}");
        }
    }
    text
}

/// What a reader wants to know first: each operation with a must, beside the best peer.
pub fn summary(machine: Machine, rows: &[Row]) -> String {
    let mut text = format!(
        "| {} | Nacre | best peer | best peer / Nacre | must | goal |\n|---|--:|--:|--:|--:|--:|\n",
        machine.name()
    );
    for row in rows.iter().filter(|row| row.op.must.is_some()) {
        if growth::is_growth(row.op.name) {
            continue;
        }
        let op = row.op;
        let peer = op
            .best_peer()
            .map_or_else(String::new, |peer| format!("{} {}", peer.name, figure(peer, machine)));
        let _ = writeln!(
            text,
            "| {} | {} | {peer} | {} | {} | {} |",
            title(op),
            ours(row),
            ratio(row),
            must(row),
            number(op.goal)
        );
    }
    text
}

fn full_row(machine: Machine, row: &Row) -> String {
    let op = row.op;
    // A figure that there is one of has no extremes.
    let many = row.summary.filter(|summary| summary.n > 1);
    let peers = COLUMNS.map(|name| {
        let figure = op.peer(name, machine).map(|peer| figure(peer, machine));
        format!(" {} |", figure.unwrap_or_default())
    });
    format!(
        "| {} | {} | {} | {} | {} | {} |{} {} | {} | {} |",
        title(op),
        ours(row),
        number(many.map(|summary| summary.min)),
        number(many.map(|summary| summary.max)),
        number(row.summary.map(|summary| summary.n)),
        number(row.auto),
        peers.concat(),
        ratio(row),
        must(row),
        number(op.goal)
    )
}

fn title(op: &Op) -> String {
    let unit = match op.unit {
        Unit::Instructions => "",
        Unit::Bytes => " (bytes)",
        Unit::Lines => " (lines)",
    };
    format!("`{}`{unit}", op.name)
}

fn ours(row: &Row) -> String {
    match (row.summary, &row.why_not) {
        (Some(summary), _) => grouped(summary.median),
        (None, Some(why)) => why.clone(),
        (None, None) => "not there".to_owned(),
    }
}

fn ratio(row: &Row) -> String {
    match (row.op.best_peer(), row.summary) {
        (Some(peer), Some(ours)) if ours.median > 0 => {
            format!("{:.2}", peer.value as f64 / ours.median as f64)
        }
        _ => String::new(),
    }
}

fn must(row: &Row) -> String {
    match (row.op.must, row.summary) {
        (Some(must), Some(ours)) if ours.median > must => format!("**{}**", grouped(must)),
        (must, _) => number(must),
    }
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(String::new, grouped)
}

fn figure(peer: &Peer, machine: Machine) -> String {
    let elsewhere = if peer.on.is(machine) { "" } else { "*" };
    format!("{}{elsewhere}", grouped(peer.value))
}

/// How operations grow with the number of VMs, and revoking with that of mappings.
fn growth_table(rows: &[Row]) -> String {
    let mut text = String::new();
    for (name, points) in growth::curves(rows) {
        let points: Vec<String> =
            points.iter().map(|&(number, ticks)| format!("{number}: {}", grouped(ticks))).collect();
        let _ = writeln!(text, "| {name} | {} |", points.join(", "));
    }
    if text.is_empty() { text } else { format!("| growth | number: median |\n|---|---|\n{text}") }
}

/// What each operation executed of the instructions that are dear, and the bytes that REP zeroed or copied.
fn heavy(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| !row.heavy.is_empty()) {
        let counts: Vec<String> = row.heavy.iter().map(|(class, count)| format!("{class} {count}")).collect();
        let _ = writeln!(text, "| `{}` | {} |", row.op.name, counts.join(", "));
    }
    if text.is_empty() {
        text
    } else {
        format!("| operation | dear instructions in it, bytes of REP |\n|---|---|\n{text}")
    }
}

/// A number with spaces between thousands.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::OPERATIONS;
    use super::*;
    use bench_protocol::Summary;

    fn row(name: &str, median: Option<u64>) -> Row {
        Row {
            op: OPERATIONS.iter().find(|op| op.name == name).unwrap(),
            summary: median.map(Summary::single),
            auto: None,
            why_not: None,
            heavy: Default::default(),
        }
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn a_row_compares_with_the_best_peer_and_marks_figures_of_the_other_machine() {
        let text = full_row(Machine::Vtx, &row("exit.cpuid", Some(542)));
        assert!(text.contains("| 542 |") && text.contains(" 2 709* |"), "{text}");
        assert!(text.ends_with(" 5.00 | **480** | 300 |"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_said_to_be_missing() {
        let text = full_row(Machine::Svm, &row("doorbell.pio", None));
        assert!(text.contains("| not there |"), "{text}");
    }

    #[test]
    fn growth_has_a_table_of_its_own() {
        let rows =
            [row("sm.signal", Some(120)), row("sm.signal.64vms", Some(121)), row("revoke.4", Some(3000))];
        let text = markdown(Machine::Vtx, &rows);
        assert!(
            text.contains("| sm.signal, by VMs | 1: 120, 64: 121 |") && text.contains("4: 3 000"),
            "{text}"
        );
        assert!(!text.contains("`revoke.4`") && !text.contains("`sm.signal.64vms`"));
        assert!(!summary(Machine::Vtx, &rows).contains("64vms"));
    }

    #[test]
    fn every_row_has_as_many_cells_as_the_header() {
        let text = markdown(Machine::Vtx, &[row("exit.cpuid", Some(1)), row("irqoff.max", None)]);
        let cells: Vec<usize> = text.lines().take(4).map(|line| line.matches('|').count()).collect();
        assert!(cells.iter().all(|&count| count == cells[0]), "{text}");
    }
}
