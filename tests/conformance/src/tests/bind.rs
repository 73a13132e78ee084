//! Binding: message areas, fault notifications, vCPU pages and notifications, interrupts.

use super::{Group, Needs, group};
use crate::layout::{IRQS, PD, PORTS, RUNNER_EC};
use crate::prelude::*;
use crate::threads;
use hypercall_abi::boot_info::RegionKind;
use hypercall_abi::cap::{BindRole, IrqKind};
use usys::power::open;

pub(super) const GROUP: Group = group!(
    "binding",
    Needs::Nothing => [
        an_unknown_role_is_refused,
        a_message_area_is_one_page_of_ram_with_read_and_write,
        a_bound_page_is_not_mapped_and_goes_as_a_whole,
        a_fault_is_signalled_to_whom_was_bound,
        a_thread_has_one_fault_notification,
        a_fault_notification_that_ended_can_be_replaced,
        the_timer_interrupt_arrives_and_stops_when_unbound,
        binding_an_interrupt_checks_its_arguments,
        a_message_is_an_interrupt_of_its_own,
        a_device_interrupts_by_a_message,
    ],
    Needs::Guests => [
        a_vcpu_page_is_one_page_of_ram_with_read_and_write,
        a_vcpu_has_one_notification_and_a_notification_one_vcpu,
    ],
);

const UTCB: u64 = BindRole::Utcb as u64;
const FAULT: u64 = BindRole::FaultNotification as u64;
const PAGE_ROLE: u64 = BindRole::VcpuPage as u64;
const NOTIFICATION: u64 = BindRole::VcpuNotification as u64;

fn an_unknown_role_is_refused(w: &mut World) -> Check {
    let (ec, sm) = (w.ec(0, 0x1000, 0)?, w.sm(0)?);
    for role in [11, 255, 256, 1 << 32, u64::MAX] {
        call(Bind, ec, [sm, role]).fails(BadArgument)?;
    }
    Ok(())
}

/// What holds for the roles that bind a page.
/// A page that is no RAM, if the machine has one.
pub(super) fn device_page(w: &mut World) -> Seen<Option<Sel>> {
    let regions = &w.info.regions[..w.info.region_count as usize];
    let device = regions.iter().find(|region| region.kind == RegionKind::Device as u32);
    device.map(|device| w.part(device.selector.into(), 0, 1)).transpose()
}

pub(super) fn a_page_is_checked(w: &mut World, object: Sel, right: Rights, role: u64, other: Sel) -> Check {
    let memory = w.ram(3)?;
    let weak_object = w.without(object, right)?;
    call(Bind, weak_object, [memory, role]).fails(BadRights)?;
    for right in [Rights::READ, Rights::WRITE] {
        let weak = w.without(memory, right)?;
        call(Bind, object, [weak, role]).fails(BadRights)?;
    }
    call(Bind, object, [object, role]).fails(BadType)?;
    call(Bind, other, [memory, role]).fails(BadType)?;
    for page in [3, 4, 1 << 52, u64::MAX] {
        call(Bind, object, [memory, role, page]).fails(BadArgument)?;
    }
    if let Some(page) = device_page(w)? {
        call(Bind, object, [page, role]).fails(BadArgument)?;
    }
    let mapped = w.derive(memory, Rights::ALL)?;
    let at = w.addresses(3);
    call(Map, mapped, [PD, at, 0, 1, 1]).gives([1, 0, 0])?;
    call(Bind, object, [mapped, role]).fails(Occupied)?;
    call(Bind, object, [memory, role, 2]).done()?;
    let second = w.derive(memory, Rights::ALL)?;
    call(Bind, object, [second, role]).fails(Occupied)?;
    // Deleting the capability ends the binding; so does unmapping it.
    call(Revoke, memory, [1]).done()?;
    let memory = w.ram(1)?;
    call(Bind, object, [memory, role]).done()?;
    call(Unmap, memory, [0, 1]).gives([1, 0, 0])?;
    call(Bind, object, [memory, role]).done()
}

fn a_message_area_is_one_page_of_ram_with_read_and_write(w: &mut World) -> Check {
    let ec = w.ec(0, 0x1000, 0)?;
    let pool = w.pool;
    a_page_is_checked(w, ec, Rights::EC_CONTROL, UTCB, pool)
}

