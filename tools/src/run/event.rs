//! What can happen during a run, gathered into one queue.

use super::gdb;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;
use vmm_protocol::link::Frame;

/// Something that happened.
pub enum Event {
    /// The emulator connected its serial line; what is written here goes to the console server.
    Connected(Box<dyn Write + Send>),
    /// A frame came.
    Frame(Frame),
    /// The line closed.
    LinkClosed,
    /// A line of the emulator's stdout.
    Stdout(String),
    /// A line of the emulator's stderr.
    Stderr(String),
    /// Something from the first VM's debugger.
    Gdb(gdb::Event),
    /// The user typed.
    Input(Vec<u8>),
    /// The user's terminal has another size.
    Resized,
    /// The tool was asked to end.
    Signal(i32),
}

/// The queue.
pub struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    signals: signal_hook::iterator::Handle,
}

impl Events {
    /// A new queue, into which signals already go.
    pub fn new() -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH]).context("cannot watch for signals")?;
        let handle = signals.handle();
        let to_queue = sender.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                let event = if signal == SIGWINCH { Event::Resized } else { Event::Signal(signal) };
                if to_queue.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Events { sender, receiver, signals: handle })
    }

    /// A new way into the queue.
    pub fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// The next event, or none within `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        // The queue itself holds a sender, so that the only error is a timeout.
        self.receiver.recv_timeout(timeout).ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.signals.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn another_size_of_the_terminal_ends_nothing() {
        let events = Events::new().unwrap();
        kill_process(getpid(), Signal::WINCH).unwrap();
        assert!(matches!(events.next(Duration::from_secs(60)), Some(Event::Resized)));
    }
}
