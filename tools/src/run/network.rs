//! The machine's network cards, and the network that the emulators put behind them: 10.0.2.0/24, where 10.0.2.2 is the host's
//! loopback.

use crate::failure;
use anyhow::Result;
use std::net::{Ipv4Addr, TcpListener};
use vmm_protocol::manifest::{Manifest, Uplink};

/// Most published ports: Bochs takes no more.
const MOST_PUBLISHED: usize = 5;

/// A network card of the machine, for the uplink of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineCard {
    /// Who drives it, and so what it is.
    pub driver: Uplink,
    /// Its number among the cards with that driver.
    pub device: usize,
    /// Ports that are passed on to who has the network's first address.
    pub publish: Vec<Publish>,
}

/// The cards that the manifest's uplinks need; the published ports are of the first.
pub fn cards(manifest: &Manifest, publish: &[Publish]) -> Vec<MachineCard> {
    let mut cards: Vec<MachineCard> = Vec::new();
    for network in manifest.networks.iter().filter(|network| network.uplink != Uplink::None) {
        let device = cards.iter().filter(|card| card.driver == network.uplink).count();
        let publish = if cards.is_empty() { publish.to_vec() } else { Vec::new() };
        cards.push(MachineCard { driver: network.uplink, device, publish });
    }
    cards
}

/// A TCP port of this computer's loopback that is passed on to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Here.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
}

impl Publish {
    /// Reads `HOST:GUEST`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let ports = text.split_once(':').and_then(|(host, guest)| Some((port(host)?, port(guest)?)));
        match ports {
            Some((host, guest)) => Ok(Publish { host, guest }),
            None => Err("two ports are wanted, this computer's and the guest's: 8080:80".into()),
        }
    }

    /// The rule, as both emulators' networks read it.
    pub fn rule(self) -> String {
        let Publish { host, guest } = self;
        format!("tcp:127.0.0.1:{host}-:{guest}")
    }
}

/// Refuses ports that cannot be published.
///
/// # Errors
/// Why not.
pub fn check(publish: &[Publish]) -> Result<()> {
    if publish.len() > MOST_PUBLISHED {
        return Err(failure::usage(format!("at most {MOST_PUBLISHED} ports can be published")));
    }
    for (index, Publish { host, .. }) in publish.iter().enumerate() {
        if publish[..index].iter().any(|other| other.host == *host) {
            return Err(failure::usage(format!("port {host} is published twice")));
        }
        // It is free again at once: nobody has connected.
        TcpListener::bind((Ipv4Addr::LOCALHOST, *host)).map_err(|error| {
            failure::usage(format!(
                "port {host} of this computer cannot be published: {error}; choose another"
            ))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_nonsense_is_refused() {
        assert_eq!(Publish::parse("8080:80"), Ok(Publish { host: 8080, guest: 80 }));
        for text in ["80", "0:80", "80:0", "80:65536", "a:b", "80:80:80", ":", ""] {
            assert!(Publish::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_is_busy_or_published_twice_is_refused() {
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let host = busy.local_addr().unwrap().port();
        let error = check(&[Publish { host, guest: 80 }]).unwrap_err().to_string();
        assert!(error.contains(&host.to_string()), "{error}");
        drop(busy);
        check(&[Publish { host, guest: 80 }]).unwrap();
        assert!(check(&[Publish { host, guest: 80 }; 2]).is_err());
    }
}