fn a_bound_page_is_not_mapped_and_goes_as_a_whole(w: &mut World) -> Check {
    let (ec, memory) = (w.ec(0, 0x1000, 0)?, w.ram(4)?);
    let at = w.addresses(4);
    call(Bind, ec, [memory, UTCB, 1]).done()?;
    call(Map, memory, [PD, at, 0, 1, 1]).fails(Occupied)?;
    call(Unmap, memory, [1, 1]).fails(BadArgument)?;
    call(Unmap, memory, [0, 4]).gives([4, 0, 0])?;
    call(Map, memory, [PD, at, 0, 1, 1]).gives([1, 0, 0])?;
    // The end of the thread is the end of the binding.
    let other = w.ram(1)?;
    call(Bind, ec, [other, UTCB]).done()?;
    call(Revoke, ec, [1]).done()?;
    call(Unmap, other, [0, 1]).fails(Unbound)
}

fn a_vcpu_page_is_one_page_of_ram_with_read_and_write(w: &mut World) -> Check {
    let (space, vcpu) = (w.guest_space()?, w.sel());
    call(CreateVcpu, vcpu, [w.pool, space, 0]).done()?;
    a_page_is_checked(w, vcpu, Rights::VCPU_RUN, PAGE_ROLE, space)
}

fn a_fault_is_signalled_to_whom_was_bound(w: &mut World) -> Check {
    let ntfn = w.ntfn()?;
    let badged = w.sel();
    call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 0x40]).done()?;
    let ec = w.ec(0, 0x1000, 0)?;
    call(Bind, ec, [badged, FAULT]).done()?;
    w.sc(ec, threads::HIGH)?;
    call(Wait, ntfn, [w.deadline(1_000_000)]).gives([0x40, 0, 0])?;
    equal("vector", threads::fault_of(ec)?.map(|fault| fault.vector), Some(14))
}

fn a_thread_has_one_fault_notification(w: &mut World) -> Check {
    let (ec, sm, ntfn) = (w.ec(0, 0x1000, 0)?, w.sm(0)?, w.ntfn()?);
    let weak = w.without(sm, Rights::SIGNAL)?;
    call(Bind, ec, [weak, FAULT]).fails(BadRights)?;
    let weak = w.without(ec, Rights::EC_CONTROL)?;
    call(Bind, weak, [sm, FAULT]).fails(BadRights)?;
    call(Bind, ec, [ec, FAULT]).fails(BadType)?;
    call(Bind, sm, [sm, FAULT]).fails(BadType)?;
    call(Bind, ec, [sm, FAULT]).done()?;
    call(Bind, ec, [sm, FAULT]).fails(Occupied)?;
    call(Bind, ec, [ntfn, FAULT]).fails(Occupied)
}

fn a_fault_notification_that_ended_can_be_replaced(w: &mut World) -> Check {
    let (ec, first, second) = (w.ec(0, 0x1000, 0)?, w.sm(0)?, w.sm(0)?);
    call(Bind, ec, [first, FAULT]).done()?;
    call(Revoke, first, [1]).done()?;
    call(Bind, ec, [second, FAULT]).done()?;
    w.sc(ec, threads::HIGH)?;
    call(Wait, second, [w.deadline(1_000_000)]).gives([1, 0, 0])
}

fn a_vcpu_has_one_notification_and_a_notification_one_vcpu(w: &mut World) -> Check {
    let space = w.guest_space()?;
    let (a, b) = (w.sel(), w.sel());
    call(CreateVcpu, a, [w.pool, space, 0]).done()?;
    call(CreateVcpu, b, [w.pool, space, 0]).done()?;
    let (first, second, sm) = (w.ntfn()?, w.ntfn()?, w.sm(0)?);
    let weak = w.without(first, Rights::WAIT)?;
    call(Bind, a, [weak, NOTIFICATION]).fails(BadRights)?;
    let weak = w.without(a, Rights::VCPU_RUN)?;
    call(Bind, weak, [first, NOTIFICATION]).fails(BadRights)?;
    call(Bind, a, [sm, NOTIFICATION]).fails(BadType)?;
    call(Bind, RUNNER_EC, [first, NOTIFICATION]).fails(BadType)?;
    call(Bind, a, [first, NOTIFICATION]).done()?;
    call(Bind, a, [second, NOTIFICATION]).fails(Occupied)?;
    call(Bind, b, [first, NOTIFICATION]).fails(Occupied)?;
    call(Revoke, first, [1]).done()?;
    call(Bind, a, [second, NOTIFICATION]).done()?;
    call(Revoke, a, [1]).done()?;
    call(Bind, b, [second, NOTIFICATION]).done()
}

