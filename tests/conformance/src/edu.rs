//! QEMU's device `edu` (docs/specs/edu.rst): a PCI device that does DMA when it is told to, with a buffer of its own.

use crate::call::{Sel, call};
use crate::check::{Failure, Seen, equal};
use crate::layout::{DEVICES, PD, PORTS};
use crate::prelude::{Map, MapFlags, PAGE, Unmap};
use crate::world::World;
use core::arch::asm;

/// Vendor and device.
const ID: u32 = 0x11e8_1234;
/// The ports of configuration space.
const CONFIG_PORTS: u64 = 0xcf8;
/// Offset of the command register and of the first base address register; in the command: memory, bus master.
const COMMAND: u32 = 0x04;
const BAR: u32 = 0x10;
const ENABLE: u32 = 1 << 1 | 1 << 2;
/// Offsets of registers; and what begins a transfer, and its direction.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const GO: u64 = 0x98;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Bytes of a transfer: a word of memory, and an interrupt's message.
const WORD: u64 = 8;
const MESSAGE: u64 = 4;
/// Where its buffer is, in its own addresses.
const BUFFER: u64 = 0x4_0000;

/// The device.
#[derive(Debug)]
pub struct Edu {
    registers: u64,
    memory: Sel,
    /// A capability for it.
    pub device: Sel,
}

impl Edu {
    /// The machine's, enabled.
    pub fn find(w: &mut World) -> Seen<Self> {
        let ports = w.part(PORTS, CONFIG_PORTS, 8)?;
        call(Map, ports, [PD, 0, 0, 8, 0]).ok()?;
        // On bus 0, with one function.
        let found = (0..32).map(|slot| slot << 3).find(|&device| config(device, 0, None) == ID);
        let device = found.ok_or_else(|| Failure("the machine has no device edu".into()))?;
        let base = u64::from(config(device, BAR, None) & !0xfff);
        config(device, COMMAND, Some(ENABLE));
        call(Unmap, ports, [0, 8]).ok()?;
        let regions = &w.info.regions[..w.info.region_count as usize];
        let region =
            regions.iter().find(|region| (region.base..region.base + region.pages * PAGE).contains(&base));
        let region = region.ok_or_else(|| Failure("no capability has the device's registers".into()))?;
        let memory = w.part(region.selector.into(), (base - region.base) / PAGE, 1)?;
        let registers = w.addresses(1);
        let flags = MapFlags::READ | MapFlags::WRITE | MapFlags::UNCACHED;
        call(Map, memory, [PD, registers, 0, 1, flags.bits().into()]).gives([1, 0, 0])?;
        let device = w.part(DEVICES, device.into(), 1)?;
        Ok(Edu { registers, memory, device })
    }

    /// Has the device read a word at one of its addresses, and write it at another. What it may not has no effect.
    pub fn copy(&self, w: &World, from: u64, to: u64) -> Seen<()> {
        self.transfer(w, [from, BUFFER], WORD, RUN)?;
        self.transfer(w, [BUFFER, to], WORD, RUN | TO_MEMORY)
    }

    /// Has the device read a message at one of its addresses, and write it to another.
    pub fn send(&self, w: &World, from: u64, to: u64) -> Seen<()> {
        self.transfer(w, [from, BUFFER], MESSAGE, RUN)?;
        self.transfer(w, [BUFFER, to], MESSAGE, RUN | TO_MEMORY)
    }

    fn transfer(&self, w: &World, [source, destination]: [u64; 2], bytes: u64, command: u64) -> Seen<()> {
        self.write(SOURCE, source);
        self.write(DESTINATION, destination);
        self.write(COUNT, bytes);
        self.write(GO, command);
        w.until("the transfer is over", || self.read(GO) & RUN == 0)
    }

    fn read(&self, offset: u64) -> u64 {
        // SAFETY: a register of the device, in the page that `find` mapped.
        unsafe { ((self.registers + offset) as *const u64).read_volatile() }
    }

    fn write(&self, offset: u64, value: u64) {
        // SAFETY: as in `read`. What it makes the device write is memory of the test, or of nobody.
        unsafe { ((self.registers + offset) as *mut u64).write_volatile(value) }
    }

    /// Gives the registers back.
    pub fn close(self) -> Seen<()> {
        let [pages, ..] = call(Unmap, self.memory, [0, 1]).ok()?;
        equal("pages", pages, 1)
    }
}

/// Reads a register of configuration space, or writes it (PCI Local Bus 3.0, 3.2.2.3.2). The ports are open.
fn config(device: u32, offset: u32, new: Option<u32>) -> u32 {
    let address = 1 << 31 | device << 8 | offset;
    let mut value = new.unwrap_or(0);
    // SAFETY: configuration space of a device that is nobody's; the caller opened the ports.
    unsafe {
        asm!("out dx, eax", in("dx") 0xcf8u16, in("eax") address, options(nomem, nostack));
        match new {
            Some(_) => asm!("out dx, eax", in("dx") 0xcfcu16, in("eax") value, options(nomem, nostack)),
            None => asm!("in eax, dx", in("dx") 0xcfcu16, out("eax") value, options(nomem, nostack)),
        }
    }
    value
}
