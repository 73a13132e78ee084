//! Interrupts that a vCPU gets from its virtual-APIC page, and from other processes, without its VMM (ADR 0006).
//!
//! Raising an interrupt posts it: from any CPU, without a lock, and without touching the page. The vCPU's CPU moves what is
//! posted into the page when it enters the guest.

use super::instruction::Instruction;
use super::vcpu::Vcpu;
use crate::cap::BoundList;
use core::cell::Cell;
use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hypercall_abi::Status;
use hypercall_abi::exit::ExitKind;
use hypercall_abi::vcpu::gpr::{RAX, RCX, RDX};
use hypercall_abi::vcpu::{
    ACTIVITY_ACTIVE, Event, FIRST_LINE, Groups, Interruptibility, LINES, RunFlags, Store, VcpuPage,
};
use kcore::addr::PhysAddr;
use kcore::sync::posted::Posted;
use kcore::virt::vapic::{self, ApicPage, FIRST_VECTOR, Write};
use khw::mem::phys_to_virt;
use khw::virt::GuestCpu;

const RFLAGS_IF: u64 = 1 << 9;
/// Bit of the word for EOI: the guest may clear it in place of writing the register.
const EOI_OFFERED: u32 = 1 << 0;
/// WRMSR without prefixes.
const WRMSR: [u8; 2] = [0x0f, 0x30];

/// A vCPU's part of it.
#[derive(Debug)]
pub struct VirtualApic {
    /// Frame of the virtual-APIC page; 0 for none. Written under the tree lock.
    pub frame: AtomicU64,
    /// The memory capability of the page. Under the tree lock.
    pub bound: BoundList,
    /// Physical address of the word by which the guest ends interrupts without an exit; 0 for none. Written under the tree lock.
    pub eoi_word: AtomicU64,
    /// The memory capability of the word. Under the tree lock.
    pub eoi_bound: BoundList,
    /// The word was set for the interrupt in service. Touched by the vCPU's CPU only.
    is_eoi_offered: Cell<bool>,
    /// Vectors that are raised and not yet in the page.
    posted: Posted,
    /// Frame whose page the guest interrupt status comes from. Touched by the vCPU's CPU only.
    shown: Cell<u64>,
    /// Guest interrupt status, unless the hardware has it. Touched by the vCPU's CPU only.
    status: Cell<vapic::Status>,
}

impl VirtualApic {
    /// Without a page.
    pub const fn new() -> Self {
        VirtualApic {
            frame: AtomicU64::new(0),
            bound: BoundList::new(),
            eoi_word: AtomicU64::new(0),
            eoi_bound: BoundList::new(),
            is_eoi_offered: Cell::new(false),
            posted: Posted::new(),
            shown: Cell::new(0),
            status: Cell::new(vapic::Status { requested: 0, in_service: 0 }),
        }
    }

    /// The page, and its frame: read once, since another CPU may unbind it at any time.
    fn page(&self) -> Option<(PhysAddr, &ApicPage)> {
        let frame = PhysAddr(self.frame.load(Ordering::Acquire));
        // SAFETY: the frame is bound RAM: it stays until a grace period after it is unbound. Any bytes are a page, whose
        // words are atomics, as the VMM may write them at any time.
        (frame.0 != 0).then(|| (frame, unsafe { &*phys_to_virt(frame).cast() }))
    }

    fn eoi_word(&self) -> Option<&AtomicU32> {
        let address = self.eoi_word.load(Ordering::Acquire);
        // SAFETY: as in `page`; the word is aligned. The guest changes it at any time, which an atomic allows.
        (address != 0).then(|| unsafe { &*phys_to_virt(PhysAddr(address)).cast() })
    }

    /// Lets the guest end the interrupt that it is about to be given by its word. Whoever comes meanwhile takes that back.
    fn offer_eoi(&self) {
        if let Some(word) = self.eoi_word() {
            word.fetch_or(EOI_OFFERED, Ordering::SeqCst);
            self.is_eoi_offered.set(true);
        }
    }

    /// Ends the interrupt that the guest ended by its word, or takes the word back.
    #[inline]
    fn settle_eoi(&self, apic: &ApicPage, status: &mut vapic::Status) {
        if self.is_eoi_offered.replace(false)
            && let Some(word) = self.eoi_word()
            && word.fetch_and(!EOI_OFFERED, Ordering::SeqCst) & EOI_OFFERED == 0
        {
            apic.write(status, vapic::msr::EOI, 0);
        }
    }

    /// Requests what was posted.
    fn take_posted(&self, apic: &ApicPage, status: &mut vapic::Status) {
        self.posted.take(|index, vectors| apic.request(status, index, vectors));
    }
}

