//! The boot modules that the root task mapped for the VM.

use alloc::format;
use alloc::vec::Vec;
use usys::Window;
use usys::process::ProcessInfo;
use vmm_core::image::{BootModule, Image};
use vmm_protocol::manifest::VmConfig;
use vmm_protocol::process::{INITRD, KERNEL};

/// A boot module in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct MappedImage(pub Window);

impl Image for MappedImage {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        usize::try_from(offset).is_ok_and(|offset| self.0.read(offset, into).is_ok())
    }
}

/// The images of one VM.
#[derive(Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: MappedImage,
    /// The pieces of the initrd.
    initrd: Vec<MappedImage>,
}

impl Images {
    /// What the root task mapped.
    pub fn new(info: &'static ProcessInfo, config: &VmConfig) -> Result<Self, &'static str> {
        let image = |name: &str| info.window(name).map(MappedImage).ok_or("a boot module is not mapped");
        let pieces = (0..config.initrd.len()).map(|piece| image(&format!("{INITRD}{piece}")));
        Ok(Images { kernel: image(KERNEL)?, initrd: pieces.collect::<Result<_, _>>()? })
    }

    /// The modules, with their names in the boot image as command lines.
    pub fn modules<'a>(&'a self, config: &'a VmConfig) -> Vec<BootModule<'a>> {
        let pieces = self.initrd.iter().zip(&config.initrd);
        pieces.map(|(image, name)| BootModule { command_line: name, image }).collect()
    }
}
