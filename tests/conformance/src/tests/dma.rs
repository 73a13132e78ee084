//! DMA spaces: memory and devices in them, and what a device reaches.

use super::{Group, Needs, group};
use crate::edu::Edu;
use crate::layout::{DEVICES, IRQS, PD};
use crate::prelude::*;
use crate::world::{free_frames, map_all};
use hypercall_abi::boot_info::RegionKind;
use hypercall_abi::cap::{BindRole, IrqKind};

pub(super) const GROUP: Group = group!(
    "dma",
    Needs::Nothing => [devices_are_a_range_that_can_be_divided],
    Needs::NoDmaSpaces => [without_an_iommu_there_are_no_dma_spaces],
    Needs::DmaSpaces => [
        memory_is_mapped_for_devices_and_unmapped,
        mapping_for_devices_checks_arguments_and_rights,
        large_memory_is_mapped_for_devices_in_steps,
        memory_that_is_revoked_leaves_its_dma_space,
        a_device_is_in_one_space_at_a_time,
        putting_a_device_into_a_space_checks_arguments_and_rights,
        a_device_leaves_its_space_with_its_capability,
        a_device_leaves_its_space_when_the_space_ends,
        there_is_an_end_of_spaces_and_each_comes_back,
        a_device_reaches_what_is_mapped_for_it_and_nothing_else,
        a_device_reaches_nothing_that_was_taken_away,
        a_device_raises_no_interrupt_but_those_that_are_bound,
    ],
);

const DEVICE: u64 = BindRole::Device as u64;
const R: u64 = MapFlags::READ.bits() as u64;
const W: u64 = MapFlags::WRITE.bits() as u64;
const X: u64 = MapFlags::EXECUTE.bits() as u64;
const UNCACHED: u64 = MapFlags::UNCACHED.bits() as u64;
/// A device that no machine of the tests has: ff:1f.0 and the seven behind it.
const NOBODY: u64 = 0xfff8;
/// Some address.
const AT: u64 = 0x1234_5000;

fn dma_space(w: &mut World) -> Seen<Sel> {
    let to = w.sel();
    call(CreateDmaSpace, to, [w.pool]).done()?;
    Ok(to)
}

fn devices_are_a_range_that_can_be_divided(w: &mut World) -> Check {
    let some = w.part(DEVICES, NOBODY, 4)?;
    let head = ObjectType::Devices as u64 | u64::from((Rights::USE | Rights::DERIVE).bits()) << 16;
    call(CapInfo, some, []).gives([head, NOBODY, 4])?;
    let one = w.part(some, 3, 1)?;
    call(CapInfo, one, []).gives([head, NOBODY + 3, 1])?;
    let to = w.sel();
    call(Derive, some, [0, to, 0xffff, 4, 1]).fails(BadArgument)?;
    call(Map, one, [PD, 0, 0, 1, 0]).fails(BadType)?;
    call(Unmap, one, [0, 1]).fails(Unbound)
}

fn without_an_iommu_there_are_no_dma_spaces(w: &mut World) -> Check {
    let to = w.sel();
    call(CreateDmaSpace, to, [w.pool]).fails(Unsupported)?;
    call(CapInfo, to, []).fails(BadSelector)
}

fn memory_is_mapped_for_devices_and_unmapped(w: &mut World) -> Check {
    let space = dma_space(w)?;
    let memory = w.ram(5)?;
    call(Map, memory, [space, AT, 0, 5, R]).gives([5, 0, 0])?;
    call(Map, memory, [space, AT + PAGE, 1, 4, R | W]).gives([4, 0, 0])?;
    // One position in one space.
    call(Map, memory, [space, AT, 1, 1, R]).fails(Occupied)?;
    let other = w.ram(1)?;
    call(Map, other, [space, AT + 4 * PAGE, 0, 1, R]).fails(Occupied)?;
    call(Unmap, memory, [4, 1]).gives([1, 0, 0])?;
    call(Map, other, [space, AT + 4 * PAGE, 0, 1, R]).gives([1, 0, 0])?;
    call(Unmap, memory, [0, 5]).gives([5, 0, 0])?;
    call(Unmap, memory, [0, 5]).fails(Unbound)
}

