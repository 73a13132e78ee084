//! gdb's way to the first VM's stub: a local TCP port, behind which one debugger after the other is served.

use super::event::Event;
use crate::failure;
use anyhow::Result;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::thread;

/// What a debugger says when it leaves the guest alone.
const DETACH: &[u8] = b"$D#44";
/// Stops a guest that runs: Ctrl-C.
const INTERRUPT: &[u8] = b"\x03";

/// The port and the debugger behind it.
#[derive(Debug)]
pub struct Gdb {
    port: u16,
    events: Sender<Event>,
    is_open: bool,
    client: Option<TcpStream>,
}

impl Gdb {
    /// Will serve on `port`; what a debugger says becomes events.
    pub fn new(port: u16, events: Sender<Event>) -> Self {
        Gdb {
            port,
            events,
            is_open: false,
            client: None,
        }
    }

    /// Takes what the stub says. The first time that means that it listens, and a debugger may connect from then on:
    /// before, it would wait for answers in vain, while one that is refused tries again. Returns what to tell the user.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<String>> {
        if self.is_open {
            if let Some(client) = &mut self.client {
                // A client that is gone says so itself.
                let _ = client.write_all(bytes);
            }
            return Ok(None);
        }
        self.is_open = true;
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
        Ok(Some(format!(
            "the guest waits for gdb: `target remote localhost:{port}`"
        )))
    }

    /// A debugger connected, or left.
    pub fn set_client(&mut self, client: Option<TcpStream>) {
        self.client = client;
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

/// Passes on what a debugger says until it leaves. For one that left without a word the guest is let go. Nothing if the
/// run is over.
fn serve(client: TcpStream, events: &Sender<Event>) -> Option<()> {
    let connection = client.set_nodelay(true).and_then(|()| client.try_clone());
    let Ok(mut reader) = connection else {
        return Some(());
    };
    events.send(Event::GdbClient(Some(client))).ok()?;
    let mut buffer = [0; 4096];
    let mut has_detached = false;
    loop {
        let said = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        // The acknowledgement of the answer may follow.
        has_detached = said.ends_with(DETACH) || has_detached && said == b"+";
        events.send(Event::Gdb(said.to_vec())).ok()?;
    }
    events.send(Event::GdbClient(None)).ok()?;
    if !has_detached {
        events.send(Event::Gdb([INTERRUPT, DETACH].concat())).ok()?;
    }
    Some(())
}
