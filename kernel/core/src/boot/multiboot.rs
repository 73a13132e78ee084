//! What a Multiboot loader hands over: Multiboot 0.6.96 section 3.3 (QEMU's `-kernel`) and Multiboot2 2.0 section 3.6
//! (GRUB).

use super::fixed::FixedVec;
use super::{PhysRead, le};
use crate::addr::PhysAddr;
use core::fmt;

/// EAX at entry from a Multiboot1 loader.
pub const MULTIBOOT1_MAGIC: u32 = 0x2bad_b002;
/// EAX at entry from a Multiboot2 loader.
pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

/// Bytes of a module's name, the terminating zero included.
pub const NAME_LEN: usize = 32;
/// Bytes of the command line, the terminating zero included.
pub const COMMAND_LINE_LEN: usize = 512;

/// An entry of the memory map. Bytes, not pages: firmware does not align.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// Physical address of the first byte.
    pub base: u64,
    /// Bytes; `base + len` does not wrap.
    pub len: u64,
    /// Usable RAM; anything else is firmware's or a device's.
    pub is_ram: bool,
}

/// A boot module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleRange {
    /// Physical address of the first byte.
    pub start: u64,
    /// One past the last byte; not below `start`.
    pub end: u64,
    /// Zero-padded name: of the loader's string the last word, of that the last path component, cut to 31 bytes.
    pub name: [u8; NAME_LEN],
}

/// What the loader said, whichever it was.
#[derive(Clone, Debug)]
pub struct BootData {
    /// The memory map in the loader's order; neighbours of a kind are merged, entries may overlap.
    pub memory: FixedVec<MemoryEntry, 64>,
    /// The modules, in order.
    pub modules: FixedVec<ModuleRange, 32>,
    /// The command line, zero-terminated, without the kernel's own path.
    pub command_line: [u8; COMMAND_LINE_LEN],
    /// The RSDP, or the loader's copy of it: then it lies in `info`, in RAM.
    pub rsdp: Option<PhysAddr>,
    /// Where the loader's information is, start and end.
    pub info: (PhysAddr, PhysAddr),
    /// Memory map entries and modules that did not fit or made no sense.
    pub dropped: u32,
}

/// Why the loader's information is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither of the magic numbers.
    NotMultiboot,
    /// It points outside of readable memory, or ends early.
    Unreadable,
    /// It has no memory map.
    NoMemoryMap,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BootError::NotMultiboot => "the boot loader speaks neither Multiboot 1 nor Multiboot 2",
            BootError::Unreadable => "the boot loader's information is outside of memory, or ends early",
            BootError::NoMemoryMap => "the boot loader's information has no memory map",
        })
    }
}

/// Parses what the loader passed: `magic` in EAX and the address of `info` in EBX.
pub fn parse<M: PhysRead>(magic: u32, info: PhysAddr, mem: &M) -> Result<BootData, BootError> {
    let mut data = BootData {
        memory: FixedVec::new(),
        modules: FixedVec::new(),
        command_line: [0; COMMAND_LINE_LEN],
        rsdp: None,
        info: (info, info),
        dropped: 0,
    };
    match magic {
        MULTIBOOT1_MAGIC => data.multiboot1(info, mem),
        MULTIBOOT2_MAGIC => data.multiboot2(info, mem),
        _ => return Err(BootError::NotMultiboot),
    }
    .ok_or(BootError::Unreadable)?;
    if data.memory.is_empty() { Err(BootError::NoMemoryMap) } else { Ok(data) }
}

/// Flags of the Multiboot1 information: which of its fields are valid.
mod valid {
    pub(super) const COMMAND_LINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
}

/// Types of Multiboot2 tags.
mod tag {
    pub(super) const END: u32 = 0;
    pub(super) const COMMAND_LINE: u32 = 1;
    pub(super) const MODULE: u32 = 3;
    pub(super) const MEMORY_MAP: u32 = 6;
    pub(super) const ACPI_OLD_RSDP: u32 = 14;
    pub(super) const ACPI_NEW_RSDP: u32 = 15;
}

