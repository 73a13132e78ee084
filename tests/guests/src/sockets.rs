//! The guest `virtio`'s sockets, without another VM: the services of its VMM (tools/README.md, "Sockets without a network").

use crate::virtio::OneToOne;
use tproto::pv;
use trt::{check, clock};
use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    DisconnectReason, SocketError, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager,
    VsockEventType,
};
use virtio_drivers::transport::mmio::MmioTransport;

/// Services, and a port that has none.
const ECHO: VsockAddr = VsockAddr { cid: VMADDR_CID_HOST, port: 7 };
const LOG: VsockAddr = VsockAddr { cid: VMADDR_CID_HOST, port: 514 };
const NOBODY: VsockAddr = VsockAddr { cid: VMADDR_CID_HOST, port: 80 };
/// Ports of this side.
const OWN: u32 = 1024;
const OTHER: u32 = 1025;
/// Bytes that the driver has room for in a connection.
const ROOM: usize = 3000;
/// Bytes that are sent and come back: often enough as many as either side has room for.
const BYTES: usize = 300_000;
/// Bytes that are sent at once: no divisor of what there is room for.
const PIECE: usize = 1700;
/// How long anything may take, in ms.
const PATIENCE_MS: u64 = 1000;

type Manager = VsockConnectionManager<OneToOne, MmioTransport<'static>>;

/// Talks to the services.
pub(crate) fn run(transport: MmioTransport<'static>) {
    let Ok(driver) = VirtIOSocket::<OneToOne, _>::new(transport) else {
        check!(false, "the socket device starts");
        return;
    };
    check!(eq driver.guest_cid(), u64::from(pv::CID), "it says the guest's context id");
    let mut sockets = Manager::new_with_capacity(driver, ROOM as u32);
    connect(&mut sockets, ECHO, OWN);
    connect(&mut sockets, LOG, OTHER);
    check!(eq sockets.connect(NOBODY, 1), Ok(()), "a connection is asked for where there is no service");
    wait_for(&mut sockets, NOBODY, VsockEventType::Disconnected { reason: DisconnectReason::Reset });
    echo(&mut sockets);
    check!(eq sockets.send(LOG, OTHER, pv::SAID.as_bytes()), Ok(()), "a line is sent to the log");
    check!(eq sockets.send(LOG, OTHER, b"\n"), Ok(()), "and its end");
    for (peer, own) in [(ECHO, OWN), (LOG, OTHER)] {
        check!(eq sockets.shutdown(peer, own), Ok(()), "a connection is shut down");
        wait_for(&mut sockets, peer, VsockEventType::Disconnected { reason: DisconnectReason::Reset });
    }
}

fn connect(sockets: &mut Manager, peer: VsockAddr, own: u32) {
    check!(eq sockets.connect(peer, own), Ok(()), "a connection is asked for");
    wait_for(sockets, peer, VsockEventType::Connected);
}

/// Waits for this event of a peer; nothing else but news of somebody's room may come before.
fn wait_for(sockets: &mut Manager, peer: VsockAddr, wanted: VsockEventType) {
    let mut found = Ok(None);
    clock::wait_until(PATIENCE_MS, || {
        let event = sockets.poll();
        found = event.map(|event| event.filter(|event| event.event_type != VsockEventType::CreditUpdate));
        found != Ok(None)
    });
    let found = found.map(|event| event.map(|event| (event.source, event.event_type)));
    check!(eq found, Ok(Some((peer, wanted))), "the peer answers as it should");
}

/// The byte at this place of the stream.
fn byte(at: usize) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 13) as u8
}

/// Sends a stream as fast as the peer takes it, and takes what comes back.
fn echo(sockets: &mut Manager) {
    let (mut sent, mut came) = (0, 0);
    let mut is_same = true;
    let mut failure = None;
    let is_done = clock::wait_until(60 * PATIENCE_MS, || {
        let mut piece = [0; PIECE];
        let len = PIECE.min(BYTES - sent);
        piece.iter_mut().zip(sent..).for_each(|(place, at)| *place = byte(at));
        if len > 0 {
            match sockets.send(ECHO, OWN, &piece[..len]) {
                Ok(()) => sent += len,
                // The driver asks for news of that by itself.
                Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {}
                Err(error) => failure = Some(error),
            }
        }
        while let Ok(Some(_)) = sockets.poll() {
            let len = sockets.recv(ECHO, OWN, &mut piece).unwrap_or(0);
            is_same &= piece[..len].iter().zip(came..).all(|(found, at)| *found == byte(at));
            came += len;
            if len > 0 {
                let _ = sockets.update_credit(ECHO, OWN);
            }
        }
        came == BYTES || failure.is_some()
    });
    check!(eq failure, None, "what there is room for is sent");
    check!(eq(sent, came, is_done), (BYTES, BYTES, true), "all of it comes back");
    check!(is_same, "what comes back is what was sent");
}
