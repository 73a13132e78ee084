//! The devices of the VM that not every board has: virtio and paravirtual ones.

use alloc::boxed::Box;
use alloc::format;
use block_channel::Client;
use net_channel::{End, Sockets};
use usys::abi::cap::MapFlags;
use usys::abi::doorbell::Doorbell;
use usys::abi::guest::device::{MAX_QUEUES, NET_CHANNEL_DOORBELL};
use usys::abi::vcpu::FIRST_LINE;
use usys::abi::{PAGE_SIZE, Selector};
use usys::cap::{Cap, GuestSpace, Memory, Ntfn};
use usys::cpu;
use usys::process::{self, ProcessInfo, padded};
use vdev::balloon::Balloon;
use vdev::block::{Backend, Disk, MemoryDisk};
use vdev::entropy::Words;
use vdev::pvring::{self, Core};
use vdev::virtio::balloon::BalloonDevice;
use vdev::virtio::block::Block;
use vdev::virtio::console::ConsoleDevice;
use vdev::virtio::entropy::EntropyDevice;
use vdev::virtio::net::Net;
use vdev::virtio::vsock::VsockDevice;
use vdev::vsock::{Link, Vsock};
use vmm_core::layout;
use vmm_core::machine::{Devices, Machine};
use vmm_core::virtio::VirtioDevice;
use vmm_protocol::manifest::{
    BalloonConfig, CardConfig, ConsoleInterface, DiskConfig, DiskDriver, DiskInterface, NetInterface,
    VmConfig, VsockConfig,
};
use vmm_protocol::net::{CHANNEL_BYTES, Side};
use vmm_protocol::process::{CARD, CHANNEL, DISK, VSOCK, monitor};

/// Paravirtual devices of every VM.
const COMMON: usize = 3;
/// How long the driver process of a disk may look for it before the VM is not started, in ms: a drive that does not answer is reset,
/// which takes up to 31 s.
const CONNECT_MS: u64 = 60_000;

