//! Ethernet.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::inbox::{Filled, Inbox};
use crate::queue::{Queue, QueueMemory};
use core::ptr::NonNull;
use hypercall_abi::guest::device::{Interrupt, Kind, config};
use hypercall_abi::guest::op;
use hypercall_abi::guest::ring::Request;

const RECEIVE: u32 = 0;
const SEND: u32 = 1;
/// Buffers each way.
const BUFFERS: usize = 32;
/// Bytes of a buffer: a frame with a header of 14 bytes, or less.
const BUFFER_BYTES: usize = 2048;
const HEADER_BYTES: usize = 14;

type Buffers = [[u8; BUFFER_BYTES]; BUFFERS];

/// The memory of a network interface.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct NetMemory {
    receive: QueueMemory,
    send: QueueMemory,
    arriving: Buffers,
    leaving: Buffers,
}

impl NetMemory {
    /// Memory of an interface that is not used yet.
    pub const fn new() -> Self {
        NetMemory {
            receive: QueueMemory::new(),
            send: QueueMemory::new(),
            arriving: [[0; BUFFER_BYTES]; BUFFERS],
            leaving: [[0; BUFFER_BYTES]; BUFFERS],
        }
    }
}

impl Default for NetMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// A paravirtual network interface. With the feature `smoltcp` it is a `phy::Device`.
#[derive(Debug)]
pub struct Net<H: Hal> {
    receiver: Inbox<H, BUFFERS, BUFFER_BYTES>,
    sender: Sender<H>,
    device: Device<H>,
    address: [u8; 6],
    mtu: usize,
}

impl<H: Hal + Clone> Net<H> {
    /// Starts the interface with its device page at this guest-physical address.
    pub fn new(hal: H, address: u64, memory: &'static mut NetMemory) -> Result<Self> {
        let mut device = Device::open_kind(hal, address, Kind::Net)?;
        device.negotiate(0);
        let receiver = Inbox::new(device.attach(RECEIVE, &mut memory.receive)?, &mut memory.arriving);
        let queue = device.attach(SEND, &mut memory.send)?;
        let sender = Sender { queue, buffers: NonNull::from(&mut memory.leaving) };
        let [a, b, c, d, e, f, ..] = device.read_u64(config::NET_ADDRESS).to_le_bytes();
        let mtu = (device.read(config::NET_MTU) as usize).min(BUFFER_BYTES - HEADER_BYTES);
        device.start()?;
        let mut net = Net { receiver, sender, device, address: [a, b, c, d, e, f], mtu };
        net.receiver.fill()?;
        Ok(net)
    }
}

impl<H: Hal> Net<H> {
    /// Its Ethernet address.
    pub fn address(&self) -> [u8; 6] {
        self.address
    }

    /// Bytes of the longest packet, without the Ethernet header.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Hands the next frame that arrived to `take`; `None` if none has.
    pub fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let Some(filled) = self.receiver.take()? else {
            return Ok(None);
        };
        let result = take(self.receiver.bytes(&filled));
        give_back(&mut self.receiver, filled)?;
        Ok(Some(result))
    }

    /// Has `fill` write a frame of `len` bytes, and submits it. The device sees it with the next [`Self::flush`].
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let (name, bytes) = self.sender.reserve(len)?;
        let result = fill(bytes);
        self.sender.commit(name, len)?;
        Ok(result)
    }

    /// Shows the device the frames that were submitted.
    pub fn flush(&mut self) {
        self.sender.queue.publish();
    }

    /// Whether no frame can be sent until the device is done with one.
    pub fn is_full(&mut self) -> Result<bool> {
        Ok(!self.sender.has_room()?)
    }

    /// Has frames that arrive, and room for frames that was missing, raise an interrupt from now on, where
    /// [`Self::sleep_is_safe`] asks for it.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        self.device.set_queue_interrupt(RECEIVE, interrupt);
        self.device.set_queue_interrupt(SEND, interrupt);
    }

    /// Asks for an interrupt with the next frame, and with room for another if [`Self::is_full`]. `false` if there is one of these
    /// already, and the interrupt may not come.
    pub fn sleep_is_safe(&mut self) -> Result<bool> {
        let no_frame = self.receiver.queue().request_interrupt()?;
        Ok(no_frame && (self.sender.has_room()? || self.sender.queue.request_interrupt()?))
    }
}

fn give_back<H: Hal>(receiver: &mut Inbox<H, BUFFERS, BUFFER_BYTES>, filled: Filled) -> Result<()> {
    receiver.give_back(filled)?;
    receiver.queue().publish();
    Ok(())
}

/// The frames that leave. Buffer *n* goes out as request *n*.
#[derive(Debug)]
struct Sender<H> {
    queue: Queue<H>,
    buffers: NonNull<Buffers>,
}

