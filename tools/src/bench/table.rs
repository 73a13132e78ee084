//! The results as a table for people, in Markdown.

use super::Row;
use super::catalogue::{COLUMNS, Peer, Unit};
use crate::run::machine::Machine;
use std::fmt::Write;

/// The table, and what the dear instructions are below it.
pub fn markdown(machine: Machine, rows: &[Row]) -> String {
    let mut text = String::new();
    let peers = COLUMNS.map(|name| format!(" {name} |")).concat();
    let _ = writeln!(
        text,
        "| {} | Nacre | max | auto |{peers} best peer / Nacre | must |",
        machine.name()
    );
    let _ = writeln!(text, "|---|{}", "--:|".repeat(5 + COLUMNS.len()));
    for row in rows {
        let _ = writeln!(text, "{}", table_row(machine, row));
    }
    let other = match machine {
        Machine::Svm => Machine::Vtx,
        _ => Machine::Svm,
    };
    let _ = writeln!(
        text,
        "\n`auto`: with the mitigations that this CPU needs. `*`: measured on {}. A must in **bold** is not held.\n",
        other.name()
    );
    text.push_str(&heavy(rows));
    if machine == Machine::Svm {
        text.push_str("\n`irq.to_thread` and `timer.preempt` can be traced on vtx only.\n");
    }
    text
}

fn table_row(machine: Machine, row: &Row) -> String {
    let op = row.op;
    let number = |value: Option<u64>| value.map_or_else(String::new, grouped);
    let median = row.summary.map(|summary| summary.median);
    let peers = COLUMNS.map(|name| {
        let figure = op.peer(name, machine).map(|peer| figure(peer, machine));
        format!(" {} |", figure.unwrap_or_default())
    });
    let ratio = match (op.best_peer(), median) {
        (Some(peer), Some(median)) if median > 0 => format!("{:.2}", peer.value as f64 / median as f64),
        _ => String::new(),
    };
    let must = match (op.must, median) {
        (Some(must), Some(median)) if median > must => format!("**{}**", grouped(must)),
        (must, _) => number(must),
    };
    let ours = match (median, &row.why_not) {
        (Some(median), _) => grouped(median),
        (None, Some(why)) => why.clone(),
        (None, None) => "not there".to_owned(),
    };
    let unit = match op.unit {
        Unit::Instructions => "",
        Unit::Bytes => " (bytes)",
        Unit::Lines => " (lines)",
    };
    format!(
        "| `{}`{unit} | {ours} | {} | {} |{} {ratio} | {must} |",
        op.name,
        number(
            row.summary
                .filter(|summary| summary.n > 1)
                .map(|summary| summary.max)
        ),
        number(row.auto),
        peers.concat()
    )
}

fn figure(peer: &Peer, machine: Machine) -> String {
    let elsewhere = if peer.on.is(machine) { "" } else { "*" };
    format!("{}{elsewhere}", grouped(peer.value))
}

/// What each operation executed of the instructions that are dear.
fn heavy(rows: &[Row]) -> String {
    let mut text = String::from("| operation | dear instructions in it |\n|---|---|\n");
    for row in rows.iter().filter(|row| !row.heavy.is_empty()) {
        let counts: Vec<String> = row
            .heavy
            .iter()
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        let _ = writeln!(text, "| `{}` | {} |", row.op.name, counts.join(", "));
    }
    text
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
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1 000", "1 234 567"]
        );
    }

    #[test]
    fn a_row_compares_with_the_best_peer_and_marks_figures_of_the_other_machine() {
        let text = table_row(Machine::Vtx, &row("exit.cpuid", Some(542)));
        assert!(text.contains("| 542 |") && text.contains(" 2 709* |"), "{text}");
        assert!(text.ends_with(" 5.00 | **480** |"), "{text}");
    }

    #[test]
    fn what_the_kernel_lacks_is_said_to_be_missing() {
        let text = table_row(Machine::Svm, &row("doorbell.pio", None));
        assert!(text.contains("| not there |"), "{text}");
    }
}
