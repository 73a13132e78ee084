//! The last of an object: its CPU lets go of it, and its memory is freed.

use super::as_object;
use crate::cpu::{self, Attention, Local};
use crate::hypercall::ipc;
use crate::object::Header;
use crate::object::dma_space::DmaSpace;
use crate::object::ec::{Ec, State, WaitResult};
use crate::object::guest_space::GuestSpace;
use crate::object::pd::Pd;
use crate::object::pool::Pool;
use crate::object::portal::Portal;
use crate::object::sc::Sc;
use crate::object::signal::Signal;
use crate::object::vcpu::Vcpu;
use crate::{sched, trace};
use core::sync::atomic::Ordering;
use hypercall_abi::{ObjectType, Status};
use kcore::addr::PhysAddr;

/// Lets go of objects of this CPU that are being destroyed.
pub fn let_go(local: &'static Local) {
    trace::follow(local);
    loop {
        let doomed = local.queues.lock().doomed.pop_front();
        let Some(header) = doomed else { return };
        match header.kind {
            ObjectType::Ec => let_go_of_ec(local, as_object::<Ec>(header)),
            ObjectType::Sc => {
                let sc = as_object::<Sc>(header);
                ipc::withdraw(sc);
                if local.sc.get().is_some_and(|current| core::ptr::eq(current, sc)) {
                    local.sc.set(None);
                    local.attention.add(Attention::SWITCH);
                    // Whom it helped goes on with what it has.
                    let running = local.ec.get().and_then(|ec| ec.sc.get());
                    if running.is_none() {
                        local.ec.set(None);
                    }
                }
            }
            ObjectType::Vcpu => {
                let vcpu = as_object::<Vcpu>(header);
                if let Some(ec) = vcpu.runner.get() {
                    vcpu.detach(ec, Status::Aborted);
                    sched::wake(ec, WaitResult::Failed(Status::Aborted));
                }
                vcpu.clear_hardware();
            }
            _ => {}
        }
        local.queues.lock().released.push_back(header);
    }
}

fn let_go_of_ec(local: &'static Local, ec: &'static Ec) {
    // Nobody wakes it, or waits with it, from here on.
    ec.state.set(State::Dead);
    ipc::abandon(ec);
    if let Some(sc) = ec.sc.take() {
        sched::retire(sc);
    }
    if local.ec.get().is_some_and(|current| core::ptr::eq(current, ec)) {
        local.ec.set(None);
    }
    if local.active.get().is_some_and(|active| core::ptr::eq(active, ec)) {
        local.active.set(None);
    }
}

/// Frees the memory of an object nothing refers to, and lets interrupts in.
pub(super) fn free(header: &'static Header) {
    sched::preemption_point(cpu::local());
    let Some(pool) = header.pool else { return };
    // SAFETY: for all arms: the object is out of the tree and of all lists, its CPU let go of it, and a grace period has
    // passed. Frames are given back to the pool they came from.
    unsafe {
        match header.kind {
            ObjectType::Pool => {
                let own = as_object::<Pool>(header);
                own.dissolve();
                pool.free_object(own);
            }
            ObjectType::Pd => free_pd(pool, as_object::<Pd>(header)),
            ObjectType::Ec => pool.free_object(as_object::<Ec>(header)),
            ObjectType::Sc => pool.free_object(as_object::<Sc>(header)),
            ObjectType::Pt => pool.free_object(as_object::<Portal>(header)),
            ObjectType::Sm | ObjectType::Ntfn => pool.free_object(as_object::<Signal>(header)),
            ObjectType::GuestSpace => {
                let space = as_object::<GuestSpace>(header);
                space.pool.give_frame(space.root);
                match space.doorbells.load(Ordering::Relaxed) {
                    0 => {}
                    frame => space.pool.give_frame(PhysAddr(frame)),
                }
                pool.free_object(space);
            }
            ObjectType::DmaSpace => {
                let space = as_object::<DmaSpace>(header);
                space.pool.give_frame(space.space.root);
                khw::iommu::give_domain(space.space.domain);
                pool.free_object(space);
            }
            ObjectType::Vcpu => {
                let vcpu = as_object::<Vcpu>(header);
                for &frame in vcpu.frames.iter().chain([&vcpu.fpu_area]) {
                    vcpu.pool.give_frame(frame);
                }
                pool.free_object(vcpu);
            }
            _ => {}
        }
    }
}

/// # Safety
/// As the arms of [`free`].
unsafe fn free_pd(pool: &'static Pool, pd: &'static Pd) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut next = 0;
        while let Some((index, table)) = pd.table_from(next) {
            pd.pool.give_frame(table);
            next = index + 1;
            sched::preemption_point(cpu::local());
        }
        pd.pool.give_frame(pd.root);
        pd.pool.give_frame(pd.directory);
        for frame in pd.io_frames().into_iter().flatten() {
            pd.pool.give_frame(frame);
        }
        pool.free_object(pd);
    }
}