// SAFETY: the buffers were given to the sender for ever and are reached through it alone.
unsafe impl<H: Send> Send for Sender<H> {}

impl<H: Hal> Sender<H> {
    /// Takes back what was sent; whether there is a buffer for another frame.
    fn has_room(&mut self) -> Result<bool> {
        while self.queue.collect()?.is_some() {}
        Ok(self.queue.next_name().is_some_and(|name| usize::from(name) < BUFFERS))
    }

    /// A buffer for a frame of `len` bytes, and its name.
    fn reserve(&mut self, len: usize) -> Result<(u16, &mut [u8])> {
        if len > BUFFER_BYTES {
            return Err(Error::TooScattered);
        }
        if !self.has_room()? {
            return Err(Error::Full);
        }
        let name = self.queue.next_name().ok_or(Error::Full)?;
        // SAFETY: the buffer exists for ever, and is not at the device: its name is free. Nothing else borrows it, because
        // the sender is borrowed as long as the slice.
        Ok((name, unsafe { core::slice::from_raw_parts_mut(self.buffer(name), len) }))
    }

    /// Submits the frame in a buffer that was reserved.
    fn commit(&mut self, name: u16, len: usize) -> Result<()> {
        let (address, contiguous) = self.queue.hal().translate(self.buffer(name), len);
        if contiguous < len {
            return Err(Error::BadMemory);
        }
        let request = Request { address, len: len as u32, op: op::WRITE, ..Request::default() };
        // SAFETY: the buffer exists for ever, and is not touched again before its completion was collected.
        unsafe { self.queue.submit_as(name, request) }
    }

    /// Names of buffers are below [`BUFFERS`], as `has_room` says.
    fn buffer(&self, name: u16) -> *mut u8 {
        self.buffers.as_ptr().cast::<[u8; BUFFER_BYTES]>().wrapping_add(usize::from(name) % BUFFERS).cast()
    }
}

#[cfg(feature = "smoltcp")]
mod phy {
    use super::{BUFFER_BYTES, BUFFERS, Filled, HEADER_BYTES, Net, Sender, give_back};
    use crate::hal::Hal;
    use crate::inbox::Inbox;
    use smoltcp::phy::{Device, DeviceCapabilities, Medium};
    use smoltcp::time::Instant;

    /// A frame that arrived.
    #[derive(Debug)]
    pub struct RxToken<'a, H: Hal> {
        receiver: &'a mut Inbox<H, BUFFERS, BUFFER_BYTES>,
        filled: Filled,
    }

    /// Room for a frame.
    #[derive(Debug)]
    pub struct TxToken<'a, H: Hal>(&'a mut Sender<H>);

    impl<H: Hal> smoltcp::phy::RxToken for RxToken<'_, H> {
        fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
            let result = take(self.receiver.bytes(&self.filled));
            // A device that fails shows so at the next `receive`, which gives nothing then.
            let _ = give_back(self.receiver, self.filled);
            result
        }
    }

    impl<H: Hal> smoltcp::phy::TxToken for TxToken<'_, H> {
        fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
            let Ok((name, bytes)) = self.0.reserve(len) else {
                // The token was made when there was room: the device broke since, and the frame is lost.
                let mut lost = [0; BUFFER_BYTES];
                return fill(&mut lost[..len.min(BUFFER_BYTES)]);
            };
            let result = fill(bytes);
            if self.0.commit(name, len).is_ok() {
                self.0.queue.publish();
            }
            result
        }
    }

    impl<H: Hal> Device for Net<H> {
        type RxToken<'a>
            = RxToken<'a, H>
        where
            H: 'a;
        type TxToken<'a>
            = TxToken<'a, H>
        where
            H: 'a;

        fn receive(&mut self, _: Instant) -> Option<(RxToken<'_, H>, TxToken<'_, H>)> {
            if !self.sender.has_room().ok()? {
                return None;
            }
            let filled = self.receiver.take().ok()??;
            Some((RxToken { receiver: &mut self.receiver, filled }, TxToken(&mut self.sender)))
        }

        fn transmit(&mut self, _: Instant) -> Option<TxToken<'_, H>> {
            self.sender.has_room().ok()?.then_some(TxToken(&mut self.sender))
        }

        fn capabilities(&self) -> DeviceCapabilities {
            let mut capabilities = DeviceCapabilities::default();
            capabilities.medium = Medium::Ethernet;
            capabilities.max_transmission_unit = self.mtu + HEADER_BYTES;
            capabilities.max_burst_size = Some(BUFFERS);
            capabilities
        }
    }
}

#[cfg(feature = "smoltcp")]
pub use phy::{RxToken, TxToken};
