//! From the line to the VMs.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use usys::ring::{MAX_RECORD, Producer};
use vmm_protocol::link::{Decoder, Stream, TerminalSize};
use vmm_protocol::manifest::ConsoleMode;

/// In plain mode, the VM that the person at the other end talks to.
const FOCUS: u8 = 0;
/// Bytes kept for a VM that does not read; what comes then is lost, as on a real line.
const KEEP: usize = 64 * 1024;
/// Pieces kept for it: each has a cost beyond its bytes.
const KEEP_PIECES: usize = 1024;
/// Bytes kept for all VMs.
const KEEP_IN_ALL: usize = 128 * 1024;

/// Input on its way to the VMs.
#[derive(Debug)]
pub struct Input {
    mode: ConsoleMode,
    decoder: Decoder,
    vms: Vec<Destination>,
}

#[derive(Debug)]
struct Destination {
    ring: Producer,
    /// What is not in the ring yet: runs of bytes of one stream.
    waiting: VecDeque<(Stream, Vec<u8>)>,
    bytes: usize,
    /// The last size of its terminal that is not in the ring yet: those before it are of no use.
    size: Option<TerminalSize>,
}

impl Input {
    /// Input for the VMs with these rings.
    pub fn new(mode: ConsoleMode, rings: Vec<Producer>) -> Self {
        let vms = rings.into_iter().map(|ring| Destination {
            ring,
            waiting: VecDeque::new(),
            bytes: 0,
            size: None,
        });
        Input { mode, decoder: Decoder::default(), vms: vms.collect() }
    }

    /// Takes a byte from the line.
    pub fn push(&mut self, byte: u8) {
        match self.mode {
            ConsoleMode::Plain => self.add(FOCUS, Stream::Console, &[byte]),
            ConsoleMode::Framed => {
                if let Some(frame) = self.decoder.push(byte) {
                    match frame.stream {
                        Stream::Size => self.set_size(frame.vm, &frame.payload),
                        stream => self.add(frame.vm, stream, &frame.payload),
                    }
                }
            }
        }
    }

    fn add(&mut self, vm: u8, stream: Stream, bytes: &[u8]) {
        let is_input =
            matches!(stream, Stream::Console | Stream::Stdout | Stream::Stderr | Stream::Agent | Stream::Gdb);
        let in_all: usize = self.vms.iter().map(|vm| vm.bytes).sum();
        let Some(destination) = self.vms.get_mut(usize::from(vm)).filter(|_| is_input) else {
            return;
        };
        let room = KEEP
            .min(destination.bytes + KEEP_IN_ALL.saturating_sub(in_all))
            .saturating_sub(destination.bytes);
        for &byte in &bytes[..bytes.len().min(room)] {
            destination.add(stream, byte);
        }
    }

    fn set_size(&mut self, vm: u8, bytes: &[u8]) {
        if let Some((destination, size)) = self.vms.get_mut(usize::from(vm)).zip(TerminalSize::decode(bytes))
        {
            destination.size = Some(size);
        }
    }

    /// Moves what fits into the rings. Returns the VMs, as bits, that have new input.
    pub fn deliver(&mut self) -> u64 {
        let mut signals = 0;
        for (index, destination) in self.vms.iter_mut().enumerate() {
            let ring = &mut destination.ring;
            let push = |size: &mut TerminalSize| ring.push(Stream::Size as u8, index as u8, &size.encode());
            signals |= u64::from(destination.size.take_if(push).is_some()) << index;
            while let Some((stream, run)) = destination.waiting.front() {
                if !destination.ring.push(*stream as u8, index as u8, run) {
                    break;
                }
                signals |= 1 << index;
                destination.bytes -= run.len();
                destination.waiting.pop_front();
            }
        }
        signals
    }
}

