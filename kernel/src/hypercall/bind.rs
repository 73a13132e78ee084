//! Binding: message areas, vCPU pages, notifications, interrupts.

use super::{Call, Outcome, Result, lock_tree};
use crate::boot::irqs;
use crate::cap::{Found, Target, Tree};
use crate::object::dma_space::DmaSpace;
use crate::object::ec::Ec;
use crate::object::guest_space::GuestSpace;
use crate::object::interrupt;
use crate::object::vcpu::Vcpu;
use crate::{reclaim, trace};
use core::sync::atomic::Ordering;
use hypercall_abi::cap::{BindRole, IrqKind};
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::{ObjectType, PAGE_SIZE, Rights, Status};
use kcore::cap::Slots;
use khw::irq::ioapic::Trigger;

/// Binds a capability to a role of an object.
pub(super) fn bind(call: &Call) -> Result {
    let other = call.selector_at(0)?;
    let role = BindRole::from_raw(call.args[1]).ok_or(Status::BadArgument)?;
    let extra = call.args[2];
    let mut tree = lock_tree()?;
    let found = call.capability()?;
    let bound = call.ec.pd.look_up(other)?;
    match role {
        BindRole::Utcb => {
            let ec = found.cast::<Ec>(Rights::EC_CONTROL)?;
            let frame = bind_page(&mut tree, bound, extra, Target::Utcb(ec))?;
            ec.utcb.store(frame, Ordering::Release);
        }
        BindRole::FaultNotification => {
            let ec = found.cast::<Ec>(Rights::EC_CONTROL)?;
            let signal = bound.signal(Rights::SIGNAL)?;
            if !signal.watch(ec, bound.count) {
                return Err(Status::Occupied.into());
            }
        }
        BindRole::VcpuPage => {
            let vcpu = found.cast::<Vcpu>(Rights::VCPU_RUN)?;
            let frame = bind_page(&mut tree, bound, extra, Target::VcpuPage(vcpu))?;
            vcpu.page.store(frame, Ordering::Release);
        }
        BindRole::VirtualApic => {
            let vcpu = found.cast::<Vcpu>(Rights::VCPU_RUN)?;
            let frame = bind_page(&mut tree, bound, extra, Target::VirtualApic(vcpu))?;
            vcpu.apic.frame.store(frame, Ordering::Release);
        }
        BindRole::EoiWord => {
            let vcpu = found.cast::<Vcpu>(Rights::VCPU_RUN)?;
            if !extra.is_multiple_of(4) {
                return Err(Status::BadArgument.into());
            }
            let frame = bind_page(&mut tree, bound, extra / PAGE_SIZE, Target::EoiWord(vcpu))?;
            vcpu.apic.eoi_word.store(frame + extra % PAGE_SIZE, Ordering::Release);
        }
        BindRole::DoorbellCall | BindRole::DoorbellPort | BindRole::DoorbellPage => {
            let space = found.cast::<GuestSpace>(Rights::GUEST_DOORBELL)?;
            let trigger = Doorbell::decode(role, extra).ok_or(Status::BadArgument)?;
            space.bind_doorbell(&mut tree, bound, trigger)?;
        }
        BindRole::TraceRing => {
            found.range(ObjectType::Trace, Rights::USE)?;
            if extra >= found.count {
                return Err(Status::BadArgument.into());
            }
            let ring = trace::ring(found.object + extra);
            let first = bind_page(&mut tree, bound, 0, Target::Trace(ring))?;
            ring.set_memory(first, bound.count);
            // Every CPU looks at its ring; the tree lock is held.
            reclaim::let_go(call.local);
            khw::smp::synchronize();
        }
        BindRole::Device => {
            let space = found.cast::<DmaSpace>(Rights::DMA_ASSIGN)?;
            bound.range(ObjectType::Devices, Rights::USE)?;
            if extra >= bound.count {
                return Err(Status::BadArgument.into());
            }
            // SAFETY: the tables of a space go after its devices (`reclaim`).
            let is_free = tree.slot(bound.slot).bound == 0
                && unsafe { khw::iommu::assign((bound.object + extra) as u16, space.space) };
            if !is_free {
                return Err(Status::Occupied.into());
            }
            space.devices.bind(&mut tree, bound.slot, space.header() as *const _ as u64, extra);
        }
        BindRole::VcpuNotification => {
            let vcpu = found.cast::<Vcpu>(Rights::VCPU_RUN)?;
            let signal = bound.signal(Rights::WAIT)?;
            if bound.kind != ObjectType::Ntfn {
                return Err(Status::BadType.into());
            }
            if signal.bound_vcpu().is_some() || vcpu.signal.get().is_some() {
                return Err(Status::Occupied.into());
            }
            signal.bind_vcpu(Some(vcpu));
            vcpu.signal.set(Some(signal));
            vcpu.kick();
        }
    }
    Ok(Outcome::OK)
}

/// Binds one page of a memory capability; its physical address.
fn bind_page(tree: &mut Tree, memory: Found, page: u64, target: Target) -> core::result::Result<u64, Status> {
    let frame = memory.ram_page(Rights::READ | Rights::WRITE, page)?;
    if tree.slot(memory.slot).bound != 0 || target.bound_list().first() != 0 {
        return Err(Status::Occupied);
    }
    let mark = match target {
        Target::VirtualApic(_) => Target::APIC,
        Target::EoiWord(_) => Target::EOI,
        _ => 0,
    };
    target.bound_list().bind(tree, memory.slot, target.header() as *const _ as u64, page | mark);
    Ok(frame.0)
}

/// Binds an interrupt to a semaphore or notification.
pub(super) fn irq(call: &Call) -> Result {
    let [index, _, kind, ..] = call.args;
    let other = call.selector_at(1)?;
    if kind > IrqKind::Message as u64 {
        return Err(Status::BadArgument.into());
    }
    let _tree = lock_tree()?;
    let found = call.capability()?;
    found.range(ObjectType::Irqs, Rights::USE)?;
    if index >= found.count {
        return Err(Status::BadArgument.into());
    }
    let signal = call.ec.pd.look_up(other)?;
    let badge = signal.count;
    let signal = signal.signal(Rights::SIGNAL)?;
    let number = (found.object + index) as u32;
    let (number, trigger) = if kind == IrqKind::Message as u64 {
        (number, None)
    } else {
        let is_level = kind == IrqKind::Level as u64;
        let (gsi, trigger) = irqs::resolve(number, Trigger { is_level, is_low: is_level });
        (gsi, Some(trigger))
    };
    let apic_id = khw::percpu::block(call.local.id).map_or(0, |block| block.apic_id);
    let (address, data) = interrupt::bind(number, found.slot, (signal, badge), apic_id, trigger)?;
    Ok(Outcome::Done(Status::Success, [address, data, 0]))
}

/// Unmasks an interrupt.
pub(super) fn irq_ack(call: &Call) -> Result {
    let found = call.capability()?;
    found.range(ObjectType::Irqs, Rights::USE)?;
    if call.args[0] >= found.count {
        return Err(Status::BadArgument.into());
    }
    let (gsi, _) =
        irqs::resolve((found.object + call.args[0]) as u32, Trigger { is_level: false, is_low: false });
    interrupt::acknowledge(gsi)?;
    Ok(Outcome::OK)
}
