//! A client of the unikernel in another VM, over a paravirtual network: `server=` and `ip=` say where it and this guest are.

use core::cell::UnsafeCell;
use guest_pv_driver::abi::device::{Interrupt, Kind};
use guest_pv_driver::call::Instruction;
use guest_pv_driver::{Machine, Net, NetMemory, OneToOne};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, Ipv4Address, Ipv4Cidr};
use tproto::web;
use trt::alarm::Alarm;
use trt::lapic::Lapic;
use trt::{check, clock, cpu, pvh};

const VECTOR: u8 = 0x47;
/// How long a response may take, with the boot of the server's VM before the first.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for the head of a response.
const HEAD_BYTES: usize = 512;
/// Where this guest's ports begin.
const FIRST_PORT: u16 = 50_000;

struct Memory {
    net: NetMemory,
    sockets: [SocketStorage<'static>; 1],
    receive: [u8; 16384],
    send: [u8; 512],
}

struct Shared(UnsafeCell<Memory>);

// SAFETY: one CPU, and it is taken once.
unsafe impl Sync for Shared {}

static MEMORY: Shared = Shared(UnsafeCell::new(Memory {
    net: NetMemory::new(),
    sockets: [SocketStorage::EMPTY; 1],
    receive: [0; 16384],
    send: [0; 512],
}));

/// The guest.
pub fn run() {
    let Some(mut client) = Client::new() else {
        check!(false, "there are a paravirtual network, and addresses on the command line");
        return;
    };
    let mut is_page = true;
    let page = client.fetch("/", |at, bytes| {
        is_page &= web::PAGE.as_bytes().get(at..at + bytes.len()) == Some(bytes);
    });
    check!(eq page, Some((200, web::PAGE.len())), "the page is served");
    check!(is_page, "it is the one on the disk");
    let mut is_whole = true;
    let large = client.fetch(web::LARGE, |at, bytes| {
        is_whole &= bytes.iter().zip(at..).all(|(byte, at)| *byte == web::large(at));
    });
    check!(eq large, Some((200, web::LARGE_BYTES)), "a large file is served");
    check!(is_whole, "every byte of it is as on the disk");
    check!(client.fetch("none", |_, _| ()).is_some_and(|(status, _)| status == 404), "nothing else is there");
}

struct Client {
    net: Net<OneToOne>,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    server: Ipv4Address,
    next_port: u16,
    alarm: Alarm,
}

impl Client {
    fn new() -> Option<Self> {
        let server = pvh::option("server")?.parse().ok()?;
        let ip: Ipv4Cidr = pvh::option("ip")?.parse().ok()?;
        let leaf = |leaf| {
            let regs = cpu::cpuid(leaf, 0);
            [regs.eax, regs.ebx, regs.ecx, regs.edx]
        };
        let machine = Machine::detect(leaf)?;
        // SAFETY: the runtime maps the first 4 GiB one to one, and this guest runs in a VM.
        let hal = unsafe { OneToOne::new(Instruction::detect(leaf)) };
        // SAFETY: nobody else uses the static, and this is called once.
        let memory: &'static mut Memory = unsafe { &mut *MEMORY.0.get() };
        let mut net = Net::new(hal, machine.find(&hal, Kind::Net, 0)?, &mut memory.net).ok()?;
        let mut config = Config::new(EthernetAddress(net.address()).into());
        config.random_seed = cpu::rdtsc();
        let mut interface = Interface::new(config, &mut net, now());
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(ip.into());
        });
        let mut sockets = SocketSet::new(&mut memory.sockets[..]);
        let [receive, send] = [&mut memory.receive[..], &mut memory.send[..]].map(tcp::SocketBuffer::new);
        let socket = sockets.add(tcp::Socket::new(receive, send));
        let alarm = Alarm::new(VECTOR);
        net.set_interrupt(Some(Interrupt { vector: VECTOR, apic_id: Lapic::current().id() }));
        Some(Client { net, interface, sockets, socket, server, next_port: FIRST_PORT, alarm })
    }

    /// Fetches a file on a connection of its own; `take` gets the content in pieces, each with its offset. The status and the bytes
    /// of the content; `None` if it does not come.
    fn fetch(&mut self, path: &str, mut take: impl FnMut(usize, &[u8])) -> Option<(u16, usize)> {
        self.next_port += 1;
        let (server, port) = ((self.server, 80), self.next_port);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        socket.connect(self.interface.context(), server, port).ok()?;
        let parts =
            ["GET /", path.trim_start_matches('/'), " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"];
        let end = now() + PATIENCE;
        let (mut is_asked, mut response) =
            (false, Response { head: [0; HEAD_BYTES], len: 0, status: None, content: 0 });
        while now() < end {
            self.interface.poll(now(), &mut self.net, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.socket);
            if !is_asked && socket.can_send() {
                is_asked = parts.iter().all(|part| socket.send_slice(part.as_bytes()) == Ok(part.len()));
            }
            while socket.can_recv() {
                let _ = socket.recv(|bytes| (bytes.len(), response.push(bytes, &mut take)));
            }
            if is_asked && !socket.may_recv() {
                socket.close();
            }
            if is_asked && !socket.is_active() {
                socket.abort();
                return Some((response.status?, response.content));
            }
            let wait = self.interface.poll_delay(now(), &self.sockets);
            if wait != Some(Duration::ZERO) && self.net.sleep_is_safe().ok()? {
                let longest = end - now();
                self.alarm.sleep(Some(wait.unwrap_or(longest).min(longest).total_micros()));
            }
        }
        None
    }
}

fn now() -> Instant {
    Instant::from_micros((cpu::rdtsc() / (clock::tsc_hz() / 1_000_000).max(1)) as i64)
}

/// A response, as it comes.
struct Response {
    head: [u8; HEAD_BYTES],
    len: usize,
    status: Option<u16>,
    /// Bytes of the content so far.
    content: usize,
}

impl Response {
    fn push(&mut self, mut bytes: &[u8], take: &mut impl FnMut(usize, &[u8])) {
        while self.status.is_none() && self.len < HEAD_BYTES {
            let Some((first, rest)) = bytes.split_first() else { return };
            self.head[self.len] = *first;
            (self.len, bytes) = (self.len + 1, rest);
            if self.head[..self.len].ends_with(b"\r\n\r\n") {
                let code = core::str::from_utf8(&self.head[..self.len]).ok().and_then(|head| head.get(9..12));
                self.status = code.and_then(|code| code.parse().ok());
            }
        }
        if !bytes.is_empty() {
            take(self.content, bytes);
            self.content += bytes.len();
        }
    }
}
