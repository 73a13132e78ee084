//! The user's terminal: raw while a VM has it, as it was afterwards.

use super::event::{Event, Events};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{Read, stdin, stdout};
use std::thread;
use vmm_protocol::link::TerminalSize;

/// A terminal in raw mode; dropping it restores the mode it had.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes stdin raw, if it is a terminal.
    pub fn enter() -> Option<Self> {
        let stdin = stdin();
        if !isatty(&stdin) {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to do if the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Whether a person is at the other end of stdin.
pub fn is_interactive() -> bool {
    isatty(stdin())
}

/// The size of the user's terminal, if there is one.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// Turns what comes on stdin into events, until its end.
pub fn read_input(events: &Events) {
    let to = events.sender();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = stdin().lock().read(&mut buffer) {
            if to.send(Event::Input(buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}
