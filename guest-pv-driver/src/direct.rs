//! Ethernet without the VMM: the driver is an end of the channel to the switch (SPEC.md 11.6).
//!
//! Frames are written and read where they are, in memory that the switch shares. The doorbell is the kernel's, which wakes the
//! switch; the VMM only passes on the switch's interrupts.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::hal::Hal;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use hypercall_abi::guest::DOORBELL_CALL;
use hypercall_abi::guest::channel::{
    CHANNEL_BYTES, FRAME, Header, MAX_FRAME, MIN_FRAME, SLOTS, Session, Side, Taken,
};
use hypercall_abi::guest::device::{Interrupt, Kind, NET_CHANNEL_DOORBELL, config, feature, reg};

const OWN: Side = Side::Card;
const PEER: Side = Side::Switch;
/// The queue whose interrupt register is that of the channel.
const RECEIVE: u32 = 0;

/// A paravirtual network interface whose driver talks to the switch.
///
/// A frame is lost where there is no room for it, as on a wire, and while the switch is started again.
#[derive(Debug)]
pub struct DirectNet<H: Hal> {
    hal: H,
    device: Device<H>,
    memory: NonNull<u8>,
    /// RAX of the doorbell call.
    call: u64,
    address: [u8; 6],
    mtu: usize,
    /// What this end says of itself.
    session: Session,
    /// The switch's session when it was last looked at, as a word.
    peer_session: u64,
    /// Each end has seen the other.
    is_up: bool,
    /// Frames put into the ring to the switch, and those that it was told of.
    put: u32,
    shown: u32,
    /// Frames that the switch had taken when it was last looked at.
    peer_taken: u32,
    /// Frames taken out of the ring from the switch.
    taken: Taken,
    /// Frames that were in it when it was last looked at.
    peer_put: u32,
}

// SAFETY: the channel's memory is reached through this driver alone.
unsafe impl<H: Hal + Send> Send for DirectNet<H> {}

impl<H: Hal + Clone> DirectNet<H> {
    /// Starts the interface with its device page at this guest-physical address.
    ///
    /// # Errors
    /// [`Error::NoQueue`] if the device has no channel: [`crate::Net`] drives it. [`Error::BadMemory`] if the kernel does not map it.
    pub fn new(hal: H, address: u64) -> Result<Self> {
        let mut device = Device::open_kind(hal.clone(), address, Kind::Net)?;
        if device.negotiate(feature::NET_DIRECT) & feature::NET_DIRECT == 0 {
            return Err(Error::NoQueue);
        }
        let memory = hal.map_shared(device.read_u64(config::NET_CHANNEL), CHANNEL_BYTES);
        let [a, b, c, d, e, f, ..] = device.read_u64(config::NET_ADDRESS).to_le_bytes();
        let mtu = device.read(config::NET_MTU) as usize;
        let doorbell = device.read(reg::DOORBELL) as u16 + NET_CHANNEL_DOORBELL;
        device.start()?;
        let mut net = DirectNet {
            hal,
            device,
            memory: memory.ok_or(Error::BadMemory)?,
            call: DOORBELL_CALL + u64::from(doorbell),
            address: [a, b, c, d, e, f],
            mtu,
            session: Session::default(),
            peer_session: 0,
            is_up: false,
            put: 0,
            shown: 0,
            peer_taken: 0,
            taken: Taken::default(),
            peer_put: 0,
        };
        net.begin();
        Ok(net)
    }
}

impl<H: Hal> DirectNet<H> {
    /// Its Ethernet address.
    pub fn address(&self) -> [u8; 6] {
        self.address
    }

