//! The host's end of COM1: a socket that the emulator connects to, frames in and out.

use super::event::{Event, Events};
use anyhow::{Context, Result};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use vmm_protocol::link::{self, Decoder, MAX_PAYLOAD, Stream};

/// A socket that waits for the emulator.
#[derive(Debug)]
pub enum Listener {
    /// For QEMU: a socket that only this user can reach.
    Unix(UnixListener),
    /// For Bochs, which knows no other kind. Only the first connection is accepted.
    Tcp(TcpListener),
}

/// A connection in two halves.
type Connection = (Box<dyn Read + Send>, Box<dyn Write + Send>);

impl Listener {
    /// Listens on a socket file.
    pub fn unix(path: &Path) -> Result<Self> {
        UnixListener::bind(path)
            .map(Listener::Unix)
            .with_context(|| format!("cannot make the socket {}", path.display()))
    }

    /// Listens on a free local port.
    pub fn tcp() -> Result<Self> {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map(Listener::Tcp)
            .context("cannot listen on a local port")
    }

    /// The port; 0 for a socket file.
    pub fn port(&self) -> u16 {
        match self {
            Listener::Unix(_) => 0,
            Listener::Tcp(listener) => listener.local_addr().map_or(0, |address| address.port()),
        }
    }

    /// Accepts the emulator and turns what comes into events, on a thread of its own.
    pub fn serve(self, events: &Events) -> Result<()> {
        match &self {
            Listener::Unix(listener) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        }
        .context("cannot prepare the socket")?;
        let to = events.sender();
        thread::spawn(move || {
            if let Some((reader, writer)) = self.accept()
                && to.send(Event::Connected(writer)).is_ok()
            {
                receive(reader, &to);
            }
        });
        Ok(())
    }

    /// Waits for the emulator, which connects when it starts.
    fn accept(self) -> Option<Connection> {
        const PATIENCE: u32 = 60_000;
        const PAUSE: u32 = 10;
        for _ in 0..PATIENCE / PAUSE {
            match self.try_accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(u64::from(PAUSE)));
                }
                result => return result.ok(),
            }
        }
        None
    }

    fn try_accept(&self) -> io::Result<Connection> {
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
        }
    }
}

/// Decodes frames until the line closes.
fn receive(mut reader: Box<dyn Read + Send>, to: &Sender<Event>) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for frame in buffer[..count].iter().filter_map(|&byte| decoder.push(byte)) {
            if to.send(Event::Frame(frame)).is_err() {
                return;
            }
        }
    }
    // Nobody may be there any more to hear it.
    let _ = to.send(Event::LinkClosed);
}

/// Sends bytes to a VM: console input, or what gdb says.
pub fn send(writer: &mut dyn Write, stream: Stream, vm: u8, bytes: &[u8]) -> io::Result<()> {
    for payload in bytes.chunks(MAX_PAYLOAD) {
        let mut frame = link::header(stream, vm, payload.len() as u8).to_vec();
        frame.extend(payload);
        writer.write_all(&frame)?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_longer_than_a_frame_arrives_whole() {
        let typed: Vec<u8> = (0..=255).cycle().take(600).collect();
        let mut line = Vec::new();
        send(&mut line, Stream::Console, 1, &typed).unwrap();
        let mut decoder = Decoder::default();
        let frames: Vec<_> = line.into_iter().filter_map(|byte| decoder.push(byte)).collect();
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|frame| frame.vm == 1 && frame.stream == Stream::Console));
        assert_eq!(frames.into_iter().flat_map(|frame| frame.payload).collect::<Vec<_>>(), typed);
    }
}
