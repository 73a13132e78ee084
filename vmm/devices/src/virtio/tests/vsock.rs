//! The socket device: a guest, its VMM's services, and another VM.

use super::*;
use crate::virtio::vsock::VsockDevice;
use crate::vsock::host::{BUFFER, ECHO, LOG, MAX_STREAMS};
use crate::vsock::packet::{HEADER, HOST, Header, NO_RECEIVE, NO_SEND, kind, op};
use crate::vsock::{Arrival, Link, MAX_DATA, MAX_PACKET, Vsock, Wire};
use alloc::string::ToString;
use proptest::prelude::*;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CID: u32 = 3;
const PEER: u32 = 4;
const PORT: u32 = 1000;
/// Where packets that the guest sends lie, and its receive buffers.
const SENT: u64 = DATA;
const ROOM: u64 = BUFFERS + 0x2_1000;
const SIZE: u16 = 16;
/// What a guest says that it has room for.
const CREDIT: u32 = 256 << 10;

/// A guest with its driver.
struct Guest {
    driver: Driver<VsockDevice>,
    cid: u32,
    /// Bytes of a receive buffer.
    buffer: u32,
}

impl Guest {
    fn new(cid: u32, link: Option<Wire>, buffer: u32) -> Self {
        let link = link.map(|link| Box::new(link) as Box<dyn Link>);
        let driver = Driver::new(VsockDevice::new(Vsock::new(cid, link)), 3, SIZE);
        let mut guest = Guest { driver, cid, buffer };
        (0..SIZE).for_each(|_| guest.offer_buffer());
        guest
    }

    fn alone() -> Self {
        Self::new(CID, None, 4096)
    }

    /// Two guests that can reach each other, and what is between them.
    fn pair(buffer: u32) -> ([Self; 2], [Wire; 2]) {
        let wires = Wire::new([CID, PEER]);
        let [one, other] = wires.clone();
        ([Guest::new(CID, Some(one), buffer), Guest::new(PEER, Some(other), buffer)], wires)
    }

    fn offer_buffer(&mut self) {
        self.driver.select(RECEIVE);
        let slot = u64::from(self.driver.available_index() % SIZE);
        let head = self.driver.offer(&[Buffer::Write(ROOM + slot * 0x1000, self.buffer)]);
        assert_eq!(u64::from(head), slot);
        self.driver.notify();
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        self.driver.memory.write(SENT, &header.encode()).unwrap();
        self.driver.memory.write(SENT + HEADER as u64, data).unwrap();
        self.driver.select(TRANSMIT);
        let data = Buffer::Read(SENT + HEADER as u64, data.len() as u32);
        self.driver.offer(&[Buffer::Read(SENT, HEADER as u32), data]);
        self.driver.notify();
    }

    /// A header from this guest's port.
    fn to(&self, cid: u64, port: u32, op: u16) -> Header {
        let (src_cid, src_port, kind) = (self.cid.into(), PORT, kind::STREAM);
        Header {
            src_cid,
            dst_cid: cid,
            src_port,
            dst_port: port,
            kind,
            op,
            buf_alloc: CREDIT,
            ..Header::default()
        }
    }

    fn say(&mut self, cid: u64, port: u32, op: u16) {
        self.send(self.to(cid, port, op), &[]);
    }

    fn send_data(&mut self, cid: u64, port: u32, data: &[u8]) {
        self.send(Header { len: data.len() as u32, ..self.to(cid, port, op::RW) }, data);
    }

    /// Takes the packets that came; the buffers are offered again.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.driver.poll();
        self.driver.run();
        self.driver.select(RECEIVE);
        let mut packets = Vec::new();
        for (head, len) in self.driver.take_used() {
            let bytes = self.driver.bytes(ROOM + u64::from(head) * 0x1000, len as usize);
            let header = Header::decode(bytes.first_chunk().unwrap());
            assert_eq!((header.len as usize, header.dst_cid), (bytes.len() - HEADER, self.cid.into()));
            packets.push((header, bytes[HEADER..].to_vec()));
            self.offer_buffer();
        }
        packets
    }

    fn ops(&mut self) -> Vec<u16> {
        self.receive().into_iter().map(|(header, _)| header.op).collect()
    }

    /// Opens a connection to a service of the VMM.
    fn connect_to_host(&mut self, port: u32) {
        self.say(HOST, port, op::REQUEST);
        assert_eq!(self.ops(), [op::RESPONSE]);
    }
}

