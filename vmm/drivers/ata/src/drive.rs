//! The protocols of a drive (ATA/ATAPI-6, 9): a state machine that is driven by interrupts, polls and a deadline.
//!
//! Its user begins a command with [`Drive::begin`] and then does what [`Next`] says. An interrupt means no more than that it
//! is time to look: [`Drive::go_on`] looks at the status itself, so that an interrupt that is spurious, or lost and
//! replaced by a poll, does no harm.

use crate::identity::Identity;
use crate::registers::{Bus, Register, command, control, device, error, status};
use block_channel::FLUSH_PATIENCE_MS;
use core::fmt;
use vmm_protocol::block::SECTOR_BYTES;

/// What a drive can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Who are you? One sector of data.
    Identify,
    /// Transfer this many sectors at a time where a command lets you.
    SetMultiple(u8),
    /// Read sectors.
    Read {
        /// First sector.
        sector: u64,
        /// How many: 1 to 256.
        count: u32,
    },
    /// Write sectors.
    Write {
        /// First sector.
        sector: u64,
        /// How many: 1 to 256.
        count: u32,
    },
    /// Empty the write cache.
    Flush,
}

impl Command {
    /// How long it may take, in ms: a drive may have to spin up.
    pub const fn patience_ms(self) -> u64 {
        match self {
            Command::Flush => FLUSH_PATIENCE_MS,
            _ => 10_000,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No drive answers.
    Absent,
    /// The drive does not do the command.
    Aborted,
    /// There is no such sector.
    NotFound,
    /// The medium cannot be read, or not be written.
    Medium,
    /// The data did not arrive as it was sent.
    Transfer,
    /// The drive is broken.
    Fault,
    /// The drive did not do what its protocol says.
    Protocol,
    /// The drive did not answer in time, and was reset.
    TimedOut,
    /// The drive did not even come back from its reset.
    Dead,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::Absent => "no drive answers",
            Failure::Aborted => "the drive aborted the command",
            Failure::NotFound => "there is no such sector",
            Failure::Medium => "the medium failed",
            Failure::Transfer => "the transfer failed",
            Failure::Fault => "the drive is broken",
            Failure::Protocol => "the drive broke its protocol",
            Failure::TimedOut => "the drive did not answer and was reset",
            Failure::Dead => "the drive does not come back from its reset",
        })
    }
}

impl core::error::Error for Failure {}

/// Who does what the user asks for: the drive, or what somebody has in front of it.
pub trait Medium {
    /// Does a command, with its data.
    fn execute(&mut self, command: Command, data: &mut [u8]) -> Result<(), Failure>;
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Wait for the interrupt, then [`Drive::go_on`].
    Interrupt,
    /// There will be no interrupt: wait for at least [`POLL_MS`], then [`Drive::go_on`].
    Poll,
    /// The command is done.
    Done(Result<(), Failure>),
}

/// Between two polls, in ms: what a reset takes at least (9.2).
pub const POLL_MS: u64 = 2;
/// How often the status is read for what a drive does at once.
const SPINS: u32 = 100;
/// Reads of a register that take longer than the 5 µs for which a reset is asserted: each takes at least 100 ns.
const RESET_READS: u32 = 64;

/// Where a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// The drive prepares a block of data; these bytes are transferred.
    Receive {
        done: usize,
    },
    /// The drive asks for the first block.
    Offer,
    /// The drive takes a block; these bytes are transferred.
    Send {
        done: usize,
    },
    /// A command without data.
    Execute,
    /// The drive resets itself.
    Reset,
}

/// One drive, the first of its channel.
#[derive(Debug)]
pub struct Drive<B> {
    bus: B,
    phase: Phase,
    /// Sectors of a block of READ MULTIPLE and WRITE MULTIPLE; 1 for the commands without.
    multiple: u8,
    /// Bytes of a block of the command.
    block: usize,
    has_lba48: bool,
    flush: Option<u8>,
}

impl<B: Bus> Drive<B> {
    /// A drive of which nothing is known.
    pub fn new(bus: B) -> Self {
        Drive { bus, phase: Phase::Idle, multiple: 1, block: SECTOR_BYTES, has_lba48: false, flush: None }
    }

