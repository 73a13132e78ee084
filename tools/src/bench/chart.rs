//! The results as a bar chart, SVG: for each operation ours and the best peer's, on a logarithmic scale.

use super::Row;
use super::catalogue::Unit;
use super::growth;
use crate::run::machine::Machine;
use std::fmt::Write;

const LABELS: f64 = 190.0;
const BARS: f64 = 620.0;
const RIGHT: f64 = 190.0;
const ROW: f64 = 34.0;
const BAR: f64 = 12.0;
const TOP: f64 = 52.0;
const OURS: &str = "#1b6ca8";
const THEIRS: &str = "#b8b8b8";

/// The chart; operations without a result are left out, sizes and points of curves as well.
pub fn svg(machine: Machine, rows: &[Row]) -> String {
    let is_time = |row: &&Row| row.op.unit == Unit::Instructions && !growth::is_growth(row.op.name);
    let bars: Vec<Bars<'_>> = rows.iter().filter(is_time).filter_map(Bars::of).collect();
    let most = bars.iter().map(|bars| bars.most()).fold(10.0, f64::max);
    let scale = BARS / most.log10().ceil();
    let (width, height) = (LABELS + BARS + RIGHT, TOP + ROW * bars.len() as f64 + 12.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">Nacre on {} and the best peer: instructions, logarithmic, shorter is better</text>\n",
        machine.name()
    );
    for power in 1..=most.log10().ceil() as u32 {
        let x = LABELS + f64::from(power) * scale;
        let _ = writeln!(
            text,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{height}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777\">{}</text>",
            TOP - 6.0,
            10u64.pow(power)
        );
    }
    for (index, bars) in bars.iter().enumerate() {
        bars.draw(&mut text, TOP + ROW * index as f64, scale);
    }
    text.push_str("</svg>\n");
    text
}

struct Bars<'a> {
    name: &'a str,
    ours: u64,
    theirs: Option<(&'a str, u64)>,
}

impl<'a> Bars<'a> {
    fn of(row: &'a Row) -> Option<Self> {
        Some(Bars {
            name: row.op.name,
            ours: row.summary?.median,
            theirs: row.op.best_peer().map(|peer| (peer.name, peer.value)),
        })
    }

    fn most(&self) -> f64 {
        self.ours.max(self.theirs.map_or(0, |(_, value)| value)) as f64
    }

    fn draw(&self, text: &mut String, y: f64, scale: f64) {
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            y + 17.0,
            self.name
        );
        let mut bar = |value: u64, y: f64, color: &str, label: &str| {
            let length = (value.max(1) as f64).log10() * scale;
            let _ = writeln!(
                text,
                "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{label}</text>",
                LABELS + length + 5.0,
                y + BAR - 2.0
            );
        };
        bar(self.ours, y + 3.0, OURS, &format!("Nacre {}", self.ours));
        if let Some((name, value)) = self.theirs {
            bar(value, y + 3.0 + BAR + 1.0, THEIRS, &format!("{name} {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::OPERATIONS;
    use super::*;
    use bench_protocol::Summary;

    #[test]
    fn there_are_bars_for_what_was_measured_and_for_nothing_else() {
        let rows: Vec<Row> = OPERATIONS
            .iter()
            .map(|op| Row {
                op,
                summary: (op.name == "exit.cpuid").then(|| Summary::single(321)),
                auto: None,
                why_not: None,
                heavy: Default::default(),
            })
            .collect();
        let svg = svg(Machine::Svm, &rows);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("Nacre 321") && svg.contains("KVM 2709"));
        assert!(!svg.contains("ipc.call_same"));
    }
}
