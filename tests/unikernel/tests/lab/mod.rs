//! The server on this host: a client's TCP/IP stack, a wire, the paravirtual devices by their drivers, a disk in memory.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

mod dhcp;

use guest_pv_driver::abi::device::{Kind, config};
use guest_pv_driver::abi::op::Status;
use guest_pv_driver::fake::Fake;
use guest_pv_driver::{Block, BlockDevice, Net, NetMemory, QueueMemory, SECTOR_BYTES};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address, Ipv4Cidr};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use unikernel::archive::{Archive, Index};
use unikernel::server::{Identity, Memory, Server};

const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Connections that a client may have at the same time.
const CLIENTS: usize = 40;

type Frames = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// A value that lives as long as the test.
pub fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// What `tar` makes of these files.
pub fn tar(files: &[(&str, &[u8])], options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let output =
        Command::new("tar").args(options).args(["-cf", "-", "-C"]).arg(folder.path()).arg(".").output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A disk.
pub struct Ram(pub Vec<u8>);

impl BlockDevice for Ram {
    type Error = ();

    fn sectors(&self) -> u64 {
        (self.0.len() / SECTOR_BYTES) as u64
    }

    fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<(), ()> {
        let at = sector as usize * SECTOR_BYTES;
        into.copy_from_slice(self.0.get(at..at + into.len()).ok_or(())?);
        Ok(())
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), ()> {
        panic!("the server wrote to its disk");
    }

    fn flush(&mut self) -> Result<(), ()> {
        Ok(())
    }
}

/// The client's end of the wire.
struct ClientPort {
    arriving: Frames,
    leaving: Frames,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a Frames);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.borrow_mut().push_back(frame);
        result
    }
}

impl Device for ClientPort {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let frame = self.arriving.borrow_mut().pop_front()?;
        Some((Arrived(frame), Leaving(&self.leaving)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// All of it.
pub struct Lab {
    server: Server<Block<&'static Fake>>,
    net: Net<&'static Fake>,
    net_device: &'static Fake,
    /// The disk fails from now on, if it is set.
    pub disk_fails: Rc<Cell<bool>>,
    port: ClientPort,
    interface: Interface,
    sockets: SocketSet<'static>,
    now: Instant,
    next_port: u16,
}

impl Lab {
    /// A server of these files.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        Self::start(tar(files, &[]), "10.0.0.1/24".parse().ok())
    }

    /// The same, with its address from the network's DHCP server.
    pub fn with_dhcp(files: &[(&str, &[u8])]) -> Self {
        Self::start(tar(files, &[]), None)
    }

    fn start(image: Vec<u8>, ip: Option<Ipv4Cidr>) -> Self {
        let now = Instant::from_secs(1);
        let disk_fails = Rc::new(Cell::new(false));
        let disk = disk(image, disk_fails.clone());
        let archive = Archive::open(disk, leak(Index::new())).unwrap();
        let (to_server, to_client) = (Frames::default(), Frames::default());
        let net_device = net_device(to_server.clone(), to_client.clone());
        let mut net = Net::new(net_device, 0, leak(NetMemory::new())).unwrap();
        let identity = Identity { ethernet: net.address(), ip, secret: 5 };
        let server = Server::new(leak(Memory::new()), archive, &mut net, identity, now);
        let mut port = ClientPort { arriving: to_client, leaving: to_server };
        let mut interface = Interface::new(Config::new(EthernetAddress(CLIENT).into()), &mut port, now);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::v4(10, 0, 0, 2), 24)).unwrap();
        });
        let sockets = SocketSet::new(&mut leak([SocketStorage::EMPTY; CLIENTS])[..]);
        Lab { server, net, net_device, disk_fails, port, interface, sockets, now, next_port: 50000 }
    }

    /// The server's address.
    pub fn address(&self) -> Option<Ipv4Address> {
        self.server.address()
    }

    /// How many clients have come and gone.
    pub fn clients(&self) -> u64 {
        self.server.clients()
    }

    /// The frames that the client has sent and the server has not taken.
    pub fn frames(&mut self) -> Vec<Vec<u8>> {
        self.interface.poll(self.now, &mut self.port, &mut self.sockets);
        self.port.leaving.borrow().iter().cloned().collect()
    }

    /// A frame from somebody else in the network.
    pub fn inject(&mut self, frame: Vec<u8>) {
        self.port.leaving.borrow_mut().push_back(frame);
        self.settle();
    }

    /// A connection with a window of this many bytes.
    pub fn connect(&mut self, window: usize) -> SocketHandle {
        let buffer = |bytes: usize| tcp::SocketBuffer::new(&mut leak(vec![0; bytes])[..]);
        let mut socket = tcp::Socket::new(buffer(window), buffer(65536));
        self.next_port += 1;
        socket.connect(self.interface.context(), (IpAddress::v4(10, 0, 0, 1), 80), self.next_port).unwrap();
        self.sockets.add(socket)
    }

    /// A connection's socket.
    pub fn socket(&mut self, connection: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(connection)
    }

    /// Lets everybody do what there is to do now; returns when the server wants to be called again.
    pub fn settle(&mut self) -> Option<Duration> {
        loop {
            let answers: Vec<_> =
                self.port.arriving.borrow().iter().filter_map(|frame| dhcp::answer(frame)).collect();
            self.port.leaving.borrow_mut().extend(answers);
            self.interface.poll(self.now, &mut self.port, &mut self.sockets);
            self.net_device.poll();
            let wait = self.server.poll(&mut self.net, self.now);
            let is_quiet = self.port.arriving.borrow().is_empty() && self.port.leaving.borrow().is_empty();
            if is_quiet && wait != Some(Duration::ZERO) {
                return wait;
            }
        }
    }

    /// Lets time pass, as the two sides' timers want it.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let server = self.settle().map(|wait| self.now + wait);
            let client = self.interface.poll_at(self.now, &self.sockets);
            // At least a millisecond, so that a client which waits for a frame gets on.
            let next = server.into_iter().chain(client).min().unwrap_or(end).min(end);
            self.now = next.max(self.now + Duration::from_millis(1));
        }
        self.settle();
    }

    /// Sends bytes, and takes what comes until nothing more does for some time, or the server closes.
    pub fn exchange(&mut self, connection: SocketHandle, request: &[u8]) -> Vec<u8> {
        let (mut sent, mut answer, mut silence) = (0, Vec::new(), 0);
        while silence < 20 {
            let socket = self.socket(connection);
            if socket.may_send() {
                sent += socket.send_slice(&request[sent..]).unwrap();
            }
            let before = answer.len();
            while let Ok(bytes) = socket.recv(|bytes| (bytes.len(), bytes.to_vec())) {
                if bytes.is_empty() {
                    break;
                }
                answer.extend(bytes);
            }
            silence = if answer.len() > before || sent < request.len() { 0 } else { silence + 1 };
            if !self.socket(connection).is_active() {
                break;
            }
            self.pass(Duration::from_millis(20));
        }
        answer
    }

    /// One request on a connection of its own.
    pub fn ask(&mut self, request: &str) -> Response {
        let connection = self.connect(65536);
        let answer = self.exchange(connection, request.as_bytes());
        self.socket(connection).abort();
        self.settle();
        self.sockets.remove(connection);
        Response::parse(&answer).0
    }
}

