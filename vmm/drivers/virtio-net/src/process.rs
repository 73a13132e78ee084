//! The process: its device.

use crate::device::Device;
use uplink::process::{IRQ, IRQ_NTFN, Interrupt, config, end, serve};
use usys::process::ProcessInfo;
use virtio_driver::{DmaWindow, Pci};
use vmm_protocol::process::driver::virtio;

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
    let registers = Pci::open(info, &pci)?;
    let (address, data) = IRQ.bind_message(0, IRQ_NTFN).map_err(|_| "the kernel refused the interrupt")?;
    registers.set_message(address, data);
    let window = info.window(virtio::QUEUE).ok_or("the memory for the queues is missing")?;
    let memory = DmaWindow { window, address: pci.queue_address };
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
