//! The process: interrupts, deadlines, and the channel to the VMM.

use crate::device::Device;
use block_channel::{Complaints, FLUSH_PATIENCE_MS, Server, Wait};
use usys::abi::Selector;
use usys::cap::{Cap, Ntfn};
use usys::cpu;
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use virtio_driver::Pci;
use vmm_protocol::block::{DiskInfo, Status, data_offset};
use vmm_protocol::manifest::DEFAULT_TIMEOUT_MS;
use vmm_protocol::process::driver::{self, virtio};
use vmm_protocol::process::{CHANNEL, DriverConfig};

// Whoever watches this driver is to wait for longer than the driver does for its device.
const _: () = assert!(FLUSH_PATIENCE_MS < DEFAULT_TIMEOUT_MS as u64);
/// How long an interrupt is waited for before the device is looked at anyway, in ms: one that was lost costs no more.
const WATCHDOG_MS: u64 = 50;

/// Runs the driver.
pub fn main(info: &'static ProcessInfo) -> ! {
    serve(info, |device| device.channel_address)
}

/// Runs the driver; its device is told to find the channel at the address that `channel` gives.
pub fn serve(info: &'static ProcessInfo, channel: fn(&virtio::PciDevice) -> u64) -> ! {
    usys::logger::to_kernel();
    if let Err(what) = run(info, channel) {
        log::error!("{what}");
    }
    usys::start::fault()
}

fn run(info: &'static ProcessInfo, address: fn(&virtio::PciDevice) -> u64) -> Result<(), &'static str> {
    let config: DriverConfig =
        postcard::from_bytes(info.config()).map_err(|_| "the configuration is damaged")?;
    let channel = info.window(CHANNEL).ok_or("the channel is missing")?;
    let user: Cap<Ntfn> = Cap::new(Selector(driver::USER));
    let device = match config.pci {
        Some(ref pci) => Some(open(info, pci)?),
        None => {
            log::error!("no disk: the machine has no such device");
            None
        }
    };
    let nothing = DiskInfo { sectors: 0, is_read_only: true, has_cache: false };
    let disk = device.as_ref().map_or(nothing, Device::disk);
    let disk = DiskInfo { is_read_only: disk.is_read_only || config.is_read_only, ..disk };
    log::info!("{} sectors{}", disk.sectors, if disk.is_read_only { ", read-only" } else { "" });
    let server = Server::new(channel, user, config.session, disk).map_err(|_| "the channel is too short")?;
    let data = config.pci.as_ref().map_or(0, address);
    Driver {
        server,
        device,
        data,
        tsc_hz: info.header.tsc_hz,
        patience: FOREVER,
        complaints: Complaints::default(),
    }
    .serve()
}

fn open(info: &'static ProcessInfo, pci: &virtio::PciDevice) -> Result<Device<Pci>, &'static str> {
    let (registers, memory) = Pci::open(info, pci)?;
    Device::new(registers, memory).map_err(|error| {
        log::error!("{error}");
        "the device cannot be used"
    })
}

/// The device and its user.
struct Driver {
    server: Server<Cap<Ntfn>>,
    device: Option<Device<Pci>>,
    /// Physical address of the channel.
    data: u64,
    tsc_hz: u64,
    /// Until when the device has to complete something.
    patience: u64,
    complaints: Complaints,
}

impl Driver {
    fn serve(mut self) -> ! {
        loop {
            self.collect();
            let in_flight = self.device.as_ref().map_or(0, Device::in_flight);
            // What is at the device reads and writes the user's data: a new epoch begins when all of that is done.
            if in_flight == 0 && self.server.is_asked_to_begin() {
                self.server.begin();
            }
            self.submit();
            self.server.notify();
            self.wait();
        }
    }

    /// Gives the device what the user asks for.
    fn submit(&mut self) {
        let Driver { server, device, .. } = self;
        let mut has_new = false;
        while let Some(request) = server.take() {
            let Some(device) = device.as_mut() else {
                server.complete(request.slot, Status::Io);
                continue;
            };
            match device.submit(&request, self.data + data_offset(request.slot) as u64) {
                Some(status) => server.complete(request.slot, status),
                None => has_new = true,
            }
        }
        if has_new && let Some(device) = device {
            device.publish();
            self.patience = cpu::deadline_in(device.patience_ms(), self.tsc_hz);
        }
    }

    /// Gives the user what the device has completed.
    fn collect(&mut self) {
        let Some(device) = &mut self.device else { return };
        let mut is_broken = device.in_flight() > 0 && cpu::now() >= self.patience;
        loop {
            match device.take_completed() {
                Ok(Some((slot, status))) => {
                    if status != Status::Done && self.complaints.take() {
                        log::warn!("the device failed a request: {status:?}");
                    }
                    self.server.complete(slot, status);
                    self.patience = cpu::deadline_in(device.patience_ms(), self.tsc_hz);
                }
                Ok(None) if !is_broken => return,
                Ok(None) | Err(_) => break,
            }
            is_broken = false;
        }
        log::error!("the device broke the rules, or does not answer: starting again");
        // The root task ends what is left of this driver, and starts another one where the manifest says so; the user hears of it.
        usys::start::fault()
    }

    fn wait(&mut self) {
        let is_busy = self.device.as_ref().is_some_and(|device| device.in_flight() > 0);
        // A device is quiet where it may be: what its messages stand for is looked at in every turn.
        let deadline = if is_busy { cpu::deadline_in(WATCHDOG_MS, self.tsc_hz) } else { FOREVER };
        match self.server.prepare_to_wait() {
            Wait::Serve => return,
            Wait::Begin if !is_busy => return,
            // Until the device has done what it has, nothing is begun.
            Wait::Begin | Wait::Sleep => {}
        }
        let _bits = process::events().wait(deadline);
    }
}
