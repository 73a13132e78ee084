//! Progress on stderr: one line for each step, so that a log and a terminal show the same.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Prints what is being done.
pub fn step(what: impl Display) {
    eprintln!("nacre: {what}");
}

/// Runs `work` and prints what it was and how long it took, if that was long enough for someone to wonder.
pub fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    step(format_args!("{what}…"));
    let result = work();
    if start.elapsed() > Duration::from_secs(2) {
        step(format_args!("{what}: {}", seconds(start.elapsed())));
    }
    result
}

/// A duration as a person says it.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..=9 => format!("{:.1} s", duration.as_secs_f64()),
        whole @ 10..=119 => format!("{whole} s"),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(42)), "42 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
