//! The registers of the VM's virtio devices, where the guest reads them without an exit.

use alloc::rc::Rc;
use usys::abi::cap::MapFlags;
use usys::abi::{PAGE_SIZE, Selector};
use usys::cap::{Cap, GuestSpace, Memory};
use usys::memory::Mapping;
use vdev::virtio::mirror::Mirror;
use vmm_core::layout;
use vmm_protocol::process::monitor;

/// Fewest bytes that CLFLUSH writes back on any CPU.
const LINE_BYTES: usize = 32;

/// A page for each device.
#[derive(Debug)]
pub struct Registers(Mapping);

impl Registers {
    /// Maps the pages of `count` devices into this process, and into the guest's space where it looks for them, to be read alone.
    pub fn share(space: Cap<GuestSpace>, count: u64) -> usys::Result<Option<Rc<dyn Mirror>>> {
        if count == 0 {
            return Ok(None);
        }
        let pages: Cap<Memory> = Cap::new(Selector(monitor::REGISTER_PAGES));
        let registers = Registers(Mapping::new(pages, 0, count, true)?);
        let window = registers.0.window();
        // What was in memory before it was zeroed must not be what the guest reads there.
        for line in (0..window.len()).step_by(LINE_BYTES) {
            let _ = window.store_uncached(line, 0);
        }
        pages.map(space, layout::VIRTIO, 0, count, MapFlags::READ)?;
        Ok(Some(Rc::new(registers)))
    }
}

impl Mirror for Registers {
    fn store(&self, device: usize, at: u64, value: u32) {
        let offset = device * PAGE_SIZE as usize + at as usize;
        // Guests map registers as uncached. For no page the transport has no device.
        let _ = self.0.window().store_uncached(offset, value);
    }
}
