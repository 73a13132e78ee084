//! The per-CPU block that GS points to in the kernel.

use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;

/// What the entry code needs of a CPU. The kernel's own per-CPU data hangs off [`Block::local`].
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Block {
    /// Address of this block, so that `gs:[0]` gives a pointer.
    pub this: u64,
    /// One past the register frame of the execution context that runs: where kernel entry saves registers.
    pub frame_end: u64,
    /// Top of this CPU's kernel stack.
    pub stack_top: u64,
    /// RSP of user code during SYSCALL entry.
    pub scratch: u64,
    /// Address of the kernel's per-CPU data.
    pub local: u64,
    /// Save area of the guest whose FPU state is in the registers, 0 for none (`cpu::fpu`).
    pub fpu_owner: u64,
    /// Frame of the current VMCS, 0 for none (`virt::vmx`).
    pub vmcs: u64,
    /// Number of this CPU.
    pub id: u32,
    /// Local APIC id.
    pub apic_id: u32,
}

/// Offsets for assembly.
pub mod offset {
    use super::Block;
    use core::mem::offset_of;
    /// [`Block::frame_end`].
    pub const FRAME_END: usize = offset_of!(Block, frame_end);
    /// [`Block::stack_top`].
    pub const STACK_TOP: usize = offset_of!(Block, stack_top);
    /// [`Block::scratch`].
    pub const SCRATCH: usize = offset_of!(Block, scratch);
    /// [`Block::local`].
    pub const LOCAL: usize = offset_of!(Block, local);
    /// [`Block::fpu_owner`].
    pub const FPU_OWNER: usize = offset_of!(Block, fpu_owner);
    /// [`Block::vmcs`].
    pub const VMCS: usize = offset_of!(Block, vmcs);
    /// [`Block::id`].
    pub const ID: usize = offset_of!(Block, id);
}

/// Addresses of the blocks, for CPUs that look at each other; 0 for CPUs that are not up.
static BLOCKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Makes `block` this CPU's.
///
/// # Safety
/// The block lives for ever; the CPU has none yet; interrupts are off.
pub unsafe fn install(block: *mut Block) {
    // SAFETY: the caller gives an exclusive block; IA32_GS_BASE takes any canonical address.
    unsafe {
        (*block).this = block as u64;
        crate::cpu::msr::write(crate::cpu::msr::GS_BASE, block as u64);
        crate::cpu::msr::write(crate::cpu::msr::KERNEL_GS_BASE, 0);
        BLOCKS[(*block).id as usize].store(block as u64, Ordering::Release);
    }
}

/// Number of this CPU.
#[inline]
pub fn id() -> usize {
    let id: u32;
    // SAFETY: in the kernel, GS is the per-CPU block (`install`, and SWAPGS at each entry).
    unsafe {
        core::arch::asm!("mov {0:e}, gs:[{1}]", out(reg) id, const offset::ID, options(nostack, preserves_flags, pure, readonly));
    }
    id as usize
}

/// The kernel's per-CPU data ([`Block::local`]).
#[inline]
pub fn local() -> u64 {
    let local: u64;
    // SAFETY: as in `id`.
    unsafe {
        core::arch::asm!("mov {0}, gs:[{1}]", out(reg) local, const offset::LOCAL, options(nostack, preserves_flags, pure, readonly));
    }
    local
}

/// Where the next kernel entry saves registers: `end` is one past the frame of the context that is about to run.
#[inline]
pub fn set_frame_end(end: u64) {
    // SAFETY: as in `id`; only this CPU uses the field, at its next entry from user mode.
    unsafe {
        core::arch::asm!("mov gs:[{1}], {0}", in(reg) end, const offset::FRAME_END, options(nostack, preserves_flags));
    }
}

/// Whose FPU state is in the registers: the address of its save area, 0 for nobody's.
#[inline]
pub fn fpu_owner() -> u64 {
    let area: u64;
    // SAFETY: as in `id`.
    unsafe {
        core::arch::asm!("mov {0}, gs:[{1}]", out(reg) area, const offset::FPU_OWNER, options(nostack, preserves_flags, readonly));
    }
    area
}

/// Says whose FPU state is in the registers.
#[inline]
pub fn set_fpu_owner(area: u64) {
    // SAFETY: as in `id`; only this CPU uses the field.
    unsafe {
        core::arch::asm!("mov gs:[{1}], {0}", in(reg) area, const offset::FPU_OWNER, options(nostack, preserves_flags));
    }
}

/// Which VMCS is current, by its frame; 0 for none.
#[inline]
pub fn vmcs() -> u64 {
    let frame: u64;
    // SAFETY: as in `id`.
    unsafe {
        core::arch::asm!("mov {0}, gs:[{1}]", out(reg) frame, const offset::VMCS, options(nostack, preserves_flags, readonly));
    }
    frame
}

/// Says which VMCS is current.
#[inline]
pub fn set_vmcs(frame: u64) {
    // SAFETY: as in `id`; only this CPU uses the field.
    unsafe {
        core::arch::asm!("mov gs:[{1}], {0}", in(reg) frame, const offset::VMCS, options(nostack, preserves_flags));
    }
}

/// The block of a CPU that is up.
pub fn block(cpu: usize) -> Option<&'static Block> {
    let addr = BLOCKS.get(cpu)?.load(Ordering::Acquire);
    // SAFETY: `install` stored the address of a block that lives for ever. Other CPUs read only fields that are
    // constant after `install` (`id`, `apic_id`).
    (addr != 0).then(|| unsafe { &*(addr as *const Block) })
}
