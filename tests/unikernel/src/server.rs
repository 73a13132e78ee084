//! The server: addresses, connections, and the time until there is something to do.

use crate::archive::Archive;
use crate::connection::{BUFFER_BYTES, Connection, Turn};
use guest_pv_driver::BlockDevice;
use heapless::Vec;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::Device;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};

/// Clients at the same time.
pub const CONNECTIONS: usize = 16;
/// Bytes on the way to a client.
const SEND_BYTES: usize = 16384;
/// Frames that are taken before connections are served again, so that a flood of frames does not stop them.
const BURST: usize = 32;
/// A client that acknowledges nothing for so long is gone.
const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(15);

/// The memory of a server.
#[derive(Debug)]
pub struct Memory {
    sockets: Vec<SocketStorage<'static>, { CONNECTIONS + 1 }>,
    receive: [[u8; BUFFER_BYTES]; CONNECTIONS],
    send: [[u8; SEND_BYTES]; CONNECTIONS],
    buffer: [u8; BUFFER_BYTES],
}

impl Memory {
    /// Memory that is not used yet.
    pub const fn new() -> Self {
        Memory {
            // Filled later: an empty one is not all zeroes, and would make an image of all this memory.
            sockets: Vec::new(),
            receive: [[0; BUFFER_BYTES]; CONNECTIONS],
            send: [[0; SEND_BYTES]; CONNECTIONS],
            buffer: [0; BUFFER_BYTES],
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// Who the server is in its network.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Its Ethernet address.
    pub ethernet: [u8; 6],
    /// Its IP address; `None`: the network's DHCP server says.
    pub ip: Option<Ipv4Cidr>,
    /// A number that nobody else knows, for TCP's first sequence numbers.
    pub secret: u64,
}

/// A server.
#[expect(missing_debug_implementations, reason = "smoltcp's interface has none")]
pub struct Server<D> {
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    connections: Vec<Connection, CONNECTIONS>,
    clients: u64,
    archive: Archive<D>,
    buffer: &'static mut [u8; BUFFER_BYTES],
}

impl<D: BlockDevice> Server<D> {
    /// A server of what is in the archive, in the network at `device`.
    pub fn new(
        memory: &'static mut Memory,
        archive: Archive<D>,
        device: &mut impl Device,
        identity: Identity,
        now: Instant,
    ) -> Self {
        let mut config = Config::new(EthernetAddress(identity.ethernet).into());
        config.random_seed = identity.secret;
        let mut interface = Interface::new(config, device, now);
        while memory.sockets.push(SocketStorage::EMPTY).is_ok() {}
        let mut sockets = SocketSet::new(&mut memory.sockets[..]);
        let buffers = memory.receive.iter_mut().zip(&mut memory.send);
        let connections = buffers.map(|(receive, send)| {
            let [receive, send] = [&mut receive[..], &mut send[..]].map(tcp::SocketBuffer::new);
            let mut socket = tcp::Socket::new(receive, send);
            socket.set_timeout(Some(ACKNOWLEDGE_TIME));
            // Responses are written in large pieces; their ends must not wait for acknowledgements.
            socket.set_nagle_enabled(false);
            Connection::new(sockets.add(socket))
        });
        let connections = connections.collect();
        let dhcp = identity.ip.is_none().then(|| sockets.add(dhcpv4::Socket::new()));
        set_address(&mut interface, identity.ip.map(|ip| (ip, None)));
        Server { interface, sockets, dhcp, connections, clients: 0, archive, buffer: &mut memory.buffer }
    }

    /// Its IP address, once it has one.
    pub fn address(&self) -> Option<Ipv4Address> {
        self.interface.ipv4_addr()
    }

    /// How many clients have come and gone.
    pub fn clients(&self) -> u64 {
        self.clients
    }

    /// Does what there is to do, and says after what time to call again if no frame arrives; `None`: not before one does.
    pub fn poll(&mut self, device: &mut impl Device, now: Instant) -> Option<Duration> {
        for connection in &mut self.connections {
            let was_used = connection.reopen(self.sockets.get_mut(connection.handle));
            self.clients += u64::from(was_used);
        }
        for _ in 0..BURST {
            let result = self.interface.poll_ingress_single(now, device, &mut self.sockets);
            if result == PollIngressSingleResult::None {
                break;
            }
        }
        self.follow_dhcp();
        let mut sockets = self.connections.iter().map(|connection| self.sockets.get(connection.handle));
        let is_crowded = !sockets.any(tcp::Socket::is_listening);
        let mut turn = Turn { archive: &mut self.archive, buffer: self.buffer, now, is_crowded };
        for connection in &mut self.connections {
            connection.serve(self.sockets.get_mut(connection.handle), &mut turn);
        }
        self.interface.poll_egress(now, device, &mut self.sockets);
        let expirations = self.connections.iter().filter_map(|connection| connection.expires(is_crowded));
        let mut sockets = self.connections.iter().map(|connection| self.sockets.get(connection.handle));
        // Of use again with the next call.
        let reopening = sockets.any(|socket: &tcp::Socket<'_>| !socket.is_open()).then_some(now);
        let network = self.interface.poll_at(now, &self.sockets);
        let next = expirations.chain(network).chain(reopening).min()?;
        Some(if next > now { next - now } else { Duration::ZERO })
    }

    fn follow_dhcp(&mut self) {
        let news = self.dhcp.and_then(|dhcp| self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll());
        match news {
            Some(dhcpv4::Event::Configured(lease)) => {
                set_address(&mut self.interface, Some((lease.address, lease.router)));
            }
            Some(dhcpv4::Event::Deconfigured) => set_address(&mut self.interface, None),
            None => {}
        }
    }
}

/// Gives the interface an address and a way out of its network, or takes both away.
fn set_address(interface: &mut Interface, address: Option<(Ipv4Cidr, Option<Ipv4Address>)>) {
    interface.update_ip_addrs(|addresses| {
        addresses.clear();
        // There is room for one.
        let _ = address.map(|(address, _)| addresses.push(IpCidr::Ipv4(address)));
    });
    interface.routes_mut().remove_default_ipv4_route();
    if let Some((_, Some(router))) = address {
        // And for one route.
        let _ = interface.routes_mut().add_default_ipv4_route(router);
    }
}
