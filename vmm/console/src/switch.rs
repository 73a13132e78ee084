//! From the rings to the line: in turn, and in an order that makes sense to the reader.

use crate::line::{Line, Queue};
use alloc::vec::Vec;
use usys::ring::{Consumer, Record};
use vmm_protocol::link::Stream;

/// Bytes in the queue above which nothing is added: what a UART sends in 90 ms. The rest waits in the rings, which is
/// where its writers notice.
const QUEUE_HIGH: usize = 1024;

/// Rounds of one call: a VM whose records become nothing on the line must not keep the server.
const ROUNDS: usize = 64;

/// The consumers of all rings.
#[derive(Debug)]
pub struct Switch {
    root: Consumer,
    vms: Vec<Consumer>,
    /// The VM whose turn it is.
    next: usize,
    said_bye: bool,
    is_behind: bool,
}

impl Switch {
    /// A switch for the root task's ring and those of the VMs.
    pub fn new(root: Consumer, vms: Vec<Consumer>) -> Self {
        Switch { root, vms, next: 0, said_bye: false, is_behind: false }
    }

    /// Moves records to the queue while it has room, up to a limit. Returns the VMs, as bits, that waited for room and have
    /// it now.
    pub fn pump(&mut self, line: &mut Line, queue: &mut Queue) -> u64 {
        self.is_behind = (0..ROUNDS).all(|_| queue.len() < QUEUE_HIGH && self.pump_round(line, queue));
        // Half a ring at a time, so that a writer does not wake for every record.
        let mut relieved = 0;
        for (index, ring) in self.vms.iter_mut().enumerate() {
            if ring.is_half_empty() && ring.take_starved() {
                relieved |= 1 << index;
            }
        }
        relieved
    }

    /// Whether the last [`Self::pump`] ended with its limit: there may be more, and room for it.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// One record of each ring; false if there was none.
    fn pump_round(&mut self, line: &mut Line, queue: &mut Queue) -> bool {
        let from_root = self.pump_root(line, queue);
        self.pump_vms(line, queue) || from_root
    }

    /// Whether the root task said that nothing follows, and everything before it is in the queue.
    pub fn said_bye(&self) -> bool {
        self.said_bye
    }

    /// One record of the root task. The outcome of a VM comes after all that the VM wrote, and Bye after everything.
    fn pump_root(&mut self, line: &mut Line, queue: &mut Queue) -> bool {
        let Some(record) = self.root.peek() else {
            return false;
        };
        let Some(stream) = Stream::from_raw(record.stream) else {
            return self.root.pop().is_some();
        };
        let must_wait = match stream {
            Stream::Outcome => self.vms.get(usize::from(record.source)).is_some_and(|ring| !ring.is_empty()),
            Stream::Bye => self.vms.iter().any(|ring| !ring.is_empty()),
            _ => false,
        };
        if must_wait {
            return false;
        }
        self.root.pop();
        self.said_bye |= stream == Stream::Bye;
        line.put(stream, record.source, record.bytes(), queue);
        true
    }

    /// One record of each VM, beginning with the one whose turn it is.
    fn pump_vms(&mut self, line: &mut Line, queue: &mut Queue) -> bool {
        let mut moved = false;
        for _ in 0..self.vms.len() {
            if queue.len() >= QUEUE_HIGH {
                break;
            }
            let index = self.next;
            self.next = (index + 1) % self.vms.len();
            if let Some(record) = self.vms[index].pop() {
                moved = true;
                put_record(line, index, &record, queue);
            }
        }
        moved
    }
}

