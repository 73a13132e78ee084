//! The uplink of a network: what its driver process shares with the switch.

use crate::error::StartError;
use crate::memory::Allocation;
use crate::network::CHANNEL_PAGES;
use crate::system::System;
use usys::abi::Rights;
use usys::cap::{Cap, Narrow, Ntfn};
use usys::process;
use usys::selector;
use vmm_protocol::manifest::{self, NetworkConfig};
use vmm_protocol::process::driver;

/// An uplink. Channel and notifications outlive its driver and the switch.
#[derive(Debug)]
pub struct Uplink {
    channel: Allocation,
    /// What the driver waits on.
    events: Cap<Ntfn>,
    /// Signals the driver, for the switch.
    doorbell: Cap<Ntfn>,
    /// Signals the switch, for the driver.
    switch: Cap<Ntfn>,
}

impl Uplink {
    /// Makes what outlives the driver, if the network has an uplink. `events` is what the switch waits on, `port` the uplink's
    /// number there.
    pub fn new(
        system: &mut System,
        config: &NetworkConfig,
        events: Cap<Ntfn>,
        port: usize,
    ) -> Result<Option<Self>, StartError> {
        if config.uplink == manifest::Uplink::None {
            return Ok(None);
        }
        let signal = Narrow::rights(Rights::SIGNAL | Rights::DERIVE);
        let own = process::pool().create_ntfn(selector::allocate()?)?;
        Ok(Some(Uplink {
            channel: system.memory.allocate(CHANNEL_PAGES, 1)?,
            events: own,
            doorbell: own.derive(selector::allocate()?, signal.badge(driver::USER_BIT))?,
            switch: events.derive(selector::allocate()?, signal.badge(1 << port))?,
        }))
    }

    /// The memory that the driver and the switch share.
    pub fn channel(&self) -> &Allocation {
        &self.channel
    }

    /// What the driver waits on.
    pub fn events(&self) -> Cap<Ntfn> {
        self.events
    }

    /// Signals the driver.
    pub fn doorbell(&self) -> Cap<Ntfn> {
        self.doorbell
    }

    /// Signals the switch.
    pub fn switch(&self) -> Cap<Ntfn> {
        self.switch
    }
}
