//! The kernel's data for each CPU.

use crate::object::due::DueQueue;
use crate::object::ec::{Ec, Releasing};
use crate::object::sc::{InQueue, Sc};
use crate::object::{Header, InPool, List};
use crate::trace::Cursor;
use core::cell::Cell;
use hypercall_abi::boot_info::MAX_CPUS;
use khw::desc::CpuTables;
use khw::sync::Lock;
use khw::virt::HostState;

/// Priorities of scheduling contexts: 0 to 31.
pub const PRIORITIES: usize = 32;

/// What a CPU knows. Only that CPU touches it, but for [`Local::queues`].
#[derive(Debug)]
pub struct Local {
    /// Number of the CPU.
    pub id: usize,
    /// Its stacks and descriptor tables.
    pub tables: *mut CpuTables,
    /// The scheduling context that pays, if one runs.
    pub sc: Cell<Option<&'static Sc>>,
    /// The execution context that runs.
    pub ec: Cell<Option<&'static Ec>>,
    /// The context whose frame, address space and ports are set up.
    pub active: Cell<Option<&'static Ec>>,
    /// [`khw::smp::epoch`] when `active` was set up.
    pub epoch: Cell<u32>,
    /// Whose ports the I/O bitmap in the TSS shows ([`crate::object::pd::Pd::id`]), and which version of them.
    pub io_owner: Cell<(u64, u64)>,
    /// What there is to do besides loading CR3 when another domain's code runs.
    pub crossing: Attention,
    /// A VM exit shortened TR's limit.
    pub tr_is_short: Cell<bool>,
    /// When the timeslice ends, TSC.
    pub slice_end: Cell<u64>,
    /// Since when the current scheduling context is charged, TSC.
    pub charged_since: Cell<u64>,
    /// What the timer is armed for, TSC.
    pub armed: Cell<u64>,
    /// What the short ways out of the kernel must not pass by.
    pub attention: Attention,
    /// Interrupts that the kernel let in.
    pub interrupts: Cell<u32>,
    /// Where its events are recorded.
    pub trace: Cursor,
    /// Queues that other CPUs put contexts into.
    pub queues: Lock<Queues>,
}

/// Reasons not to go on with what ran before. The short ways test for all of them at once.
#[repr(transparent)]
#[derive(Debug)]
pub struct Attention(Cell<u8>);

impl Attention {
    /// Somebody more urgent became ready, or the slice is over.
    pub const SWITCH: u8 = 1 << 0;
    /// Events are recorded.
    pub const TRACE: u8 = 1 << 1;
    /// The TSS lets user code use the I/O bitmap.
    pub const IO_IS_OPEN: u8 = 1 << 2;
    /// Predictors or caches are to be cleaned ([`khw::cpu::mitigation`]).
    pub const BARRIERS: u8 = 1 << 3;

    const fn new() -> Self {
        Attention(Cell::new(0))
    }

    /// Whether there is no reason.
    #[inline]
    pub fn is_none(&self) -> bool {
        self.0.get() == 0
    }

    /// Whether there is this one.
    #[inline]
    pub fn has(&self, reason: u8) -> bool {
        self.0.get() & reason != 0
    }

    /// Adds one.
    #[inline]
    pub fn add(&self, reason: u8) {
        self.0.set(self.0.get() | reason);
    }

    /// Adds one or takes it away.
    #[inline]
    pub fn set(&self, reason: u8, is_there: bool) {
        if is_there {
            self.add(reason);
        } else {
            self.remove(reason);
        }
    }

    /// Takes one away.
    #[inline]
    pub fn remove(&self, reason: u8) {
        self.0.set(self.0.get() & !reason);
    }
}

/// The scheduler's queues of a CPU.
#[derive(Debug)]
pub struct Queues {
    /// Bit n set: `ready[n]` is not empty.
    pub bitmap: u32,
    /// Ready scheduling contexts by priority.
    pub ready: [List<Sc, InQueue>; PRIORITIES],
    /// Scheduling contexts out of budget.
    pub refill: DueQueue<Sc>,
    /// Waiting contexts with a deadline.
    pub timed: DueQueue<Ec>,
    /// Contexts whose wait is over while others wait with them.
    pub releasing: List<Ec, Releasing>,
    /// Objects of this CPU that are being destroyed: it lets go of them when it serves the request.
    pub doomed: List<Header, InPool>,
    /// Those it has let go of.
    pub released: List<Header, InPool>,
}

// SAFETY: used under `Local::queues`.
unsafe impl Send for Queues {}

impl Local {
    /// The data of CPU `id`.
    pub const fn new(id: usize, tables: *mut CpuTables) -> Self {
        Local {
            id,
            tables,
            sc: Cell::new(None),
            ec: Cell::new(None),
            active: Cell::new(None),
            epoch: Cell::new(0),
            io_owner: Cell::new((0, 0)),
            crossing: Attention::new(),
            tr_is_short: Cell::new(false),
            slice_end: Cell::new(u64::MAX),
            charged_since: Cell::new(0),
            armed: Cell::new(u64::MAX),
            attention: Attention::new(),
            interrupts: Cell::new(0),
            trace: Cursor::new(),
            queues: Lock::new(Queues {
                bitmap: 0,
                ready: [const { List::new() }; PRIORITIES],
                refill: DueQueue::new(),
                timed: DueQueue::new(),
                releasing: List::new(),
                doomed: List::new(),
                released: List::new(),
            }),
        }
    }

    /// The host state of this CPU for world switches.
    pub fn host_state(&self) -> HostState {
        HostState {
            gdt_base: CpuTables::gdt_base(self.tables),
            idt_base: khw::desc::idt_base(),
            tss_base: CpuTables::tss_base(self.tables),
            tss_selector: khw::desc::TSS,
            code_selector: khw::desc::KERNEL_CODE,
            gs_base: khw::percpu::block(self.id).map_or(0, |block| block.this),
        }
    }
}

static LOCALS: [core::sync::atomic::AtomicPtr<Local>; MAX_CPUS] =
    [const { core::sync::atomic::AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];

/// Registers the data of a CPU; it lives for ever.
pub fn register(local: &'static Local) {
    LOCALS[local.id].store((local as *const Local).cast_mut(), core::sync::atomic::Ordering::Release);
}

/// This CPU's data.
#[inline]
pub fn local() -> &'static Local {
    // SAFETY: boot sets the pointer to a `Local` that lives for ever before anything calls this.
    unsafe { &*(khw::percpu::local() as *const Local) }
}

/// Another CPU's data: only for its [`Local::queues`].
#[inline]
pub fn of(cpu: usize) -> &'static Local {
    // SAFETY: execution contexts exist only on CPUs that are up, and those are registered.
    unsafe { &*LOCALS[cpu].load(core::sync::atomic::Ordering::Acquire) }
}
