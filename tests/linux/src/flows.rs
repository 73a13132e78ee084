//! The two ends of the flows.

use crate::ethtool::Card;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::time::Duration;

const CARD: &str = "eth0";
const ANSWERS: &str = "10.9.0.1:7000";
/// Flows at once, which Linux spreads over the pairs by their ports, and rounds of a packet in each.
const FLOWS: u32 = 32;
const ROUNDS: u32 = 8;
/// Bytes of payload.
const LONG: usize = 1400;
/// The packet that ends the other.
const END: &[u8] = b"end";

/// Sends back what comes.
pub(crate) fn answer() -> Result<()> {
    let socket = UdpSocket::bind(ANSWERS)?;
    let mut bytes = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut bytes)?;
        if &bytes[..len] == END {
            return Ok(());
        }
        socket.send_to(&bytes[..len], from)?;
    }
}

/// Has every packet sent back, by two pairs of queues, by one, and by two again. The number changes while packets are on their way.
pub(crate) fn ask() -> Result<()> {
    wait_for_other()?;
    let mut flows = Flows::new()?;
    let card = Card::new(CARD)?;
    for pairs in [2, 1, 2] {
        flows.send()?;
        card.set_pairs(pairs)?;
        flows.take()?;
        let before = card.packets(pairs)?;
        for _ in 0..ROUNDS {
            flows.send()?;
            flows.take()?;
        }
        let after = card.packets(pairs)?;
        println!("pairs: {pairs}, answers: {}", ROUNDS * FLOWS);
        for (pair, (before, after)) in before.iter().zip(&after).enumerate() {
            println!("pair {pair}: sent {}, came {}", after.sent - before.sent, after.came - before.came);
        }
    }
    flows.sockets[0].send(END).map(drop)
}

/// It may not have started yet.
fn wait_for_other() -> Result<()> {
    let socket = connect()?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut bytes = [0];
    while socket.send(&[0]).and_then(|_| socket.recv(&mut bytes)).is_err() {}
    Ok(())
}

fn connect() -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(ANSWERS)?;
    Ok(socket)
}

struct Flows {
    sockets: Vec<UdpSocket>,
    /// Rounds that were sent.
    rounds: u32,
}

impl Flows {
    fn new() -> Result<Self> {
        let sockets = (0..FLOWS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        }
        Ok(Flows { sockets, rounds: 0 })
    }

    /// Sends a packet in each flow.
    fn send(&mut self) -> Result<()> {
        self.rounds += 1;
        for (flow, socket) in self.sockets.iter().enumerate() {
            socket.send(&content(self.rounds, flow))?;
        }
        Ok(())
    }

    /// Takes the answers to the last round.
    ///
    /// # Errors
    /// One did not come, or is another.
    fn take(&self) -> Result<()> {
        let mut bytes = [0; 2048];
        for (flow, socket) in self.sockets.iter().enumerate() {
            let len = socket.recv(&mut bytes)?;
            if bytes[..len] != content(self.rounds, flow) {
                return Err(Error::other(format!("flow {flow} got another answer")));
            }
        }
        Ok(())
    }
}

/// What is sent in a round and a flow, different in each.
fn content(round: u32, flow: usize) -> Vec<u8> {
    let seed = round * FLOWS + flow as u32;
    (0..LONG as u32 / 4).flat_map(|at| (seed ^ at.wrapping_mul(0x9e37_79b1)).to_le_bytes()).collect()
}