/// Has the guests open a connection: port 1000 of either.
fn connect([one, other]: &mut [Guest; 2]) {
    one.say(PEER.into(), PORT, op::REQUEST);
    assert_eq!(other.ops(), [op::REQUEST]);
    other.say(CID.into(), PORT, op::RESPONSE);
    assert_eq!(one.ops(), [op::RESPONSE]);
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

#[test]
fn the_device_says_its_context_id() {
    let mut guest = Guest::alone();
    assert_eq!(guest.driver.read(0x008), 19);
    assert_eq!(guest.driver.device.read(0x100, 8), 3);
    assert_eq!(guest.driver.device.read(0x108, 8), 0);
}

#[test]
fn the_echo_service_sends_back_what_it_gets_and_ends_when_the_guest_does() {
    let mut guest = Guest::alone();
    guest.connect_to_host(ECHO);
    let data = numbers(3000);
    guest.send_data(HOST, ECHO, &data);
    let packets = guest.receive();
    assert_eq!(packets.iter().flat_map(|(_, data)| data.clone()).collect::<Vec<u8>>(), data);
    let last = packets.last().unwrap().0;
    assert_eq!((last.fwd_cnt, last.buf_alloc, last.src_cid), (3000, BUFFER as u32, HOST));
    guest.send(Header { flags: NO_SEND, ..guest.to(HOST, ECHO, op::SHUTDOWN) }, &[]);
    let [(end, _)] = guest.receive()[..] else { panic!("one packet") };
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_SEND | NO_RECEIVE));
    guest.say(HOST, ECHO, op::RST);
    guest.send_data(HOST, ECHO, b"late");
    assert_eq!(guest.ops(), [op::RST], "the connection is gone");
}

#[test]
fn the_echo_service_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::alone();
    let request = Header { buf_alloc: 10, ..guest.to(HOST, ECHO, op::REQUEST) };
    guest.send(request, &[]);
    guest.send(Header { len: 25, op: op::RW, ..request }, &numbers(25));
    let sizes =
        |packets: Vec<(Header, Vec<u8>)>| packets.iter().map(|(_, data)| data.len()).collect::<Vec<_>>();
    assert_eq!(sizes(guest.receive()), [0, 10]);
    guest.send(Header { op: op::CREDIT_UPDATE, fwd_cnt: 4, ..request }, &[]);
    assert_eq!(sizes(guest.receive()), [4]);
    guest.send(Header { op: op::CREDIT_UPDATE, fwd_cnt: 14, buf_alloc: 1000, ..request }, &[]);
    assert_eq!(sizes(guest.receive()), [11]);
    // Nonsense of a guest that says it took what was never sent.
    guest.send(Header { op: op::RW, len: 9, fwd_cnt: 2000, ..request }, &numbers(9));
    assert_eq!(sizes(guest.receive()), [] as [usize; 0]);
}

#[test]
fn a_guest_that_sends_more_than_the_service_has_room_for_is_cut_off() {
    let mut guest = Guest::alone();
    guest.send(Header { buf_alloc: 0, ..guest.to(HOST, ECHO, op::REQUEST) }, &[]);
    for _ in 0..2 {
        guest.send(Header { buf_alloc: 0, len: 4000, ..guest.to(HOST, ECHO, op::RW) }, &numbers(4000));
    }
    let ops = guest.ops();
    assert_eq!(ops[..2], [op::RESPONSE, op::RST]);
    assert!(ops[2..].iter().all(|op| *op == op::RST));
}

#[test]
fn lines_for_the_log_service_are_cut_and_cleaned() {
    let mut guest = Guest::alone();
    guest.connect_to_host(LOG);
    guest.send_data(HOST, LOG, b"one\ntw");
    guest.send_data(HOST, LOG, b"o\x1b[2J\n\n");
    guest.send_data(HOST, LOG, &[b'x'; 250]);
    guest.send(Header { flags: NO_SEND, ..guest.to(HOST, LOG, op::SHUTDOWN) }, &[]);
    let lines = guest.driver.device.device_mut().core_mut().host_mut().take_lines();
    assert_eq!(lines, ["one".to_string(), "two[2J".into(), "x".repeat(200), "x".repeat(50)]);
    assert_eq!(guest.ops(), [op::SHUTDOWN]);
}

#[test]
fn the_log_service_gives_credit_back() {
    let mut guest = Guest::alone();
    guest.connect_to_host(LOG);
    for round in 1..20u32 {
        guest.send_data(HOST, LOG, &[b'\n'; BUFFER / 2]);
        let [(update, _)] = guest.receive()[..] else { panic!("one packet") };
        assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, round * BUFFER as u32 / 2));
    }
    guest.say(HOST, LOG, op::CREDIT_REQUEST);
    assert_eq!(guest.ops(), [op::CREDIT_UPDATE]);
}

