//! What the root task has: the machine's facts, its memory, its boot modules.

use crate::error::StartError;
use crate::memory::FreeMemory;
use crate::trace::Recorder;
use crate::wall_clock::WallClock;
use alloc::string::ToString;
use alloc::vec;
use usys::abi::boot_info::{BootInfo, MAX_MODULES, MAX_REGIONS, MemoryRegion, RegionKind};
use usys::abi::{PAGE_SIZE, Selector};
use usys::cap::{Cap, Memory, Narrow};
use usys::memory::Mapping;
use usys::process::{self, unpadded};
use usys::selector;
use vmm_protocol::manifest::{self, Manifest};

/// Longest manifest in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// A boot module.
#[derive(Clone, Copy, Debug)]
pub struct BootModule {
    /// Its memory, to be read.
    pub memory: Cap<Memory>,
    /// Bytes.
    pub bytes: u64,
}

impl BootModule {
    /// Pages that its bytes are in.
    pub fn pages(&self) -> u64 {
        self.bytes.div_ceil(PAGE_SIZE)
    }
}

/// What the root task has.
#[derive(Debug)]
pub struct System {
    /// What the kernel said.
    pub info: &'static BootInfo,
    /// Free memory.
    pub memory: FreeMemory,
    /// What time it was when the root task started.
    pub wall_clock: WallClock,
    /// What the CPUs do is recorded.
    pub recorder: Option<Recorder>,
}

impl System {
    /// Takes over from the kernel.
    pub fn new(info: &'static BootInfo) -> Result<Self, StartError> {
        process::pool().create_ntfn(process::selector::EVENTS)?;
        let system =
            System { info, memory: FreeMemory::new(info), wall_clock: WallClock::read(), recorder: None };
        log::info!(
            "{} CPUs, {} MiB free, TSC at {} MHz",
            info.cpu_count,
            system.memory.free_pages() / 256,
            info.tsc_hz / 1_000_000
        );
        Ok(system)
    }

    /// The boot module of this name.
    pub fn module(&self, name: &str) -> Result<BootModule, StartError> {
        let modules = &self.info.modules[..(self.info.module_count as usize).min(MAX_MODULES)];
        let regions = &self.info.regions[..(self.info.region_count as usize).min(MAX_REGIONS)];
        modules
            .iter()
            .find(|module| unpadded(&module.name) == name)
            .and_then(|module| {
                let region = regions.get(module.region as usize)?;
                let memory = Cap::new(Selector(region.selector));
                Some(BootModule { memory, bytes: module.size.min(region.pages * PAGE_SIZE) })
            })
            .filter(|module| module.bytes > 0)
            .ok_or_else(|| StartError::Module { name: name.to_string() })
    }

    /// A capability for device memory, at a free selector: the pages from `address` on, a multiple of the page size.
    pub fn device_memory(&self, address: u64, pages: u64) -> Result<Cap<Memory>, StartError> {
        let regions = &self.info.regions[..(self.info.region_count as usize).min(MAX_REGIONS)];
        let offset_in = |region: &MemoryRegion| {
            let offset = address.checked_sub(region.base)? / PAGE_SIZE;
            let is_inside = offset.checked_add(pages)? <= region.pages;
            (region.kind == RegionKind::Device as u32 && is_inside).then_some((offset, region.selector))
        };
        let (offset, selector) = regions.iter().find_map(offset_in).ok_or(StartError::Device { address })?;
        let region: Cap<Memory> = Cap::new(Selector(selector));
        Ok(region.derive(selector::allocate()?, Narrow::ALL.range(offset, pages))?)
    }

    /// The manifest, checked.
    pub fn manifest(&mut self) -> Result<Manifest, StartError> {
        let module = self.module(manifest::MODULE)?;
        if module.bytes > MAX_MANIFEST {
            return Err(StartError::ManifestDamaged);
        }
        let mapping = Mapping::new(module.memory, 0, module.pages(), false)?;
        let mut bytes = vec![0; module.bytes as usize];
        mapping.window().read(0, &mut bytes)?;
        let manifest: Manifest = postcard::from_bytes(&bytes).map_err(|_| StartError::ManifestDamaged)?;
        manifest.check()?;
        Ok(manifest)
    }
}