/// A VM's record counts as the VM's, whatever it says, and only for streams that are a VM's.
fn put_record(line: &mut Line, index: usize, record: &Record, queue: &mut Queue) {
    match Stream::from_raw(record.stream) {
        Some(
            stream @ (Stream::Console
            | Stream::Stdout
            | Stream::Stderr
            | Stream::Agent
            | Stream::Log
            | Stream::Gdb
            | Stream::Size),
        ) => line.put(stream, index as u8, record.bytes(), queue),
        Some(Stream::Outcome | Stream::Hello | Stream::Bye) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use usys::Window;
    use usys::ring::Producer;
    use vmm_protocol::link::{Decoder, Frame, NO_VM};
    use vmm_protocol::manifest::ConsoleMode;

    struct Fixture {
        switch: Switch,
        root: Producer,
        vms: Vec<Producer>,
        line: Line,
    }

    fn fixture(vms: usize) -> Fixture {
        let windows: Vec<_> = (0..=vms).map(|_| Window::leak(4096 + 16384)).collect();
        let consumer = |window: &Window| Consumer::attach(*window).unwrap();
        let producer = |window: &Window| Producer::attach(*window).unwrap();
        Fixture {
            switch: Switch::new(consumer(&windows[0]), windows[1..].iter().map(consumer).collect()),
            root: producer(&windows[0]),
            vms: windows[1..].iter().map(producer).collect(),
            line: Line::new(ConsoleMode::Framed, (0..vms).map(|index| index.to_string()).collect()),
        }
    }

    impl Fixture {
        fn frames(&mut self) -> Vec<Frame> {
            let mut decoder = Decoder::default();
            let mut frames = vec![];
            loop {
                let mut queue = Queue::new();
                self.switch.pump(&mut self.line, &mut queue);
                if queue.is_empty() {
                    return frames;
                }
                frames.extend(queue.into_iter().filter_map(|byte| decoder.push(byte)));
            }
        }
    }

    #[test]
    fn a_vm_ends_after_its_last_output_and_bye_comes_last() {
        let mut fixture = fixture(2);
        fixture.root.push(Stream::Outcome as u8, 1, &[0]);
        fixture.root.push(Stream::Bye as u8, NO_VM, &[0]);
        for _ in 0..20 {
            fixture.vms[1].push(Stream::Console as u8, 0, &[b'x'; 200]);
            fixture.vms[0].push(Stream::Console as u8, 0, b"y");
        }
        let frames = fixture.frames();
        assert!(fixture.switch.said_bye());
        assert_eq!(frames.len(), 42);
        let outcome = frames.iter().position(|frame| frame.stream == Stream::Outcome).unwrap();
        assert!(frames[outcome..].iter().all(|frame| frame.vm != 1 || frame.stream == Stream::Outcome));
        assert_eq!(frames.last().map(|frame| frame.stream), Some(Stream::Bye));
    }

    #[test]
    fn a_vm_can_neither_pose_as_another_nor_as_the_system() {
        let mut fixture = fixture(2);
        fixture.vms[1].push(Stream::Console as u8, 0, b"I am VM 0");
        fixture.vms[1].push(Stream::Outcome as u8, 0, &[0]);
        fixture.vms[1].push(Stream::Bye as u8, NO_VM, &[0]);
        fixture.vms[1].push(99, 0, b"?");
        let frames = fixture.frames();
        assert_eq!(
            frames.iter().map(|frame| (frame.stream, frame.vm)).collect::<Vec<_>>(),
            [(Stream::Console, 1)]
        );
        assert!(!fixture.switch.said_bye());
    }

    #[test]
    fn a_loud_vm_does_not_silence_a_quiet_one() {
        let mut fixture = fixture(2);
        while fixture.vms[0].push(Stream::Console as u8, 0, &[b'x'; 255]) {}
        fixture.vms[1].push(Stream::Console as u8, 0, b"hello");
        let frames = fixture.frames();
        assert!(frames.iter().position(|frame| frame.vm == 1).unwrap() <= 1);
    }

    #[test]
    fn records_that_become_nothing_do_not_keep_the_server() {
        let mut fixture = fixture(2);
        while fixture.vms[0].push(99, 0, b"?") {}
        fixture.vms[1].push(Stream::Console as u8, 0, b"hello");
        let mut queue = Queue::new();
        fixture.switch.pump(&mut fixture.line, &mut queue);
        assert!(fixture.switch.is_behind(), "the rest can wait");
        assert!(queue.len() > 5, "and the quiet VM is heard");
        while fixture.switch.is_behind() {
            fixture.switch.pump(&mut fixture.line, &mut queue);
        }
    }

    #[test]
    fn a_vm_that_found_its_ring_full_is_told_when_there_is_room() {
        let mut fixture = fixture(2);
        while fixture.vms[1].push(Stream::Console as u8, 0, &[b'x'; 255]) {}
        let mut relieved = 0;
        for _ in 0..100 {
            let mut queue = Queue::new();
            relieved |= fixture.switch.pump(&mut fixture.line, &mut queue);
            assert!(queue.len() < QUEUE_HIGH + 300);
        }
        assert_eq!(relieved, 0b10);
        assert!(fixture.vms[1].push(Stream::Console as u8, 0, &[b'x'; 255]));
    }
}
