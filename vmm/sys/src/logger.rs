//! The `log` crate's sink: the kernel's log, or a ring to the console server.
//!
//! A line is `name: text`, with `warning` or `error` between the two where it is one. It is cut at
//! [`ring::MAX_RECORD`] bytes.

use crate::cap::{Cap, Log, Ntfn};
use crate::lock::Mutex;
use crate::process;
use crate::ring::{self, Producer};
use core::fmt::{self, Write};
use log::{Level, LevelFilter, Metadata, Record};

enum Sink {
    Nothing,
    Kernel(Cap<Log>),
    Ring { producer: &'static Mutex<Producer>, doorbell: Cap<Ntfn>, stream: u8, source: u8 },
}

struct Logger {
    sink: Mutex<Sink>,
    name: Mutex<&'static str>,
}

static LOGGER: Logger = Logger { sink: Mutex::new(Sink::Nothing), name: Mutex::new("") };

/// One line, of limited length.
struct Line {
    bytes: [u8; ring::MAX_RECORD],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Line { bytes: [0; ring::MAX_RECORD], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte is kept for the end of the line.
        let room = ring::MAX_RECORD - 1 - self.len;
        let cut = text.floor_char_boundary(room);
        for byte in text[..cut].bytes() {
            // A record is one line.
            self.bytes[self.len] = if byte == b'\n' { b' ' } else { byte };
            self.len += 1;
        }
        Ok(())
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format_line(*self.name.lock(), record.level(), *record.args());
        self.sink.lock().write(line);
    }

    fn flush(&self) {}
}

fn format_line(name: &str, level: Level, text: fmt::Arguments<'_>) -> Line {
    let mut line = Line::new();
    let severity = match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    };
    // Writing into a `Line` cannot fail; an error of a `Display` implementation leaves what it wrote.
    let _ = write!(line, "{name}: {severity}{text}");
    line
}

impl Sink {
    fn write(&mut self, mut line: Line) {
        match self {
            Sink::Nothing => {}
            Sink::Kernel(log) => {
                line.bytes[line.len] = b'\n';
                line.len += 1;
                // A log that refuses has no place to say so.
                let _ = log.write(line.as_bytes());
            }
            Sink::Ring { producer, doorbell, stream, source } => {
                // `try_lock`: a panic while the ring is held must not wait for itself.
                if let Some(mut producer) = producer.try_lock() {
                    producer.push(*stream, *source, line.as_bytes());
                    let _ = doorbell.signal();
                }
            }
        }
    }
}

/// Sets the name that lines begin with. Called once, before `main`.
pub(crate) fn init(name: &'static str) {
    *LOGGER.name.lock() = name;
    // Fails only if a logger is set already, which is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Sends lines to the kernel's log; the process must have the capability.
pub fn to_kernel() {
    *LOGGER.sink.lock() = Sink::Kernel(process::kernel_log());
}

/// Sends lines through a ring, as records of this stream and source, and signals its reader. A line that finds the
/// ring full is lost.
pub fn to_ring(producer: &'static Mutex<Producer>, doorbell: Cap<Ntfn>, stream: u8, source: u8) {
    *LOGGER.sink.lock() = Sink::Ring { producer, doorbell, stream, source };
}

/// Writes a panic's message, unless the panicking thread holds the sink.
#[cfg(target_os = "none")]
pub(crate) fn last_words(text: fmt::Arguments<'_>) {
    let (Some(name), Some(mut sink)) = (LOGGER.name.try_lock(), LOGGER.sink.try_lock()) else {
        return;
    };
    sink.write(format_line(*name, Level::Error, text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_its_process_and_severity_and_stays_one_line() {
        let line = format_line("vm1", Level::Warn, format_args!("two\nlines"));
        assert_eq!(line.as_bytes(), b"vm1: warning: two lines");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "ä".repeat(200);
        let line = format_line("vm1", Level::Info, format_args!("{text}"));
        assert!(core::str::from_utf8(line.as_bytes()).is_ok());
        assert!(line.as_bytes().len() < ring::MAX_RECORD);
    }
}