impl Destination {
    fn add(&mut self, stream: Stream, byte: u8) {
        let is_full = self.waiting.len() >= KEEP_PIECES;
        match self.waiting.back_mut() {
            Some((last, run)) if *last == stream && run.len() < MAX_RECORD => run.push(byte),
            _ if is_full => return,
            _ => self.waiting.push_back((stream, alloc::vec![byte])),
        }
        self.bytes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usys::Window;
    use usys::ring::Consumer;
    use vmm_protocol::link::header;

    fn fixture(mode: ConsoleMode, vms: usize) -> (Input, Vec<Consumer>) {
        let windows: Vec<_> = (0..vms).map(|_| Window::leak(4096 + 1024)).collect();
        let rings = windows.iter().map(|window| Producer::attach(*window).unwrap()).collect();
        let consumers: Vec<_> = windows.iter().map(|window| Consumer::attach(*window).unwrap()).collect();
        (Input::new(mode, rings), consumers)
    }

    #[test]
    fn what_a_person_types_reaches_the_first_vm() {
        let (mut input, mut rings) = fixture(ConsoleMode::Plain, 2);
        b"ls\r".iter().for_each(|&byte| input.push(byte));
        assert_eq!(input.deliver(), 0b01);
        assert_eq!(rings[0].pop().unwrap().bytes(), b"ls\r");
        assert!(rings[1].is_empty());
    }

    #[test]
    fn frames_reach_the_vm_and_stream_they_name() {
        let (mut input, mut rings) = fixture(ConsoleMode::Framed, 2);
        let mut bytes = header(Stream::Agent, 1, 2).to_vec();
        bytes.extend(b"hi");
        bytes.extend(header(Stream::Outcome, 0, 1));
        bytes.push(0);
        bytes.extend(header(Stream::Console, 7, 1));
        bytes.push(0);
        bytes.into_iter().for_each(|byte| input.push(byte));
        assert_eq!(input.deliver(), 0b10);
        let record = rings[1].pop().unwrap();
        assert_eq!((record.stream, record.bytes()), (Stream::Agent as u8, b"hi".as_slice()));
        assert!(rings[0].is_empty());
    }

    #[test]
    fn the_last_size_of_a_terminal_arrives_whole_when_there_is_room() {
        let (mut input, mut rings) = fixture(ConsoleMode::Framed, 1);
        let mut frame = |stream: Stream, payload: &[u8]| {
            let header = header(stream, 0, payload.len() as u8);
            header.iter().chain(payload).for_each(|&byte| input.push(byte));
            input.deliver()
        };
        while frame(Stream::Console, &[b'x'; 125]) != 0 {}
        for columns in 70..=80 {
            assert_eq!(frame(Stream::Size, &TerminalSize { columns, rows: 25 }.encode()), 0);
        }
        assert_eq!(frame(Stream::Size, b"nonsense"), 0);
        while rings[0].pop().is_some() {}
        assert_eq!(input.deliver(), 0b1);
        let record = rings[0].pop().unwrap();
        let size = TerminalSize::decode(record.bytes());
        assert_eq!((record.stream, size), (Stream::Size as u8, Some(TerminalSize { columns: 80, rows: 25 })));
        while let Some(record) = rings[0].pop() {
            assert_eq!(record.stream, Stream::Console as u8);
        }
    }

    #[test]
    fn input_waits_for_a_slow_reader_and_keeps_its_order() {
        let (mut input, mut rings) = fixture(ConsoleMode::Plain, 1);
        let sent: Vec<u8> = (0..5000).map(|index| index as u8).collect();
        sent.iter().for_each(|&byte| input.push(byte));
        let mut got: Vec<u8> = Vec::new();
        while input.deliver() != 0 {
            while let Some(record) = rings[0].pop() {
                got.extend(record.bytes());
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_vm_that_never_reads_costs_limited_memory() {
        let (mut input, _rings) = fixture(ConsoleMode::Plain, 1);
        for _ in 0..2 * KEEP {
            input.push(b'x');
        }
        assert_eq!(input.vms[0].bytes, KEEP);
    }

    #[test]
    fn vms_that_never_read_cost_limited_memory_together() {
        let (mut input, _rings) = fixture(ConsoleMode::Framed, 4);
        for round in 0..KEEP {
            for vm in 0..4 {
                let stream = if round % 2 == 0 { Stream::Console } else { Stream::Agent };
                input.add(vm, stream, if vm == 0 { b"x" } else { &[b'x'; MAX_RECORD] });
            }
        }
        let bytes: usize = input.vms.iter().map(|vm| vm.bytes).sum();
        assert!(bytes <= KEEP_IN_ALL);
        assert!(input.vms.iter().all(|vm| vm.waiting.len() <= KEEP_PIECES));
    }
}
