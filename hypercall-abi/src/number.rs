//! Hypercall numbers (SPEC.md 4).

use crate::numbers::numbers;

numbers! {
    /// A hypercall. The number is in bits 0 to 7 of RAX (see [`crate::regs`]).
    Hypercall: u8 {
        /// Call a portal; the reply comes back in the same registers.
        Call = 0,
        /// Reply to the caller of this portal handler and wait for the next call.
        Reply = 1,
        /// Add one to a semaphore, or OR the capability's badge into a notification.
        Signal = 2,
        /// Take one from a semaphore, or all bits of a notification; waits until the deadline.
        Wait = 3,
        /// Run a vCPU until an exit its VMM must see.
        VcpuRun = 4,
        /// Make the current or the next `VcpuRun` of a vCPU return.
        VcpuPoke = 5,
        /// Fill groups of the vCPU page that the last exit left out.
        VcpuRead = 6,
        /// What a selector names.
        CapInfo = 7,
        /// Map (part of) a memory capability into an address space, or ports into a protection domain.
        Map = 8,
        /// Unmap (part of) what a memory or port capability mapped.
        Unmap = 9,
        /// Derive a narrowed capability into a protection domain.
        Derive = 10,
        /// Revoke everything derived from a capability, and the capability itself if asked.
        Revoke = 11,
        /// Bind a capability to a role of an object (UTCB, vCPU page, notifications).
        Bind = 12,
        /// Give up the processor until the next period of this scheduling context.
        Yield = 13,
        /// As `Call`, with words and capabilities of the message area, and a deadline.
        CallMessage = 14,
        /// As `Reply`, with words and capabilities of the message area.
        ReplyMessage = 15,
        /// Create a pool of kernel memory out of another one.
        CreatePool = 16,
        /// Create a protection domain.
        CreatePd = 17,
        /// Create an execution context.
        CreateEc = 18,
        /// Create a scheduling context for an execution context and start it.
        CreateSc = 19,
        /// Create a portal.
        CreatePt = 20,
        /// Create a semaphore.
        CreateSm = 21,
        /// Create a notification.
        CreateNtfn = 22,
        /// Create a guest-physical address space.
        CreateGuestSpace = 23,
        /// Create a vCPU.
        CreateVcpu = 24,
        /// Create a space of memory that devices reach.
        CreateDmaSpace = 25,
        /// Why an execution context stopped.
        EcInfo = 32,
        /// Processor time a scheduling context has used.
        ScInfo = 33,
        /// Free frames in a pool.
        PoolInfo = 34,
        /// Bind an interrupt to a notification or semaphore and unmask it.
        IrqBind = 40,
        /// Unmask an interrupt after it was handled.
        IrqAck = 41,
        /// Collect and clear which units of guest memory were written.
        CollectDirty = 42,
        /// Move FPU state between a vCPU and a page, or reset it.
        VcpuFpu = 43,
        /// Write to the kernel's log.
        LogWrite = 48,
    }
}
