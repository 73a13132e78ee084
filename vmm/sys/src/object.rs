//! What can be done with the objects of the kernel, as methods of their capabilities (SPEC.md 4).

use crate::cap::{
    Cap, Devices, DmaSpace, Ec, GuestSpace, Irqs, Log, Memory, Ntfn, Pd, Pool, Ports, Pt, Sc, Sm, Trace, Vcpu,
};
use crate::error::{Error, Result};
use crate::hypercall::{call_portal, invoke, invoke_range};
use crate::process;
use hypercall_abi::cap::{BindRole, IrqKind};
use hypercall_abi::doorbell::Doorbell;
use hypercall_abi::regs::{LOG_BYTES, MESSAGE_WORDS, pack_ec_place};
use hypercall_abi::{Hypercall, Selector, Status};

/// A deadline that never comes.
pub const FOREVER: u64 = u64::MAX;

/// When and for how long a thread may run.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// 0 to 31; more is more important.
    pub priority: u8,
    /// Processor time in each period, in µs.
    pub budget_us: u64,
    /// Period in µs.
    pub period_us: u64,
}

impl Schedule {
    /// All the time there is at this priority, in slices of 10 ms.
    pub const fn whole(priority: u8) -> Self {
        Schedule { priority, budget_us: 10_000, period_us: 10_000 }
    }
}

/// Where a new thread begins.
#[derive(Clone, Copy, Debug)]
pub struct ThreadStart {
    /// Its CPU.
    pub cpu: u16,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// RDI.
    pub argument: u64,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector.
    pub vector: u8,
    /// Instruction pointer.
    pub rip: u64,
    /// Faulting address of a page fault.
    pub address: u64,
}

fn create(call: Hypercall, to: Selector, arguments: [u64; 6]) -> Result<()> {
    // SAFETY: creating an object changes no mapping; `CreateEc` in this process is `thread::spawn`'s alone.
    unsafe { invoke(call, to, arguments) }.map(drop)
}

