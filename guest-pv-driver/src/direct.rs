//! Ethernet without the VMM: the driver is an end of the channel to the switch (SPEC.md 11.6).
//!
//! Frames are written and read where they are, in memory that the switch shares. Of long frames ([`Long`]) it takes none, and the switch
//! cuts them. The doorbell is the kernel's, which wakes the switch; the VMM only passes on the switch's interrupts.
//!
//! [`Long`]: hypercall_abi::guest::channel::Long

#[cfg(feature = "smoltcp")]
mod phy;

#[cfg(feature = "smoltcp")]
pub use phy::{DirectRxToken, DirectTxToken};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::hal::Hal;
use core::cell::RefCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hypercall_abi::guest::DOORBELL_CALL;
use hypercall_abi::guest::channel::{CHANNEL_BYTES, FRAME, Header, MAX_FRAME, MIN_FRAME, Rings, Side, Wire};
use hypercall_abi::guest::device::{Interrupt, Kind, NET_CHANNEL_DOORBELL, config, feature, reg};

/// The queue whose interrupt register is that of the channel.
const RECEIVE: u32 = 0;

/// A paravirtual network interface whose driver talks to the switch.
///
/// A frame is lost where there is no room for it, as on a wire, and while the switch is started again.
#[derive(Debug)]
pub struct DirectNet<H: Hal> {
    device: Device<H>,
    /// Both tokens of `smoltcp` use them, the one inside of the other.
    rings: RefCell<Rings<Channel<H>>>,
    address: [u8; 6],
    mtu: usize,
}

/// The channel as this kernel maps it, and the doorbell of the switch.
#[derive(Debug)]
struct Channel<H> {
    memory: NonNull<u8>,
    hal: H,
    /// RAX of the doorbell call.
    call: u64,
}

// SAFETY: the channel's memory is reached through this driver alone.
unsafe impl<H: Send> Send for Channel<H> {}

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
        let call = DOORBELL_CALL + u64::from(doorbell);
        let channel = Channel { memory: memory.ok_or(Error::BadMemory)?, hal, call };
        let rings = RefCell::new(Rings::new(channel, Side::Card));
        Ok(DirectNet { device, rings, address: [a, b, c, d, e, f], mtu })
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

    /// Hands the next frame that arrived to `take`; `None` if none has. Its bytes are the driver's until `take` returns. A frame lacks
    /// a checksum where the header says so: between VMs of one machine nobody needs it. [`checksum::fill_in`] makes it.
    ///
    /// [`checksum::fill_in`]: hypercall_abi::guest::channel::checksum::fill_in
    #[inline]
    pub fn receive<R>(&mut self, take: impl FnOnce(Header, &mut [u8]) -> R) -> Option<R> {
        let rings = self.rings.get_mut();
        let (slot, header) = rings.peek()?;
        // SAFETY: a frame is inside its slot, as the header was checked; the switch does not touch it before it is given back.
        let result = take(header, unsafe { rings.wire().frame(slot, header.len.into()) });
        rings.release();
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
        let rings = self.rings.get_mut();
        let slot = rings.free_slot().ok_or(Error::Full)?;
        // SAFETY: a frame of this length is inside its slot, which is this end's until the frame is shown.
        let result = fill(unsafe { rings.wire().frame(slot, len) });
        rings.put(slot, Header { len: len as u16, missing: None });
        Ok(result)
    }

    /// Whether no frame can be sent: the switch is behind, or there is none at the moment.
    #[inline]
    pub fn is_full(&mut self) -> bool {
        self.rings.get_mut().free_slot().is_none()
    }

    /// Shows the switch the frames that were submitted, and wakes it if it waits.
    #[inline]
    pub fn flush(&mut self) {
        // Who only sends follows a switch that began anew here.
        let rings = self.rings.get_mut();
        rings.is_up();
        rings.flush();
    }

    /// Whether the switch has taken all frames that were sent. Those that it has not are lost when this driver goes.
    pub fn is_drained(&mut self) -> bool {
        self.rings.borrow_mut().is_drained()
    }

    /// Asks for an interrupt with the next frame. `false` if there is one already, and the interrupt may not come.
    #[inline]
    pub fn sleep_is_safe(&mut self) -> bool {
        self.rings.get_mut().prepare_to_wait()
    }
}

impl<H> Channel<H> {
    #[inline]
    fn at(&self, offset: usize) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(offset)
    }

    /// The first bytes of the frame in a slot.
    ///
    /// # Safety
    /// They are inside of it, and nobody else uses the slot as long as the slice exists.
    #[inline]
    unsafe fn frame<'a>(&self, slot: usize, len: usize) -> &'a mut [u8] {
        // SAFETY: the channel is mapped for good, and the rest is the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.at(slot + FRAME), len) }
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
}

impl<H: Hal> Wire for Channel<H> {
    #[inline]
    fn load_u32(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    #[inline]
    fn store_u32(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }

    #[inline]
    fn load_u64(&self, offset: usize) -> u64 {
        self.double(offset).load(Ordering::Acquire)
    }

    #[inline]
    fn store_u64(&self, offset: usize, value: u64) {
        self.double(offset).store(value, Ordering::Release);
    }

    #[inline]
    fn signal(&self) {
        self.hal.ring(self.call);
    }
}
