//! A drive for tests: it keeps the protocols of ATA/ATAPI-6 and says what its user did wrong.

use crate::registers::{Bus, Register, command, control, error, status};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use vmm_protocol::block::SECTOR_BYTES;

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// Data for the host: what is left of the block, and blocks after it.
    Out,
    /// Data from the host.
    In,
}

/// How a drive behaves.
#[derive(Clone, Debug)]
pub(crate) struct Behaviour {
    pub(crate) sectors: u64,
    pub(crate) has_lba48: bool,
    pub(crate) max_multiple: u8,
    /// Reads of the status for which it stays busy before each block.
    pub(crate) busy: u32,
    /// Sectors that cannot be read, or written, with this error.
    pub(crate) bad: BTreeMap<u64, u8>,
    /// It does not answer the next commands, this many.
    pub(crate) hangs: u32,
    /// It never comes back from a reset.
    pub(crate) dies: bool,
    /// There is nothing.
    pub(crate) is_absent: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            sectors: 1 << 30,
            has_lba48: true,
            max_multiple: 16,
            busy: 3,
            bad: BTreeMap::new(),
            hangs: 0,
            dies: false,
            is_absent: false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct FakeDrive {
    pub(crate) behaviour: Behaviour,
    /// What was written, by sector.
    pub(crate) content: BTreeMap<u64, Vec<u8>>,
    pub(crate) flushes: u32,
    pub(crate) resets: u32,
    /// The interrupt line.
    pub(crate) intrq: bool,
    state: State,
    /// Two deep: for addresses of 48 bits.
    count: [u8; 2],
    lba: [[u8; 2]; 3],
    device: u8,
    status: u8,
    error: u8,
    busy_left: u32,
    is_hung: bool,
    multiple: usize,
    block: usize,
    sector: u64,
    left: usize,
    buffer: Vec<u8>,
}

impl FakeDrive {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        FakeDrive {
            behaviour,
            content: BTreeMap::new(),
            flushes: 0,
            resets: 0,
            intrq: false,
            state: State::Idle,
            count: [0; 2],
            lba: [[0; 2]; 3],
            device: 0,
            status: status::DRDY,
            error: 0,
            busy_left: 0,
            is_hung: false,
            multiple: 0,
            block: 1,
            sector: 0,
            left: 0,
            buffer: Vec::new(),
        }
    }

    fn status(&mut self) -> u8 {
        if self.behaviour.is_absent {
            return status::FLOATING;
        }
        if self.is_hung || self.busy_left > 0 {
            self.busy_left = self.busy_left.saturating_sub(1);
            return status::BSY;
        }
        self.status
    }

    fn run(&mut self, code: u8) {
        assert!(self.state == State::Idle, "a command {code:#x} in the middle of another");
        self.error = 0;
        self.status = status::DRDY;
        self.intrq = false;
        self.busy_left = self.behaviour.busy;
        if self.behaviour.hangs > 0 {
            self.behaviour.hangs -= 1;
            self.is_hung = true;
            return;
        }
        let is_multiple = matches!(
            code,
            command::READ_MULTIPLE
                | command::READ_MULTIPLE_EXT
                | command::WRITE_MULTIPLE
                | command::WRITE_MULTIPLE_EXT
        );
        let is_long = matches!(
            code,
            command::READ_SECTORS_EXT
                | command::READ_MULTIPLE_EXT
                | command::WRITE_SECTORS_EXT
                | command::WRITE_MULTIPLE_EXT
        );
        if is_multiple && self.multiple == 0 || is_long && !self.behaviour.has_lba48 {
            return self.fail(error::ABRT);
        }
        self.block = if is_multiple { self.multiple } else { 1 };
        self.address(is_long);
        match code {
            command::IDENTIFY => {
                (self.sector, self.left) = (0, 1);
                self.buffer = self.identify();
                self.offer(State::Out, true);
            }
            command::SET_MULTIPLE => {
                if self.count[0] > self.behaviour.max_multiple || !self.count[0].is_power_of_two() {
                    return self.fail(error::ABRT);
                }
                self.multiple = self.count[0].into();
                self.intrq = true;
            }
            command::READ_SECTORS
            | command::READ_SECTORS_EXT
            | command::READ_MULTIPLE
            | command::READ_MULTIPLE_EXT => self.read_block(),
            command::WRITE_SECTORS
            | command::WRITE_SECTORS_EXT
            | command::WRITE_MULTIPLE
            | command::WRITE_MULTIPLE_EXT => {
                if self.sector + self.left as u64 > self.behaviour.sectors {
                    return self.fail(error::IDNF);
                }
                // The first block is asked for without an interrupt.
                self.want_block(false);
            }
            command::FLUSH_CACHE | command::FLUSH_CACHE_EXT => {
                self.flushes += 1;
                self.intrq = true;
            }
            _ => self.fail(error::ABRT),
        }
    }

