//! What the devices of a VM come to together.

use super::{DiskInterface, MAX_QUEUES, ManifestError, NetInterface, VmConfig};
use serde::{Deserialize, Serialize};

/// Most virtio devices of a VM: each has an input of its I/O APIC for itself.
pub const MAX_VIRTIO_DEVICES: usize = 8;

/// What a guest's console is, beside its first serial port and the console of guest-pv-driver, which every VM has. Whatever
/// the guest writes to any of them is on its console, and what is typed goes to the one that it drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleInterface {
    /// Nothing.
    #[default]
    Serial,
    /// A virtio console: Linux's /dev/hvc0.
    Virtio,
}

impl VmConfig {
    /// How many virtio devices it has. A source of random numbers is among them, which a CPU without RDRAND does not give.
    pub fn virtio_devices(&self) -> usize {
        let disks = self.disks.iter().filter(|disk| disk.interface == DiskInterface::Virtio).count();
        let cards = self.cards.iter().filter(|card| card.interface == NetInterface::Virtio).count();
        let console = usize::from(self.console == ConsoleInterface::Virtio);
        let balloon = usize::from(self.balloon.is_some());
        disks + cards + console + balloon + usize::from(self.vsock.is_some()) + 1
    }

    /// Checks that there is room for its devices.
    ///
    /// # Errors
    /// [`ManifestError::TooManyVirtioDevices`], [`ManifestError::DiskQueues`], [`ManifestError::CardQueues`].
    pub fn check_devices(&self) -> Result<(), ManifestError> {
        // Paravirtual devices have the queues that their contract says.
        let can_be =
            |queues: u16, is_virtio: bool| (1..=if is_virtio { MAX_QUEUES } else { 1 }).contains(&queues);
        if self.disks.iter().any(|disk| !can_be(disk.queues, disk.interface == DiskInterface::Virtio)) {
            return Err(ManifestError::DiskQueues(self.name.clone()));
        }
        if self.cards.iter().any(|card| !can_be(card.queues, card.interface == NetInterface::Virtio)) {
            return Err(ManifestError::CardQueues(self.name.clone()));
        }
        let count = self.virtio_devices();
        if count > MAX_VIRTIO_DEVICES {
            return Err(ManifestError::TooManyVirtioDevices { vm: self.name.clone(), count });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{disk, vm};
    use super::*;
    use crate::manifest::BalloonConfig;

    #[test]
    fn what_finds_no_room_among_the_virtio_devices_is_refused() {
        let balloon = Some(BalloonConfig { min_mib: 1, reports: true });
        let mut config = VmConfig { disks: alloc::vec![disk("d", true); 6], balloon, ..vm("a") };
        assert_eq!(config.check_devices(), Ok(()));
        config.console = ConsoleInterface::Virtio;
        let refused = Err(ManifestError::TooManyVirtioDevices { vm: "a".into(), count: 9 });
        assert_eq!(config.check_devices(), refused);
        config.disks[0].interface = DiskInterface::Pv;
        assert_eq!(config.check_devices(), Ok(()));
        for queues in [0, MAX_QUEUES + 1] {
            config.disks[1].queues = queues;
            assert_eq!(config.check_devices(), Err(ManifestError::DiskQueues("a".into())));
        }
        config.disks[1].queues = 2;
        assert_eq!(config.check_devices(), Ok(()));
        config.disks[1].interface = DiskInterface::Pv;
        assert_eq!(config.check_devices(), Err(ManifestError::DiskQueues("a".into())));
    }
}
