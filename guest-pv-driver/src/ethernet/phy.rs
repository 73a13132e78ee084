//! [`Ethernet`] as `smoltcp::phy::Device`.

use super::Ethernet;
use crate::direct::{DirectRxToken, DirectTxToken};
use crate::hal::Hal;
use crate::net::{RxToken, TxToken};
use smoltcp::phy::{Device, DeviceCapabilities};
use smoltcp::time::Instant;

/// A frame that arrived.
#[derive(Debug)]
pub enum EthernetRxToken<'a, H: Hal> {
    /// In the channel.
    Direct(DirectRxToken<'a, H>),
    /// In a buffer of a queue.
    Queued(RxToken<'a, H>),
}

/// Room for a frame.
#[derive(Debug)]
pub enum EthernetTxToken<'a, H: Hal> {
    /// In the channel.
    Direct(DirectTxToken<'a, H>),
    /// In a buffer of a queue.
    Queued(TxToken<'a, H>),
}

impl<H: Hal> smoltcp::phy::RxToken for EthernetRxToken<'_, H> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        match self {
            EthernetRxToken::Direct(token) => token.consume(take),
            EthernetRxToken::Queued(token) => token.consume(take),
        }
    }
}

impl<H: Hal> smoltcp::phy::TxToken for EthernetTxToken<'_, H> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        match self {
            EthernetTxToken::Direct(token) => token.consume(len, fill),
            EthernetTxToken::Queued(token) => token.consume(len, fill),
        }
    }
}

impl<H: Hal> Device for Ethernet<H> {
    type RxToken<'a>
        = EthernetRxToken<'a, H>
    where
        H: 'a;
    type TxToken<'a>
        = EthernetTxToken<'a, H>
    where
        H: 'a;

    fn receive(&mut self, now: Instant) -> Option<(EthernetRxToken<'_, H>, EthernetTxToken<'_, H>)> {
        match self {
            Ethernet::Direct(net) => Device::receive(net, now)
                .map(|(frame, room)| (EthernetRxToken::Direct(frame), EthernetTxToken::Direct(room))),
            Ethernet::Queued(net) => Device::receive(net, now)
                .map(|(frame, room)| (EthernetRxToken::Queued(frame), EthernetTxToken::Queued(room))),
        }
    }

    fn transmit(&mut self, now: Instant) -> Option<EthernetTxToken<'_, H>> {
        match self {
            Ethernet::Direct(net) => net.transmit(now).map(EthernetTxToken::Direct),
            Ethernet::Queued(net) => net.transmit(now).map(EthernetTxToken::Queued),
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        match self {
            Ethernet::Direct(net) => net.capabilities(),
            Ethernet::Queued(net) => net.capabilities(),
        }
    }
}