/// Programs channel 0 of the 8254 to a square wave of 100 Hz (data sheet of the 8254).
fn start_timer() -> Check {
    let pit = open(0x40, 4).ok_or_else(|| Failure("the timer's ports are taken".into()))?;
    const DIVISOR: u16 = 11_932;
    pit.write(3, 0x36);
    pit.write(0, DIVISOR as u8);
    pit.write(0, (DIVISOR >> 8) as u8);
    call(Unmap, PORTS, [0, 0x1_0000]);
    Ok(())
}

fn the_timer_interrupt_arrives_and_stops_when_unbound(w: &mut World) -> Check {
    start_timer()?;
    let (irqs, sm, ntfn) = (w.part(IRQS, 0, 1)?, w.sm(0)?, w.ntfn()?);
    let badged = w.sel();
    call(Derive, ntfn, [0, badged, 0xffff, 0, 0, 0x100]).done()?;
    call(IrqBind, irqs, [0, sm, 0]).done()?;
    for _ in 0..3 {
        call(Wait, sm, [w.deadline(2_000_000)]).gives([1, 0, 0])?;
    }
    call(IrqAck, irqs, [0]).done()?;
    call(IrqBind, irqs, [0, badged, 0]).fails(Occupied)?;
    // The end of the semaphore is the end of the binding.
    call(Revoke, sm, [1]).done()?;
    call(IrqAck, irqs, [0]).fails(Unbound)?;
    call(IrqBind, irqs, [0, badged, 0]).done()?;
    call(Wait, ntfn, [w.deadline(2_000_000)]).gives([0x100, 0, 0])?;
    call(Revoke, irqs, [1]).done()?;
    call(Wait, ntfn, [NOW]);
    call(Wait, ntfn, [w.deadline(50_000)]).fails(Timeout)
}

fn binding_an_interrupt_checks_its_arguments(w: &mut World) -> Check {
    let (irqs, sm) = (w.part(IRQS, 0, 2)?, w.sm(0)?);
    for arguments in [[2, sm, 0], [u64::MAX, sm, 0], [0, sm, 3], [0, sm, u64::MAX]] {
        call(IrqBind, irqs, arguments).fails(BadArgument)?;
    }
    for index in [2, u64::MAX] {
        call(IrqAck, irqs, [index]).fails(BadArgument)?;
    }
    call(IrqAck, irqs, [1]).fails(Unbound)?;
    let weak = w.without(irqs, Rights::USE)?;
    call(IrqBind, weak, [0, sm, 0]).fails(BadRights)?;
    call(IrqAck, weak, [0]).fails(BadRights)?;
    let weak = w.without(sm, Rights::SIGNAL)?;
    call(IrqBind, irqs, [0, weak, 0]).fails(BadRights)?;
    call(IrqBind, irqs, [0, irqs, 0]).fails(BadType)?;
    call(IrqBind, sm, [0, sm, 0]).fails(BadType)?;
    call(IrqAck, sm, [0]).fails(BadType)
}

const MESSAGE: u64 = IrqKind::Message as u64;
/// An interrupt that is beyond every I/O APIC of a PC.
const NO_PIN: u64 = 140;