#[test]
fn what_nobody_serves_is_reset() {
    let mut guest = Guest::alone();
    guest.say(HOST, 80, op::REQUEST);
    guest.say(HOST, ECHO, op::CREDIT_UPDATE);
    guest.say(9, 80, op::REQUEST);
    guest.say(u64::from(CID), 80, op::REQUEST);
    guest.say(1 << 32 | 2, ECHO, op::REQUEST);
    guest.send(Header { kind: kind::SEQPACKET, ..guest.to(HOST, ECHO, op::REQUEST) }, &[]);
    guest.send(Header { kind: 9, ..guest.to(HOST, ECHO, op::REQUEST) }, &[]);
    guest.say(HOST, ECHO, 77);
    let packets = guest.receive();
    assert_eq!(packets.len(), 8);
    for (header, _) in packets {
        assert_eq!((header.op, header.dst_port), (op::RST, PORT));
    }
    guest.say(HOST, 80, op::RST);
    guest.say(9, 80, op::RST);
    assert!(guest.receive().is_empty(), "a reset has no answer");
    guest.send(Header { src_cid: 5, ..guest.to(HOST, ECHO, op::REQUEST) }, &[]);
    assert!(guest.receive().is_empty(), "nor has what claims to be another's");
}

#[test]
fn a_packet_that_is_longer_than_its_buffer_stops_the_device() {
    let mut guest = Guest::alone();
    guest.send(Header { len: 11, ..guest.to(HOST, ECHO, op::RW) }, &[0; 10]);
    assert_eq!(guest.driver.device.take_error(), Some(DriverError::Request));
    guest.driver.start(3, SIZE);
    (0..SIZE).for_each(|_| guest.offer_buffer());
    guest.connect_to_host(ECHO);
}

#[test]
fn data_goes_between_guests_whole_however_long_it_is_and_small_the_buffers_are() {
    for buffer in [4096, 512, HEADER as u32 + 1] {
        let (mut guests, _) = Guest::pair(buffer);
        connect(&mut guests);
        let [one, other] = &mut guests;
        let data = numbers(if buffer < 100 { 2000 } else { 60_000 });
        one.send_data(PEER.into(), PORT, &data);
        let mut came = Vec::new();
        while came.len() < data.len() {
            let packets = other.receive();
            assert!(!packets.is_empty());
            for (header, data) in packets {
                assert_eq!((header.op, header.src_cid, header.buf_alloc), (op::RW, CID.into(), CREDIT));
                came.extend(data);
            }
        }
        assert!(came == data);
    }
}

#[test]
fn only_the_last_piece_of_a_message_ends_it() {
    let (mut guests, _) = Guest::pair(600);
    let [one, other] = &mut guests;
    let message = Header { kind: kind::SEQPACKET, ..one.to(PEER.into(), PORT, op::REQUEST) };
    one.send(message, &[]);
    one.send(Header { op: op::RW, len: 4000, flags: 3, ..message }, &numbers(4000));
    let packets = other.receive();
    let flags: Vec<u32> = packets[1..].iter().map(|(header, _)| header.flags).collect();
    assert_eq!(flags.iter().sum::<u32>(), 3);
    assert_eq!(flags.last(), Some(&3));
}

#[test]
fn a_link_without_room_holds_packets_back_and_the_services_go_on_afterwards() {
    let (mut guests, wires) = Guest::pair(4096);
    connect(&mut guests);
    let [one, other] = &mut guests;
    wires[0].limit(2);
    one.send_data(PEER.into(), PORT, &numbers(5 * MAX_DATA));
    one.say(HOST, ECHO, op::REQUEST);
    let mut came = 0;
    for round in 0..3 {
        let expected: &[u16] = if round == 2 { &[op::RESPONSE] } else { &[] };
        assert_eq!(one.ops(), expected);
        let pieces = other.receive();
        assert!(pieces.len() <= 2);
        came += pieces.iter().map(|(_, data)| data.len()).sum::<usize>();
    }
    assert_eq!(came, 5 * MAX_DATA);
}

