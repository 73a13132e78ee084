//! What the root task tells the processes it starts, and what they tell it.

use crate::manifest::{ConsoleMode, MacAddress, VmConfig};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Most VMs in a system.
pub const MAX_VMS: usize = 30;

/// Name of the shared region with the records that a VM, or the root task, sends to the console server. In the console
/// server the name has the VM's number behind it.
pub const OUTPUT: &str = "output";
/// Name of the shared region with the input that the console server sends to a VM. In the console server the name has
/// the VM's number behind it.
pub const INPUT: &str = "input";
/// Name of the console server's shared region with the root task's records.
pub const ROOT_OUTPUT: &str = "root-output";
/// Name of the shared page of a monitor's [`Report`].
pub const REPORT: &str = "report";
/// Name of the shared page of a monitor's balloon ([`crate::balloon`]).
pub const BALLOON: &str = "balloon";
/// Name of a monitor's shared region with the kernel image.
pub const KERNEL: &str = "kernel";
/// Name of a monitor's shared region with a piece of the initrd; the piece's number, from 0, is behind it.
pub const INITRD: &str = "initrd";

/// Name of a monitor's region with the content of a disk in memory; the disk's number, from 0, is behind it.
pub const DISK: &str = "disk";
/// Name of a driver's shared region with the channel to its user: [`crate::block`], [`crate::net`] for an uplink's. In a monitor
/// the name has the disk's number in its VM behind it, in a switch the port's.
pub const CHANNEL: &str = "channel";
/// Name of a monitor's shared region with the channel of a network card to its switch ([`crate::net`]); the card's number in its VM is
/// behind it.
pub const CARD: &str = "card";
/// Name of a monitor's shared region with the channel of its socket device to the switch ([`crate::vsock`]).
pub const VSOCK: &str = "vsock";

/// Selectors and notification bits of the console server.
pub mod console {
    /// Selector: interrupt of COM1, a range of one.
    pub const IRQ: u32 = 16;
    /// Selector: the console server's own notification with the badge [`IRQ_BIT`].
    pub const IRQ_NTFN: u32 = 17;
    /// First selector of the VMs' notifications; VM n's is n further.
    pub const DOORBELLS: u32 = 32;
    /// Notification bit: the root task wrote. VM n has bit n.
    pub const ROOT_BIT: u64 = 1 << 62;
    /// Notification bit: COM1 interrupted.
    pub const IRQ_BIT: u64 = 1 << 63;
    /// First port of COM1.
    pub const COM1: u16 = 0x3f8;
    /// Ports of COM1.
    pub const COM1_PORTS: u16 = 8;
}

/// Selectors and notification bits of a monitor.
pub mod monitor {
    use crate::manifest::NetInterface;
    use hypercall_abi::vcpu::{FIRST_LINE, LINES};

    /// First selector of the parts of the VM's memory ([`super::MonitorConfig::memory`]); part n is n further, up to
    /// [`MEMORY_PARTS`].
    pub const GUEST_MEMORY: u32 = 0x4000;
    /// Most parts of a VM's memory.
    pub const MEMORY_PARTS: u32 = crate::balloon::MAX_PIECES as u32;
    /// Selector: a notification that is signalled when the root task answers ([`crate::balloon`]).
    pub const BALLOON_ANSWER: u32 = 16;
    /// Selector: the console server's notification with this VM's bit.
    pub const CONSOLE: u32 = 17;
    /// Selector: one page of memory, for the vCPU's state.
    pub const VCPU_PAGE: u32 = 18;
    /// Selector: its own notification with [`DEVICE_BIT`], for when it has taken that or a [`card_bit`] too early.
    pub const DEVICE_NTFN: u32 = 19;
    /// Selector: one page of memory, for the vCPU's local APIC.
    pub const APIC_PAGE: u32 = 20;
    /// Selector: the scheduling context of its thread, which says how long others kept that from running.
    pub const SC: u32 = 21;
    /// Selector: the notification of the switch of its socket device.
    pub const VSOCK: u32 = 22;
    /// Selector: memory for the registers of its virtio devices, a page each ([`VmConfig::virtio_devices`]).
    ///
    /// [`VmConfig::virtio_devices`]: crate::manifest::VmConfig::virtio_devices
    pub const REGISTER_PAGES: u32 = 23;
    /// First selector of the notifications of its disks' driver processes; disk n's is n further.
    pub const DISKS: u32 = 32;
    /// First selector of the notifications of its network cards' switches; card n's is n further.
    pub const CARDS: u32 = 64;
    /// First selector of the channels of its network cards, as memory for the guest; card n's is n further, if it is paravirtual.
    pub const CHANNELS: u32 = 96;
    /// Notification bit: the console server has input, or made room.
    pub const CONSOLE_BIT: u64 = 1 << 0;
    /// Notification bit: the driver of a disk completed something, or a switch has frames; or they came or went. Switches of paravirtual
    /// cards have [`card_bit`]s.
    pub const DEVICE_BIT: u64 = 1 << 1;
    /// Notification bit: the root task would like the VM to do with more or less memory.
    pub const BALLOON_BIT: u64 = 1 << 2;

    /// The line of the vCPU (`VcpuPage::lines`) that network card `number` with this interface has to itself, if any.
    pub fn line(number: usize, interface: NetInterface) -> Option<usize> {
        (interface == NetInterface::Pv && number < LINES).then_some(number)
    }

