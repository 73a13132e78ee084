//! The process: interrupts, deadlines, and the channel to the VMM.

use crate::drive::{Command, Drive, Failure, Medium, Next, POLL_MS};
use crate::identity::Identity;
use crate::registers::{Bus, Register};
use alloc::vec;
use block_channel::{Complaints, Server, Wait};
use usys::abi::Selector;
use usys::cap::{Cap, Irqs, Ntfn};
use usys::cpu;
use usys::object::{FOREVER, Trigger};
use usys::port::PortRange;
use usys::process::{self, ProcessInfo};
use vmm_protocol::block::{DiskInfo, Operation, Request, SECTOR_BYTES, SLOT_BYTES, Status};
use vmm_protocol::manifest::DEFAULT_TIMEOUT_MS;
use vmm_protocol::process::driver::{self, ata};
use vmm_protocol::process::{CHANNEL, DriverConfig};

/// How long a reset may take, in ms (ATA/ATAPI-6, 9.2: 31 s).
const RESET_MS: u64 = 31_000;
// Whoever watches this driver is to wait for longer than the driver does for its drive.
const _: () = assert!(Command::Flush.patience_ms() + RESET_MS < DEFAULT_TIMEOUT_MS as u64);
/// How long an interrupt is waited for before the drive is looked at anyway, in ms: one that was lost costs no more.
const WATCHDOG_MS: u64 = 50;

/// Runs the driver.
pub fn main(info: &'static ProcessInfo) -> ! {
    serve(info, |disk, _| disk)
}

/// Runs the driver, with what `plug_in` makes of the disk, which has so many sectors, between it and its user.
pub fn serve<M: Medium>(info: &'static ProcessInfo, plug_in: fn(Disk, u64) -> M) -> ! {
    usys::logger::to_kernel();
    if let Err(what) = run(info, plug_in) {
        log::error!("{what}");
    }
    usys::start::fault()
}

