use super::*;
use crate::image::BootModule;
use crate::vcpu::FakeVcpu;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use hypercall_abi::vcpu::{CS, gpr};
use proptest::prelude::*;
use vdev::guest_mem::VecMemory;

const MIB: u64 = 1 << 20;

struct Guest {
    memory: VecMemory,
    vcpu: FakeVcpu,
}

impl Guest {
    fn u32(&self, address: u64) -> u64 {
        self.memory.read_u32(address).unwrap().into()
    }

    fn u64(&self, address: u64) -> u64 {
        self.memory.read_u64(address).unwrap()
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read(address, &mut bytes).unwrap();
        bytes
    }
}

fn boot(kernel: &[u8], modules: &[&[u8]], mib: u64) -> Result<(BootProtocol, Guest), LoadError> {
    let modules: Vec<Vec<u8>> = modules.iter().map(|bytes| bytes.to_vec()).collect();
    let images: Vec<BootModule<'_>> =
        modules.iter().map(|bytes| BootModule { command_line: "module one", image: bytes }).collect();
    let kernel = kernel.to_vec();
    let request = BootRequest {
        images: BootImages { kernel: &kernel, modules: &images },
        command_line: "console=ttyS0 -- x",
        layout: Layout::new(mib * MIB),
        virtio_devices: 0,
    };
    // Memory is dirty, as after a restart.
    let mut memory = VecMemory::new((mib * MIB) as usize);
    memory.write(MIB, &vec![0xcc; ((mib - 1) * MIB) as usize]).unwrap();
    let mut guest = Guest { memory, vcpu: FakeVcpu::new() };
    let protocol = load(&request, &mut guest.memory, &mut guest.vcpu.page)?;
    Ok((protocol, guest))
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// A bzImage whose payload is 8 KiB of 0x90, with the fields of a Debian kernel.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 40 * 512];
    image[0x1f1] = 39;
    put(&mut image, 0x1f4, &512u32.to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020fu16.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x236, &0x7fu16.to_le_bytes());
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x20_0000u32.to_le_bytes());
    image.extend([0x90; 8192]);
    image
}

