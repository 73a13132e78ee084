//! One connection: requests are read, answered in order, and the file sent as fast as the client takes it.

use crate::archive::{Archive, Extent};
use crate::http::{self, Head, Request, Status};
use core::fmt::Write;
use guest_pv_driver::{BlockDevice, SECTOR_BYTES};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State as Tcp};
use smoltcp::time::{Duration, Instant};

/// Port of the server.
const PORT: u16 = 80;
/// How long a client may take to send a request, or to begin one.
const REQUEST_TIME: Duration = Duration::from_secs(15);
/// The same while no connection is free for others.
const REQUEST_TIME_IF_CROWDED: Duration = Duration::from_secs(1);
/// How long a client may take no sector of a response.
const STALL_TIME: Duration = Duration::from_secs(15);
/// How long a client may take to end a connection, or the last sectors from it.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// Room that a response needs to begin: its head, and the few words of an error.
const RESPONSE_BYTES: usize = Head::MAX_BYTES + 64;

/// Bytes that a request may have, and that are read from the disk at once.
pub(crate) const BUFFER_BYTES: usize = 4096;

/// What a connection works with while it has its turn.
pub(crate) struct Turn<'a, D> {
    pub(crate) archive: &'a mut Archive<D>,
    pub(crate) buffer: &'a mut [u8; BUFFER_BYTES],
    pub(crate) now: Instant,
    /// No connection is free for another client.
    pub(crate) is_crowded: bool,
}

/// What goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no client.
    Listening,
    /// The next request is awaited.
    Reading,
    /// This much of a file has not been sent.
    Sending { rest: Extent, keep_alive: bool },
    /// The client is to close its side.
    Closing,
}

/// A connection, or a place for one.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Its socket.
    pub(crate) handle: SocketHandle,
    state: State,
    /// When the state began, or last made headway.
    since: Instant,
    /// Bytes that the client had not acknowledged then.
    unsent: usize,
}

impl Connection {
    pub(crate) fn new(handle: SocketHandle) -> Self {
        Connection { handle, state: State::Listening, since: Instant::ZERO, unsent: 0 }
    }

    /// Makes room for a new client if the last one is gone; whether there was one.
    pub(crate) fn reopen(&mut self, socket: &mut Socket<'_>) -> bool {
        if socket.is_open() || socket.listen(PORT).is_err() {
            return false;
        }
        core::mem::replace(&mut self.state, State::Listening) != State::Listening
    }

    /// When the client's time is over.
    pub(crate) fn expires(&self, is_crowded: bool) -> Option<Instant> {
        let limit = match self.state {
            State::Listening => return None,
            State::Reading if is_crowded => REQUEST_TIME_IF_CROWDED,
            State::Reading => REQUEST_TIME,
            State::Sending { .. } => STALL_TIME,
            State::Closing => CLOSE_TIME,
        };
        Some(self.since + limit)
    }

    /// Does what can be done without waiting.
    pub(crate) fn serve<D: BlockDevice>(&mut self, socket: &mut Socket<'_>, turn: &mut Turn<'_, D>) {
        if !socket.is_open() {
            return;
        }
        if socket.is_listening() {
            self.state = State::Listening;
            return;
        }
        if self.state == State::Listening {
            self.enter(State::Reading, turn);
            self.unsent = 0;
        }
        self.note_headway(socket, turn);
        if self.expires(turn.is_crowded).is_some_and(|end| end <= turn.now) {
            match self.state {
                State::Reading => self.enter(State::Closing, turn),
                _ => return socket.abort(),
            }
        }
        loop {
            let goes_on = match self.state {
                State::Listening => false,
                State::Reading => self.answer(socket, turn),
                State::Sending { rest, keep_alive } => self.send(socket, turn, rest, keep_alive),
                State::Closing => close(socket),
            };
            if !goes_on {
                break;
            }
        }
        self.unsent = self.unsent.max(socket.send_queue());
    }

    /// A client that takes a sector has more time for the next, whatever else goes on. Byte by byte is not enough.
    fn note_headway<D>(&mut self, socket: &Socket<'_>, turn: &Turn<'_, D>) {
        let unsent = socket.send_queue();
        let taken = self.unsent.saturating_sub(unsent);
        if taken >= SECTOR_BYTES || taken > 0 && unsent == 0 {
            (self.since, self.unsent) = (turn.now, unsent);
        }
    }

    fn enter<D>(&mut self, state: State, turn: &Turn<'_, D>) {
        (self.state, self.since) = (state, turn.now);
    }

    /// Ends a response.
    fn finish<D>(&mut self, keep_alive: bool, turn: &Turn<'_, D>) {
        self.enter(if keep_alive { State::Reading } else { State::Closing }, turn);
    }