#[test]
fn a_packet_in_a_queue_that_its_driver_takes_back_goes_no_further() {
    let (mut guests, wires) = Guest::pair(4096);
    connect(&mut guests);
    let [one, other] = &mut guests;
    wires[0].limit(2);
    one.send_data(PEER.into(), PORT, &numbers(5 * MAX_DATA));
    assert!(!one.driver.device.device().is_idle());
    // QueueReady.
    one.driver.write(0x030, TRANSMIT as u32);
    one.driver.write(0x044, 0);
    assert_eq!(other.receive().len(), 2);
    assert!(one.receive().is_empty());
    assert!(other.receive().is_empty());
}

#[test]
fn what_ends_at_the_other_end_is_reset_here() {
    for arrival in [Arrival::Gone(PEER), Arrival::Interrupted] {
        let (mut guests, wires) = Guest::pair(4096);
        connect(&mut guests);
        guests[0].connect_to_host(ECHO);
        wires[1].say(Arrival::Gone(99));
        assert!(guests[0].receive().is_empty());
        wires[1].say(arrival);
        let [(reset, _)] = guests[0].receive()[..] else { panic!("one packet") };
        assert_eq!(
            (reset.op, reset.src_cid, reset.src_port, reset.dst_port),
            (op::RST, PEER.into(), PORT, PORT)
        );
        assert!(guests[0].receive().is_empty());
        guests[0].send_data(PEER.into(), PORT, b"late");
        assert_eq!(guests[0].ops(), [op::RST]);
        guests[0].send_data(HOST, ECHO, b"still there");
        assert_eq!(guests[0].ops(), [op::RW]);
    }
}

#[test]
fn a_guest_that_resets_its_device_is_gone_for_its_peers() {
    let (mut guests, wires) = Guest::pair(4096);
    connect(&mut guests);
    guests[1].driver.write(0x070, 0);
    assert!(!wires[1].is_open());
    assert_eq!(guests[0].ops(), [op::RST]);
    guests[0].say(PEER.into(), PORT, op::REQUEST);
    assert_eq!(guests[0].ops(), [op::RST], "nobody is there");
    guests[1].driver.start(3, SIZE);
    (0..SIZE).for_each(|_| guests[1].offer_buffer());
    connect(&mut guests);
}

#[test]
fn a_guest_that_fetches_no_answers_is_not_listened_to() {
    let mut guest = Guest::new(CID, None, 4096);
    let mut used = 0;
    for _ in 0..200 {
        if guest.driver.available_index() >= 200 {
            break;
        }
        guest.say(HOST, 80, op::REQUEST);
        guest.driver.select(TRANSMIT);
        used += guest.driver.take_used().len();
        if used < usize::from(guest.driver.available_index()) {
            break;
        }
    }
    assert!((64..=100).contains(&used), "{used} packets were taken");
    while !guest.receive().is_empty() {}
    guest.driver.select(TRANSMIT);
    assert_eq!(guest.driver.take_used().len(), 1, "it goes on where it stopped");
}

#[test]
fn connections_are_limited_for_the_guest_and_for_its_peers() {
    let (mut guests, _) = Guest::pair(4096);
    let mut refused = 0;
    for port in 0..600 {
        guests[0].say(PEER.into(), port, op::REQUEST);
        guests[1].receive();
        refused += guests[0].receive().len();
    }
    assert_eq!(refused, 88);
    let from_peer = guests[1].to(CID.into(), PORT + 1, op::REQUEST);
    guests[1].send(from_peer, &[]);
    assert!(guests[0].receive().is_empty());
    assert_eq!(guests[1].ops(), [op::RST]);
    for port in 0..MAX_STREAMS as u32 + 1 {
        let request = Header { src_port: port, ..guests[0].to(HOST, ECHO, op::REQUEST) };
        guests[0].send(request, &[]);
        let expected = if port < MAX_STREAMS as u32 { op::RESPONSE } else { op::RST };
        assert_eq!(guests[0].ops(), [expected]);
    }
}

#[test]
fn a_stranger_at_the_other_end_of_the_link_gets_nothing_through_that_is_not_for_the_guest() {
    let [near, mut far] = Wire::new([CID, PEER]);
    let mut guest = Guest::new(CID, Some(near), 4096);
    far.open();
    let good = Header {
        src_cid: PEER.into(),
        dst_cid: CID.into(),
        src_port: 1,
        dst_port: 2,
        kind: kind::STREAM,
        op: op::REQUEST,
        ..Header::default()
    };
    for wrong in [
        Header { src_cid: HOST, ..good },
        Header { src_cid: CID.into(), ..good },
        Header { src_cid: u64::MAX, ..good },
        Header { dst_cid: 5, ..good },
        Header { len: 1, ..good },
        Header { len: u32::MAX, op: op::RW, ..good },
        Header { kind: 0, ..good },
        Header { op: 0, ..good },
    ] {
        far.send(&wrong.encode());
        assert!(guest.receive().is_empty(), "{wrong:?}");
    }
    far.send(&good.encode());
    assert_eq!(guest.ops(), [op::REQUEST]);
}

