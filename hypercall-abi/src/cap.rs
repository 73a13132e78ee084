//! Capabilities: selectors, object types, rights (SPEC.md 2).

use crate::numbers::numbers;

/// Names a capability in the object space of the calling protection domain. 0 names nothing.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector(pub u32);

impl Selector {
    /// Names nothing; where a call takes an optional capability, "none"; for `Derive`, the caller's own PD.
    pub const NULL: Selector = Selector(0);
    /// One past the largest selector.
    pub const END: u32 = 32768;
}

numbers! {
    /// The type of the object, or of the range, that a capability names.
    ObjectType: u8 {
        /// An empty slot.
        Null = 0,
        /// Frames of kernel memory.
        Pool = 1,
        /// Protection domain.
        Pd = 2,
        /// Execution context.
        Ec = 3,
        /// Scheduling context.
        Sc = 4,
        /// Portal.
        Pt = 5,
        /// Semaphore.
        Sm = 6,
        /// Notification: 64 bits.
        Ntfn = 7,
        /// Guest-physical address space.
        GuestSpace = 8,
        /// Virtual CPU.
        Vcpu = 9,
        /// DMA space: the memory that devices reach.
        DmaSpace = 10,
        /// A range of page frames.
        Memory = 16,
        /// A range of I/O ports.
        Ports = 17,
        /// A range of global system interrupts.
        Irqs = 18,
        /// The kernel's log.
        Log = 19,
        /// A range of CPUs whose events may be recorded.
        Trace = 20,
        /// A range of devices: PCI requester IDs.
        Devices = 21,
    }
}

bitflags::bitflags! {
    /// What a capability allows. The low bits mean something else for each [`ObjectType`] (SPEC.md 2.3).
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Rights: u16 {
        /// Derive further capabilities from this one (every type).
        const DERIVE = 1 << 15;

        /// Pool: create objects paid from it.
        const POOL_CREATE = 1 << 0;

        /// PD: create execution contexts in it, bind to it.
        const PD_CONTROL = 1 << 0;
        /// PD: put capabilities into its object space.
        const PD_GRANT = 1 << 1;
        /// PD: map memory and ports into it.
        const PD_MAP = 1 << 2;

        /// EC: bind a UTCB or a fault notification, create a scheduling context for it, create portals.
        const EC_CONTROL = 1 << 0;
        /// EC: read why it stopped.
        const EC_INFO = 1 << 1;

        /// SC: read the time it used.
        const SC_INFO = 1 << 0;

        /// Portal: call it.
        const PT_CALL = 1 << 0;

        /// Semaphore or notification: signal it.
        const SIGNAL = 1 << 0;
        /// Semaphore or notification: wait on it.
        const WAIT = 1 << 1;

        /// Guest space: map memory into it.
        const GUEST_MAP = 1 << 0;
        /// Guest space: create vCPUs in it.
        const GUEST_VCPU = 1 << 1;
        /// Guest space: bind doorbells to it.
        const GUEST_DOORBELL = 1 << 2;

        /// vCPU: run it, read its state, bind to it.
        const VCPU_RUN = 1 << 0;
        /// vCPU: poke it.
        const VCPU_POKE = 1 << 1;
        /// vCPU: raise an interrupt in it.
        const VCPU_INTERRUPT = 1 << 2;

        /// DMA space: map memory into it.
        const DMA_MAP = 1 << 0;
        /// DMA space: put devices into it.
        const DMA_ASSIGN = 1 << 1;

        /// Memory: map readable.
        const READ = 1 << 0;
        /// Memory: map writable.
        const WRITE = 1 << 1;
        /// Memory: map executable.
        const EXECUTE = 1 << 2;

        /// Ports: map. Interrupts: bind and acknowledge. Log: write. Trace: record. Devices: put into a
        /// DMA space.
        const USE = 1 << 0;
    }
}

impl Rights {
    /// Every right.
    pub const ALL: Rights = Rights::from_bits_retain(0xffff);
}

bitflags::bitflags! {
    /// How `Map` maps memory: rights to use out of those of the capability, and the memory type.
    #[repr(transparent)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Readable (always implied in a host space).
        const READ = 1 << 0;
        /// Writable.
        const WRITE = 1 << 1;
        /// Executable.
        const EXECUTE = 1 << 2;
        /// Uncached; without it write-back. Only for memory that is a device's.
        const UNCACHED = 1 << 3;
    }
}

/// How an interrupt comes (SPEC.md 4.7, IrqBind).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqKind {
    /// By a rising edge of a pin.
    Edge = 0,
    /// By a low level of a pin; masked at each interrupt until `IrqAck`.
    Level = 1,
    /// By a message that a device writes.
    Message = 2,
}

numbers! {
    /// What `Bind` binds (SPEC.md 4, Bind).
    BindRole: u64 {
        /// EC: one page of memory becomes the message area; `extra` is the page offset in the capability.
        Utcb = 0,
        /// EC: signalled with its badge when the EC stops on a fault.
        FaultNotification = 1,
        /// vCPU: one page of memory becomes the state page; `extra` is the page offset in the capability.
        VcpuPage = 2,
        /// vCPU: pending bits of this notification make `VcpuRun` return.
        VcpuNotification = 3,
        /// Guest space: signalled by a doorbell call; `extra` is a [`crate::doorbell::Doorbell`], as for the next two.
        DoorbellCall = 4,
        /// Guest space: signalled by an OUT.
        DoorbellPort = 5,
        /// Guest space: signalled by a write to a page.
        DoorbellPage = 6,
        /// vCPU: one page of memory becomes the virtual-APIC page; `extra` is the page offset in the capability.
        VirtualApic = 7,
        /// Trace: the memory becomes the ring of records of a CPU; `extra` is the CPU, counted in the range.
        TraceRing = 8,
        /// DMA space: a device reaches the memory of the space; `extra` is the device, counted in the range.
        Device = 9,
        /// vCPU: a 32-bit word of memory ends interrupts without an exit; `extra` is its byte offset in the capability.
        EoiWord = 10,
    }
}