    /// Takes to heart what the drive said, and what [`Command::SetMultiple`] achieved.
    pub fn configure(&mut self, identity: &Identity, multiple: u8) {
        self.multiple = multiple.max(1);
        self.has_lba48 = identity.has_lba48;
        self.flush = match identity {
            Identity { can_flush_ext: true, .. } => Some(command::FLUSH_CACHE_EXT),
            Identity { can_flush: true, .. } => Some(command::FLUSH_CACHE),
            _ => None,
        };
    }

    /// The registers.
    pub fn bus(&mut self) -> &mut B {
        &mut self.bus
    }

    /// Begins a command. `data` is what it reads or writes: as long as its sectors, and the same in every call until it is
    /// done.
    pub fn begin(&mut self, command: Command, data: &mut [u8]) -> Next {
        match self.select() {
            status::FLOATING => return self.end(Err(Failure::Absent)),
            // It is still at another command.
            status if status & (status::BSY | status::DRQ) != 0 => return self.reset(),
            _ => {}
        }
        self.block = SECTOR_BYTES;
        match command {
            Command::Identify => {
                self.phase = Phase::Receive { done: 0 };
                self.issue(command::IDENTIFY);
            }
            Command::SetMultiple(sectors) => {
                self.phase = Phase::Execute;
                self.bus.write(Register::SectorCount, sectors);
                self.issue(command::SET_MULTIPLE);
            }
            Command::Read { sector, count } => {
                self.phase = Phase::Receive { done: 0 };
                self.transfer(sector, count, &READ);
            }
            Command::Write { sector, count } => {
                self.phase = Phase::Offer;
                self.transfer(sector, count, &WRITE);
                // The drive asks for the first block without an interrupt, and mostly at once.
                return self.go_on(data);
            }
            Command::Flush => match self.flush {
                Some(flush) => {
                    self.phase = Phase::Execute;
                    self.issue(flush);
                }
                // A drive that cannot be told to keeps nothing back.
                None => return self.end(Ok(())),
            },
        }
        Next::Interrupt
    }

    /// Looks at the drive, after an interrupt or a while.
    pub fn go_on(&mut self, data: &mut [u8]) -> Next {
        // The drive has 400 ns to say that it is busy (9.1, HPIOI): as long as a read of a register takes.
        let _ = self.bus.read(Register::Control);
        let mut status = self.bus.read(Register::StatusCommand);
        for _ in 0..SPINS {
            if status & status::BSY == 0 {
                break;
            }
            status = self.bus.read(Register::StatusCommand);
        }
        let is_unanswered = status & status::BSY != 0;
        match self.phase {
            Phase::Idle => Next::Done(Ok(())),
            Phase::Reset if is_unanswered && status != status::FLOATING => Next::Poll,
            Phase::Reset => self.end(Err(Failure::TimedOut)),
            Phase::Offer if is_unanswered => Next::Poll,
            _ if is_unanswered => Next::Interrupt,
            _ if status & (status::ERR | status::DF) != 0 => {
                let failure = self.failure(status);
                self.end(Err(failure))
            }
            Phase::Receive { done } => self.receive(status, done, data),
            Phase::Offer => self.send(status, 0, data),
            Phase::Send { done } if done == data.len() => self.end(Ok(())),
            Phase::Send { done } => self.send(status, done, data),
            Phase::Execute => self.end(Ok(())),
        }
    }

    /// Resets the drive (9.2), because it did not answer in time: the command fails with [`Failure::TimedOut`]. A reset that takes
    /// too long itself is given up.
    pub fn reset(&mut self) -> Next {
        if self.phase == Phase::Reset {
            return self.end(Err(Failure::Dead));
        }
        self.phase = Phase::Reset;
        self.bus.write(Register::Control, control::SRST);
        for _ in 0..RESET_READS {
            let _ = self.bus.read(Register::Control);
        }
        self.bus.write(Register::Control, 0);
        // A reset may end the mode of SET MULTIPLE.
        self.multiple = 1;
        Next::Poll
    }

