//! Instructions of a guest that the kernel completes in the VMM's place, by way of the vCPU page: what it writes there passes
//! the same checks as a VMM's.

use super::vcpu::Vcpu;
use core::cell::Cell;
use core::ptr::NonNull;
use hypercall_abi::vcpu::{ACTIVITY_HALTED, Groups, Interruptibility, Store, VcpuPage};
use kcore::addr::PhysAddr;
use kcore::virt::fetch::{self, GuestRam};
use khw::mem::{Tables, phys_to_virt};
use khw::virt::{GuestCpu, nested};

/// HLT without prefixes.
const HLT: [u8; 1] = [0xf4];
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;

/// The instruction that exited.
pub struct Instruction {
    page: NonNull<VcpuPage>,
    rip: u64,
    rflags: u64,
    next: u64,
}

impl Instruction {
    /// The instruction of the last exit, which has `length` bytes; `None` if the VMM must complete it: the length is not known
    /// (0), the exit interrupted the delivery of an event, the instruction is single-stepped, or ends beyond a 4-GiB boundary.
    ///
    /// # Safety
    /// The page is bound, as in `Vcpu::enter_guest`.
    #[inline]
    pub unsafe fn new(page: NonNull<VcpuPage>, length: u64) -> Option<Self> {
        let p = page.as_ptr();
        // SAFETY: the frame stays until a grace period after the page is unbound. The VMM may write it at any time, so
        // each word is read once.
        let (rip, rflags, pending) = unsafe {
            (
                (&raw const (*p).rip).read_volatile(),
                (&raw const (*p).rflags).read_volatile(),
                (&raw const (*p).inject).read_volatile(),
            )
        };
        let next = rip.wrapping_add(length);
        let is_ours =
            length != 0 && !pending.is_valid() && rflags & RFLAGS_TF == 0 && (rip ^ next) >> 32 == 0;
        is_ours.then_some(Instruction { page, rip, rflags, next })
    }

    /// Moves the guest behind it.
    #[inline]
    pub fn complete(self) {
        let p = self.page.as_ptr();
        // SAFETY: as in `new`.
        unsafe {
            let interruptibility = &raw mut (*p).interruptibility;
            interruptibility
                .write_volatile(interruptibility.read_volatile() & !Interruptibility::SHADOW.bits());
            (&raw mut (*p).rip).write_volatile(self.next);
            (&raw mut (*p).rflags).write_volatile(self.rflags & !RFLAGS_RF);
            (&raw mut (*p).dirty).write_volatile(Groups::RIP.bits());
        }
        debug_assert!(self.next != self.rip);
    }
}

/// A page of a guest's memory that was looked up in its nested tables. Touched by the vCPU's CPU only.
#[derive(Debug, Default)]
pub struct LastPage {
    /// Guest-physical address, physical address and bytes.
    page: Cell<(u64, u64, u64)>,
    /// The space's generation then: the page goes as a translation in the TLB does.
    generation: Cell<u64>,
}

/// The guest's memory, by its nested tables. Page tables and code are often in one large page: the last one is remembered.
struct Ram<'a> {
    root: PhysAddr,
    last: &'a Cell<(u64, u64, u64)>,
}

impl Ram<'_> {
    /// Remembers the page that the address is in; `None` if that is no RAM.
    #[inline(never)]
    fn look_up(&self, address: u64) -> Option<()> {
        // SAFETY: tables of a guest space stay tables until a grace period after its end.
        let found = nested::ram_at(&unsafe { Tables::new(()) }, self.root, address)?;
        let inside = address & (found.size.bytes() - 1);
        self.last.set((address - inside, found.pa.0 - inside, found.size.bytes()));
        Some(())
    }
}

impl GuestRam for Ram<'_> {
    #[inline(always)]
    fn frame(&self, address: u64) -> Option<PhysAddr> {
        let (first, _, bytes) = self.last.get();
        if address.wrapping_sub(first) >= bytes {
            self.look_up(address)?;
        }
        let (first, frame, _) = self.last.get();
        Some(PhysAddr((frame + (address - first)) & !0xfff))
    }

    fn read(&self, frame: PhysAddr, index: usize) -> u64 {
        // SAFETY: RAM that the guest had a moment ago, and that nobody else gets before a grace period is over; it is in the
        // direct map. The index stays in its page by the mask.
        unsafe { phys_to_virt(frame).cast::<u64>().add(index & 511).read_volatile() }
    }
}

impl Vcpu {
    /// Halts the guest behind the HLT of the exit, whose length the backend did not know; false if that is not known here either.
    #[inline(never)]
    pub(super) fn halts_behind(&self, page: NonNull<VcpuPage>) -> bool {
        let length = self.length_if(page, |rip| Store::new(rip, &HLT));
        // SAFETY: as in `Instruction::new`.
        let Some(instruction) = (unsafe { Instruction::new(page, length) }) else {
            return false;
        };
        instruction.complete();
        // SAFETY: as there.
        unsafe { (&raw mut (*page.as_ptr()).activity).write_volatile(ACTIVITY_HALTED) };
        true
    }

    /// Whether the guest is in 64-bit mode, and has the instruction of `expected(rip)` at RIP: its length, else 0. Within a run.
    /// Apart from the loop that enters guests, which has registers for little else.
    #[inline(never)]
    pub fn length_if(&self, page: NonNull<VcpuPage>, expected: impl FnOnce(u64) -> Store) -> u64 {
        // SAFETY: as in `Instruction::new`; this is the vCPU's CPU.
        let (rip, cr3) = unsafe {
            let rip = (&raw const (*page.as_ptr()).rip).read_volatile();
            (rip, self.backend().code_root())
        };
        let expected = expected(rip);
        let (last, generation) = (&self.last_page, self.space.generation());
        if last.generation.replace(generation) != generation {
            last.page.set((0, 0, 0));
        }
        let ram = Ram { root: self.space.root, last: &last.page };
        match cr3 {
            Some(cr3) if fetch::is_at(&ram, cr3, rip, &expected) => expected.length.into(),
            _ => 0,
        }
    }
}