fn mapping_for_devices_checks_arguments_and_rights(w: &mut World) -> Check {
    let space = dma_space(w)?;
    let memory = w.ram(2)?;
    let weak = w.without(space, Rights::DMA_MAP)?;
    call(Map, memory, [weak, AT, 0, 1, R]).fails(BadRights)?;
    let read_only = w.without(memory, Rights::WRITE)?;
    call(Map, read_only, [space, AT, 0, 1, R | W]).fails(BadRights)?;
    let write_only = w.without(memory, Rights::READ)?;
    call(Map, write_only, [space, AT, 0, 1, W]).fails(BadRights)?;
    for (address, flags) in [(AT, R | X), (AT, R | UNCACHED), (AT + 1, R), (1 << 48, R), (1 << 60, R)] {
        call(Map, memory, [space, address, 0, 1, flags]).fails(BadArgument)?;
    }
    let regions = &w.info.regions[..w.info.region_count as usize];
    if let Some(device) = regions.iter().find(|region| region.kind == RegionKind::Device as u32) {
        let page = w.part(device.selector.into(), 0, 1)?;
        call(Map, page, [space, AT, 0, 1, R | UNCACHED]).fails(BadArgument)?;
        call(Map, page, [space, AT, 0, 1, R]).fails(BadArgument)?;
    }
    // The first page is as good as any other.
    call(Map, memory, [space, 0, 0, 2, R | W]).gives([2, 0, 0])
}

fn large_memory_is_mapped_for_devices_in_steps(w: &mut World) -> Check {
    let (pool, space) = (w.sub_pool(64)?, w.sel());
    call(CreateDmaSpace, space, [pool]).done()?;
    let memory = w.large_ram(3000)?;
    let odd = 0x4000_0000 + PAGE;
    let answer = call(Map, memory, [space, odd, 0, 3000, R]);
    equal("status", answer.status(), Some(Partial))?;
    holds("1 to 1024 pages", (1..=1024).contains(&answer.values[0]))?;
    map_all(memory, space, odd, 0, 3000, MapFlags::READ)?;
    call(Unmap, memory, [0, 3000]).gives([3000, 0, 0])?;
    // In step with 2 MiB it takes less memory, and parts can be taken out.
    let before = free_frames(pool)?;
    map_all(memory, space, 0x8000_0000, 0, 3000, MapFlags::READ)?;
    holds("large pages", before - free_frames(pool)? < 6)?;
    call(Unmap, memory, [700, 1]).gives([1, 0, 0])?;
    call(Revoke, memory, [1]).done()?;
    call(Revoke, space, [1]).done()?;
    equal("free frames of the pool", free_frames(pool)?, 64 - 1)
}

fn memory_that_is_revoked_leaves_its_dma_space(w: &mut World) -> Check {
    let space = dma_space(w)?;
    let (memory, other) = (w.ram(1)?, w.ram(1)?);
    let part = w.derive(memory, Rights::ALL)?;
    call(Map, part, [space, AT, 0, 1, R | W]).gives([1, 0, 0])?;
    call(Map, other, [space, AT, 0, 1, R]).fails(Occupied)?;
    call(Revoke, memory, [0]).done()?;
    call(Map, other, [space, AT, 0, 1, R]).gives([1, 0, 0])
}

fn a_device_is_in_one_space_at_a_time(w: &mut World) -> Check {
    let (space, other) = (dma_space(w)?, dma_space(w)?);
    let devices = w.part(DEVICES, NOBODY, 4)?;
    call(Bind, space, [devices, DEVICE, 2]).done()?;
    call(Bind, other, [devices, DEVICE, 1]).fails(Occupied)?;
    let same = w.part(DEVICES, NOBODY + 2, 1)?;
    call(Bind, other, [same, DEVICE, 0]).fails(Occupied)?;
    call(Bind, space, [same, DEVICE, 0]).fails(Occupied)?;
    call(Unmap, devices, [2, 1]).fails(BadArgument)?;
    call(Unmap, devices, [0, 4]).gives([4, 0, 0])?;
    call(Unmap, devices, [0, 4]).fails(Unbound)?;
    call(Bind, other, [same, DEVICE, 0]).done()
}

fn putting_a_device_into_a_space_checks_arguments_and_rights(w: &mut World) -> Check {
    let space = dma_space(w)?;
    let devices = w.part(DEVICES, NOBODY, 4)?;
    call(Bind, space, [devices, DEVICE, 4]).fails(BadArgument)?;
    call(Bind, space, [devices, DEVICE, u64::MAX]).fails(BadArgument)?;
    let weak = w.without(space, Rights::DMA_ASSIGN)?;
    call(Bind, weak, [devices, DEVICE, 0]).fails(BadRights)?;
    let unusable = w.without(devices, Rights::USE)?;
    call(Bind, space, [unusable, DEVICE, 0]).fails(BadRights)?;
    let sm = w.sm(0)?;
    call(Bind, space, [sm, DEVICE, 0]).fails(BadType)?;
    call(Bind, sm, [devices, DEVICE, 0]).fails(BadType)
}