    /// Answers the next request, if it is there; whether there is more to do.
    fn answer<D: BlockDevice>(&mut self, socket: &mut Socket<'_>, turn: &mut Turn<'_, D>) -> bool {
        if room(socket) < RESPONSE_BYTES {
            return false;
        }
        let len = socket.peek_slice(turn.buffer).unwrap_or(0);
        match http::parse(&turn.buffer[..len]) {
            Ok(Some((request, used))) => {
                // It was parsed: this only takes it out of the socket.
                let _ = socket.recv_slice(&mut turn.buffer[..used]);
                self.respond(socket, &request, turn);
            }
            Ok(None) if len == BUFFER_BYTES => self.refuse(socket, http::FIELDS_TOO_LARGE, turn),
            // The client has closed its side: the rest does not come.
            Ok(None) if socket.state() == Tcp::CloseWait => self.enter(State::Closing, turn),
            Ok(None) => return false,
            Err(status) => self.refuse(socket, status, turn),
        }
        true
    }

    fn respond<D: BlockDevice>(&mut self, socket: &mut Socket<'_>, request: &Request, turn: &Turn<'_, D>) {
        let Request { is_head, ref name, keep_alive } = *request;
        let Some(file) = turn.archive.find(name) else {
            say(socket, http::NOT_FOUND, is_head, keep_alive);
            return self.finish(keep_alive, turn);
        };
        let content_type = http::content_type(name);
        put_head(socket, Head { status: http::OK, content_type, bytes: file.bytes, keep_alive });
        let rest = Extent { bytes: if is_head { 0 } else { file.bytes }, ..file };
        self.enter(State::Sending { rest, keep_alive }, turn);
    }

    /// Answers what cannot be understood, and wants to hear no more.
    fn refuse<D>(&mut self, socket: &mut Socket<'_>, status: Status, turn: &Turn<'_, D>) {
        say(socket, status, false, false);
        self.finish(false, turn);
    }

    /// Sends as much of a file as fits; whether there is more to do.
    fn send<D: BlockDevice>(
        &mut self,
        socket: &mut Socket<'_>,
        turn: &mut Turn<'_, D>,
        rest: Extent,
        keep_alive: bool,
    ) -> bool {
        if rest.bytes == 0 {
            self.finish(keep_alive, turn);
            return true;
        }
        // Whole sectors, but for the last: so each read begins at one.
        let most = room(socket).min(BUFFER_BYTES) / SECTOR_BYTES * SECTOR_BYTES;
        let len = usize::try_from(rest.bytes).map_or(most, |bytes| bytes.min(most));
        if len == 0 {
            return false;
        }
        let chunk = &mut turn.buffer[..len.next_multiple_of(SECTOR_BYTES)];
        let is_read = turn.archive.read(rest.sector, chunk).is_ok();
        if !is_read || socket.send_slice(&chunk[..len]) != Ok(len) {
            // The client was promised more: only a connection that breaks tells it that this is not all.
            socket.abort();
            return false;
        }
        let sectors = (len / SECTOR_BYTES) as u64;
        let rest = Extent { sector: rest.sector + sectors, bytes: rest.bytes - len as u64 };
        self.enter(State::Sending { rest, keep_alive }, turn);
        true
    }
}

fn room(socket: &Socket<'_>) -> usize {
    socket.send_capacity() - socket.send_queue()
}

/// Ends this side of the connection, and hears the client out; there is nothing more to do.
fn close(socket: &mut Socket<'_>) -> bool {
    socket.close();
    while socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|len| len > 0) {}
    if socket.state() == Tcp::TimeWait {
        // Everything was acknowledged. A port that the client used lately is worth less than a place for the next one.
        socket.abort();
    }
    false
}

/// Sends a status, and for a person the same in words.
fn say(socket: &mut Socket<'_>, status: Status, is_head: bool, keep_alive: bool) {
    let Status(code, reason) = status;
    let mut words = heapless::String::<{ RESPONSE_BYTES - Head::MAX_BYTES }>::new();
    let _ = writeln!(words, "{code} {reason}");
    let bytes = words.len() as u64;
    put_head(socket, Head { status, content_type: "text/plain; charset=utf-8", bytes, keep_alive });
    if !is_head {
        let _ = socket.send_slice(words.as_bytes());
    }
}

/// There is room: [`RESPONSE_BYTES`] were free.
fn put_head(socket: &mut Socket<'_>, head: Head) {
    let mut text = heapless::String::<{ Head::MAX_BYTES }>::new();
    let _ = write!(text, "{head}");
    let _ = socket.send_slice(text.as_bytes());
}
