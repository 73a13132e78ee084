//! The states in which kernels are entered.

use hypercall_abi::vcpu::{CS, DescriptorTable, Segment, VcpuPage};
use vdev::guest_mem::GuestMemory;

use super::{LoadError, place};
use crate::layout;
use crate::vcpu::{CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};

const GDT: [u64; 4] = [0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE_32: Segment = Segment::new(0x08, 0, 0xffff_ffff, 0xc09b);
const CODE_64: Segment = Segment::new(0x10, 0, 0xffff_ffff, 0xa09b);
const DATA: Segment = Segment::new(0x18, 0, 0xffff_ffff, 0xc093);
/// A busy 32-bit or 64-bit TSS: VM entry needs one (SDM 3C 27.3.1.2).
const TASK: Segment = Segment::new(0, 0, 0x67, 0x8b);
const NO_LDT: Segment = Segment::new(0, 0, 0, Segment::UNUSABLE);

const PAGE_SIZE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const DIRECTORIES: u64 = 4;
const PRESENT_WRITABLE: u64 = 0x3;
const PRESENT_WRITABLE_LARGE: u64 = 0x83;

fn flat(memory: &mut dyn GuestMemory, page: &mut VcpuPage, code: Segment) -> Result<(), LoadError> {
    let mut bytes = [0; 32];
    for (place, entry) in bytes.chunks_exact_mut(8).zip(GDT) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    place::write(memory, layout::GDT, &bytes)?;
    page.gdtr = DescriptorTable { base: layout::GDT, limit: bytes.len() as u32 - 1, reserved: 0 };
    page.idtr = DescriptorTable::default();
    page.segments = [DATA; 6];
    page.segments[CS] = code;
    page.tr = TASK;
    page.ldtr = NO_LDT;
    page.gpr = [0; 16];
    Ok(())
}

/// Flat 32-bit protected mode without paging, interrupts off: how Multiboot and PVH kernels start.
pub(super) fn protected_mode(
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
    entry: u64,
) -> Result<(), LoadError> {
    flat(memory, page, CODE_32)?;
    page.rip = entry;
    page.cr0 = CR0_PE | CR0_ET;
    Ok(())
}

/// 64-bit mode with the first 4 GiB mapped one to one, interrupts off.
pub(super) fn long_mode(
    memory: &mut dyn GuestMemory,
    page: &mut VcpuPage,
    entry: u64,
) -> Result<(), LoadError> {
    flat(memory, page, CODE_64)?;
    let directory_pointers = layout::PAGE_TABLES + PAGE_SIZE;
    let directories = directory_pointers + PAGE_SIZE;
    write_table(memory, layout::PAGE_TABLES, |index| {
        if index == 0 { directory_pointers | PRESENT_WRITABLE } else { 0 }
    })?;
    write_table(memory, directory_pointers, |index| {
        if index < DIRECTORIES { (directories + index * PAGE_SIZE) | PRESENT_WRITABLE } else { 0 }
    })?;
    for directory in 0..DIRECTORIES {
        write_table(memory, directories + directory * PAGE_SIZE, |index| {
            ((directory * 512 + index) * LARGE_PAGE) | PRESENT_WRITABLE_LARGE
        })?;
    }
    page.rip = entry;
    page.cr3 = layout::PAGE_TABLES;
    page.cr4 = CR4_PAE;
    page.efer = EFER_LME | EFER_LMA;
    page.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    Ok(())
}

fn write_table(
    memory: &mut dyn GuestMemory,
    address: u64,
    entry: impl Fn(u64) -> u64,
) -> Result<(), LoadError> {
    let mut bytes = [0; PAGE_SIZE as usize];
    for (index, place) in (0..).zip(bytes.chunks_exact_mut(8)) {
        place.copy_from_slice(&entry(index).to_le_bytes());
    }
    place::write(memory, address, &bytes)
}
