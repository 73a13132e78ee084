//! Ethernet, whichever way the device has it.

use crate::direct::DirectNet;
use crate::error::{Error, Result};
use crate::hal::Hal;
use crate::net::{Net, NetMemory};
use hypercall_abi::guest::channel::checksum;
use hypercall_abi::guest::device::Interrupt;

#[cfg(feature = "smoltcp")]
mod phy;

#[cfg(feature = "smoltcp")]
pub use phy::{EthernetRxToken, EthernetTxToken};

/// A paravirtual network interface: the channel to the switch where the device offers that and the kernel maps it, else queues.
#[derive(Debug)]
pub enum Ethernet<H: Hal> {
    /// By the channel. What is sent while there is no room, or no switch, is lost.
    Direct(DirectNet<H>),
    /// By queues.
    Queued(Net<H>),
}

impl<H: Hal + Clone> Ethernet<H> {
    /// Starts the interface with its device page at this guest-physical address. The memory is for queues.
    ///
    /// # Errors
    /// As [`DirectNet::new`] and [`Net::new`].
    pub fn new(hal: H, address: u64, memory: &'static mut NetMemory) -> Result<Self> {
        match DirectNet::new(hal.clone(), address) {
            Err(Error::NoQueue | Error::BadMemory) => Net::new(hal, address, memory).map(Ethernet::Queued),
            direct => direct.map(Ethernet::Direct),
        }
    }
}

impl<H: Hal> Ethernet<H> {
    /// Its Ethernet address.
    pub fn address(&self) -> [u8; 6] {
        match self {
            Ethernet::Direct(net) => net.address(),
            Ethernet::Queued(net) => net.address(),
        }
    }

    /// Bytes of the longest packet, without the Ethernet header.
    pub fn mtu(&self) -> usize {
        match self {
            Ethernet::Direct(net) => net.mtu(),
            Ethernet::Queued(net) => net.mtu(),
        }
    }

    /// Hands the next frame that arrived, with its checksums, to `take`; `None` if none has.
    ///
    /// # Errors
    /// The device stopped.
    pub fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        match self {
            Ethernet::Direct(net) => Ok(net.receive(|header, frame| {
                if let Some((start, offset)) = header.missing {
                    checksum::fill_in(frame, start, offset);
                }
                take(frame)
            })),
            Ethernet::Queued(net) => net.receive(take),
        }
    }

    /// Has `fill` write a frame of `len` bytes, and submits it. It leaves with the next [`Self::flush`].
    ///
    /// # Errors
    /// [`Error::TooScattered`] for a length that no frame has; [`Error::Full`] if there is no room; the device stopped.
    pub fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        match self {
            Ethernet::Direct(net) => net.send(len, fill),
            Ethernet::Queued(net) => net.send(len, fill),
        }
    }

    /// Lets the frames go that were submitted.
    pub fn flush(&mut self) {
        match self {
            Ethernet::Direct(net) => net.flush(),
            Ethernet::Queued(net) => net.flush(),
        }
    }

    /// Whether no frame can be sent at the moment.
    ///
    /// # Errors
    /// The device stopped.
    pub fn is_full(&mut self) -> Result<bool> {
        match self {
            Ethernet::Direct(net) => Ok(net.is_full()),
            Ethernet::Queued(net) => net.is_full(),
        }
    }

    /// Whether all frames that were sent are out of the guest's hands. Those that are not are lost when this driver, or the guest, goes.
    pub fn is_drained(&mut self) -> bool {
        match self {
            Ethernet::Direct(net) => net.is_drained(),
            // The VMM takes them as it is told of them.
            Ethernet::Queued(_) => true,
        }
    }

    /// Whether [`Self::sleep_is_safe`] asks for an interrupt with room for a frame, too. Nobody tells of room in a channel.
    pub fn tells_of_room(&self) -> bool {
        matches!(self, Ethernet::Queued(_))
    }

    /// Has what [`Self::sleep_is_safe`] asks for raise this interrupt from now on.
    pub fn set_interrupt(&mut self, interrupt: Option<Interrupt>) {
        match self {
            Ethernet::Direct(net) => net.set_interrupt(interrupt),
            Ethernet::Queued(net) => net.set_interrupt(interrupt),
        }
    }

    /// Asks for an interrupt with the next frame. `false` if there is one already, and the interrupt may not come.
    ///
    /// # Errors
    /// The device stopped.
    pub fn sleep_is_safe(&mut self) -> Result<bool> {
        match self {
            Ethernet::Direct(net) => Ok(net.sleep_is_safe()),
            Ethernet::Queued(net) => net.sleep_is_safe(),
        }
    }
}