fn disk(image: Vec<u8>, fails: Rc<Cell<bool>>) -> Block<&'static Fake> {
    let sectors = (image.len() / SECTOR_BYTES) as u64;
    let device = leak(Fake::new(Kind::Block, move |_, request, buffer| {
        if fails.get() {
            return Some((Status::Io, 0));
        }
        let at = request.offset as usize * SECTOR_BYTES;
        buffer.copy_from_slice(&image[at..at + buffer.len()]);
        Some((Status::Done, buffer.len() as u32))
    }));
    device.set(config::BLOCK_SECTORS, sectors);
    Block::new(&*device, 0, leak(QueueMemory::new())).unwrap()
}

/// A network device: queue 0 receives, queue 1 sends.
fn net_device(to_server: Frames, to_client: Frames) -> &'static Fake {
    let device = leak(Fake::new(Kind::Net, move |queue, _, buffer| {
        if queue == 1 {
            to_client.borrow_mut().push_back(buffer.to_vec());
            return Some((Status::Done, buffer.len() as u32));
        }
        let frame = to_server.borrow_mut().pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some((Status::Done, frame.len() as u32))
    }));
    let [a, b, c, d, e, f] = SERVER;
    device.set(config::NET_ADDRESS, u64::from_le_bytes([a, b, c, d, e, f, 0, 0]));
    device.set(config::NET_MTU, 1500);
    device
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// The first response, and what is behind it.
    pub fn parse(bytes: &[u8]) -> (Self, &[u8]) {
        let end = bytes.windows(4).position(|end| end == b"\r\n\r\n").expect("a response has a head") + 4;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut response = Response { head, body: Vec::new() };
        let len: usize =
            response.field("Content-Length").expect("a response says its length").parse().unwrap();
        let rest = &bytes[end..];
        let (body, rest) = rest.split_at(len.min(rest.len()));
        response.body = body.to_vec();
        (response, rest)
    }

    /// The code of the status line.
    pub fn code(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// A header field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()))
    }
}