fn a_device_leaves_its_space_with_its_capability(w: &mut World) -> Check {
    let (space, other) = (dma_space(w)?, dma_space(w)?);
    let devices = w.part(DEVICES, NOBODY, 1)?;
    let derived = w.derive(devices, Rights::ALL)?;
    call(Bind, space, [derived, DEVICE, 0]).done()?;
    call(Revoke, devices, [0]).done()?;
    call(Bind, other, [devices, DEVICE, 0]).done()
}

fn a_device_leaves_its_space_when_the_space_ends(w: &mut World) -> Check {
    let (space, other) = (dma_space(w)?, dma_space(w)?);
    let devices = w.part(DEVICES, NOBODY, 1)?;
    let memory = w.ram(1)?;
    call(Bind, space, [devices, DEVICE, 0]).done()?;
    call(Map, memory, [space, AT, 0, 1, R | W]).gives([1, 0, 0])?;
    call(Revoke, space, [1]).done()?;
    call(Unmap, devices, [0, 1]).fails(Unbound)?;
    call(Unmap, memory, [0, 1]).fails(Unbound)?;
    call(Bind, other, [devices, DEVICE, 0]).done()?;
    call(Map, memory, [other, AT, 0, 1, R]).gives([1, 0, 0])
}

fn there_is_an_end_of_spaces_and_each_comes_back(w: &mut World) -> Check {
    for _ in 0..2 {
        let spaces = w.scoped(600, |w| {
            let mut spaces = 0;
            loop {
                let to = w.sel();
                match call(CreateDmaSpace, to, [w.pool]).status() {
                    Some(Success) => spaces += 1,
                    status => {
                        equal("status", status, Some(Unsupported))?;
                        return Ok(spaces);
                    }
                }
            }
        })?;
        holds("15 to 255 spaces", (15..=255).contains(&spaces))?;
    }
    Ok(())
}

/// Pages with a word each, and where the device has the first few of them.
struct Pages {
    memory: Sel,
    view: u64,
    physical: u64,
}

impl Pages {
    fn new(w: &mut World, count: u64) -> Seen<Self> {
        let memory = w.ram(count)?;
        let view = w.view(memory, count)?;
        let [_, first, _] = call(CapInfo, memory, []).ok()?;
        let pages = Pages { memory, view, physical: first * PAGE };
        (0..count).for_each(|page| pages.set(page, SECRET + page));
        Ok(pages)
    }

    fn get(&self, page: u64) -> u64 {
        // SAFETY: a word of a page that is mapped here, which a device may write at any time.
        unsafe { ((self.view + page * PAGE) as *const u64).read_volatile() }
    }

    fn set(&self, page: u64, value: u64) {
        // SAFETY: as in `get`.
        unsafe { ((self.view + page * PAGE) as *mut u64).write_volatile(value) }
    }
}

const SECRET: u64 = 0x5ec2_e700;

fn a_device_reaches_what_is_mapped_for_it_and_nothing_else(w: &mut World) -> Check {
    let edu = Edu::find(w)?;
    let pages = Pages::new(w, 4)?;
    let space = dma_space(w)?;
    let (readable, writable) = (w.part(pages.memory, 0, 1)?, w.part(pages.memory, 1, 1)?);
    call(Map, readable, [space, AT, 0, 1, R]).gives([1, 0, 0])?;
    call(Map, writable, [space, AT + PAGE, 0, 1, R | W]).gives([1, 0, 0])?;
    // In no space: nothing, by either address.
    edu.copy(w, AT, AT + PAGE)?;
    edu.copy(w, pages.physical, pages.physical + PAGE)?;
    equal("a page of a device without a space", pages.get(1), SECRET + 1)?;
    call(Bind, space, [edu.device, DEVICE, 0]).done()?;
    edu.copy(w, AT, AT + PAGE)?;
    equal("a page that was copied", pages.get(1), SECRET)?;
    pages.set(1, 1);
    edu.copy(w, AT + PAGE, AT)?;
    equal("a page that the device may read", pages.get(0), SECRET)?;
    for to in [pages.physical + 2 * PAGE, AT + 2 * PAGE, AT + PAGE + (1 << 39)] {
        edu.copy(w, AT, to)?;
        let all = core::array::from_fn(|page| pages.get(page as u64));
        equal("pages that are not mapped there", all, [SECRET, 1, SECRET + 2, SECRET + 3])?;
    }
    // What it may not read it does not learn.
    edu.copy(w, pages.physical + 2 * PAGE, AT + PAGE)?;
    holds("a secret stays one", pages.get(1) != SECRET + 2)?;
    edu.close()
}