    fn address(&mut self, is_long: bool) {
        let byte = |index: usize, depth: usize| u64::from(self.lba[index][depth]);
        let low = byte(0, 0) | byte(1, 0) << 8 | byte(2, 0) << 16;
        if is_long {
            self.sector = low | byte(0, 1) << 24 | byte(1, 1) << 32 | byte(2, 1) << 40;
            let count = usize::from(self.count[0]) | usize::from(self.count[1]) << 8;
            self.left = if count == 0 { 65_536 } else { count };
        } else {
            self.sector = low | u64::from(self.device & 0xf) << 24;
            self.left = if self.count[0] == 0 { 256 } else { self.count[0].into() };
        }
    }

    fn offer(&mut self, state: State, interrupts: bool) {
        self.state = state;
        self.status = status::DRDY | status::DRQ;
        self.busy_left = self.behaviour.busy;
        self.intrq |= interrupts;
    }

    fn read_block(&mut self) {
        let count = self.left.min(self.block) as u64;
        let sectors = self.sector..self.sector + count;
        if sectors.end > self.behaviour.sectors {
            return self.fail(error::IDNF);
        }
        if let Some((_, &error)) = self.behaviour.bad.range(sectors.clone()).next() {
            return self.fail(error);
        }
        self.buffer = sectors
            .flat_map(|sector| self.content.get(&sector).cloned().unwrap_or(vec![0; SECTOR_BYTES]))
            .collect();
        self.offer(State::Out, true);
    }

    fn want_block(&mut self, interrupts: bool) {
        self.buffer.clear();
        self.offer(State::In, interrupts);
    }

    fn end_block(&mut self) {
        let count = self.left.min(self.block);
        let sectors = self.sector..self.sector + count as u64;
        if self.state == State::In {
            if let Some((_, &error)) = self.behaviour.bad.range(sectors.clone()).next() {
                return self.fail(error);
            }
            for (sector, bytes) in sectors.clone().zip(self.buffer.chunks(SECTOR_BYTES)) {
                self.content.insert(sector, bytes.to_vec());
            }
        }
        self.sector = sectors.end;
        self.left -= count;
        match (self.state, self.left) {
            (State::Out, 0) => (self.state, self.status) = (State::Idle, status::DRDY),
            (State::In, 0) => {
                (self.state, self.status, self.intrq) = (State::Idle, status::DRDY, true);
                self.busy_left = self.behaviour.busy;
            }
            (State::Out, _) => self.read_block(),
            (State::In, _) => self.want_block(true),
            (State::Idle, _) => unreachable!(),
        }
    }

    fn fail(&mut self, error: u8) {
        self.state = State::Idle;
        self.error = error;
        self.status = status::DRDY | status::ERR;
        self.intrq = true;
    }

    fn identify(&self) -> Vec<u8> {
        let mut words = [0u16; 256];
        words[27..30].copy_from_slice(&[0x4661, 0x6b65, 0x2031]); // "Fake 1"
        words[30..47].fill(0x2020);
        words[47] = 0x8000 | u16::from(self.behaviour.max_multiple);
        words[49] = 1 << 9;
        let short = self.behaviour.sectors.min((1 << 28) - 1);
        (words[60], words[61]) = (short as u16, (short >> 16) as u16);
        words[83] = 1 << 14 | 1 << 12 | if self.behaviour.has_lba48 { 1 << 13 | 1 << 10 } else { 0 };
        words[85] = 1 << 5;
        for (index, word) in words[100..104].iter_mut().enumerate() {
            *word = (self.behaviour.sectors >> (16 * index)) as u16;
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

impl Bus for FakeDrive {
    fn read(&mut self, register: Register) -> u8 {
        match register {
            Register::StatusCommand => {
                let status = self.status();
                if status & status::BSY == 0 {
                    self.intrq = false;
                }
                status
            }
            Register::Control => self.status(),
            Register::ErrorFeatures => self.error,
            _ => 0,
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        if self.behaviour.is_absent {
            return;
        }
        let push = |fifo: &mut [u8; 2]| *fifo = [value, fifo[0]];
        match register {
            Register::SectorCount => push(&mut self.count),
            Register::LbaLow => push(&mut self.lba[0]),
            Register::LbaMid => push(&mut self.lba[1]),
            Register::LbaHigh => push(&mut self.lba[2]),
            Register::Device => self.device = value,
            Register::StatusCommand => self.run(value),
            Register::Control if value & control::SRST != 0 => {
                self.resets += 1;
                (self.state, self.status, self.multiple) = (State::Idle, status::DRDY, 0);
                (self.is_hung, self.busy_left) = (self.behaviour.dies, 500);
            }
            Register::Control | Register::ErrorFeatures => {}
        }
    }

    fn read_data(&mut self, into: &mut [u8]) {
        assert_eq!((self.state, self.busy_left), (State::Out, 0), "data was read that is not there");
        assert_eq!(into.len(), self.buffer.len(), "a block is read as a whole");
        into.copy_from_slice(&self.buffer);
        self.end_block();
    }

    fn write_data(&mut self, from: &[u8]) {
        assert_eq!((self.state, self.busy_left), (State::In, 0), "data was written that nobody wants");
        assert_eq!(from.len(), self.left.min(self.block) * SECTOR_BYTES, "a block is written as a whole");
        self.buffer = from.to_vec();
        self.end_block();
    }
}