impl Cap<Pool> {
    /// Makes a pool of `frames` frames out of this one. The scheduling contexts that it pays for have `max_priority` at most,
    /// and no more than this pool allows.
    pub fn create_pool(self, to: Selector, frames: u64, max_priority: u8) -> Result<Cap<Pool>> {
        // The kernel takes 0 for "as in the parent".
        let ceiling = u64::from(max_priority) + 1;
        create(Hypercall::CreatePool, to, [self.selector().0.into(), frames, ceiling, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a protection domain; its page tables and capability tables are paid from this pool.
    pub fn create_pd(self, to: Selector) -> Result<Cap<Pd>> {
        create(Hypercall::CreatePd, to, [self.selector().0.into(), 0, 0, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a thread in another process. For one in this process see [`crate::thread::spawn`].
    pub fn create_ec(self, to: Selector, pd: Cap<Pd>, start: ThreadStart) -> Result<Cap<Ec>> {
        if pd.selector() == process::selector::PD {
            return Err(Error { call: Hypercall::CreateEc, status: Status::BadArgument });
        }
        self.create_any_ec(to, pd, start)
    }

    pub(crate) fn create_any_ec(self, to: Selector, pd: Cap<Pd>, start: ThreadStart) -> Result<Cap<Ec>> {
        let place = pack_ec_place(start.cpu, false);
        let arguments =
            [self.selector().0.into(), pd.selector().0.into(), place, start.ip, start.sp, start.argument];
        create(Hypercall::CreateEc, to, arguments)?;
        Ok(Cap::new(to))
    }

    /// Makes a scheduling context for a thread and starts it.
    pub fn create_sc(self, to: Selector, ec: Cap<Ec>, schedule: Schedule) -> Result<Cap<Sc>> {
        let arguments = [
            self.selector().0.into(),
            ec.selector().0.into(),
            schedule.priority.into(),
            schedule.budget_us,
            schedule.period_us,
            0,
        ];
        create(Hypercall::CreateSc, to, arguments)?;
        Ok(Cap::new(to))
    }

    /// Makes a semaphore.
    pub fn create_sm(self, to: Selector, count: u64) -> Result<Cap<Sm>> {
        create(Hypercall::CreateSm, to, [self.selector().0.into(), count, 0, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a notification.
    pub fn create_ntfn(self, to: Selector) -> Result<Cap<Ntfn>> {
        create(Hypercall::CreateNtfn, to, [self.selector().0.into(), 0, 0, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a guest-physical address space; its page tables are paid from this pool.
    pub fn create_guest_space(self, to: Selector) -> Result<Cap<GuestSpace>> {
        create(Hypercall::CreateGuestSpace, to, [self.selector().0.into(), 0, 0, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a space of memory that devices reach; its page tables are paid from this pool.
    pub fn create_dma_space(self, to: Selector) -> Result<Cap<DmaSpace>> {
        create(Hypercall::CreateDmaSpace, to, [self.selector().0.into(), 0, 0, 0, 0, 0])?;
        Ok(Cap::new(to))
    }

    /// Makes a vCPU that runs on one CPU.
    pub fn create_vcpu(self, to: Selector, space: Cap<GuestSpace>, cpu: u16) -> Result<Cap<Vcpu>> {
        let arguments = [self.selector().0.into(), space.selector().0.into(), cpu.into(), 0, 0, 0];
        create(Hypercall::CreateVcpu, to, arguments)?;
        Ok(Cap::new(to))
    }

    /// Free frames.
    pub fn free_frames(self) -> Result<u64> {
        // SAFETY: reads only.
        unsafe { invoke(Hypercall::PoolInfo, self.selector(), [0; 6]) }.map(|results| results[0])
    }
}

pub(crate) fn bind(object: Selector, what: Selector, role: BindRole, extra: u64) -> Result<()> {
    // SAFETY: a bound page is one that the binder gave away: the kernel writes it in calls that say so.
    unsafe { invoke(Hypercall::Bind, object, [what.0.into(), role as u64, extra, 0, 0, 0]) }.map(drop)
}

impl Cap<Ec> {
    /// Makes a one-page memory capability the thread's message area.
    pub fn bind_utcb(self, page: Cap<crate::cap::Memory>) -> Result<()> {
        bind(self.selector(), page.selector(), BindRole::Utcb, 0)
    }

    /// Signals this notification, with its badge, when the thread stops on a fault.
    pub fn bind_fault_notification(self, ntfn: Cap<Ntfn>) -> Result<()> {
        bind(self.selector(), ntfn.selector(), BindRole::FaultNotification, 0)
    }

    /// Why the thread stopped, if it did.
    pub fn fault(self) -> Result<Option<Fault>> {
        // SAFETY: reads only.
        let [state, rip, address] = unsafe { invoke(Hypercall::EcInfo, self.selector(), [0; 6]) }?;
        let is_stopped = state >> 63 != 0;
        Ok(is_stopped.then_some(Fault { vector: state as u8, rip, address }))
    }

    /// The number that records of the trace have for the thread; 0 once it stopped.
    pub fn number(self) -> Result<u64> {
        // SAFETY: reads only.
        let [state, _, number] = unsafe { invoke(Hypercall::EcInfo, self.selector(), [0; 6]) }?;
        Ok(if state >> 63 == 0 { number } else { 0 })
    }
}

impl Cap<Sc> {
    /// Processor time used so far, in TSC ticks.
    pub fn time_used(self) -> Result<u64> {
        // SAFETY: reads only.
        unsafe { invoke(Hypercall::ScInfo, self.selector(), [0; 6]) }.map(|results| results[0])
    }

    /// TSC ticks for which its thread could have run and others did, or its budget was spent.
    pub fn time_waited(self) -> Result<u64> {
        // SAFETY: reads only.
        unsafe { invoke(Hypercall::ScInfo, self.selector(), [0; 6]) }.map(|results| results[1])
    }
}

impl Cap<Pt> {
    /// Calls the portal and waits for the reply.
    pub fn call(self, words: [u64; MESSAGE_WORDS]) -> Result<[u64; MESSAGE_WORDS]> {
        call_portal(Hypercall::Call, self.selector(), words)
    }

    /// Calls the portal with these words and the message in the thread's message area (SPEC.md 6): words beyond these,
    /// capabilities, and until when to wait for a busy handler. The reply's message is in the area afterwards.
    pub fn call_message(self, words: [u64; MESSAGE_WORDS]) -> Result<[u64; MESSAGE_WORDS]> {
        call_portal(Hypercall::CallMessage, self.selector(), words)
    }
}

fn signal(selector: Selector) -> Result<()> {
    // SAFETY: touches no memory.
    unsafe { invoke(Hypercall::Signal, selector, [0; 6]) }.map(drop)
}

/// Waits until the TSC passes `deadline`; running out of time is `None`.
fn wait(selector: Selector, deadline: u64) -> Result<Option<u64>> {
    // SAFETY: touches no memory.
    match unsafe { invoke(Hypercall::Wait, selector, [deadline, 0, 0, 0, 0, 0]) } {
        Ok(results) => Ok(Some(results[0])),
        Err(Error { status: Status::Timeout, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Cap<Sm> {
    /// Adds one.
    pub fn up(self) -> Result<()> {
        signal(self.selector())
    }

    /// Takes one; `false` if the TSC passed `deadline` first.
    pub fn down(self, deadline: u64) -> Result<bool> {
        Ok(wait(self.selector(), deadline)?.is_some())
    }
}

impl Cap<Ntfn> {
    /// Raises the bits of this capability's badge.
    pub fn signal(self) -> Result<()> {
        signal(self.selector())
    }

    /// Takes all bits, waiting for one until the TSC passes `deadline`: then none.
    pub fn wait(self, deadline: u64) -> Result<u64> {
        Ok(wait(self.selector(), deadline)?.unwrap_or(0))
    }
}

impl Cap<Ports> {
    /// Lets a process use `count` ports from `offset` in this range.
    pub fn map(self, pd: Cap<Pd>, offset: u64, count: u64) -> Result<()> {
        let step = |done: u64| [pd.selector().0.into(), 0, offset + done, count - done.min(count), 0, 0];
        // SAFETY: ports are no memory.
        unsafe { invoke_range(Hypercall::Map, self.selector(), step) }
    }
}

/// What asserts an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A rising edge.
    Edge = IrqKind::Edge as isize,
    /// A level, masked at each interrupt until it is acknowledged.
    Level = IrqKind::Level as isize,
}

impl Cap<Irqs> {
    /// Signals `ntfn`, with its badge, at interrupt `index` of this range, and unmasks it.
    pub fn bind(self, index: u64, ntfn: Cap<Ntfn>, trigger: Trigger) -> Result<()> {
        let arguments = [index, ntfn.selector().0.into(), trigger as u64, 0, 0, 0];
        // SAFETY: touches no memory.
        unsafe { invoke(Hypercall::IrqBind, self.selector(), arguments) }.map(drop)
    }

    /// Signals `ntfn`, with its badge, when a device writes the message of interrupt `index` of this range: returns its address
    /// and data.
    pub fn bind_message(self, index: u64, ntfn: Cap<Ntfn>) -> Result<(u64, u32)> {
        let kind = IrqKind::Message as u64;
        let arguments = [index, ntfn.selector().0.into(), kind, 0, 0, 0];
        // SAFETY: touches no memory.
        let results = unsafe { invoke(Hypercall::IrqBind, self.selector(), arguments) }?;
        Ok((results[0], results[1] as u32))
    }

    /// Unmasks interrupt `index` of this range after it was handled.
    pub fn acknowledge(self, index: u64) -> Result<()> {
        // SAFETY: touches no memory.
        unsafe { invoke(Hypercall::IrqAck, self.selector(), [index, 0, 0, 0, 0, 0]) }.map(drop)
    }
}

impl Cap<Trace> {
    /// Has CPU `index` of this range record its events in all of `ring` (SPEC.md 4.10), which was zeroed and has no other use.
    pub fn record(self, index: u64, ring: Cap<Memory>) -> Result<()> {
        bind(self.selector(), ring.selector(), BindRole::TraceRing, index)
    }
}

impl Cap<Log> {
    /// Writes to the kernel's log; `\n` ends a line.
    pub fn write(self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(LOG_BYTES) {
            let mut arguments = [chunk.len() as u64, 0, 0, 0, 0, 0];
            for (index, &byte) in chunk.iter().enumerate() {
                arguments[1 + index / 8] |= u64::from(byte) << (index % 8 * 8);
            }
            // SAFETY: touches no memory.
            unsafe { invoke(Hypercall::LogWrite, self.selector(), arguments) }?;
        }
        Ok(())
    }
}

impl Cap<GuestSpace> {
    /// Signals a semaphore or notification, with the capability's badge, when the guest rings. The binding ends with the
    /// capability, which is for this doorbell alone.
    pub fn bind_doorbell(self, trigger: Doorbell, signal: Selector) -> Result<()> {
        bind(self.selector(), signal, trigger.role(), trigger.encode())
    }
}

impl Cap<DmaSpace> {
    /// Lets a device, the one with this number in its range, reach the memory of the space and no other.
    pub fn admit(self, devices: Cap<Devices>, index: u64) -> Result<()> {
        bind(self.selector(), devices.selector(), BindRole::Device, index)
    }
}

impl Cap<Devices> {
    /// Keeps the only device of this range out of the space that it is in: it reaches no memory any more.
    pub fn expel(self) -> Result<()> {
        // SAFETY: touches no memory.
        unsafe { invoke(Hypercall::Unmap, self.selector(), [0, 1, 0, 0, 0, 0]) }.map(drop)
    }
}

impl Cap<Vcpu> {
    /// Makes the current or the next run return.
    pub fn poke(self) -> Result<()> {
        // SAFETY: touches no memory.
        unsafe { invoke(Hypercall::VcpuPoke, self.selector(), [0; 6]) }.map(drop)
    }

    /// Makes a one-page memory capability the virtual-APIC page.
    pub fn bind_virtual_apic(self, page: Cap<crate::cap::Memory>) -> Result<()> {
        bind(self.selector(), page.selector(), BindRole::VirtualApic, 0)
    }

    /// Makes the word at byte `offset` of a memory capability, a multiple of 4, the one that ends interrupts without an exit.
    pub fn bind_eoi_word(self, memory: Cap<crate::cap::Memory>, offset: u64) -> Result<()> {
        bind(self.selector(), memory.selector(), BindRole::EoiWord, offset)
    }

    /// Makes a run return while `ntfn` has bits.
    pub fn bind_notification(self, ntfn: Cap<Ntfn>) -> Result<()> {
        bind(self.selector(), ntfn.selector(), BindRole::VcpuNotification, 0)
    }
}

/// Gives up the processor until the next period of this thread's scheduling context.
pub fn yield_now() {
    // SAFETY: touches no memory. It cannot fail in a way that matters: the thread goes on.
    let _ = unsafe { invoke(Hypercall::Yield, Selector::NULL, [0; 6]) };
}
