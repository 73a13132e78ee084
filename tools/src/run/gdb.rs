//! gdb's way to the first VM's stub: a local TCP port. A debugger that leaves lets the guest go on; coming back to the guest
//! does not work yet, although the port stays open.

use super::event;
use crate::failure;
use anyhow::Result;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::thread;

/// Stops the guest, if it runs, and lets it go: Ctrl-C and "detach".
const FAREWELL: &[u8] = b"\x03$D#44";
/// The answer to that.
const FAREWELL_ANSWER: &[u8] = b"$OK#9a";

/// Something from a debugger.
#[derive(Debug)]
pub enum Event {
    /// It connected.
    Connected(TcpStream),
    /// It said this to the stub.
    Said(Vec<u8>),
    /// It left, and whether it let the guest go before.
    Left {
        /// Nothing is to be said to the stub.
        has_detached: bool,
    },
}

/// The port and the debugger behind it.
#[derive(Debug)]
pub struct Gdb {
    port: u16,
    events: Sender<event::Event>,
    is_open: bool,
    client: Option<TcpStream>,
    /// What the stub said since [`FAREWELL`]; it concerns no debugger.
    unheard: Option<Vec<u8>>,
}

impl Gdb {
    /// Will serve on `port`; what a debugger does becomes events.
    pub fn new(port: u16, events: Sender<event::Event>) -> Self {
        Gdb { port, events, is_open: false, client: None, unheard: None }
    }

    /// Takes what the stub says. The first time that means that it listens, and a debugger may connect from then on:
    /// before, it would wait for answers in vain, while one that is refused tries again. Returns what to tell the user.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<String>> {
        if !self.is_open {
            self.is_open = true;
            return self.open().map(Some);
        }
        if let Some(unheard) = &mut self.unheard {
            unheard.extend(bytes);
            if unheard.ends_with(FAREWELL_ANSWER) {
                self.unheard = None;
            }
        } else if let Some(client) = &mut self.client {
            // A client that is gone says so itself.
            let _ = client.write_all(bytes);
        }
        Ok(None)
    }

    fn open(&self) -> Result<String> {
        let listener = listen(self.port)?;
        let events = self.events.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if serve(client, &events).is_none() {
                    break;
                }
            }
        });
        let port = self.port;
        Ok(format!("the guest waits for gdb: `target remote localhost:{port}`"))
    }

    /// Takes what a debugger did. Returns what to say to the stub.
    pub fn handle(&mut self, event: Event) -> Vec<u8> {
        match event {
            Event::Connected(client) => {
                self.client = Some(client);
                Vec::new()
            }
            Event::Said(bytes) => bytes,
            Event::Left { has_detached } => {
                self.client = None;
                if has_detached {
                    return Vec::new();
                }
                self.unheard = Some(Vec::new());
                FAREWELL.to_vec()
            }
        }
    }
}

impl Drop for Gdb {
    /// Ends the connection, which the thread that reads from it keeps open: a debugger would wait for the stub.
    fn drop(&mut self) {
        if let Some(client) = &self.client {
            // A client that is gone needs no end.
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

/// Fails if a port cannot be served.
pub fn check_port(port: u16) -> Result<()> {
    listen(port).map(drop)
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| failure::usage(format!("cannot serve gdb on local port {port}: {error}")))
}

/// Passes on what a debugger says until it leaves. Nothing if the run is over.
fn serve(client: TcpStream, events: &Sender<event::Event>) -> Option<()> {
    let send = |event| events.send(event::Event::Gdb(event)).ok();
    let connection = client.set_nodelay(true).and_then(|()| client.try_clone());
    let Ok(mut reader) = connection else {
        return Some(());
    };
    send(Event::Connected(client))?;
    let mut buffer = [0; 4096];
    let mut has_detached = false;
    loop {
        let said = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        has_detached |= ends_session(said);
        send(Event::Said(said.to_vec()))?;
    }
    send(Event::Left { has_detached })
}

/// Whether a debugger says its last packet: `D` or `D;PROCESS`, or `k` or `vKill;PROCESS`.
fn ends_session(said: &[u8]) -> bool {
    let packet = said.strip_prefix(b"+").unwrap_or(said);
    [b"$D#".as_slice(), b"$D;", b"$k", b"$vKill;"].iter().any(|last| packet.starts_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_last_packet_is_recognised() {
        for last in ["$D#44", "+$D;1#b0", "$k#6b", "$vKill;1#6e"] {
            assert!(ends_session(last.as_bytes()), "{last}");
        }
        for other in ["+", "$m0,44#5e", "$vCont;c#a8", "$qDE#00"] {
            assert!(!ends_session(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn a_debugger_that_vanished_lets_the_guest_go_and_its_answer_reaches_nobody_else() {
        let mut gdb = Gdb::new(0, mpsc::channel().0);
        gdb.is_open = true;
        let left = |has_detached| Event::Left { has_detached };
        assert_eq!(gdb.handle(left(true)), b"");
        assert_eq!(gdb.handle(left(false)), FAREWELL);
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut next = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (client, _) = server.accept().unwrap();
        assert_eq!(gdb.handle(Event::Connected(client)), b"");
        for said in ["$S02#b5+$O", "K#9a", "+$next#00"] {
            assert_eq!(gdb.receive(said.as_bytes()).unwrap(), None);
        }
        drop(gdb);
        let mut heard = String::new();
        next.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "+$next#00");
    }
}
