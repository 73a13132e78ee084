//! How operations grow: with the number of VMs, and with the number of mappings. Both axes are logarithmic.

use super::Row;
use crate::run::machine::Machine;
use bench_protocol::VMS;
use std::fmt::Write;

/// How many VMs there are when growth is measured.
pub const MANY_VMS: u64 = 64;
/// Operations that must not grow with the number of VMs, and what they are called when there are [`MANY_VMS`].
pub const FLAT: [(&str, &str); 3] = [
    ("sm.signal", "sm.signal.64vms"),
    ("ipc.call_cross", "ipc.call_cross.64vms"),
    ("exit.cpuid", "exit.cpuid.64vms"),
];
/// Revocations are called this, and how many mappings they end.
pub const REVOKE: &str = "revoke.";

/// What the benchmark is asked for when there are many VMs.
pub fn request() -> Vec<String> {
    let ops = FLAT.iter().map(|(op, _)| (*op).to_owned());
    std::iter::once(format!("{VMS}{MANY_VMS}")).chain(ops).collect()
}

/// Whether an operation is a point of a curve alone, not one of the table.
pub fn is_growth(op: &str) -> bool {
    op.starts_with(REVOKE) || FLAT.iter().any(|&(_, many)| op == many)
}

/// A curve: its name, and ticks by number.
pub type Curve = (String, Vec<(u64, u64)>);

/// What was measured of each curve.
pub fn curves(rows: &[Row]) -> Vec<Curve> {
    let median = |name: &str| {
        let row = rows.iter().find(|row| row.op.name == name)?;
        Some(row.summary?.median)
    };
    let flat = FLAT.iter().filter_map(|&(one, many)| {
        let points = vec![(1, median(one)?), (MANY_VMS, median(many)?)];
        Some((format!("{one}, by VMs"), points))
    });
    let revocations: Vec<(u64, u64)> = rows
        .iter()
        .filter_map(|row| {
            let mappings = row.op.name.strip_prefix(REVOKE)?.parse().ok()?;
            Some((mappings, row.summary?.median))
        })
        .collect();
    let revoke = (!revocations.is_empty()).then(|| ("revoke, by mappings".to_owned(), revocations));
    flat.chain(revoke).collect()
}

const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 320.0;
const COLORS: [&str; 4] = ["#1b6ca8", "#2a9d54", "#c0392b", "#7d3c98"];

/// The plot; `None` if nothing of it was measured.
pub fn svg(machine: Machine, rows: &[Row]) -> Option<String> {
    let curves = curves(rows);
    let most = |of: fn(&(u64, u64)) -> u64| {
        let values = curves.iter().flat_map(|(_, points)| points.iter().map(of));
        values.max()
    };
    // Whole powers: of four for the numbers, of ten for the ticks.
    let columns = (most(|point| point.0)? as f64).log(4.0).ceil().max(1.0);
    let decades = (most(|point| point.1)? as f64).log10().ceil().max(1.0);
    let x = |number: u64| LEFT + (number as f64).log(4.0) / columns * WIDTH;
    let y = |ticks: u64| TOP + HEIGHT - (ticks.max(1) as f64).log10() / decades * HEIGHT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">Nacre on {}: instructions, by number of VMs or mappings</text>\n",
        LEFT + WIDTH + 190.0,
        TOP + HEIGHT + 34.0,
        machine.name()
    );
    for power in 0..=columns as u32 {
        let (number, bottom) = (4u64.pow(power), TOP + HEIGHT);
        let at = x(number);
        let _ = writeln!(
            text,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{number}</text>",
            bottom + 18.0
        );
    }
    for power in 0..=decades as u32 {
        let (ticks, right) = (10u64.pow(power), LEFT + WIDTH);
        let at = y(ticks);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ticks}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    // Flat curves can be close together: their names go above and below by turns.
    let label = [12.0, -4.0].into_iter().cycle();
    for (((name, points), color), label) in curves.iter().zip(COLORS.iter().cycle()).zip(label) {
        let path: Vec<String> =
            points.iter().map(|&(number, ticks)| format!("{:.1},{:.1}", x(number), y(ticks))).collect();
        let (last_x, last_y) = points.last().map(|&(number, ticks)| (x(number), y(ticks)))?;
        let _ = writeln!(
            text,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{name}</text>",
            path.join(" "),
            last_x + 6.0,
            last_y + label
        );
    }
    text.push_str("</svg>\n");
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::OPERATIONS;
    use super::*;
    use bench_protocol::Summary;

    fn row(name: &str, median: u64) -> Row {
        Row {
            op: OPERATIONS.iter().find(|op| op.name == name).unwrap(),
            summary: Some(Summary::single(median)),
            auto: None,
            why_not: None,
            heavy: Default::default(),
        }
    }

    #[test]
    fn curves_are_made_of_what_was_measured() {
        let rows = [
            row("sm.signal", 120),
            row("sm.signal.64vms", 121),
            row("revoke.1", 700),
            row("revoke.256", 72_000),
            row("exit.cpuid", 600),
        ];
        let curves = curves(&rows);
        assert_eq!(curves.len(), 2);
        assert_eq!(curves[0].1, [(1, 120), (64, 121)]);
        assert_eq!(curves[1].1, [(1, 700), (256, 72_000)]);
        let svg = svg(Machine::Vtx, &rows).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 2);
    }

    #[test]
    fn there_is_no_plot_of_nothing() {
        assert_eq!(svg(Machine::Vtx, &[row("sm.create", 340)]), None);
    }
}
