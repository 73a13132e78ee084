//! Networks, and the cards of VMs on them.

use super::disk::one_queue;
use super::{Manifest, ManifestError, OnCrash, is_name};
use crate::process::{driver, switch};
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Most networks.
pub const MAX_NETWORKS: usize = 8;
/// Most network cards of a VM.
pub const MAX_CARDS: usize = 4;
/// Name of the boot module with the switch's executable.
pub const SWITCH_MODULE: &str = "switch";

/// A network: the VMs with a card on it reach each other, through a switch process of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its name: 1 to 15 letters, digits, `-`, `_`.
    pub name: String,
    /// What connects it to the world.
    #[serde(default)]
    pub uplink: Uplink,
    /// What a crash of its switch, or of its uplink's driver, does, beside losing frames.
    #[serde(default)]
    pub on_crash: OnCrash,
}

/// What connects a network to the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uplink {
    /// Nothing: only VMs are on it.
    #[default]
    None,
    /// A driver process for a virtio network device on PCI: the machine's devices of that kind in the order of their addresses, one
    /// for each network with this uplink. Without an IOMMU the device reaches all memory.
    VirtioNet,
    /// A driver process for an NE2000 on PCI (RTL8029): as before. It has no DMA.
    Ne2000,
}

impl Uplink {
    /// Every uplink that is a process.
    pub const PROCESSES: [Uplink; 2] = [Uplink::VirtioNet, Uplink::Ne2000];

    /// Its name in the manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Uplink::None => "none",
            Uplink::VirtioNet => "virtio-net",
            Uplink::Ne2000 => "ne2000",
        }
    }

    /// Name of the boot module with the executable of its process, if it is one.
    pub const fn module(self) -> Option<&'static str> {
        match self {
            Uplink::None => None,
            Uplink::VirtioNet => Some("drv-virtio-net"),
            Uplink::Ne2000 => Some("drv-ne2000"),
        }
    }

    /// How many networks can have it.
    pub const fn max_networks(self) -> usize {
        match self {
            Uplink::None => MAX_NETWORKS,
            Uplink::VirtioNet => driver::virtio::MAX_DEVICES,
            Uplink::Ne2000 => 4,
        }
    }
}

/// A network card of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardConfig {
    /// Name of the network that it is on.
    pub network: String,
    /// How the guest reaches it.
    #[serde(default)]
    pub interface: NetInterface,
    /// Its Ethernet address; not there: one made of the VM's number and the card's ([`Self::address`]).
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// The guest may send from other addresses too, as a bridge does. Else the switch drops such frames.
    #[serde(default)]
    pub bridge: bool,
    /// Pairs of queues of a virtio card: 1 to [`MAX_QUEUES`](super::MAX_QUEUES). Linux uses one for each of its CPUs, and more where
    /// `ethtool -L` says so.
    #[serde(default = "one_queue")]
    pub queues: u16,
}

impl CardConfig {
    /// The address of the card, which is number `card` of VM number `vm`.
    pub fn address(&self, vm: usize, card: usize) -> MacAddress {
        // Locally administered (IEEE 802, 8.2.2); "nac" for what is ours.
        self.mac.unwrap_or(MacAddress([0x02, b'n', b'a', b'c', vm as u8, card as u8]))
    }
}

/// How a guest reaches a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetInterface {
    /// By a virtio driver, such as Linux's.
    #[default]
    Virtio,
    /// By guest-pv-driver.
    Pv,
}

/// The Ethernet address of a station: not all zeroes, and no group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// What is written there is no address of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAddress;

impl fmt::Display for NotAnAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an Ethernet address is six bytes like 02:00:5e:10:00:01, the first one even")
    }
}

impl core::error::Error for NotAnAddress {}

