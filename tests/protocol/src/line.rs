//! The lines a test guest prints.

/// Begins the line of a check that held; the sentence follows.
pub const OK: &str = "ok: ";

/// Begins the line of a check that did not hold; the sentence follows, then what was seen instead.
pub const FAIL: &str = "FAIL: ";

/// Begins the line of a check that this machine cannot make; the reason follows.
pub const SKIP: &str = "skip: ";

/// Begins a guest's last line, `done: N passed, M failed`.
pub const DONE: &str = "done: ";

/// What `hello` prints.
pub const HELLO: &str = "hello from a Nacre guest";

/// What a guest prints right before it does the thing after which it can print no more.
pub const LAST_WORDS: &str = "now: ";

/// What a guest prints when it is ready to be typed at.
pub const READY: &str = "ready";

/// One line of a guest's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A check held.
    Ok(&'a str),
    /// A check did not hold.
    Fail(&'a str),
    /// A check was not made.
    Skip(&'a str),
    /// The guest's tally.
    Done {
        /// Checks that held.
        passed: u32,
        /// Checks that did not hold.
        failed: u32,
    },
    /// Anything else.
    Other(&'a str),
}

impl<'a> Line<'a> {
    /// Reads one line, without its line end.
    pub fn parse(line: &'a str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if let Some(text) = line.strip_prefix(OK) {
            Line::Ok(text)
        } else if let Some(text) = line.strip_prefix(FAIL) {
            Line::Fail(text)
        } else if let Some(text) = line.strip_prefix(SKIP) {
            Line::Skip(text)
        } else {
            parse_done(line).unwrap_or(Line::Other(line))
        }
    }
}

fn parse_done(line: &str) -> Option<Line<'_>> {
    let (passed, failed) = line.strip_prefix(DONE)?.split_once(", ")?;
    Some(Line::Done {
        passed: passed.strip_suffix(" passed")?.parse().ok()?,
        failed: failed.strip_suffix(" failed")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn a_guests_lines_are_told_apart() {
        assert_eq!(Line::parse("ok: it works\r\n"), Line::Ok("it works"));
        assert_eq!(Line::parse("FAIL: it works"), Line::Fail("it works"));
        assert_eq!(Line::parse("skip: no AVX"), Line::Skip("no AVX"));
        assert_eq!(Line::parse("done: 3 passed, 1 failed\r"), Line::Done { passed: 3, failed: 1 });
        assert_eq!(Line::parse("done: soon"), Line::Other("done: soon"));
    }
}
