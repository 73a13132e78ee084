//! What the VMM has to say about its guest, for whoever reads logs.

use alloc::string::String;
use alloc::vec::Vec;

/// Lines in one second: a guest can provoke as many as it likes.
const LINES_PER_SECOND: u32 = 8;

/// Lines for the log, limited in rate.
#[derive(Clone, Debug)]
pub struct Log {
    tsc_hz: u64,
    second_start: u64,
    left: u32,
    dropped: u64,
    lines: Vec<String>,
}

impl Log {
    /// An empty log; times are ticks of `tsc_hz`.
    pub fn new(tsc_hz: u64) -> Self {
        Log { tsc_hz, second_start: 0, left: LINES_PER_SECOND, dropped: 0, lines: Vec::new() }
    }

    /// Adds a line, unless this second had its share.
    pub fn add(&mut self, now: u64, line: impl FnOnce() -> String) {
        if now.wrapping_sub(self.second_start) >= self.tsc_hz {
            self.second_start = now;
            self.left = LINES_PER_SECOND;
            if self.dropped > 0 {
                self.lines.push(alloc::format!("{} lines dropped", self.dropped));
                self.dropped = 0;
            }
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                self.lines.push(line());
            }
            None => self.dropped += 1,
        }
    }

    /// Whether there is a line to take.
    pub fn has_lines(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Takes the lines.
    pub fn take(&mut self) -> Vec<String> {
        core::mem::take(&mut self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_instead_of_kept() {
        let mut log = Log::new(1000);
        for _ in 0..100 {
            log.add(5, || "again".into());
        }
        assert_eq!(log.take().len(), 8);
        log.add(1005, || "new".into());
        assert_eq!(log.take(), ["92 lines dropped", "new"]);
    }
}
