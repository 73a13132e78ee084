//! The size of the terminal that the consoles are shown on: VMs ask for it, and are told when it changes.

use super::{Options, Output, Resize, link, terminal};
use std::io::Write;
use vmm_protocol::link::{Stream, TerminalSize};

/// What writes to the console server, once it is there.
type Line = Option<Box<dyn Write + Send>>;

/// What the size is, and who asked.
#[derive(Debug)]
pub struct Size {
    is_interactive: bool,
    terminal: Option<TerminalSize>,
    /// What a test does to it.
    resize: Option<Resize>,
    /// Whether a VM asked, by its number.
    asked: Vec<bool>,
}

impl Size {
    /// That of the user's terminal, or a test's, for so many VMs.
    pub fn new(vms: usize, options: &Options) -> Self {
        let is_interactive = options.output == Output::Interactive;
        let resize = options.script.terminal.clone();
        let scripted = resize.as_ref().map(|resize| resize.first);
        Size {
            is_interactive,
            terminal: scripted.or_else(|| is_interactive.then(terminal::size).flatten()),
            resize,
            asked: vec![false; vms],
        }
    }

    /// A VM asked.
    pub fn ask(&mut self, vm: u8, line: &mut Line) {
        if let Some(asked) = self.asked.get_mut(usize::from(vm)) {
            *asked = true;
            self.tell(vm, line);
        }
    }

    /// The user's terminal has another size.
    pub fn follow_terminal(&mut self, line: &mut Line) {
        if self.is_interactive {
            self.set(terminal::size(), line);
        }
    }

    /// The first VM's console has shown this.
    pub fn follow_script(&mut self, console: &[u8], line: &mut Line) {
        let is_due = |resize: &mut Resize| super::contains(console, resize.when.as_bytes());
        if let Some(resize) = self.resize.take_if(is_due) {
            self.set(Some(resize.then), line);
        }
    }

    fn set(&mut self, size: Option<TerminalSize>, line: &mut Line) {
        self.terminal = size;
        for vm in (0..self.asked.len()).filter(|&vm| self.asked[vm]) {
            self.tell(vm as u8, line);
        }
    }

    fn tell(&self, vm: u8, line: &mut Line) {
        if let Some((size, line)) = self.terminal.zip(line.as_mut()) {
            // A line that is closed ends the run by itself.
            let _ = link::send(line, Stream::Size, vm, &size.encode());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc::{self, Receiver, Sender};
    use vmm_protocol::link::Decoder;

    struct ToTest(Sender<u8>);

    impl Write for ToTest {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            bytes.iter().try_for_each(|&byte| self.0.send(byte)).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(sent: &Receiver<u8>) -> Vec<(u8, Option<TerminalSize>)> {
        let mut decoder = Decoder::default();
        let frames = sent.try_iter().filter_map(|byte| decoder.push(byte));
        frames.map(|frame| (frame.vm, TerminalSize::decode(&frame.payload))).collect()
    }

    #[test]
    fn who_asks_is_told_the_size_and_each_other() {
        let (to, sent) = mpsc::channel();
        let mut line: Line = Some(Box::new(ToTest(to)));
        let [first, then] = [80, 132].map(|columns| TerminalSize { columns, rows: 25 });
        let resize = Some(Resize { first, when: "now".into(), then });
        let mut size = Size { is_interactive: false, terminal: Some(first), resize, asked: vec![false; 3] };
        for vm in [2, 0, 3] {
            size.ask(vm, &mut line);
        }
        assert_eq!(told(&sent), [(2, Some(first)), (0, Some(first))]);
        size.follow_script(b"not yet", &mut line);
        assert_eq!(told(&sent), []);
        size.follow_script(b"and now", &mut line);
        assert_eq!(told(&sent), [(0, Some(then)), (2, Some(then))]);
    }

    #[test]
    fn without_a_terminal_nobody_is_told() {
        let (to, sent) = mpsc::channel();
        let mut line: Line = Some(Box::new(ToTest(to)));
        let mut size = Size { is_interactive: false, terminal: None, resize: None, asked: vec![false] };
        size.ask(0, &mut line);
        size.follow_terminal(&mut line);
        assert_eq!(told(&sent), []);
    }
}