#[test]
fn a_buffer_without_room_for_a_header_stops_the_device() {
    for (buffer, op) in [(HEADER as u32 - 1, op::REQUEST), (HEADER as u32, op::RW)] {
        let mut guest = Guest::new(CID, None, buffer);
        guest.say(HOST, ECHO, op::REQUEST);
        if op == op::RW {
            guest.send_data(HOST, ECHO, b"x");
        }
        assert_eq!(guest.driver.device.take_error(), Some(DriverError::Request));
    }
}

/// A header as a hostile guest makes it: often nearly right.
fn header() -> impl Strategy<Value = Header> {
    let cid = || prop_oneof![Just(2u64), Just(3), Just(4), Just(5), any::<u64>()];
    let port = || prop_oneof![Just(ECHO), Just(LOG), Just(PORT), any::<u32>()];
    let len = prop_oneof![3 => 0u32..5000, 1 => any::<u32>()];
    (cid(), cid(), port(), port(), len, 0u16..4, 0u16..9, 0u32..4, (any::<u32>(), any::<u32>())).prop_map(
        |(src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, (buf_alloc, fwd_cnt))| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

proptest! {
    #[test]
    fn no_guest_sends_as_another_or_without_bounds(
        packets in prop::collection::vec((header(), 0usize..5000), 1..60), fetches: bool,
    ) {
        let [near, mut far] = Wire::new([CID, PEER]);
        far.open();
        let mut guest = Guest::new(CID, Some(near), 4096);
        for (header, len) in packets {
            guest.send(header, &numbers(len));
            if fetches {
                guest.receive();
            }
            if guest.driver.needs_reset() {
                guest.driver.start(3, SIZE);
                (0..SIZE).for_each(|_| guest.offer_buffer());
            }
            guest.driver.select(TRANSMIT);
            if guest.driver.take_used().is_empty() {
                // It is not listened to; more would not find room in its ring.
                break;
            }
            let mut bytes = [0; MAX_PACKET];
            while let Some(arrival) = far.receive(&mut bytes) {
                if let Arrival::Packet(len) = arrival {
                    let header = Header::decode(bytes.first_chunk().unwrap());
                    prop_assert_eq!((header.src_cid, header.dst_cid), (CID.into(), PEER.into()));
                    prop_assert_eq!(header.len as usize, len - HEADER);
                }
            }
        }
    }

    #[test]
    fn streams_arrive_in_order_under_any_schedule(
        sizes in prop::collection::vec(1usize..6000, 1..12),
        turns in prop::collection::vec(0..3, 0..40),
        room in 1usize..5,
        buffer in prop::sample::select(vec![100u32, 512, 4096]),
    ) {
        let (mut guests, wires) = Guest::pair(buffer);
        connect(&mut guests);
        wires[0].limit(room);
        let data = numbers(sizes.iter().sum());
        let (mut sent, mut came, mut back) = (0, Vec::<u8>::new(), Vec::<u8>::new());
        let mut sizes = sizes.into_iter();
        let mut idle = 0;
        for turn in turns.into_iter().chain([0, 1, 2].into_iter().cycle()) {
            let [one, other] = &mut guests;
            one.driver.select(TRANSMIT);
            let has_room = { one.driver.take_used(); one.driver.device.device().is_idle() };
            match turn {
                0 if has_room => if let Some(size) = sizes.next() {
                    one.send_data(PEER.into(), PORT, &data[sent..sent + size]);
                    sent += size;
                },
                1 => for (_, data) in other.receive() {
                    // It sends back the first byte of each packet.
                    came.extend(&data);
                    if other.driver.device.device().is_idle() {
                        back.push(data[0]);
                        other.send_data(CID.into(), PORT, &data[..1]);
                        other.driver.select(TRANSMIT);
                        other.driver.take_used();
                    }
                },
                _ => for (_, data) in one.receive() {
                    prop_assert_eq!(data[0], back.remove(0));
                },
            }
            idle = if sent == data.len() && came.len() == sent && back.is_empty() { idle + 1 } else { 0 };
            if idle > 3 {
                break;
            }
        }
        prop_assert!(came == data);
    }
}
