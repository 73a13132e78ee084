//! How the root task prints what the CPUs recorded: lines of the kernel's log, from the root task to the host tool.
//!
//! Every line begins with [`PREFIX`]. What follows, numbers in hexadecimal:
//!
//! | Line | |
//! |---|---|
//! | `clock HZ START` | TSC ticks in a second; the TSC when the root task started |
//! | `thread NUMBER NAME` | whose main thread has this number |
//! | `cpu INDEX COUNT` | the records of a CPU follow, oldest first |
//! | `TICKS EVENT EC` | a record: ticks since the one before it (the first: since START), and its other words |
//! | `end` | nothing follows |

use core::fmt;

/// What each line begins with.
pub const PREFIX: &str = "trace: ";

/// A line without its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The clock.
    Clock {
        /// TSC ticks in a second.
        hz: u64,
        /// The TSC when the root task started.
        start: u64,
    },
    /// Whose main thread has this number.
    Thread {
        /// The number.
        number: u32,
        /// The process.
        name: &'a str,
    },
    /// The records of a CPU follow.
    Cpu {
        /// Which one.
        index: u32,
        /// Records.
        count: u32,
    },
    /// A record.
    Record {
        /// Ticks since the one before it.
        ticks: u64,
        /// What happened: as in the record.
        event: u32,
        /// The execution context's number.
        ec: u32,
    },
    /// Nothing follows.
    End,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Line::Clock { hz, start } => write!(f, "clock {hz:x} {start:x}"),
            Line::Thread { number, name } => write!(f, "thread {number:x} {name}"),
            Line::Cpu { index, count } => write!(f, "cpu {index:x} {count:x}"),
            Line::Record { ticks, event, ec } => write!(f, "{ticks:x} {event:x} {ec:x}"),
            Line::End => f.write_str("end"),
        }
    }
}

impl<'a> Line<'a> {
    /// The line that this text is, if it is one.
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.trim_end().strip_prefix(PREFIX)?;
        let mut words = rest.splitn(3, ' ');
        let (first, second, third) = (words.next()?, words.next(), words.next());
        let long = |word: Option<&str>| u64::from_str_radix(word?, 16).ok();
        let short = |word: Option<&str>| u32::from_str_radix(word?, 16).ok();
        Some(match first {
            "clock" => Line::Clock { hz: long(second)?, start: long(third)? },
            "thread" => Line::Thread { number: short(second)?, name: third? },
            "cpu" => Line::Cpu { index: short(second)?, count: short(third)? },
            "end" => Line::End,
            ticks => Line::Record { ticks: long(Some(ticks))?, event: short(second)?, ec: short(third)? },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn every_line_is_read_as_it_was_written() {
        for line in [
            Line::Clock { hz: 1_000_000_000, start: u64::MAX },
            Line::Thread { number: 7, name: "a name-with_all" },
            Line::Cpu { index: 1, count: 65536 },
            Line::Record { ticks: 0xec, event: 0xffff_ffff, ec: 0 },
            Line::End,
        ] {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
    }

    #[test]
    fn other_lines_are_none() {
        for text in ["", "trace:", "trace: cpu", "trace: 1 2", "trace: x 1 2", "[kernel INFO] trace: 1 2 3"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