/// Type of RAM in both memory maps.
const TYPE_RAM: u32 = 1;

impl BootData {
    fn multiboot1<M: PhysRead>(&mut self, info: PhysAddr, mem: &M) -> Option<()> {
        const SIZE: usize = 52;
        let fields = mem.bytes(info, SIZE)?;
        self.info.1 = info.offset(SIZE as u64);
        let field = |at| le::u32(fields, at);
        let flags = field(0)?;
        if flags & valid::COMMAND_LINE != 0 {
            self.set_command_line(without_path(c_string(mem, field(16)?)));
        }
        if flags & valid::MODULES != 0 {
            let table = u64::from(field(24)?);
            for i in 0..u64::from(field(20)?) {
                let module = mem.bytes(PhysAddr(table + i * 16), 16)?;
                let name = module_name(c_string(mem, le::u32(module, 8)?));
                self.add_module(le::u32(module, 0)?, le::u32(module, 4)?, name);
            }
        }
        if flags & valid::MEMORY_MAP != 0 {
            let map = mem.bytes(PhysAddr(field(48)?.into()), field(44)? as usize)?;
            let mut at = 0;
            while at + 24 <= map.len() {
                // The size field does not count itself.
                let size = le::u32(map, at)? as usize;
                self.add_memory(le::u64(map, at + 4)?, le::u64(map, at + 12)?, le::u32(map, at + 20)?);
                at = at.checked_add(size)?.checked_add(4)?;
            }
        }
        Some(())
    }

    fn multiboot2<M: PhysRead>(&mut self, info: PhysAddr, mem: &M) -> Option<()> {
        const HEADER: usize = 8;
        let total = le::u32(mem.bytes(info, HEADER)?, 0)? as usize;
        let tags = mem.bytes(info, total)?;
        self.info.1 = info.offset(total as u64);
        let mut at = HEADER;
        loop {
            let (kind, size) = (le::u32(tags, at)?, le::u32(tags, at + 4)? as usize);
            let body = tags.get(at..at.checked_add(size)?)?.get(HEADER..)?;
            match kind {
                tag::END => return Some(()),
                tag::COMMAND_LINE => self.set_command_line(until_zero(body)),
                tag::MODULE => {
                    let name = module_name(until_zero(body.get(8..)?));
                    self.add_module(le::u32(body, 0)?, le::u32(body, 4)?, name);
                }
                tag::MEMORY_MAP => self.memory_map2(body)?,
                tag::ACPI_OLD_RSDP if self.rsdp.is_some() => {}
                tag::ACPI_OLD_RSDP | tag::ACPI_NEW_RSDP => {
                    self.rsdp = Some(info.offset((at + HEADER) as u64))
                }
                _ => {}
            }
            at = at.checked_add(size)?.checked_next_multiple_of(8)?;
        }
    }

    fn memory_map2(&mut self, body: &[u8]) -> Option<()> {
        let entry_size = le::u32(body, 0)? as usize;
        if entry_size < 24 {
            return None;
        }
        for entry in body.get(8..)?.chunks_exact(entry_size) {
            self.add_memory(le::u64(entry, 0)?, le::u64(entry, 8)?, le::u32(entry, 16)?);
        }
        Some(())
    }

    fn add_memory(&mut self, base: u64, len: u64, kind: u32) {
        let is_ram = kind == TYPE_RAM;
        if len == 0 {
            return;
        }
        if base.checked_add(len).is_none() {
            self.dropped += 1;
            return;
        }
        if let Some(last) = self.memory.last_mut()
            && last.is_ram == is_ram
            && last.base + last.len == base
        {
            last.len += len;
            return;
        }
        self.dropped += u32::from(!self.memory.push(MemoryEntry { base, len, is_ram }));
    }

    fn add_module(&mut self, start: u32, end: u32, name: [u8; NAME_LEN]) {
        let module = ModuleRange { start: start.into(), end: end.into(), name };
        let fits = start <= end && self.modules.push(module);
        self.dropped += u32::from(!fits);
    }