/// An ELF file with one segment of `text` at 2 MiB (16 bytes of BSS behind it) and, with `note`, a PVH note.
fn elf(is_64: bool, text: &[u8], note: bool) -> Vec<u8> {
    let word = |value: u64| {
        if is_64 { value.to_le_bytes().to_vec() } else { (value as u32).to_le_bytes().to_vec() }
    };
    let mut bytes = vec![0x7f, b'E', b'L', b'F', if is_64 { 2 } else { 1 }, 1, 1];
    bytes.resize(16, 0);
    bytes.extend([2, 0, if is_64 { 62 } else { 3 }, 0, 1, 0, 0, 0]);
    bytes.extend(word(0xc020_0004));
    bytes.extend(word(if is_64 { 64 } else { 52 }));
    bytes.extend(word(0));
    bytes.extend(0u32.to_le_bytes());
    for half in [if is_64 { 64u16 } else { 52 }, if is_64 { 56 } else { 32 }, 2, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
        bytes.extend(kind.to_le_bytes());
        if is_64 {
            bytes.extend(5u32.to_le_bytes());
        }
        for value in [offset, address + 0xc000_0000, address, file, memory] {
            bytes.extend(word(value));
        }
        if !is_64 {
            bytes.extend(5u32.to_le_bytes());
        }
        bytes.extend(word(4));
    };
    header(1, 0x200, 0x20_0000, text.len() as u64, text.len() as u64 + 16);
    header(if note { 4 } else { 0 }, 0x180, 0, 20, 20);
    bytes.resize(0x180, 0);
    for value in [4u32, 4, 18] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    bytes.extend(0x20_0008u32.to_le_bytes());
    bytes.resize(0x200, 0);
    bytes.extend(text);
    bytes
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[test]
fn linux_is_entered_in_long_mode_with_everything_its_zero_page_promises() {
    let (protocol, guest) = boot(&bzimage(), &[b"12345", b"abc"], 64).unwrap();
    assert_eq!(protocol, BootProtocol::Linux);
    let page = &guest.vcpu.page;
    assert_eq!((page.rip, page.gpr[gpr::RSI]), (0x100_0200, layout::ZERO_PAGE));
    assert_eq!((page.segments[CS].selector, page.segments[3].selector), (0x10, 0x18));
    assert_eq!((page.cr0, page.cr4, page.efer, page.rflags), (0x8000_0031, 0x20, 0x500, 2));
    assert_eq!(guest.bytes(0x100_0000, 2), [0x90, 0x90]);
    let zero = layout::ZERO_PAGE;
    assert_eq!(guest.u64(zero + 0x70), layout::ACPI_TABLES);
    assert_eq!(guest.bytes(layout::ACPI_TABLES, 8), b"RSD PTR ");
    assert_eq!(guest.bytes(guest.u32(zero + 0x228), 19), b"console=ttyS0 -- x\0");
    assert_eq!(guest.bytes(zero + 0x1e8, 1), [3]);
    assert_eq!((guest.u64(zero + 0x2d0), guest.u64(zero + 0x2d8)), (0, layout::LOW_RAM_END));
    assert_eq!(guest.bytes(zero + 0x210, 1), [0xff]);
    let initrd = guest.u32(zero + 0x218);
    assert_eq!(guest.u32(zero + 0x21c), 12);
    assert_eq!(guest.bytes(initrd, 12), b"12345\0\0\0abc\0");
    assert_eq!(initrd, 64 * MIB - 4096);
}

#[test]
fn the_page_tables_map_the_first_four_gib_one_to_one() {
    let (_, guest) = boot(&bzimage(), &[], 64).unwrap();
    for address in [0u64, 0x1234_5000, layout::LOCAL_APIC, layout::HIGH_RAM - 1] {
        let mut table = guest.vcpu.page.cr3;
        for shift in [39, 30, 21] {
            table = guest.u64(table + (address >> shift & 511) * 8);
            assert_eq!(table & 3, 3);
            table &= !0xfff;
        }
        assert_eq!(table, address & !0x1f_ffff);
    }
}

#[test]
fn a_pvh_kernel_finds_its_start_info() {
    for is_64 in [false, true] {
        let (protocol, guest) = boot(&elf(is_64, b"\xf4text", true), &[b"initrd"], 4).unwrap();
        assert_eq!(protocol, BootProtocol::Pvh);
        let page = &guest.vcpu.page;
        assert_eq!((page.rip, page.cr0 & 0x8000_0001, page.efer), (0x20_0008, 1, 0));
        let info = page.gpr[gpr::RBX];
        assert_eq!((guest.u32(info), guest.u32(info + 4), guest.u32(info + 12)), (0x336e_c578, 1, 1));
        let module = guest.u64(info + 16);
        assert_eq!(guest.bytes(guest.u64(module), guest.u64(module + 8) as usize), b"initrd\0\0");
        assert_eq!(guest.bytes(guest.u64(info + 24), 7), b"console");
        assert_eq!(guest.u64(info + 32), layout::ACPI_TABLES);
        let map = guest.u64(info + 40);
        assert_eq!(
            (guest.u32(info + 48), guest.u64(map + 8), guest.u32(map + 16)),
            (3, layout::LOW_RAM_END, 1)
        );
        assert_eq!(guest.bytes(0x20_0000, 6), b"\xf4text\0", "text, then zeroed BSS");
    }
}

#[test]
fn a_multiboot_kernel_finds_command_line_modules_and_memory_map() {
    let text = multiboot_header(3);
    let (protocol, guest) = boot(&elf(false, &text, false), &[b"first", b"second"], 8).unwrap();
    assert_eq!(protocol, BootProtocol::Multiboot);
    let page = &guest.vcpu.page;
    assert_eq!((page.gpr[gpr::RAX], page.rip), (0x2bad_b002, 0x20_0004), "the entry is made physical");
    let info = page.gpr[gpr::RBX];
    assert_eq!((guest.u32(info), guest.u32(info + 4), guest.u32(info + 8)), (0x24d, 639, 7 * 1024));
    assert_eq!(guest.bytes(guest.u32(info + 16), 7), b"console");
    assert_eq!(guest.u32(info + 20), 2);
    let second = guest.u32(info + 24) + 16;
    let (start, end) = (guest.u32(second), guest.u32(second + 4));
    assert_eq!((start % 4096, guest.bytes(start, (end - start) as usize)), (0, b"second".to_vec()));
    assert_eq!(guest.bytes(guest.u32(second + 8), 11), b"module one\0");
    let map = guest.u32(info + 48);
    assert_eq!((guest.u32(map), guest.u64(map + 12), guest.u32(map + 20)), (20, layout::LOW_RAM_END, 1));
    assert_eq!(guest.bytes(guest.u32(info + 64), 6), b"Nacre\0");
}

#[test]
fn a_flat_multiboot_kernel_is_loaded_by_its_address_fields() {
    let mut image = vec![0xf4; 32];
    image.extend(multiboot_header(1 << 16));
    for address in [0x20_0020u32, 0x20_0000, 0, 0x20_2000, 0x20_0010] {
        image.extend(address.to_le_bytes());
    }
    image.extend(b"code");
    let (protocol, guest) = boot(&image, &[b"m"], 4).unwrap();
    assert_eq!((protocol, guest.vcpu.page.rip), (BootProtocol::Multiboot, 0x20_0010));
    assert_eq!(guest.bytes(0x20_0040, 5), b"code\0");
    assert_eq!(guest.u32(guest.u32(layout::MULTIBOOT_INFO + 24)), 0x20_2000, "modules follow the BSS");
}

#[test]
fn pvh_goes_before_multiboot() {
    let text = multiboot_header(0);
    assert_eq!(boot(&elf(true, &text, true), &[], 4).unwrap().0, BootProtocol::Pvh);
}

#[test]
fn a_foreign_file_is_named_for_what_it_is() {
    let error = |bytes: &[u8]| boot(bytes, &[], 2).map(|_| ()).unwrap_err().to_string();
    assert!(error(b"\x1f\x8b\x08 compressed").contains("a gzip file"));
    assert!(error(b"").contains("an empty file"));
    assert!(error(&elf(true, b"text", false)).contains("without a PVH note"));
    let mut arm = elf(true, b"", true);
    arm[18] = 183;
    assert!(error(&arm).contains("another kind of CPU"));
    assert!(error(&elf(true, &multiboot_header(0), false)).contains("objcopy"));
}

#[test]
fn a_cut_off_kernel_is_told_from_a_whole_one() {
    let whole = bzimage();
    for length in [0x240, 20 * 512, whole.len() - 16] {
        let error = boot(&whole[..length], &[], 64).map(|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::Truncated { .. }), "{error}");
    }
    let whole = elf(true, b"text", true);
    let error = boot(&whole[..whole.len() - 1], &[], 64).map(|_| ()).unwrap_err();
    assert!(matches!(error, LoadError::Truncated { what: "an ELF segment", .. }));
}