fn run<M: Medium>(info: &'static ProcessInfo, plug_in: fn(Disk, u64) -> M) -> Result<(), &'static str> {
    let config: DriverConfig =
        postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")?;
    let irq: Cap<Irqs> = Cap::new(Selector(driver::IRQ));
    irq.bind(0, Cap::new(Selector(driver::IRQ_NTFN)), Trigger::Edge)
        .map_err(|_| "the kernel refused the interrupt")?;
    let ports = Ports::new(config.device).ok_or("there is no such channel")?;
    let mut disk = Disk { drive: Drive::new(ports), irq, tsc_hz: info.header.tsc_hz };
    let description = match disk.start() {
        Ok(identity) => {
            log::info!("{}: {} sectors", identity.model, identity.sectors);
            DiskInfo {
                sectors: identity.sectors,
                is_read_only: config.is_read_only,
                has_cache: identity.has_cache,
            }
        }
        Err(what) => {
            log::error!("no disk: {what}");
            DiskInfo { sectors: 0, is_read_only: true, has_cache: false }
        }
    };
    let channel = info.window(CHANNEL).ok_or("the channel is missing")?;
    let user: Cap<Ntfn> = Cap::new(Selector(driver::USER));
    let server =
        Server::new(channel, user, config.session, description).map_err(|_| "the channel is too short")?;
    Service { medium: plug_in(disk, description.sectors), server, complaints: Complaints::default() }.run()
}

/// The drive and what it takes to wait for it.
#[derive(Debug)]
pub struct Disk {
    drive: Drive<Ports>,
    irq: Cap<Irqs>,
    tsc_hz: u64,
}

impl Disk {
    /// Finds out what the drive is.
    fn start(&mut self) -> Result<Identity, Error> {
        // Whoever was here before may have left it at anything.
        let reset = self.drive.reset();
        match self.finish(reset, RESET_MS, &mut []) {
            Err(Failure::TimedOut) | Ok(()) => {}
            Err(failure) => return Err(Error::Drive(failure)),
        }
        let mut data = [0; SECTOR_BYTES];
        self.execute(Command::Identify, &mut data).map_err(Error::Drive)?;
        let identity = Identity::parse(&data).map_err(Error::Unusable)?;
        let multiple = identity.max_multiple;
        let is_set = multiple > 1 && self.execute(Command::SetMultiple(multiple), &mut []).is_ok();
        self.drive.configure(&identity, if is_set { multiple } else { 1 });
        Ok(identity)
    }

    /// Follows a command, which may take so many ms, to its end.
    fn finish(&mut self, mut next: Next, patience_ms: u64, data: &mut [u8]) -> Result<(), Failure> {
        let mut deadline = self.deadline_in(patience_ms);
        loop {
            let patience = match next {
                Next::Done(result) => return result,
                Next::Interrupt => WATCHDOG_MS,
                Next::Poll => POLL_MS,
            };
            self.wait(self.deadline_in(patience).min(deadline), next == Next::Poll);
            next = if cpu::now() < deadline {
                self.drive.go_on(data)
            } else {
                deadline = self.deadline_in(RESET_MS);
                self.drive.reset()
            };
        }
    }

    /// Waits for the interrupt; with `is_poll` for the time alone. Requests that come meanwhile are looked for afterwards.
    fn wait(&self, deadline: u64, is_poll: bool) {
        loop {
            let bits = process::events().wait(deadline).unwrap_or(driver::IRQ_BIT);
            if bits & driver::IRQ_BIT != 0 {
                // It is an edge and was not masked, unless the machine has it otherwise.
                let _ = self.irq.acknowledge(0);
            }
            if bits == 0 || cpu::now() >= deadline || bits & driver::IRQ_BIT != 0 && !is_poll {
                return;
            }
        }
    }

    fn deadline_in(&self, milliseconds: u64) -> u64 {
        cpu::deadline_in(milliseconds, self.tsc_hz)
    }
}

impl Medium for Disk {
    fn execute(&mut self, command: Command, data: &mut [u8]) -> Result<(), Failure> {
        let next = self.drive.begin(command, data);
        self.finish(next, command.patience_ms(), data)
    }
}

/// The disk and its user.
struct Service<M> {
    medium: M,
    server: Server<Cap<Ntfn>>,
    complaints: Complaints,
}

impl<M: Medium> Service<M> {
    /// Does what the VMM asks for.
    fn run(mut self) -> ! {
        let mut buffer = vec![0; SLOT_BYTES];
        loop {
            if self.server.is_asked_to_begin() {
                self.server.begin();
            }
            while let Some(request) = self.server.take() {
                let status = self.answer(&request, &mut buffer);
                self.server.complete(request.slot, status);
                self.server.notify();
            }
            self.server.notify();
            if self.server.prepare_to_wait() == Wait::Sleep {
                let _bits = process::events().wait(FOREVER);
            }
        }
    }

    fn answer(&mut self, request: &Request, buffer: &mut [u8]) -> Status {
        let Request { slot, operation, sector, count } = *request;
        let buffer = &mut buffer[..request.bytes()];
        let Ok(data) = self.server.data(slot, buffer.len()) else { return Status::Io };
        let result = match operation {
            Operation::Read => {
                let result = self.medium.execute(Command::Read { sector, count }, buffer);
                result.and_then(|()| data.write(0, buffer).map_err(|_| Failure::Transfer))
            }
            Operation::Write => {
                let copied = data.read(0, buffer).map_err(|_| Failure::Transfer);
                copied.and_then(|()| self.medium.execute(Command::Write { sector, count }, buffer))
            }
            Operation::Flush => self.medium.execute(Command::Flush, buffer),
        };
        let Err(failure) = result else { return Status::Done };
        if self.complaints.take() {
            log::warn!("{operation:?} of {count} sectors from {sector}: {failure}");
        }
        if failure == Failure::NotFound { Status::OutOfRange } else { Status::Io }
    }
}

/// Why there is no disk.
enum Error {
    Drive(Failure),
    Unusable(&'static str),
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Error::Drive(failure) => failure.fmt(f),
            Error::Unusable(what) => write!(f, "this driver cannot use the drive: {what}"),
        }
    }
}

/// The ports of the channel.
#[derive(Debug)]
struct Ports {
    command: PortRange,
    control: PortRange,
}

impl Ports {
    fn new(channel: u8) -> Option<Self> {
        let channel = usize::from(channel);
        Some(Ports {
            command: PortRange::new(*ata::COMMAND.get(channel)?, ata::COMMAND_PORTS),
            control: PortRange::new(*ata::CONTROL.get(channel)?, 1),
        })
    }
}

impl Bus for Ports {
    fn read(&mut self, register: Register) -> u8 {
        match register {
            Register::Control => self.control.read(0),
            register => self.command.read(register as u16),
        }
    }

    fn write(&mut self, register: Register, value: u8) {
        match register {
            Register::Control => self.control.write(0, value),
            register => self.command.write(register as u16, value),
        }
    }

    fn read_data(&mut self, into: &mut [u8]) {
        self.command.read_words(0, into);
    }

    fn write_data(&mut self, from: &[u8]) {
        self.command.write_words(0, from);
    }
}
