//! A device in a process of its own: it waits for a doorbell, and interrupts the guest that rang.

use crate::error::Result;
use crate::system;
#[cfg(target_os = "none")]
use core::arch::global_asm;
use root_task::process::Process;
use root_task::system::System;
#[cfg(target_os = "none")]
use usys::abi::{Hypercall, regs::Head};
use usys::abi::{Rights, Selector};
use usys::cap::{Cap, Narrow, Pd, Sm, Vcpu};
use usys::object::{Schedule, ThreadStart};
use usys::{process, selector};

/// What it waits on, in its process.
const BELL: Selector = Selector(20);
/// What it raises, in its process.
const LINE: Selector = Selector(21);

#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text.bench_device, \"ax\"",
    ".global bench_device",
    "bench_device:",
    "movabs rax, {wait}",
    "mov rdi, -1",
    "syscall",
    "movabs rax, {raise}",
    "syscall",
    "jmp bench_device",
    ".popsection",
    wait = const Head::new(Hypercall::Wait, BELL).0,
    raise = const Head::new(Hypercall::Signal, LINE).0,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn bench_device() -> !;
}

#[cfg(not(target_os = "none"))]
fn bench_device() -> ! {
    unreachable!("only for the machine")
}

/// The device.
#[derive(Debug)]
pub struct Device {
    process: Process,
    bell: Cap<Sm>,
}

impl Device {
    /// Starts one that is more urgent than a VMM of this priority.
    pub fn start(system: &mut System, priority: u8) -> Result<Self> {
        let process = system::copy(system, "device")?;
        let pool = process::pool();
        let bell = pool.create_sm(selector::allocate()?, 0)?;
        bell.delegate(process.pd(), BELL, Narrow::rights(Rights::WAIT))?;
        let start = ThreadStart { cpu: 0, ip: bench_device as *const () as u64, sp: 0x1000, argument: 0 };
        let thread = pool.create_ec(selector::allocate()?, process.pd(), start)?;
        pool.create_sc(selector::allocate()?, thread, Schedule::whole(priority + 1))?;
        Ok(Device { process, bell })
    }

    /// Gives a VMM the doorbell, and a way to give the device an interrupt.
    pub fn connect(&self, vmm: Cap<Pd>, bell: Selector, device: Selector) -> Result<()> {
        self.bell.delegate(vmm, bell, Narrow::rights(Rights::SIGNAL | Rights::DERIVE))?;
        Ok(self.process.pd().delegate(vmm, device, Narrow::rights(Rights::PD_GRANT))?)
    }

    /// Ends it.
    pub fn end(self, system: &mut System) -> Result<()> {
        self.process.destroy(&mut system.memory);
        Ok(self.bell.delete()?)
    }
}

/// Gives a device, by the capability for its process, the interrupt with a vector.
pub fn give_line(device: Cap<Pd>, vcpu: Cap<Vcpu>, vector: u8) -> Result<()> {
    let line = Narrow::rights(Rights::VCPU_INTERRUPT).badge(vector.into());
    Ok(vcpu.delegate(device, LINE, line)?)
}