fn a_device_reaches_nothing_that_was_taken_away(w: &mut World) -> Check {
    let edu = Edu::find(w)?;
    let pages = Pages::new(w, 3)?;
    let space = dma_space(w)?;
    let source = w.part(pages.memory, 0, 1)?;
    call(Map, source, [space, AT, 0, 1, R]).gives([1, 0, 0])?;
    call(Bind, space, [edu.device, DEVICE, 0]).done()?;
    let to = AT + PAGE;
    let target = w.part(pages.memory, 1, 1)?;
    // Each time the device has used the translation.
    let use_it = |w: &World| -> Check {
        pages.set(1, 0);
        edu.copy(w, AT, to)?;
        equal("a page that was copied", pages.get(1), SECRET)?;
        pages.set(1, 0);
        Ok(())
    };
    let is_gone = |w: &World| -> Check {
        edu.copy(w, AT, to)?;
        equal("a page that was taken away", pages.get(1), 0)
    };
    call(Map, target, [space, to, 0, 1, R | W]).gives([1, 0, 0])?;
    use_it(w)?;
    call(Map, target, [space, to, 0, 1, R]).gives([1, 0, 0])?;
    is_gone(w)?;
    call(Map, target, [space, to, 0, 1, R | W]).gives([1, 0, 0])?;
    use_it(w)?;
    call(Unmap, target, [0, 1]).gives([1, 0, 0])?;
    is_gone(w)?;
    call(Map, target, [space, to, 0, 1, R | W]).gives([1, 0, 0])?;
    use_it(w)?;
    call(Revoke, target, [1]).done()?;
    is_gone(w)?;
    let target = w.part(pages.memory, 1, 1)?;
    call(Map, target, [space, to, 0, 1, R | W]).gives([1, 0, 0])?;
    use_it(w)?;
    call(Unmap, edu.device, [0, 1]).gives([1, 0, 0])?;
    is_gone(w)?;
    call(Bind, space, [edu.device, DEVICE, 0]).done()?;
    use_it(w)?;
    call(Revoke, space, [1]).done()?;
    is_gone(w)?;
    edu.close()
}

/// An interrupt that is beyond every I/O APIC of a PC.
const NO_PIN: u64 = 140;

fn a_device_raises_no_interrupt_but_those_that_are_bound(w: &mut World) -> Check {
    let edu = Edu::find(w)?;
    let pages = Pages::new(w, 1)?;
    let space = dma_space(w)?;
    call(Map, pages.memory, [space, AT, 0, 1, R]).gives([1, 0, 0])?;
    call(Bind, space, [edu.device, DEVICE, 0]).done()?;
    let sm = w.sm(0)?;
    let [address, data, _] = call(IrqBind, IRQS, [NO_PIN, sm, IrqKind::Message as u64]).ok()?;
    let send = |w: &World, address: u64, data: u64| -> Check {
        pages.set(0, data);
        edu.send(w, AT, address)
    };
    let arrives = |w: &World| -> Check {
        send(w, address, data)?;
        call(Wait, sm, [w.deadline(1_000_000)]).gives([1, 0, 0])
    };
    arrives(w)?;
    // To CPU 0: exceptions with and without an error code, vectors of the kernel and of nobody, one that could be bound. QEMU (to
    // 11.1) lets them through, which VT-d 5.1.4 has refused: they do no harm.
    for data in [0x11, 0x12, 0x1d, 0x20, 0x31, 0xf0, 0xf1, 0xf3, 0xff] {
        send(w, 0xfee0_0000, data)?;
    }
    const REMAPPED: u64 = 1 << 4;
    if address & REMAPPED == 0 {
        // NMI, INIT.
        for data in [0x400, 0x500] {
            send(w, 0xfee0_0000, data)?;
        }
    } else {
        // All places of the table but the one that is bound.
        let table = (0..256).map(|index| 0xfee0_0000 | REMAPPED | index << 5);
        for address in table.filter(|other| *other != address) {
            send(w, address, 0)?;
        }
    }
    call(Wait, sm, [NOW]).fails(Timeout)?;
    arrives(w)?;
    edu.close()
}
