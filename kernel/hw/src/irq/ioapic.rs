//! I/O APICs: routing of global system interrupts (82093AA data sheet).

use crate::sync::Lock;
use kcore::addr::PhysAddr;

const MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Ioapic {
    base: PhysAddr,
    gsi_base: u32,
    pins: u32,
}

#[derive(Debug)]
struct Ioapics {
    list: [Option<Ioapic>; MAX],
}

static IOAPICS: Lock<Ioapics> = Lock::new(Ioapics { list: [None; MAX] });

const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;
const MASKED: u32 = 1 << 16;

/// How an interrupt line signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// Level, otherwise edge.
    pub is_level: bool,
    /// Active low, otherwise high.
    pub is_low: bool,
}

impl Ioapic {
    fn read(&self, register: u32) -> u32 {
        let base = crate::mem::phys_to_virt(self.base);
        // SAFETY: `add` was told that the page is mapped uncached; the lock makes index and data one operation.
        unsafe {
            base.cast::<u32>().write_volatile(register);
            base.add(0x10).cast::<u32>().read_volatile()
        }
    }

    fn write(&self, register: u32, value: u32) {
        let base = crate::mem::phys_to_virt(self.base);
        // SAFETY: as in `read`.
        unsafe {
            base.cast::<u32>().write_volatile(register);
            base.add(0x10).cast::<u32>().write_volatile(value);
        }
    }
}

/// Takes over an I/O APIC and masks all its pins. More than eight are ignored.
///
/// # Safety
/// The page at `base` is an I/O APIC, mapped uncached in the direct map.
pub unsafe fn add(base: PhysAddr, gsi_base: u32) {
    let mut ioapic = Ioapic { base, gsi_base, pins: 0 };
    ioapic.pins = (ioapic.read(VERSION) >> 16 & 0xff) + 1;
    for pin in 0..ioapic.pins {
        ioapic.write(REDIRECTION + 2 * pin, MASKED);
    }
    let mut ioapics = IOAPICS.lock();
    if let Some(slot) = ioapics.list.iter_mut().find(|slot| slot.is_none()) {
        *slot = Some(ioapic);
    }
}

fn with_pin(gsi: u32, action: impl FnOnce(&Ioapic, u32)) -> bool {
    let ioapics = IOAPICS.lock();
    let found = ioapics.list.iter().flatten().find(|io| gsi >= io.gsi_base && gsi - io.gsi_base < io.pins);
    found.map(|ioapic| action(ioapic, REDIRECTION + 2 * (gsi - ioapic.gsi_base))).is_some()
}

/// Whether an I/O APIC has this GSI.
pub fn has_pin(gsi: u32) -> bool {
    with_pin(gsi, |_, _| ())
}

/// Routes a GSI, unmasked, to `vector` where the upper half of its redirection entry says. False if there is no such GSI.
pub fn route(gsi: u32, vector: u8, redirection: u32, trigger: Trigger) -> bool {
    with_pin(gsi, |ioapic, register| {
        ioapic.write(register, MASKED);
        ioapic.write(register + 1, redirection);
        ioapic
            .write(register, vector as u32 | (trigger.is_low as u32) << 13 | (trigger.is_level as u32) << 15);
    })
}

/// Masks or unmasks a GSI. False if there is no such GSI.
pub fn set_masked(gsi: u32, is_masked: bool) -> bool {
    with_pin(gsi, |ioapic, register| {
        let old = ioapic.read(register);
        ioapic.write(register, if is_masked { old | MASKED } else { old & !MASKED });
    })
}
