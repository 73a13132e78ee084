//! [`DirectNet`] as `smoltcp::phy::Device`.

use super::{Channel, DirectNet};
use crate::hal::Hal;
use core::cell::RefCell;
use hypercall_abi::guest::channel::{Header, MAX_FRAME, MIN_FRAME, Rings, SLOTS, checksum};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// A frame that arrived.
#[derive(Debug)]
pub struct DirectRxToken<'a, H: Hal> {
    rings: &'a RefCell<Rings<Channel<H>>>,
    slot: usize,
    header: Header,
}

/// Room for a frame.
#[derive(Debug)]
pub struct DirectTxToken<'a, H: Hal>(&'a RefCell<Rings<Channel<H>>>);

impl<H: Hal> smoltcp::phy::RxToken for DirectRxToken<'_, H> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        let Header { len, missing } = self.header;
        // SAFETY: the frame is inside its slot, as the header was checked, and not given back before the end of this. The other token
        // writes to slots of the other ring alone.
        let frame = unsafe { self.rings.borrow().wire().frame(self.slot, len.into()) };
        if let Some((start, offset)) = missing {
            // The stack verifies what it gets.
            checksum::fill_in(frame, start, offset);
        }
        let result = take(frame);
        self.rings.borrow_mut().release();
        result
    }
}

impl<H: Hal> smoltcp::phy::TxToken for DirectTxToken<'_, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let slot = self.0.borrow_mut().free_slot().filter(|_| (MIN_FRAME..=MAX_FRAME).contains(&len));
        let Some(slot) = slot else {
            // An answer for which there is no room, or no switch, is lost, as on a wire.
            let mut lost = [0; MAX_FRAME];
            return fill(&mut lost[..len.min(MAX_FRAME)]);
        };
        // SAFETY: a frame of this length is inside its slot, which is this end's until the frame is shown.
        let result = fill(unsafe { self.0.borrow().wire().frame(slot, len) });
        let mut rings = self.0.borrow_mut();
        rings.put(slot, Header { len: len as u16, missing: None });
        rings.flush();
        result
    }
}

impl<H: Hal> Device for DirectNet<H> {
    type RxToken<'a>
        = DirectRxToken<'a, H>
    where
        H: 'a;
    type TxToken<'a>
        = DirectTxToken<'a, H>
    where
        H: 'a;

    fn receive(&mut self, _: Instant) -> Option<(DirectRxToken<'_, H>, DirectTxToken<'_, H>)> {
        let (slot, header) = self.rings.get_mut().peek()?;
        Some((DirectRxToken { rings: &self.rings, slot, header }, DirectTxToken(&self.rings)))
    }

    fn transmit(&mut self, _: Instant) -> Option<DirectTxToken<'_, H>> {
        self.rings.get_mut().free_slot()?;
        Some(DirectTxToken(&self.rings))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + MIN_FRAME;
        capabilities.max_burst_size = Some(SLOTS);
        capabilities
    }
}