    /// Bytes of the longest packet, without the Ethernet header.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Has frames that arrive raise an interrupt from now on, where [`Self::sleep_is_safe`] asks for it.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.device.set_queue_interrupt(RECEIVE, interrupt);
    }

    /// Hands the next frame that arrived to `take`; `None` if none has. A frame has a checksum that is missing, where the header
    /// says so: between VMs of one machine nobody needs it.
    #[inline]
    pub fn receive<R>(&mut self, take: impl FnOnce(Header, &[u8]) -> R) -> Option<R> {
        if self.peer_put == self.taken.count && !self.look() {
            return None;
        }
        let slot = PEER.slot(self.taken.count);
        let Some(header) = Header::decode(self.load(slot)) else {
            self.begin();
            return None;
        };
        // SAFETY: a frame is inside its slot, as the header was checked; the switch does not touch it before it is given back.
        let bytes = unsafe { core::slice::from_raw_parts(self.at(slot + FRAME), header.len.into()) };
        let result = take(header, bytes);
        self.set_taken(Taken { count: self.taken.count.wrapping_add(1), ..self.taken });
        Some(result)
    }

    /// Has `fill` write a frame of `len` bytes, of 14 to 1518, and submits it. The switch sees it with the next [`Self::flush`].
    ///
    /// # Errors
    /// [`Error::TooScattered`] for a length that no frame has; [`Error::Full`] if there is no room, or no switch.
    #[inline]
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(Error::TooScattered);
        }
        if self.is_full() {
            return Err(Error::Full);
        }
        let slot = OWN.slot(self.put);
        // SAFETY: a frame of this length is inside its slot, which is this end's until the frame is shown.
        let result = fill(unsafe { core::slice::from_raw_parts_mut(self.at(slot + FRAME), len) });
        self.store(slot, Header { len: len as u16, missing: None }.encode());
        self.put = self.put.wrapping_add(1);
        Ok(result)
    }

    /// Whether no frame can be sent: the switch is behind, or there is none at the moment.
    #[inline]
    pub fn is_full(&mut self) -> bool {
        if !self.is_up && !self.follow_peer() {
            return true;
        }
        let has_room = |net: &Self| net.put.wrapping_sub(net.peer_taken) < SLOTS as u32;
        if !has_room(self) {
            self.peer_taken = Taken::decode(self.load(OWN.taken())).count;
        }
        !has_room(self)
    }

    /// Shows the switch the frames that were submitted, and wakes it if it waits.
    #[inline]
    pub fn flush(&mut self) {
        self.follow_peer();
        if self.put == self.shown {
            return;
        }
        self.word(OWN.put()).store(self.put, Ordering::Release);
        // Either this sees the threshold of a switch that is about to wait, or that sees the count.
        fence(Ordering::SeqCst);
        let taken = Taken::decode(self.load(OWN.taken()));
        self.peer_taken = taken.count;
        if taken.wants_signal(self.shown, self.put) {
            self.hal.ring(self.call);
        }
        self.shown = self.put;
    }

    /// Asks for an interrupt with the next frame. `false` if there is one already, and the interrupt may not come.
    #[inline]
    pub fn sleep_is_safe(&mut self) -> bool {
        self.set_taken(Taken { threshold: self.taken.count, ..self.taken });
        // As in `flush`, with the roles exchanged.
        fence(Ordering::SeqCst);
        !self.look()
    }

    /// Begins with empty rings and a number that no predecessor had.
    #[cold]
    fn begin(&mut self) {
        self.session.own = Session::decode(self.load(OWN.session())).own.wrapping_add(1).max(1);
        self.peer_session = self.load(PEER.session());
        self.is_up = false;
        self.show_session();
    }

    /// Empties the rings, and then shows the switch which instances talk.
    fn show_session(&mut self) {
        self.session.seen = Session::decode(self.peer_session).own;
        (self.put, self.shown, self.peer_taken, self.peer_put) = (0, 0, 0, 0);
        self.word(OWN.put()).store(0, Ordering::Release);
        self.set_taken(Taken::default());
        self.store(OWN.session(), self.session.encode());
        self.hal.ring(self.call);
    }

    /// Notices that the switch began anew. Returns whether frames can pass.
    #[inline]
    fn follow_peer(&mut self) -> bool {
        let word = self.load(PEER.session());
        if word != self.peer_session {
            self.peer_session = word;
            let peer = Session::decode(word);
            if peer.own != self.session.seen {
                self.show_session();
            }
            self.is_up = peer.own != 0 && peer.seen == self.session.own;
        }
        self.is_up
    }

    /// Looks whether there are more frames.
    #[inline]
    fn look(&mut self) -> bool {
        if !self.follow_peer() {
            return false;
        }
        let put = self.word(PEER.put()).load(Ordering::Acquire);
        let count = put.wrapping_sub(self.taken.count);
        if count > SLOTS as u32 {
            self.begin();
            return false;
        }
        self.peer_put = put;
        count > 0
    }

    fn set_taken(&mut self, taken: Taken) {
        self.taken = taken;
        self.store(PEER.taken(), taken.encode());
    }

    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(offset)
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: callers pass offsets of the layout, which are inside the channel and multiples of 4.
        unsafe { AtomicU32::from_ptr(self.at(offset).cast()) }
    }

    #[inline]
    fn double(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: callers pass offsets of the layout, which are inside the channel and multiples of 8.
        unsafe { AtomicU64::from_ptr(self.at(offset).cast()) }
    }

    #[inline]
    fn load(&self, offset: usize) -> u64 {
        self.double(offset).load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, offset: usize, value: u64) {
        self.double(offset).store(value, Ordering::Release);
    }
}