#[test]
fn too_little_memory_says_how_much_is_enough() {
    let error = boot(&bzimage(), &[], 16).map(|_| ()).unwrap_err();
    assert_eq!(
        error,
        LoadError::TooLittleMemory { what: "the Linux kernel", needs: 18 * MIB, has: 16 * MIB }
    );
    assert!(error.to_string().contains("needs 18 MiB and there are 16 MiB"));
    let initrd = vec![0; 3 << 20];
    let error = boot(&bzimage(), &[&initrd], 20).map(|_| ()).unwrap_err();
    assert!(matches!(error, LoadError::TooLittleMemory { what: "kernel and initrd", .. }));
    assert!(boot(&bzimage(), &[&initrd], 22).is_ok());
}

#[test]
fn a_command_line_that_the_kernel_would_cut_is_refused() {
    let mut image = bzimage();
    put(&mut image, 0x238, &10u32.to_le_bytes());
    let error = boot(&image, &[], 64).map(|_| ()).unwrap_err();
    assert_eq!(error, LoadError::CommandLineTooLong { length: 18, max: 10 });
}

#[test]
fn a_32_bit_linux_is_refused() {
    let mut image = bzimage();
    put(&mut image, 0x236, &[0]);
    assert!(boot(&image, &[], 64).map(|_| ()).unwrap_err().to_string().contains("32-bit Linux"));
}

fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = good.len();
    prop::collection::vec((0..length.min(0x400), any::<u8>()), 1..8).prop_map(move |changes| {
        let mut bytes = good.clone();
        changes.into_iter().for_each(|(offset, value)| bytes[offset] = value);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_kernel_image_makes_the_loader_panic(
        image in prop_oneof![
            damaged(bzimage()),
            damaged(elf(true, &multiboot_header(0), true)),
            damaged(elf(false, &multiboot_header(3), false)),
            damaged(multiboot_header(1 << 16).into_iter().chain([0; 64]).collect()),
            prop::collection::vec(any::<u8>(), 0..600),
        ],
        module in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        if let Err(error) = boot(&image, &[&module], 4) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