    /// Makes the drive the one that the registers are of; returns its status.
    fn select(&mut self) -> u8 {
        self.bus.write(Register::Device, device::FIRST_LBA);
        let _ = self.bus.read(Register::Control);
        self.bus.read(Register::StatusCommand)
    }

    fn issue(&mut self, code: u8) {
        self.bus.write(Register::StatusCommand, code);
    }

    /// Issues a command that transfers sectors.
    fn transfer(&mut self, sector: u64, count: u32, codes: &Codes) {
        let is_long = self.has_lba48 && sector + u64::from(count) > 1 << 28;
        let lba = sector.to_le_bytes();
        if is_long {
            self.bus.write(Register::SectorCount, (count >> 8) as u8);
            self.bus.write(Register::LbaLow, lba[3]);
            self.bus.write(Register::LbaMid, lba[4]);
            self.bus.write(Register::LbaHigh, lba[5]);
        }
        // 0 means 256, or 65536 in the long form.
        self.bus.write(Register::SectorCount, count as u8);
        self.bus.write(Register::LbaLow, lba[0]);
        self.bus.write(Register::LbaMid, lba[1]);
        self.bus.write(Register::LbaHigh, lba[2]);
        let high = if is_long { 0 } else { lba[3] & 0xf };
        self.bus.write(Register::Device, device::FIRST_LBA | high);
        self.block = usize::from(self.multiple) * SECTOR_BYTES;
        let code = match (self.multiple > 1, is_long) {
            (false, false) => codes.sectors,
            (false, true) => codes.sectors_ext,
            (true, false) => codes.multiple,
            (true, true) => codes.multiple_ext,
        };
        self.issue(code);
    }

    /// Takes a block of data (9.5).
    fn receive(&mut self, status: u8, done: usize, data: &mut [u8]) -> Next {
        if status & status::DRQ == 0 {
            return self.not_ready(status);
        }
        let end = data.len().min(done + self.block);
        self.bus.read_data(&mut data[done..end]);
        if end < data.len() {
            self.phase = Phase::Receive { done: end };
            return Next::Interrupt;
        }
        self.end(Ok(()))
    }

    /// Gives a block of data (9.6).
    fn send(&mut self, status: u8, done: usize, data: &[u8]) -> Next {
        if status & status::DRQ == 0 {
            return self.not_ready(status);
        }
        let end = data.len().min(done + self.block);
        self.bus.write_data(&data[done..end]);
        self.phase = Phase::Send { done: end };
        Next::Interrupt
    }

    /// The drive is neither busy nor wants data, and has no error.
    fn not_ready(&mut self, status: u8) -> Next {
        // Nobody is there: an empty channel reads as 0 at some controllers.
        let failure = if status & status::DRDY == 0 { Failure::Absent } else { Failure::Protocol };
        self.end(Err(failure))
    }

    /// Why the drive failed the command.
    fn failure(&mut self, status: u8) -> Failure {
        if status & status::DF != 0 {
            return Failure::Fault;
        }
        let reason = self.bus.read(Register::ErrorFeatures);
        match reason {
            _ if reason & error::ICRC != 0 => Failure::Transfer,
            _ if reason & error::UNC != 0 => Failure::Medium,
            _ if reason & error::IDNF != 0 => Failure::NotFound,
            _ if reason & error::ABRT != 0 => Failure::Aborted,
            _ => Failure::Medium,
        }
    }

    fn end(&mut self, result: Result<(), Failure>) -> Next {
        self.phase = Phase::Idle;
        Next::Done(result)
    }
}

/// The four forms of a command.
struct Codes {
    sectors: u8,
    sectors_ext: u8,
    multiple: u8,
    multiple_ext: u8,
}

const READ: Codes = Codes {
    sectors: command::READ_SECTORS,
    sectors_ext: command::READ_SECTORS_EXT,
    multiple: command::READ_MULTIPLE,
    multiple_ext: command::READ_MULTIPLE_EXT,
};

const WRITE: Codes = Codes {
    sectors: command::WRITE_SECTORS,
    sectors_ext: command::WRITE_SECTORS_EXT,
    multiple: command::WRITE_MULTIPLE,
    multiple_ext: command::WRITE_MULTIPLE_EXT,
};
