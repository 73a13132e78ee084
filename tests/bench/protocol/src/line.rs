//! The lines.

use crate::Summary;
use core::fmt::{self, Display, Formatter};

/// Every line begins with this word.
const WORD: &str = "bench";

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The next lines are about this operation, which is measured now: `bench begin OP`.
    Begin {
        /// Its name.
        op: &'a str,
    },
    /// An operation was measured: `bench result OP MIN MEDIAN MAX N`.
    Result {
        /// Its name.
        op: &'a str,
        /// Its samples.
        summary: Summary,
    },
    /// An operation could not be measured: `bench failed OP WHY…`.
    Failed {
        /// Its name.
        op: &'a str,
        /// Why.
        why: &'a str,
    },
    /// The first, or next, two markers enclose an operation, once: `bench window OP`. It may come late: the order counts.
    Window {
        /// Its name.
        op: &'a str,
    },
    /// The longest stretch with interrupts off: `bench stretch EVENT TICKS`.
    Stretch {
        /// What the kernel was entered for: the low half of a record of the trace.
        event: u16,
        /// Ticks.
        ticks: u64,
    },
    /// All that was asked for is measured: `bench end`.
    End,
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Line::Result { op, summary } => {
                let Summary { min, median, max, n } = summary;
                write!(f, "{WORD} result {op} {min} {median} {max} {n}")
            }
            Line::Failed { op, why } => write!(f, "{WORD} failed {op} {why}"),
            Line::Begin { op } => write!(f, "{WORD} begin {op}"),
            Line::Window { op } => write!(f, "{WORD} window {op}"),
            Line::Stretch { event, ticks } => write!(f, "{WORD} stretch {event} {ticks}"),
            Line::End => write!(f, "{WORD} end"),
        }
    }
}

impl<'a> Line<'a> {
    /// Reads a line, whatever stands before its first word; `None` if it is somebody else's.
    pub fn parse(text: &'a str) -> Option<Self> {
        let start = text.find(WORD)?;
        let mut words = text[start..].trim_end().splitn(4, ' ').skip(1);
        match words.next()? {
            "result" => {
                let op = words.next()?;
                let mut numbers = words.next()?.split(' ').map(|word| word.parse().ok());
                let mut next = || numbers.next().flatten();
                let summary = Summary { min: next()?, median: next()?, max: next()?, n: next()? };
                Some(Line::Result { op, summary })
            }
            "failed" => Some(Line::Failed { op: words.next()?, why: words.next().unwrap_or_default() }),
            "begin" => Some(Line::Begin { op: words.next()? }),
            "window" => Some(Line::Window { op: words.next()? }),
            "stretch" => {
                let (event, ticks) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                Some(Line::Stretch { event, ticks })
            }
            "end" => Some(Line::End),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    #[test]
    fn every_line_survives_the_way_and_what_others_put_before_it() {
        let summary = Summary { min: 1, median: 20, max: 300, n: 256 };
        for line in [
            Line::Begin { op: "ipc.call_same" },
            Line::Result { op: "ipc.call_same", summary },
            Line::Failed { op: "sm.create", why: "the pool is empty" },
            Line::Window { op: "ipc.call_same" },
            Line::Stretch { event: 0xb01, ticks: 1 << 40 },
            Line::End,
        ] {
            assert_eq!(Line::parse(&format!("root: {line}\r")), Some(line));
        }
    }

    #[test]
    fn foreign_and_damaged_lines_are_told_apart() {
        for text in ["", "kernel: hello", "bench", "bench result op 1 2 3", "bench result op 1 2 x 4"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