impl FromStr for MacAddress {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let mut address = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut address {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or(NotAnAddress)?;
        }
        let is_station = address[0] & 1 == 0 && address != [0; 6] && parts.next().is_none();
        if is_station { Ok(MacAddress(address)) } else { Err(NotAnAddress) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        text.parse()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MacAddress([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

impl Manifest {
    /// The cards on a network: number of the VM, number of the card there, the card.
    pub fn cards<'a>(&'a self, network: &'a str) -> impl Iterator<Item = (usize, usize, &'a CardConfig)> {
        let all = self.vms.iter().enumerate().flat_map(|(vm, config)| {
            config.cards.iter().enumerate().map(move |(number, card)| (vm, number, card))
        });
        all.filter(move |(_, _, card)| card.network == network)
    }

    /// Names of the boot modules with the processes that its networks need, each once.
    pub(super) fn network_modules(&self) -> impl Iterator<Item = &'static str> {
        let switch = (!self.networks.is_empty()).then_some(SWITCH_MODULE);
        let is_needed = |uplink: &Uplink| self.networks.iter().any(|network| network.uplink == *uplink);
        switch.into_iter().chain(Uplink::PROCESSES.into_iter().filter(is_needed).filter_map(Uplink::module))
    }

    /// Checks what the types leave open about networks.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_networks(&self) -> Result<(), ManifestError> {
        if self.networks.len() > MAX_NETWORKS {
            return Err(ManifestError::TooManyNetworks(self.networks.len()));
        }
        for (index, network) in self.networks.iter().enumerate() {
            if !is_name(&network.name) {
                return Err(ManifestError::NetworkName(network.name.clone()));
            }
            if self.networks[..index].iter().any(|other| other.name == network.name) {
                return Err(ManifestError::DuplicateNetwork(network.name.clone()));
            }
            self.check_ports(network)?;
        }
        for vm in &self.vms {
            if vm.cards.len() > MAX_CARDS {
                return Err(ManifestError::TooManyCards(vm.name.clone()));
            }
            let is_there =
                |card: &CardConfig| self.networks.iter().any(|network| network.name == card.network);
            if let Some(card) = vm.cards.iter().find(|card| !is_there(card)) {
                return Err(ManifestError::NoNetwork { vm: vm.name.clone(), network: card.network.clone() });
            }
        }
        let too_often = |uplink: &Uplink| {
            let networks = self.networks.iter().filter(|network| network.uplink == *uplink);
            networks.count() > uplink.max_networks()
        };
        match Uplink::PROCESSES.into_iter().find(too_often) {
            Some(uplink) => Err(ManifestError::Uplinks(uplink)),
            None => self.check_vsocks(),
        }
    }

    fn check_ports(&self, network: &NetworkConfig) -> Result<(), ManifestError> {
        let addresses = || self.cards(&network.name).map(|(vm, number, card)| card.address(vm, number));
        let uplinks = usize::from(network.uplink != Uplink::None);
        if addresses().count() + uplinks + self.vsocks(&network.name).count() > switch::MAX_PORTS {
            return Err(ManifestError::TooManyPorts(network.name.clone()));
        }
        let is_twice = |address: &MacAddress| addresses().filter(|other| other == address).count() > 1;
        match addresses().find(is_twice) {
            Some(address) => Err(ManifestError::DuplicateAddress { network: network.name.clone(), address }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::vm;
    use super::*;
    use crate::manifest::VmConfig;
    use alloc::vec;
    use alloc::vec::Vec;

    fn network(name: &str, uplink: Uplink) -> NetworkConfig {
        NetworkConfig { name: name.into(), uplink, on_crash: OnCrash::Report }
    }

    fn card(network: &str) -> CardConfig {
        CardConfig {
            network: network.into(),
            interface: NetInterface::Virtio,
            mac: None,
            bridge: false,
            queues: 1,
        }
    }

    fn with(name: &str, cards: &[CardConfig]) -> VmConfig {
        VmConfig { cards: cards.into(), ..vm(name) }
    }

    fn check(networks: &[NetworkConfig], vms: Vec<VmConfig>) -> Result<(), ManifestError> {
        Manifest { networks: networks.into(), ..super::super::tests::manifest(vms) }.check()
    }

    #[test]
    fn two_vms_on_one_network_have_different_addresses_that_nobody_sells() {
        let vms = vec![with("a", &[card("lan"), card("lan")]), with("b", &[card("lan")])];
        assert_eq!(check(&[network("lan", Uplink::VirtioNet)], vms), Ok(()));
        let addresses = [(0, 0), (0, 1), (1, 0)].map(|(vm, number)| card("lan").address(vm, number));
        assert_eq!(addresses[0].to_string(), "02:6e:61:63:00:00");
        assert!(addresses[0] != addresses[1] && addresses[0] != addresses[2] && addresses[1] != addresses[2]);
    }

    #[test]
    fn what_no_switch_can_do_is_named() {
        let lan = network("lan", Uplink::None);
        let one = || vec![with("a", &[card("lan")])];
        assert!(matches!(check(&[], one()), Err(ManifestError::NoNetwork { .. })));
        assert_eq!(
            check(&[lan.clone(), lan.clone()], one()),
            Err(ManifestError::DuplicateNetwork("lan".into()))
        );
        assert_eq!(
            check(&[network("", Uplink::None)], vec![vm("a")]),
            Err(ManifestError::NetworkName("".into()))
        );
        let many = vec![with("a", &vec![card("lan"); MAX_CARDS + 1])];
        assert_eq!(check(core::slice::from_ref(&lan), many), Err(ManifestError::TooManyCards("a".into())));
        let mac = Some(MacAddress([2, 0, 0, 0, 0, 1]));
        let twins = vec![with("a", &[CardConfig { mac, ..card("lan") }, CardConfig { mac, ..card("lan") }])];
        assert!(matches!(
            check(core::slice::from_ref(&lan), twins),
            Err(ManifestError::DuplicateAddress { .. })
        ));
        let names: Vec<_> = (0..30).map(|index| alloc::format!("vm{index}")).collect();
        let crowd = names.iter().map(|name| with(name, &[card("lan"), card("lan")])).collect();
        assert_eq!(check(&[lan], crowd), Err(ManifestError::TooManyPorts("lan".into())));
        let uplinks: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| network(name, Uplink::Ne2000)).into();
        assert_eq!(check(&uplinks, vec![vm("a")]), Err(ManifestError::Uplinks(Uplink::Ne2000)));
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address = MacAddress([0x02, 0x00, 0x5e, 0x10, 0xab, 0x01]);
        assert_eq!(address.to_string().parse(), Ok(address));
        for wrong in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "03:00:5e:10:00:01",
            "00:00:00:00:00:00",
            "2:00:5e:10:00:001",
            "02-00-5e-10-00-01",
            "+2:00:5e:10:00:01",
            "02:00:5e:10:00:0g",
        ] {
            assert_eq!(wrong.parse::<MacAddress>(), Err(NotAnAddress), "{wrong}");
        }
    }
}
