//! The rings to and from the console server.

use crate::devices;
use crate::output::{SERIAL_PORTS as INPUT_PORTS, STREAMS};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use usys::abi::Selector;
use usys::cap::{Cap, Ntfn};
use usys::cpu;
use usys::lock::Mutex;
use usys::process::{self, ProcessInfo};
use usys::ring::{Consumer, Producer};
use vmm_protocol::link::{Stream, TerminalSize};
use vmm_protocol::process::{INPUT, OUTPUT, monitor};

/// How long the console server may make no room before output is given up, in ms: it, or the line, is dead.
const PATIENCE_MS: u64 = 2000;

/// Bytes from gdb that wait; it sends no more before it has an answer.
const GDB_BYTES: usize = 16 * 1024;

/// The VM's connection to the console server.
#[derive(Debug)]
pub struct Channel {
    index: u8,
    tsc_hz: u64,
    producer: &'static Mutex<Producer>,
    consumer: Consumer,
    doorbell: Cap<Ntfn>,
    /// Bytes of the next record of input that were taken already.
    taken: usize,
    /// What came from gdb.
    gdb: VecDeque<u8>,
    /// The last record was given up: until there is room again, nothing is waited for.
    is_dead: bool,
}

impl Channel {
    /// Connects, and sends this process's log there.
    pub fn new(info: &'static ProcessInfo, index: u8) -> Result<Self, &'static str> {
        let window = |name: &str| info.window(name).ok_or("a ring is missing");
        let producer = Producer::attach(window(OUTPUT)?).map_err(|_| "a ring is too small")?;
        let consumer = Consumer::attach(window(INPUT)?).map_err(|_| "a ring is too small")?;
        let producer: &'static Mutex<Producer> = Box::leak(Box::new(Mutex::new(producer)));
        let doorbell = Cap::new(Selector(monitor::CONSOLE));
        usys::logger::to_ring(producer, doorbell, Stream::Log as u8, index);
        Ok(Channel {
            index,
            tsc_hz: info.header.tsc_hz,
            producer,
            consumer,
            doorbell,
            taken: 0,
            gdb: VecDeque::new(),
            is_dead: false,
        })
    }

    /// Sends a record, waiting while the console server makes room. The guest stands still meanwhile, as with a slow line.
    pub fn send(&mut self, stream: Stream, bytes: &[u8]) {
        let mut taken = 0;
        while !self.push(stream, bytes) {
            let consumed = self.producer.lock().consumed();
            if self.is_dead {
                devices::give_back(taken);
                return;
            }
            let deadline = cpu::deadline_in(PATIENCE_MS, self.tsc_hz);
            // The bit is for input too; nothing is lost, since input is looked at after every exit.
            let raised = process::events().wait(deadline).unwrap_or(0);
            taken |= raised;
            self.is_dead = raised == 0 && self.producer.lock().consumed() == consumed;
        }
        self.is_dead = false;
        devices::give_back(taken);
        // A console server that is gone is the root task's matter.
        let _ = self.doorbell.signal();
    }

    fn push(&self, stream: Stream, bytes: &[u8]) -> bool {
        self.producer.lock().push(stream as u8, self.index, bytes)
    }

    /// Takes input: `take` gets the number of the serial port and bytes, and says how many it has room for. What it has no
    /// room for comes again. Returns the size that the console's terminal has now, if that came, too.
    #[inline]
    pub fn receive(&mut self, take: impl FnMut(usize, &[u8]) -> usize) -> Option<TerminalSize> {
        // Asked after every exit, and mostly in vain.
        if self.consumer.is_empty() { None } else { self.receive_records(take) }
    }

    /// Asks for the size of the console's terminal. It comes if there is one.
    #[cold]
    pub fn ask_size(&mut self) {
        self.send(Stream::Size, &[0]);
    }

    /// Takes a byte that came from gdb, as [`Self::receive`] has found it.
    pub fn take_gdb(&mut self) -> Option<u8> {
        self.gdb.pop_front()
    }

    /// Whether gdb has said something.
    pub fn has_gdb(&self) -> bool {
        !self.gdb.is_empty()
    }

    fn receive_records(&mut self, mut take: impl FnMut(usize, &[u8]) -> usize) -> Option<TerminalSize> {
        let (mut is_relieved, mut size) = (false, None);
        while let Some(record) = self.consumer.peek() {
            let port = STREAMS.iter().position(|&stream| stream as u8 == record.stream);
            if record.stream == Stream::Gdb as u8 && self.gdb.len() < GDB_BYTES {
                self.gdb.extend(record.bytes());
            }
            if record.stream == Stream::Size as u8 {
                size = TerminalSize::decode(record.bytes()).or(size);
            }
            // Records of other streams are nobody's.
            if let Some(port) = port.filter(|&port| port < INPUT_PORTS) {
                let rest = record.bytes().get(self.taken..).unwrap_or_default();
                self.taken += take(port, rest);
                if self.taken < record.bytes().len() {
                    break;
                }
            }
            self.taken = 0;
            is_relieved |= self.consumer.pop().is_some();
        }
        if is_relieved && self.consumer.take_starved() {
            let _ = self.doorbell.signal();
        }
        size
    }
}
