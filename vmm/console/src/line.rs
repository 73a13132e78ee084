//! What records look like on the line.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use vmm_protocol::link::{self, MAX_PAYLOAD, NO_VM, Stream};
use vmm_protocol::manifest::ConsoleMode;
use vmm_protocol::outcome::Outcome;

/// Bytes on their way to the line.
pub type Queue = VecDeque<u8>;

/// The line's encoder.
#[derive(Debug)]
pub struct Line {
    mode: ConsoleMode,
    names: Vec<String>,
    /// Plain mode: whose unfinished line the cursor is in.
    open: Option<Author>,
}

/// Who writes a line in plain mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Author {
    Guest(u8),
    System,
}

impl Line {
    /// A line in this mode, for VMs with these names.
    pub fn new(mode: ConsoleMode, names: Vec<String>) -> Self {
        Line { mode, names, open: None }
    }

    /// What the line begins with.
    pub fn hello(&mut self, out: &mut Queue) {
        self.put(Stream::Hello, NO_VM, &[link::VERSION], out);
    }

    /// Appends a record of at most [`MAX_PAYLOAD`] bytes.
    pub fn put(&mut self, stream: Stream, vm: u8, bytes: &[u8], out: &mut Queue) {
        match self.mode {
            ConsoleMode::Framed => put_frame(stream, vm, bytes, out),
            ConsoleMode::Plain => self.put_text(stream, vm, bytes, out),
        }
    }

    fn put_text(&mut self, stream: Stream, vm: u8, bytes: &[u8], out: &mut Queue) {
        match stream {
            Stream::Console | Stream::Stdout | Stream::Stderr => self.put_guest(vm, bytes, out),
            Stream::Log => self.put_log(vm, bytes, out),
            Stream::Outcome => {
                let name = self.names.get(usize::from(vm)).map_or("?", String::as_str);
                let text = match Outcome::decode(bytes) {
                    Some(outcome) => format!("VM {name}: {outcome}"),
                    None => format!("VM {name}: ended"),
                };
                self.put_line(text.as_bytes(), out);
            }
            // Nothing that a person would read.
            Stream::Agent | Stream::Gdb | Stream::Size | Stream::Hello | Stream::Bye => {}
        }
    }

    /// Guest output goes through at once, so that a prompt is seen. With several VMs, each piece of a line stands behind the
    /// name of its VM, and nothing that could move the cursor back over a name gets through.
    fn put_guest(&mut self, vm: u8, bytes: &[u8], out: &mut Queue) {
        let author = Author::Guest(vm);
        let is_shared = self.names.len() > 1;
        for &byte in bytes {
            if is_shared && byte != b'\n' && is_control(byte) {
                continue;
            }
            if self.open != Some(author) {
                self.begin_line(author, out);
            }
            if is_shared && byte == b'\n' {
                out.push_back(b'\r');
            }
            out.push_back(byte);
            if byte == b'\n' {
                self.open = None;
            }
        }
    }

    /// A line of a process's log. A VMM writes its name itself; one that does not gets it all the same.
    fn put_log(&mut self, vm: u8, bytes: &[u8], out: &mut Queue) {
        let name = self.names.get(usize::from(vm)).map_or("", String::as_str);
        let rest = bytes.strip_prefix(name.as_bytes()).unwrap_or_default();
        if name.is_empty() || rest.starts_with(b": ") {
            return self.put_line(bytes, out);
        }
        let line = [name.as_bytes(), b": ", bytes].concat();
        self.put_line(&line, out);
    }

    fn begin_line(&mut self, author: Author, out: &mut Queue) {
        if self.open.is_some() {
            out.extend(b"\r\n");
        }
        self.open = Some(author);
        if let Author::Guest(vm) = author
            && self.names.len() > 1
            && let Some(name) = self.names.get(usize::from(vm))
        {
            out.extend(name.bytes());
            out.extend(b": ");
        }
    }

    fn put_line(&mut self, bytes: &[u8], out: &mut Queue) {
        self.begin_line(Author::System, out);
        out.extend(bytes.iter().copied().filter(|&byte| !is_control(byte)));
        out.extend(b"\r\n");
        self.open = None;
    }
}

/// A control character other than a tabulator.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

fn put_frame(stream: Stream, vm: u8, bytes: &[u8], out: &mut Queue) {
    for chunk in bytes.chunks(MAX_PAYLOAD) {
        out.extend(link::header(stream, vm, chunk.len() as u8));
        out.extend(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn plain(names: &[&str], records: &[(Stream, u8, &[u8])]) -> String {
        let mut line = Line::new(ConsoleMode::Plain, names.iter().map(|&name| name.into()).collect());
        let mut out = Queue::new();
        line.hello(&mut out);
        for &(stream, vm, bytes) in records {
            line.put(stream, vm, bytes, &mut out);
        }
        String::from_utf8(out.into()).unwrap()
    }

    #[test]
    fn one_vm_has_the_line_to_itself() {
        let text =
            plain(&["linux"], &[(Stream::Console, 0, b"one\r\nlogin: "), (Stream::Agent, 0, b"exit 0\n")]);
        assert_eq!(text, "one\r\nlogin: ");
    }

    #[test]
    fn a_line_of_the_system_begins_on_a_new_line() {
        let outcome = Outcome::PoweredOff.encode();
        let text = plain(&["linux"], &[(Stream::Console, 0, b"login: "), (Stream::Outcome, 0, &outcome)]);
        assert_eq!(text, "login: \r\nVM linux: powered off\r\n");
    }

    #[test]
    fn lines_of_several_vms_stand_behind_their_names() {
        let text = plain(
            &["a", "b"],
            &[
                (Stream::Console, 0, b"first\r\nhalf "),
                (Stream::Console, 1, b"other\r\n"),
                (Stream::Console, 0, b"rest\r\n"),
                (Stream::Log, NO_VM, b"root: hello"),
            ],
        );
        assert_eq!(text, "a: first\r\na: half \r\nb: other\r\na: rest\r\nroot: hello\r\n");
    }

    #[test]
    fn a_vm_cannot_write_over_its_name_or_speak_for_the_system() {
        let text = plain(
            &["a", "b"],
            &[
                (Stream::Console, 0, b"x\r\x1b[2Kb: I am b\n"),
                (Stream::Log, 0, b"root: VM b: powered off\r\n"),
                (Stream::Log, 1, b"b: warning: so I say"),
            ],
        );
        assert_eq!(text, "a: x[2Kb: I am b\r\na: root: VM b: powered off\r\nb: warning: so I say\r\n");
    }

    #[test]
    fn framed_output_is_what_the_host_decodes() {
        let mut line = Line::new(ConsoleMode::Framed, vec!["a".into()]);
        let mut out = Queue::new();
        line.hello(&mut out);
        line.put(Stream::Stdout, 0, &[link::SYNC; 200], &mut out);
        let mut decoder = link::Decoder::default();
        let frames: Vec<_> = out.into_iter().filter_map(|byte| decoder.push(byte)).collect();
        assert_eq!(
            (frames[0].stream, frames[0].payload.as_slice()),
            (Stream::Hello, [link::VERSION].as_slice())
        );
        assert_eq!((frames[1].stream, frames[1].payload.len()), (Stream::Stdout, 200));
    }
}
