//! The process: its device.

use crate::device::Device;
use uplink::process::{Interrupt, config, end, serve};
use usys::process::ProcessInfo;
use virtio_driver::Pci;

/// Runs the driver.
pub fn main(info: &'static ProcessInfo) -> ! {
    usys::logger::to_kernel();
    match run(info) {
        Ok(never) => match never {},
        Err(what) => end(what),
    }
}

fn run(info: &'static ProcessInfo) -> Result<core::convert::Infallible, &'static str> {
    let pci = config(info)?.pci.ok_or("the machine has no such device")?;
    let (registers, memory) = Pci::open(info, &pci)?;
    let device = Device::new(registers, memory).map_err(|error| {
        log::error!("{error}");
        "the device cannot be used"
    })?;
    match device.address() {
        Some([a, b, c, d, e, f]) => {
            log::info!("virtio, address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        }
        None => log::info!("virtio, without an address of its own"),
    }
    serve(info, device, Interrupt::Message)
}