/// The disks and the network cards that the manifest says, in its order; console, balloon and sockets if it says so; a source of random numbers each way if this CPU has
/// one; and what a guest with paravirtual drivers finds in every VM.
pub fn devices(info: &'static ProcessInfo, config: &VmConfig) -> Result<Devices, &'static str> {
    let clock = Core::Clock(info.header.tsc_hz);
    let common: [_; COMMON] = [Core::console(), clock, Core::Control(pvring::Control::default())];
    let mut devices = Devices { pv: common.into(), ..Devices::default() };
    for (index, config) in config.disks.iter().enumerate() {
        let disk = open(info, index, config)?;
        match config.interface {
            DiskInterface::Virtio => {
                let id = padded(&format!("nacre-{DISK}{index}"));
                devices.virtio.push(VirtioDevice::Block(Block::new(disk, id, config.queues.into())));
            }
            DiskInterface::Pv => devices.pv.push(Core::Block(pvring::Block::new(disk))),
        }
    }
    for (index, card) in config.cards.iter().enumerate() {
        let link = Box::new(plug_in(info, &format!("{CARD}{index}"), monitor::CARDS + index as u32)?);
        let address = card.address(0, index).0;
        match card.interface {
            NetInterface::Virtio => {
                devices.virtio.push(VirtioDevice::Net(Net::new(link, address, card.queues)))
            }
            NetInterface::Pv => {
                let net = pvring::Net::new(link, address);
                let line = monitor::line(index, card.interface);
                devices.pv.push(Core::Net(net.with_channel(channel_address(index), line)));
            }
        }
    }
    if config.console == ConsoleInterface::Virtio {
        devices.virtio.push(VirtioDevice::Console(ConsoleDevice::new()));
    }
    if let Some(BalloonConfig { reports, .. }) = config.balloon {
        let balloon = || Balloon::new(Machine::layout(config).ram(), reports);
        devices.virtio.push(VirtioDevice::Balloon(BalloonDevice::new(balloon())));
        devices.pv.push(Core::Balloon(balloon()));
    }
    if let Some(vsock) = &config.vsock {
        devices.virtio.push(VirtioDevice::Vsock(sockets(info, vsock)?));
    }
    if cpu::has_random() {
        let source = || Box::new(Words(cpu::random));
        devices.virtio.push(VirtioDevice::Entropy(EntropyDevice::new(source())));
        devices.pv.push(Core::Entropy(source()));
    }
    Ok(devices)
}

fn open(info: &'static ProcessInfo, index: usize, disk: &DiskConfig) -> Result<Disk, &'static str> {
    let backend: Box<dyn Backend> = match disk.driver {
        DiskDriver::Memory => Box::new(in_memory(info, index, disk.read_only)?),
        DiskDriver::Ata | DiskDriver::VirtioBlk => Box::new(connect(info, index)?),
    };
    Ok(Disk::new(backend))
}

/// The channel in this region to the switch with this notification.
fn plug_in(info: &'static ProcessInfo, region: &str, switch: u32) -> Result<End<Cap<Ntfn>>, &'static str> {
    let channel = info.window(region).ok_or("the channel to a switch is not mapped")?;
    let switch = Cap::new(Selector(switch));
    End::new(channel, Side::Card, switch).map_err(|_| "the channel to a switch is too short")
}

/// The guest's sockets, with the way to other VMs if they are on a network.
fn sockets(info: &'static ProcessInfo, config: &VsockConfig) -> Result<VsockDevice, &'static str> {
    let end = config.network.as_ref().map(|_| plug_in(info, VSOCK, monitor::VSOCK)).transpose()?;
    let link = end.map(|end| Box::new(Sockets::new(end)) as Box<dyn Link>);
    Ok(VsockDevice::new(Vsock::new(config.cid, link)))
}

/// Where the guest has the channel of network card `index`.
fn channel_address(index: usize) -> u64 {
    layout::PV_CHANNELS + index as u64 * layout::PV_CHANNEL_STRIDE
}

/// Gives the guest the channels of its paravirtual network cards, and has their doorbells ring the switches.
pub fn share_channels(space: Cap<GuestSpace>, config: &VmConfig) -> usys::Result<()> {
    let is_pv = |(_, card): &(usize, &CardConfig)| card.interface == NetInterface::Pv;
    let cards = config.cards.iter().enumerate().filter(is_pv);
    for ((index, _), device) in cards.zip(first_card(config)..) {
        let channel: Cap<Memory> = Cap::new(Selector(monitor::CHANNELS + index as u32));
        let flags = MapFlags::READ | MapFlags::WRITE;
        channel.map(space, channel_address(index), 0, CHANNEL_BYTES as u64 / PAGE_SIZE, flags)?;
        let call = (device * MAX_QUEUES) as u16 + NET_CHANNEL_DOORBELL;
        space.bind_doorbell(Doorbell::Call(call), Selector(monitor::CARDS + index as u32))?;
    }
    Ok(())
}

/// Number of the first paravirtual network card among the paravirtual devices: behind those of every VM, and the disks.
fn first_card(config: &VmConfig) -> usize {
    COMMON + config.disks.iter().filter(|disk| disk.interface == DiskInterface::Pv).count()
}

fn in_memory(
    info: &'static ProcessInfo,
    index: usize,
    is_read_only: bool,
) -> Result<MemoryDisk, &'static str> {
    const MISSING: &str = "a disk is not mapped";
    let region = format!("{DISK}{index}");
    Ok(if is_read_only {
        MemoryDisk::read_only(info.constant(&region).ok_or(MISSING)?)
    } else {
        MemoryDisk::writable(info.take_private(&region).ok_or(MISSING)?)
    })
}

/// Connects to the driver process of a disk, which may be looking for it yet.
fn connect(info: &'static ProcessInfo, index: usize) -> Result<Client<Cap<Ntfn>>, &'static str> {
    let channel = info.window(&format!("{CHANNEL}{index}")).ok_or("the channel to a disk is not mapped")?;
    let driver = Cap::new(Selector(monitor::DISKS + index as u32));
    let mut client = Client::new(channel, driver).map_err(|_| "the channel to a disk is too short")?;
    let deadline = cpu::deadline_in(CONNECT_MS, info.header.tsc_hz);
    loop {
        match client.connect() {
            Some(disk) if disk.sectors == 0 => return Err("the driver of a disk found none: see the log"),
            Some(_) => return Ok(client),
            None if cpu::now() >= deadline => return Err("the driver of a disk does not answer"),
            // The console server's bit and the balloon's may be among those taken here; both are looked at before the guest runs.
            None => drop(process::events().wait(deadline)),
        }
    }
}

/// Has the run loop look again if bits that were taken outside it stood for disks, network cards or the balloon.
pub fn give_back(taken: u64) {
    let lines = u64::MAX << FIRST_LINE;
    if taken & (monitor::DEVICE_BIT | monitor::BALLOON_BIT | lines) != 0 {
        let again: Cap<Ntfn> = Cap::new(Selector(monitor::DEVICE_NTFN));
        // Either bit makes it look at all of them.
        let _ = again.signal();
    }
}
