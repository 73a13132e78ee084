//! A DHCP server with one address to give (RFC 2131).

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

const GIVEN: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const SERVER: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// The answer to a frame, if it asks for an address.
pub fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let datagram =
        UdpPacket::new_checked(packet.payload()).ok().filter(|_| packet.next_header() == IpProtocol::Udp)?;
    if datagram.dst_port() != SERVER_PORT {
        return None;
    }
    let message = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let question = DhcpRepr::parse(&message).ok()?;
    let message_type = match question.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return None,
    };
    let answer = DhcpRepr {
        message_type,
        your_ip: GIVEN,
        server_ip: SERVER,
        router: Some(SERVER),
        subnet_mask: Some(Ipv4Address::new(255, 255, 255, 0)),
        server_identifier: Some(SERVER),
        lease_duration: Some(3600),
        requested_ip: None,
        client_identifier: None,
        parameter_request_list: None,
        max_size: None,
        ..question
    };
    Some(wrap(&answer))
}

/// A frame to everybody.
fn wrap(answer: &DhcpRepr<'_>) -> Vec<u8> {
    let udp = UdpRepr { src_port: SERVER_PORT, dst_port: CLIENT_PORT };
    let payload_len = udp.header_len() + answer.buffer_len();
    let next_header = IpProtocol::Udp;
    let ip = Ipv4Repr {
        src_addr: SERVER,
        dst_addr: Ipv4Address::BROADCAST,
        next_header,
        payload_len,
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(super::CLIENT),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; EthernetRepr::buffer_len(&ethernet) + ip.buffer_len() + payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    let checksums = ChecksumCapabilities::default();
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    let emit = |payload: &mut [u8]| answer.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap();
    udp.emit(
        &mut datagram,
        &SERVER.into(),
        &Ipv4Address::BROADCAST.into(),
        answer.buffer_len(),
        emit,
        &checksums,
    );
    bytes
}