    fn set_command_line(&mut self, line: impl Iterator<Item = u8>) {
        let room = &mut self.command_line[..COMMAND_LINE_LEN - 1];
        room.iter_mut().zip(line).for_each(|(to, from)| *to = from);
    }
}

/// The bytes of a zero-terminated string in physical memory, at most 4096 of them.
fn c_string<M: PhysRead>(mem: &M, addr: u32) -> impl Iterator<Item = u8> + Clone {
    (0..4096)
        .map_while(move |i| mem.bytes(PhysAddr(u64::from(addr) + i), 1)?.first().copied())
        .take_while(|&byte| byte != 0)
}

fn until_zero(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().copied().take_while(|&byte| byte != 0)
}

/// The line without its first word if that has a slash: QEMU puts the path of the kernel there.
fn without_path(line: impl Iterator<Item = u8> + Clone) -> impl Iterator<Item = u8> {
    let first = line.clone().take_while(|byte| !byte.is_ascii_whitespace());
    let skip = if first.clone().any(|byte| byte == b'/') { first.count() } else { 0 };
    line.skip(skip).skip_while(u8::is_ascii_whitespace)
}

/// See [`ModuleRange::name`].
fn module_name(string: impl Iterator<Item = u8>) -> [u8; NAME_LEN] {
    let mut name = [0; NAME_LEN];
    let mut len = 0;
    let mut word_ended = false;
    for byte in string {
        if byte.is_ascii_whitespace() {
            word_ended = true;
            continue;
        }
        if word_ended || byte == b'/' {
            (name, len, word_ended) = ([0; NAME_LEN], 0, false);
        }
        if byte != b'/' && len < NAME_LEN - 1 {
            name[len] = byte;
            len += 1;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::boot::fake::FakePhys;

    const INFO: u64 = 0x9000;

    fn named(name: &str) -> [u8; NAME_LEN] {
        module_name(name.bytes())
    }

    fn line(data: &BootData) -> &str {
        let end = data.command_line.iter().position(|&b| b == 0).unwrap();
        core::str::from_utf8(&data.command_line[..end]).unwrap()
    }

    fn words(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn multiboot1() -> FakePhys {
        let mut mem = FakePhys::new(INFO, 0x1000);
        let mut info = [0u32; 13];
        info[0] = 0x24f;
        (info[4], info[5], info[6]) = (0x9100, 2, 0x9200);
        (info[11], info[12]) = (48, 0x9300);
        mem.put(INFO, &words(&info));
        mem.put(0x9100, b"/tmp/out/kernel.elf loglevel=debug  panic=halt\0");
        mem.put(0x9200, &words(&[0x10_0000, 0x10_1234, 0x9280, 0, 0x20_0000, 0x20_0000, 0x92a0, 0]));
        mem.put(0x9280, b"target/images/root.elf root\0");
        mem.put(0x92a0, b"a/very.long.name.that.does.not.fit.31.bytes\0");
        mem.put(0x9300, &words(&[20, 0, 0, 0x9_fc00, 0, 1, 20, 0x10_0000, 0, 0x7f0_0000, 0, 1]));
        mem
    }

    fn multiboot2() -> FakePhys {
        let mut tags = Vec::new();
        let mut add = |kind: u32, body: &[u8]| {
            tags.extend(words(&[kind, body.len() as u32 + 8]));
            tags.extend(body);
            tags.resize(tags.len().next_multiple_of(8), 0);
        };
        add(1, b"loglevel=trace\0");
        add(3, &[&words(&[0x30_0000, 0x30_0010])[..], b"guest.img\0"].concat());
        add(15, b"RSD PTR new");
        add(14, b"RSD PTR old");
        let map =
            [24, 0, 0, 0, 0x8_0000, 0, 1, 0, 0x8_0000, 0, 0x1_0000, 0, 1, 0, 0xfec0_0000, 0, 0x1000, 0, 2, 0];
        add(6, &words(&map));
        add(0, &[]);
        let mut mem = FakePhys::new(INFO, tags.len() + 8);
        mem.put(INFO, &words(&[tags.len() as u32 + 8, 0]));
        mem.put(INFO + 8, &tags);
        mem
    }

    #[test]
    fn multiboot1_from_qemu_is_understood() {
        let data = parse(MULTIBOOT1_MAGIC, PhysAddr(INFO), &multiboot1()).unwrap();
        assert_eq!(line(&data), "loglevel=debug  panic=halt");
        assert_eq!(data.modules[0], ModuleRange { start: 0x10_0000, end: 0x10_1234, name: named("root") });
        assert_eq!(&data.modules[1].name, b"very.long.name.that.does.not.fi\0");
        assert_eq!(data.memory[1], MemoryEntry { base: 0x10_0000, len: 0x7f0_0000, is_ram: true });
        assert_eq!((data.memory.len(), data.rsdp, data.dropped), (2, None, 0));
    }

    #[test]
    fn multiboot2_from_grub_is_understood() {
        let data = parse(MULTIBOOT2_MAGIC, PhysAddr(INFO), &multiboot2()).unwrap();
        assert_eq!(line(&data), "loglevel=trace");
        assert_eq!(
            data.modules[0],
            ModuleRange { start: 0x30_0000, end: 0x30_0010, name: named("guest.img") }
        );
        let ram = MemoryEntry { base: 0, len: 0x9_0000, is_ram: true };
        assert_eq!(*data.memory, [ram, MemoryEntry { base: 0xfec0_0000, len: 0x1000, is_ram: false }]);
        let mem = multiboot2();
        assert_eq!(mem.bytes(data.rsdp.unwrap(), 11).unwrap(), b"RSD PTR new");
    }

    #[test]
    fn a_module_is_named_by_the_last_component_of_the_last_word() {
        for string in ["vmm", "/boot/vmm", "x/y a=b vmm", "k z/vmm  ", "  vmm"] {
            assert_eq!(named(string), named("vmm"), "{string}");
        }
        assert_eq!(named(""), [0; NAME_LEN]);
        assert_eq!(named("dir/"), [0; NAME_LEN]);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut mem = FakePhys::new(0x1000, 0x1000);
        let mut info = [0u32; 13];
        (info[0], info[11], info[12]) = (1 << 6, 70 * 24, 0x1100);
        mem.put(0x1000, &words(&info));
        for i in 0..70 {
            mem.put(0x1100 + i * 24, &words(&[20, i as u32 * 0x2000, 0, 0x1000, 0, 1]));
        }
        let data = parse(MULTIBOOT1_MAGIC, PhysAddr(0x1000), &mem).unwrap();
        assert_eq!((data.memory.len(), data.dropped), (64, 6));
    }

    #[test]
    fn nonsense_is_refused() {
        let mem = FakePhys::new(INFO, 64);
        assert_eq!(parse(1, PhysAddr(INFO), &mem).unwrap_err(), BootError::NotMultiboot);
        assert_eq!(parse(MULTIBOOT1_MAGIC, PhysAddr(INFO), &mem).unwrap_err(), BootError::NoMemoryMap);
        assert_eq!(parse(MULTIBOOT1_MAGIC, PhysAddr(0), &mem).unwrap_err(), BootError::Unreadable);
        assert_eq!(parse(MULTIBOOT2_MAGIC, PhysAddr(INFO), &mem).unwrap_err(), BootError::Unreadable);
    }

    proptest! {
        #[test]
        fn damaged_information_never_panics(
            second in any::<bool>(),
            damage in prop::collection::vec((0usize..0x400, any::<u8>()), 0..30),
        ) {
            let (magic, mut mem) =
                if second { (MULTIBOOT2_MAGIC, multiboot2()) } else { (MULTIBOOT1_MAGIC, multiboot1()) };
            let len = mem.memory.len();
            for (at, byte) in damage {
                mem.memory[at % len] = byte;
            }
            if let Ok(data) = parse(magic, PhysAddr(INFO), &mem) {
                prop_assert!(data.memory.iter().all(|entry| entry.base.checked_add(entry.len).is_some()));
                prop_assert!(data.modules.iter().all(|module| module.start <= module.end));
                prop_assert_eq!(data.command_line[COMMAND_LINE_LEN - 1], 0);
            }
        }
    }
}