impl Default for VirtualApic {
    fn default() -> Self {
        Self::new()
    }
}

impl Vcpu {
    /// Raises the interrupt that a capability with this badge is for.
    pub fn raise(&self, badge: u64) -> Result<(), Status> {
        let vector =
            u8::try_from(badge).ok().filter(|&vector| vector >= FIRST_VECTOR).ok_or(Status::BadArgument)?;
        if self.apic.posted.add(vector) {
            self.kick();
        }
        Ok(())
    }

    /// Raises the interrupts that the VMM has bound to bits of its notification, some of which may be set. The bits that are left for it.
    #[inline(never)]
    pub fn raise_lines(&self, page: NonNull<VcpuPage>, bits: u64) -> u64 {
        let p = page.as_ptr();
        // SAFETY: as in `update_interrupts`.
        let flags = unsafe { addr_of_mut!((*p).run_flags).read_volatile() };
        if !RunFlags::from_bits_retain(flags).contains(RunFlags::VIRTUAL_APIC) {
            return bits;
        }
        let (mut rest, mut lines) = (bits, bits >> FIRST_LINE);
        while lines != 0 {
            let line = lines.trailing_zeros() as usize % LINES;
            lines &= lines - 1;
            // SAFETY: as above.
            let vector = unsafe { addr_of_mut!((*p).lines[line]).read_volatile() };
            if self.raise(vector.into()).is_ok() {
                rest &= !(1 << (FIRST_LINE as usize + line));
            }
        }
        rest
    }

    /// Guest interrupt status. On the vCPU's CPU, as the next.
    fn interrupt_status(&self) -> vapic::Status {
        let backend = self.backend();
        if backend.virtualizes_apic() {
            // SAFETY: on the vCPU's CPU, and its guest is not running.
            unsafe { backend.interrupt_status() }
        } else {
            self.apic.status.get()
        }
    }

    fn set_interrupt_status(&self, status: vapic::Status) {
        let backend = self.backend();
        if backend.virtualizes_apic() {
            // SAFETY: as in `interrupt_status`.
            unsafe { backend.set_interrupt_status(status) };
        } else {
            self.apic.status.set(status);
        }
    }

    /// Moves what was posted into the page, if there is one, so that the page has all interrupts. On the vCPU's CPU.
    pub fn collect_interrupts(&self) {
        if let Some((_, apic)) = self.apic.page() {
            let mut status = self.interrupt_status();
            self.apic.settle_eoi(apic, &mut status);
            self.apic.take_posted(apic, &mut status);
            self.set_interrupt_status(status);
        }
    }

    /// Whether an interrupt was raised that a run with these flags takes.
    pub fn is_interrupted(&self, flags: RunFlags) -> bool {
        flags.contains(RunFlags::VIRTUAL_APIC) && self.apic.posted.is_some()
    }

    /// Before an entry with a virtual APIC: takes what was posted and what the VMM changed, and hands the guest the interrupt that
    /// is due. The flags are those to enter with: a window is opened if the guest is not ready.
    #[inline]
    pub fn take_interrupts(&self, page: NonNull<VcpuPage>, flags: RunFlags, dirty: &mut Groups) -> RunFlags {
        let Some((frame, apic)) = self.apic.page() else {
            return flags - RunFlags::VIRTUAL_APIC;
        };
        let is_idle = !dirty.contains(Groups::APIC)
            && self.apic.status.get().requested == 0
            && self.apic.shown.get() == frame.0
            && !self.apic.posted.is_some();
        if is_idle { flags } else { self.update_interrupts(page, (frame, apic), flags, dirty) }
    }

