//! Global system interrupts and who is signalled by them.

use super::signal::Signal;
use core::cell::Cell;
use hypercall_abi::Status;
use kcore::iommu::Delivery;
use khw::iommu;
use khw::irq::{ioapic, vector};
use khw::sync::Lock;

/// What happens on an interrupt.
#[derive(Clone, Copy, Debug)]
struct Binding {
    signal: &'static Signal,
    badge: u64,
    slot: u32,
    is_level: bool,
}

#[derive(Debug)]
struct Bindings([Cell<Option<Binding>>; vector::GSI_COUNT as usize]);
// SAFETY: only used under `BINDINGS`.
unsafe impl Send for Bindings {}

static BINDINGS: Lock<Bindings> =
    Lock::new(Bindings([const { Cell::new(None) }; vector::GSI_COUNT as usize]));

/// Binds interrupt `number` to a signal, for the CPU with `apic_id`: the pin of that GSI, unmasked, or without a trigger the
/// message whose address and data are returned. `slot` is the capability that allowed it.
pub fn bind(
    number: u32,
    slot: u32,
    (signal, badge): (&'static Signal, u64),
    apic_id: u32,
    trigger: Option<ioapic::Trigger>,
) -> Result<(u64, u64), Status> {
    let bindings = BINDINGS.lock();
    let entry = bindings.0.get(number as usize).ok_or(Status::BadArgument)?;
    if entry.get().is_some() {
        return Err(Status::Occupied);
    }
    // Neither pins nor messages reach others (SDM 3A 11.11.1).
    if apic_id > 254 {
        return Err(Status::Unsupported);
    }
    // Pins have no messages.
    if trigger.is_some() != ioapic::has_pin(number) {
        return Err(Status::BadArgument);
    }
    let is_level = trigger.is_some_and(|trigger| trigger.is_level);
    let delivery = Delivery { vector: vector_of(number), apic_id, is_level };
    let request = iommu::admit(delivery);
    entry.set(Some(Binding { signal, badge, slot, is_level }));
    Ok(match trigger {
        Some(trigger) => {
            ioapic::route(number, delivery.vector, request.redirection, trigger);
            (0, 0)
        }
        None => (request.address.into(), request.data.into()),
    })
}

/// The vector of an interrupt that can be bound.
fn vector_of(number: u32) -> u8 {
    vector::GSI + number as u8
}

/// Masks and unbinds every interrupt of a signal that goes away.
pub fn unbind_signal(signal: &Signal) {
    unbind(|binding| core::ptr::eq(binding.signal, signal));
}

/// Masks and unbinds every interrupt that was bound by a capability that goes away.
pub fn unbind_slot(slot: u32) {
    unbind(|binding| binding.slot == slot);
}

fn unbind(is_gone: impl Fn(&Binding) -> bool) {
    let bindings = BINDINGS.lock();
    for (gsi, entry) in bindings.0.iter().enumerate() {
        if entry.get().is_some_and(|binding| is_gone(&binding)) {
            ioapic::set_masked(gsi as u32, true);
            iommu::shut(vector_of(gsi as u32));
            entry.set(None);
        }
    }
}

/// An interrupt came: signals. A level-triggered one stays masked until `IrqAck`, since its line is up until the driver has
/// dealt with the device; an edge must not be masked, or the next one could be lost.
pub fn arrived(gsi: u32) {
    let bindings = BINDINGS.lock();
    let binding = bindings.0.get(gsi as usize).and_then(Cell::get);
    drop(bindings);
    if binding.is_none_or(|binding| binding.is_level) {
        ioapic::set_masked(gsi, true);
    }
    khw::irq::lapic::eoi();
    if let Some(binding) = binding {
        binding.signal.signal(binding.badge);
    }
}

/// Unmasks a bound interrupt.
pub fn acknowledge(gsi: u32) -> Result<(), Status> {
    let bindings = BINDINGS.lock();
    match bindings.0.get(gsi as usize).map(Cell::get) {
        Some(Some(_)) => {
            ioapic::set_masked(gsi, false);
            Ok(())
        }
        Some(None) => Err(Status::Unbound),
        None => Err(Status::BadArgument),
    }
}