fn a_message_is_an_interrupt_of_its_own(w: &mut World) -> Check {
    let (first, second) = (w.sm(0)?, w.sm(0)?);
    // Pins have no messages, and messages no pins.
    call(IrqBind, IRQS, [4, first, MESSAGE]).fails(BadArgument)?;
    call(IrqBind, IRQS, [NO_PIN, first, IrqKind::Edge as u64]).fails(BadArgument)?;
    let one = call(IrqBind, IRQS, [NO_PIN, first, MESSAGE]).ok()?;
    let other = call(IrqBind, IRQS, [NO_PIN + 1, second, MESSAGE]).ok()?;
    // SDM 3A 10.11.1, and VT-d 5.1.2.2.
    equal("address", one[0] >> 20, 0xfee)?;
    holds("different messages", one[..2] != other[..2])?;
    call(IrqBind, IRQS, [NO_PIN, second, MESSAGE]).fails(Occupied)?;
    call(IrqAck, IRQS, [NO_PIN]).done()
}

/// Registers of an HPET (IA-PC HPET specification 1.0a, 2.3): 64-bit words of its page.
#[derive(Clone, Copy)]
struct Hpet(u64);

impl Hpet {
    const PAGE: u64 = 0xfed0_0000;
    const CAPABILITIES: usize = 0;
    const CONFIGURATION: usize = 0x10 / 8;
    const COUNTER: usize = 0xf0 / 8;
    const TIMER: usize = 0x100 / 8;
    const COMPARATOR: usize = 0x108 / 8;
    const ROUTE: usize = 0x110 / 8;

    fn read(self, register: usize) -> u64 {
        // SAFETY: the page of the device is mapped there, and the registers are within.
        unsafe { (self.0 as *const u64).add(register).read_volatile() }
    }

    fn write(self, register: usize, value: u64) {
        // SAFETY: as in `read`.
        unsafe { (self.0 as *mut u64).add(register).write_volatile(value) }
    }
}

fn a_device_interrupts_by_a_message(w: &mut World) -> Check {
    let regions = &w.info.regions[..w.info.region_count as usize];
    let holds_hpet = |base: u64, pages: u64| (base..base + pages * PAGE).contains(&Hpet::PAGE);
    let Some(region) = regions
        .iter()
        .find(|region| region.kind == RegionKind::Device as u32 && holds_hpet(region.base, region.pages))
    else {
        return Ok(());
    };
    let page = w.part(region.selector.into(), (Hpet::PAGE - region.base) / PAGE, 1)?;
    let at = w.addresses(1);
    let flags = MapFlags::READ | MapFlags::WRITE | MapFlags::UNCACHED;
    call(Map, page, [PD, at, 0, 1, flags.bits().into()]).gives([1, 0, 0])?;
    let hpet = Hpet(at);
    const CAN_MESSAGE: u64 = 1 << 15;
    let is_there = hpet.read(Hpet::CAPABILITIES) != u64::MAX && hpet.read(Hpet::TIMER) & CAN_MESSAGE != 0;
    if !is_there {
        return call(Unmap, page, [0, 1]).gives([1, 0, 0]);
    }
    let sm = w.sm(0)?;
    let [address, data, _] = call(IrqBind, IRQS, [NO_PIN, sm, MESSAGE]).ok()?;
    const REMAPPED: u64 = 1 << 4;
    if address & REMAPPED != 0 {
        // What QEMU's HPET raises does not go through its IOMMU.
        return call(Unmap, page, [0, 1]).gives([1, 0, 0]);
    }
    const ENABLE: u64 = 1;
    const TIMER_INTERRUPTS: u64 = 1 << 2;
    const BY_MESSAGE: u64 = 1 << 14;
    hpet.write(Hpet::CONFIGURATION, 0);
    hpet.write(Hpet::COUNTER, 0);
    hpet.write(Hpet::ROUTE, address << 32 | data);
    hpet.write(Hpet::TIMER, TIMER_INTERRUPTS | BY_MESSAGE);
    hpet.write(Hpet::COMPARATOR, 10_000);
    hpet.write(Hpet::CONFIGURATION, ENABLE);
    call(Wait, sm, [w.deadline(2_000_000)]).gives([1, 0, 0])?;
    hpet.write(Hpet::CONFIGURATION, 0);
    hpet.write(Hpet::TIMER, 0);
    call(Wait, sm, [NOW]).fails(Timeout)?;
    call(Unmap, page, [0, 1]).gives([1, 0, 0])
}