    fn update_interrupts(
        &self,
        page: NonNull<VcpuPage>,
        (frame, apic): (PhysAddr, &ApicPage),
        flags: RunFlags,
        dirty: &mut Groups,
    ) -> RunFlags {
        let p = page.as_ptr();
        let mut status = self.interrupt_status();
        if dirty.contains(Groups::APIC) || self.apic.shown.get() != frame.0 {
            status = apic.status();
            *dirty -= Groups::APIC;
            self.apic.shown.set(frame.0);
            // SAFETY: the page is bound, and the VMM may write it at any time: its words are read once. The frame is the RAM of
            // `apic`: it stays until a grace period after it is unbound, and no guest runs beyond one without a look here.
            unsafe {
                addr_of_mut!((*p).dirty).write_volatile(dirty.bits());
                let eoi_exits = addr_of_mut!((*p).eoi_exits).read_volatile();
                self.backend().set_virtual_apic(frame, eoi_exits);
            }
        }
        self.apic.settle_eoi(apic, &mut status);
        self.apic.take_posted(apic, &mut status);
        self.set_interrupt_status(status);
        if self.backend().virtualizes_apic() {
            return flags;
        }
        let mut flags = flags;
        if apic.is_pending(status) {
            // SAFETY: as above.
            unsafe {
                let is_ready = !addr_of_mut!((*p).inject).read_volatile().is_valid()
                    && addr_of_mut!((*p).rflags).read_volatile() & RFLAGS_IF != 0
                    && addr_of_mut!((*p).interruptibility).read_volatile() & Interruptibility::SHADOW.bits()
                        == 0;
                if is_ready {
                    let vector = apic.deliver(&mut status);
                    // Others that wait come at the end of this one, which the kernel has to see.
                    if status.requested == 0 && !has_eoi_exit(page, vector) {
                        self.apic.offer_eoi();
                    }
                    addr_of_mut!((*p).inject).write_volatile(Event::interrupt(vector));
                    addr_of_mut!((*p).activity).write_volatile(ACTIVITY_ACTIVE);
                } else {
                    flags |= RunFlags::INTERRUPT_WINDOW;
                }
            }
        }
        self.apic.status.set(status);
        flags
    }

    /// Whether the hardware will hand the guest, which halted, an interrupt at its next entry. It is not halted any more then.
    #[cold]
    pub fn has_interrupt_in_hardware(&self, page: NonNull<VcpuPage>) -> bool {
        if !self.backend().virtualizes_apic() {
            return false;
        }
        let Some((_, apic)) = self.apic.page() else {
            return false;
        };
        let p = page.as_ptr();
        // SAFETY: as in `update_interrupts`.
        let is_enabled = unsafe { addr_of_mut!((*p).rflags).read_volatile() & RFLAGS_IF != 0 };
        let wakes = is_enabled && apic.is_pending(self.interrupt_status());
        if wakes {
            // SAFETY: as above.
            unsafe { addr_of_mut!((*p).activity).write_volatile(ACTIVITY_ACTIVE) };
        }
        wakes
    }

    /// Answers WRMSR of the virtual APIC; otherwise, or after it, the kind of the exit for the VMM.
    pub(super) fn write_apic(&self, page: NonNull<VcpuPage>) -> Option<u32> {
        const FOR_VMM: Option<u32> = Some(ExitKind::MsrWrite as u32);
        let p = page.as_ptr();
        // SAFETY: as in `update_interrupts`.
        let (msr, value, length) = unsafe {
            let [rcx, rax, rdx] = [RCX, RAX, RDX].map(|index| (&raw const (*p).gpr[index]).read_volatile());
            let length = (&raw const (*p).exit_length).read_volatile();
            (rcx as u32, rdx << 32 | rax & 0xffff_ffff, length)
        };
        let Some((_, apic)) = self.apic.page() else {
            return FOR_VMM;
        };
        if !matches!(msr, vapic::msr::TPR | vapic::msr::EOI | vapic::msr::SELF_IPI) {
            return FOR_VMM;
        }
        let length = match length {
            0 => self.length_if(page, |rip| Store::new(rip, &WRMSR)),
            length => length.into(),
        };
        // SAFETY: as above.
        let Some(instruction) = (unsafe { Instruction::new(page, length) }) else {
            return FOR_VMM;
        };
        let mut status = self.apic.status.get();
        self.apic.settle_eoi(apic, &mut status);
        let written = apic.write(&mut status, msr, value);
        self.apic.status.set(status);
        if written == Write::Refused {
            return FOR_VMM;
        }
        instruction.complete();
        let Write::Eoi(vector) = written else {
            return None;
        };
        // SAFETY: as above.
        unsafe {
            if !has_eoi_exit(page, vector) {
                return None;
            }
            addr_of_mut!((*p).exit_kind).write_volatile(ExitKind::Eoi as u32);
            addr_of_mut!((*p).exit_length).write_volatile(0);
            addr_of_mut!((*p).exit_info[0]).write_volatile(vector.into());
        }
        Some(ExitKind::Eoi as u32)
    }
}

/// Whether the VMM wants to know of the end of this interrupt.
///
/// # Safety
/// The page is bound, as in `update_interrupts`.
unsafe fn has_eoi_exit(page: NonNull<VcpuPage>, vector: u8) -> bool {
    // SAFETY: the caller's promise; the word is read once.
    let exits = unsafe { (&raw const (*page.as_ptr()).eoi_exits[usize::from(vector >> 6)]).read_volatile() };
    exits >> (vector & 63) & 1 != 0
}