    /// The notification bit for the switch of network card `number` with this interface.
    pub fn card_bit(number: usize, interface: NetInterface) -> u64 {
        line(number, interface).map_or(DEVICE_BIT, |line| 1 << (FIRST_LINE as usize + line))
    }
}

/// Selectors and notification bits of a switch: port n has bit n.
pub mod switch {
    /// First selector of the ports' notifications; port n's is n further.
    pub const PORTS: u32 = 32;
    /// Most ports.
    pub const MAX_PORTS: usize = 32;
}

/// Selectors, notification bits and devices of a driver.
pub mod driver {
    /// Selector: its device's interrupt, a range of one.
    pub const IRQ: u32 = 16;
    /// Selector: its own notification with the badge [`IRQ_BIT`].
    pub const IRQ_NTFN: u32 = 17;
    /// Selector: the notification of its user: of the VM with the disk, of the switch.
    pub const USER: u32 = 18;
    /// Notification bit: the device interrupted.
    pub const IRQ_BIT: u64 = 1 << 0;
    /// Notification bit: the user put something into its ring, or wants to begin.
    pub const USER_BIT: u64 = 1 << 1;

    /// What a driver of a virtio device on PCI is told, and the regions that it finds it in.
    pub mod virtio {
        use serde::{Deserialize, Serialize};

        /// Name of the region with the common configuration.
        pub const COMMON: &str = "common";
        /// Name of the region with the notifications.
        pub const NOTIFY: &str = "notify";
        /// Name of the region with the configuration of its kind.
        pub const CONFIG: &str = "config";
        /// Name of the region with the MSI-X table.
        pub const MESSAGES: &str = "messages";
        /// Name of the region for the queue.
        pub const QUEUE: &str = "queue";
        /// First of the interrupts that are messages for these drivers; device n's is n further. No I/O APIC has so many inputs.
        pub const IRQS: u64 = 128;
        /// The same for network devices, behind those.
        pub const NET_IRQS: u64 = IRQS + MAX_DEVICES as u64;
        /// Most devices of a kind.
        pub const MAX_DEVICES: usize = 8;

        /// Where things are.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct PciDevice {
            /// Offset in [`COMMON`].
            pub common: u32,
            /// Offset in [`NOTIFY`].
            pub notify: u32,
            /// Bytes between the notifications of two queues.
            pub notify_multiplier: u32,
            /// Offset in [`CONFIG`].
            pub config: u32,
            /// Offset in [`MESSAGES`].
            pub messages: u32,
            /// Physical address of [`QUEUE`].
            pub queue_address: u64,
            /// Physical address of the channel; 0 if the device is not to reach it.
            pub channel_address: u64,
        }
    }

    /// Where the ATA channels of a PC are, by number.
    pub mod ata {
        /// First port of the command block.
        pub const COMMAND: [u16; 2] = [0x1f0, 0x170];
        /// Ports of the command block.
        pub const COMMAND_PORTS: u16 = 8;
        /// Port of device control and alternate status.
        pub const CONTROL: [u16; 2] = [0x3f6, 0x376];
        /// ISA interrupt.
        pub const IRQ: [u64; 2] = [14, 15];
    }
}

/// Configuration of the console server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// How to use the line.
    pub mode: ConsoleMode,
    /// Names of the VMs, by number.
    pub vms: Vec<String>,
}

/// Parts of a VM's memory that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryParts {
    /// How many there are.
    pub count: u32,
    /// Pages of each: a multiple of 512, but for the last of all.
    pub pages: u64,
}

/// Configuration of a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorConfig {
    /// The VM's number.
    pub index: u8,
    /// The VM.
    pub vm: VmConfig,
    /// The parts of its memory, in order.
    pub memory: Vec<MemoryParts>,
}

/// Configuration of a disk driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverConfig {
    /// Its number among the drivers that the disk had: [`crate::block::Served::session`].
    pub session: u32,
    /// Which of the devices of its kind it drives: for ATA, the channel.
    pub device: u8,
    /// Writes are refused.
    pub is_read_only: bool,
    /// A device on PCI, if the machine has it.
    pub pci: Option<driver::virtio::PciDevice>,
}

/// Configuration of the driver process of an uplink. With neither, the machine has no such card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkConfig {
    /// First port of a card on ports.
    pub ports: Option<u16>,
    /// A device on PCI.
    pub pci: Option<driver::virtio::PciDevice>,
}

/// Configuration of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchConfig {
    /// What is at its ports: the sockets are the last.
    pub ports: Vec<PortConfig>,
}

/// What is at a port of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortConfig {
    /// The network card of a VM.
    Card {
        /// Its address, which nobody else may send from.
        address: MacAddress,
        /// It may send from other addresses too.
        is_bridge: bool,
    },
    /// The driver process of the uplink.
    Uplink,
    /// The socket device of a VM.
    Vsock {
        /// The VM's context id.
        cid: u32,
    },
}

/// How a monitor's report lies in its shared page.
pub struct Report;

impl Report {
    /// Offset of a 32-bit word: bytes of the outcome, 0 while the VM lives. Written last.
    pub const LEN: usize = 0;
    /// Offset of the [`crate::outcome::Outcome`], postcard.
    pub const OUTCOME: usize = 8;
    /// Most bytes of the outcome: what a record of the console line can carry.
    pub const MAX: usize = crate::link::MAX_PAYLOAD;
}
