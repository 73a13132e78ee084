//! The log of a run: what the kernel, the processes and, where they go nowhere else, the consoles say.

use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// How many of the last lines are kept for messages.
const KEPT_LINES: usize = 40;

/// A log file.
pub struct Log {
    file: File,
    path: PathBuf,
    last: VecDeque<String>,
}

impl Log {
    /// Creates the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create the log {}", path.display()))?;
        Ok(Log { file, path: path.to_path_buf(), last: VecDeque::new() })
    }

    /// Adds a line that `who` said.
    pub fn line(&mut self, who: &str, text: &str) {
        self.raw(&format!("{who}: {text}"));
    }

    /// Adds a line as it is.
    pub fn raw(&mut self, line: &str) {
        // A full disk must not end a run whose result does not depend on the log.
        let _ = writeln!(self.file, "{line}");
        self.last.push_back(line.to_owned());
        if self.last.len() > KEPT_LINES {
            self.last.pop_front();
        }
    }

    /// The last lines.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(|line| &**line)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes lines of pieces of text.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes bytes and calls `each` with every line that they complete, without its end.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                each(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            } else {
                self.partial.push(byte);
            }
        }
    }

    /// Takes what is left after the last line's end.
    pub fn take_rest(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.partial);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for piece in ["he", "llo\r\nwor", "ld\n\nrest"] {
            lines.push(piece.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["hello", "world", ""]);
        assert_eq!(lines.take_rest().as_deref(), Some("rest"));
        assert_eq!(lines.take_rest(), None);
    }
}
