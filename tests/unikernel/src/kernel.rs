//! From the devices to the server's loop.

use core::fmt::{self, Write};
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::detect::Leaf;
use guest_pv_driver::{
    Block, Clock, Console, ConsoleMemory, Control, Entropy, Error, Ethernet, Machine, NetMemory, OneToOne,
    QueueMemory,
};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::Ipv4Cidr;
use trt::alarm::Alarm;
use trt::lapic::Lapic;
use trt::{cpu, pvh};
use unikernel::archive::{self, Archive, Index};
use unikernel::server::{self, Identity, Server};

/// Frames and the timer: both only end the CPU's sleep.
const VECTOR: u8 = 0x40;

/// When to look again for room for a frame, where nobody tells of it.
const ROOM: Duration = Duration::from_millis(1);
/// How often to look whether the network has taken everything, before the end.
const DRAINING: u32 = 1000;

/// What devices share, and what is too large for the stack.
struct Memory {
    console: ConsoleMemory,
    disk: QueueMemory,
    entropy: QueueMemory,
    net: NetMemory,
    index: Index,
    server: server::Memory,
}

static mut CONTROL: QueueMemory = QueueMemory::new();
static mut MEMORY: Memory = Memory {
    console: ConsoleMemory::new(),
    disk: QueueMemory::new(),
    entropy: QueueMemory::new(),
    net: NetMemory::new(),
    index: Index::new(),
    server: server::Memory::new(),
};

/// Why there is no server, or no more.
enum Failure {
    Device(Kind, Error),
    Archive(archive::Error<Error>),
    Address,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Device(kind, error) => write!(f, "{kind:?}: {error}"),
            Failure::Address => f.write_str("ip= wants an address as in ip=10.0.0.2/24"),
            Failure::Archive(archive::Error::Disk(error)) => write!(f, "the disk cannot be read: {error}"),
            Failure::Archive(archive::Error::NoHeader(sector)) => {
                write!(f, "the disk is no tar archive: sector {sector} should be a header")
            }
        }
    }
}

/// The kernel. It is called once, with memory below 4 GiB mapped one to one and interrupts off, and returns if there is no
/// hypervisor that it could tell why.
pub(crate) fn run() {
    let Some(machine) = Machine::detect(leaf) else {
        return trt::println!("this is no Nacre VM");
    };
    // SAFETY: memory and devices are below 4 GiB; there is a hypervisor, and the CPU's vendor is as CPUID says.
    let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
    let (control, memory) = (&raw mut CONTROL, &raw mut MEMORY);
    // SAFETY: nobody else uses the two statics, and this is called once.
    let (control, memory) = unsafe { (&mut *control, &mut *memory) };
    let control = open(&machine, hal, Kind::Control, |page| Control::new(hal, page, control));
    let result = serve(&machine, hal, memory);
    if let Err(failure) = &result {
        trt::println!("unikernel: {failure}");
    }
    let _ = control.map(|mut control| if result.is_ok() { control.power_off() } else { control.exit(1) });
}

/// What a server needs, and the server. It ends after as many clients as `clients=` on the command line says.
fn serve(machine: &Machine, hal: OneToOne, memory: &'static mut Memory) -> Result<(), Failure> {
    let clock = open(machine, hal, Kind::Clock, |page| Clock::new(hal, page))?;
    let mut console = open(machine, hal, Kind::Console, |page| Console::new(hal, page, &mut memory.console))?;
    let disk = open(machine, hal, Kind::Block, |page| Block::new(hal, page, &mut memory.disk))?;
    let mut net = open(machine, hal, Kind::Net, |page| Ethernet::new(hal, page, &mut memory.net))?;
    let mut secret = cpu::rdtsc().to_le_bytes();
    let random = open(machine, hal, Kind::Entropy, |page| {
        Entropy::new(hal, page, &mut memory.entropy)?.fill(&mut secret)
    });
    if random.is_err() {
        let _ = writeln!(console, "unikernel: there are no random numbers: connections can be guessed");
    }
    let archive = Archive::open(disk, &mut memory.index).map_err(Failure::Archive)?;
    let _ = writeln!(console, "unikernel: {} files", archive.names().count());
    let identity = Identity {
        ethernet: net.address(),
        ip: pvh::option("ip").map(address).transpose()?,
        secret: u64::from_le_bytes(secret),
    };
    let now = || Instant::from_micros((clock.nanoseconds(cpu::rdtsc()) / 1000) as i64);
    let mut server = Server::new(&mut memory.server, archive, &mut net, identity, now());
    let alarm = Alarm::new(VECTOR);
    net.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: Lapic::current().id() }));
    let most_clients = pvh::option("clients").and_then(|count| count.parse().ok()).unwrap_or(u64::MAX);
    let failed = |error| Failure::Device(Kind::Net, error);
    let mut shown = None;
    loop {
        let wait = server.poll(&mut net, now());
        if server.clients() >= most_clients {
            // The last acknowledgements are still to go. A switch that is away does not keep this from ending.
            for _ in 0..DRAINING {
                if net.is_drained() {
                    break;
                }
                alarm.sleep(Some(ROOM.total_micros()));
            }
            return Ok(());
        }
        if server.address() != shown {
            shown = server.address();
            let _ = match shown {
                Some(address) => writeln!(console, "unikernel: serving http://{address}/"),
                None => writeln!(console, "unikernel: the network took the address back"),
            };
        }
        // Without room for another frame there is nothing to do before there is.
        let wait = match net.is_full().map_err(failed)? {
            true if net.tells_of_room() => None,
            true => Some(ROOM),
            false => wait,
        };
        if wait != Some(Duration::ZERO) && net.sleep_is_safe().map_err(failed)? {
            alarm.sleep(wait.map(|wait| wait.total_micros()));
        }
    }
}

/// An address and the length of its network's prefix.
fn address(text: &str) -> Result<Ipv4Cidr, Failure> {
    let is_ours = |cidr: &Ipv4Cidr| !cidr.address().is_multicast() && !cidr.address().is_broadcast();
    text.parse().ok().filter(is_ours).ok_or(Failure::Address)
}

fn leaf(number: u32) -> Leaf {
    let cpu::CpuidResult { eax, ebx, ecx, edx } = cpu::cpuid(number, 0);
    [eax, ebx, ecx, edx]
}

/// Finds the first device of a kind and starts its driver.
fn open<T>(
    machine: &Machine,
    hal: OneToOne,
    kind: Kind,
    start: impl FnOnce(u64) -> guest_pv_driver::Result<T>,
) -> Result<T, Failure> {
    let page = machine.find(&hal, kind, 0).ok_or(Failure::Device(kind, Error::NoDevice))?;
    start(page).map_err(|error| Failure::Device(kind, error))
}
