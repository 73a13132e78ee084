//! FPU state: owned by vCPUs, switched eagerly, never by #NM.
//!
//! User code has no FPU: CR0.TS is set whenever no guest runs (VM exits load the host's CR0 with it for free), so FPU
//! instructions fault. The state of a guest stays in the registers while its VMM runs, which may know it anyway, and is
//! taken out before another domain runs: TS alone would not keep speculation out (CVE-2018-3665).

use super::cpuid;
use crate::percpu;
use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;

/// XCR0 bits the kernel can switch: x87, SSE, AVX, AVX-512, PKRU. What fits a save area of one page.
const SUPPORTED: u64 = 0b10_1110_0111;

static HOST_XCR0: AtomicU64 = AtomicU64::new(0);

/// What XCR0 holds on each CPU.
struct ActiveXcr0([Cell<u64>; MAX_CPUS]);
// SAFETY: each CPU uses only the entry of its own number.
unsafe impl Sync for ActiveXcr0 {}
static XCR0: ActiveXcr0 = ActiveXcr0([const { Cell::new(0) }; MAX_CPUS]);

/// XCR0 bits that guests may set; 0 without XSAVE.
pub fn guest_xcr0() -> u64 {
    HOST_XCR0.load(Ordering::Relaxed)
}

/// Prepares this CPU. Without XSAVE the kernel falls back to FXSAVE and guests get no XSAVE.
///
/// # Safety
/// CR4.OSXSAVE is set exactly if `has_xsave`.
pub unsafe fn init_cpu(has_xsave: bool) {
    if !has_xsave {
        return;
    }
    let info = cpuid::leaf(0xd, 0);
    let mut xcr0 = (info.eax as u64 | (info.edx as u64) << 32) & SUPPORTED;
    // AVX-512 and its three components come together; drop what does not fit the area (CPUID.0DH:0.ECX is for all).
    if xcr0 & 0xe0 != 0xe0 || xcr0 & 4 == 0 {
        xcr0 &= !0xe0;
    }
    // SAFETY: the value is a subset of what CPUID.0DH announces, with x87 and with SSE where AVX is.
    unsafe { write_xcr0(xcr0) };
    if cpuid::leaf(0xd, 0).ebx > 4096 {
        xcr0 &= 7;
        // SAFETY: as above.
        unsafe { write_xcr0(xcr0) };
    }
    HOST_XCR0.store(xcr0, Ordering::Relaxed);
    GUESTS_SET_XCR0.store(is_tcg(), Ordering::Relaxed);
    XCR0.0[percpu::id()].set(xcr0);
}

/// Whether guests set XCR0 without an exit: QEMU's TCG (seen with 7.2) executes XSETBV in an SVM guest although it is
/// intercepted. There, and only there, the kernel looks what a guest left.
static GUESTS_SET_XCR0: AtomicBool = AtomicBool::new(false);

fn is_tcg() -> bool {
    let signature = core::arch::x86_64::__cpuid(0x4000_0000);
    [signature.ebx, signature.ecx, signature.edx]
        == [
            u32::from_le_bytes(*b"TCGT"),
            u32::from_le_bytes(*b"CGTC"),
            u32::from_le_bytes(*b"GTCG"),
        ]
}

/// What the guest that just ran set XCR0 to, where it can do that without an exit.
#[inline]
pub fn xcr0_of_guest() -> Option<u64> {
    if !GUESTS_SET_XCR0.load(Ordering::Relaxed) {
        return None;
    }
    let (low, high): (u32, u32);
    // SAFETY: the flag is set only with CR4.OSXSAVE, which allows XGETBV.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    let xcr0 = (high as u64) << 32 | low as u64;
    XCR0.0[percpu::id()].set(xcr0);
    Some(xcr0)
}

/// # Safety
/// CR4.OSXSAVE is set and the CPU takes this value.
unsafe fn write_xcr0(value: u64) {
    // SAFETY: by the contract of this function.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack, preserves_flags));
    }
}

/// Initializes a save area to the state after reset (SDM 1 13.6: FCW 037FH, MXCSR 1F80H, XSTATE_BV 0).
///
/// # Safety
/// The frame is zeroed and exclusive.
pub unsafe fn init_area(area: PhysAddr) {
    let base = crate::mem::phys_to_virt(area);
    // SAFETY: both offsets are inside the frame the caller owns.
    unsafe {
        base.cast::<u16>().write(0x37f);
        base.add(24).cast::<u32>().write(0x1f80);
    }
}

/// Puts the state of `area` into the registers, with `xcr0` active, saving whose state was there.
///
/// # Safety
/// The area is initialized, exclusive to this owner, and stays until [`forget`]; `xcr0` is a valid value within
/// [`guest_xcr0`] (ignored without XSAVE); interrupts are off.
pub unsafe fn switch_to(area: PhysAddr, xcr0: u64) {
    let (owner, host) = (percpu::fpu_owner(), guest_xcr0());
    if owner != area.0 {
        // SAFETY: the caller's contract covers the new area; the old one was given under the same contract. TS is clear
        // meanwhile.
        unsafe {
            asm!("clts", options(nomem, nostack, preserves_flags));
            activate(host);
            save(owner, host);
            restore(crate::mem::phys_to_virt(area), host);
            set_task_switched();
        }
        percpu::set_fpu_owner(area.0);
    }
    if host != 0 {
        // SAFETY: the caller validated the value.
        unsafe { activate(xcr0) };
    }
}

/// Takes the state out of the registers and leaves the initial state: nobody who runs next finds it.
pub fn release() {
    let (area, host) = (percpu::fpu_owner(), guest_xcr0());
    if area == 0 {
        return;
    }
    percpu::set_fpu_owner(0);
    // SAFETY: the area is valid by the contract of `switch_to`; `INITIAL` is an initialized area. TS is clear meanwhile.
    unsafe {
        asm!("clts", options(nomem, nostack, preserves_flags));
        activate(host);
        save(area, host);
        restore((&raw const INITIAL).cast(), host);
        set_task_switched();
    }
}

/// Drops the state of an area that goes away, on the CPU where it may be live.
pub fn forget(area: PhysAddr) {
    if percpu::fpu_owner() == area.0 {
        release();
    }
}

/// FXRSTOR and XRSTOR read no further than the legacy region and the header, whose XSTATE_BV of 0 asks for initial
/// values (SDM 1 13.8).
#[repr(C, align(64))]
struct Initial([u8; 576]);
static INITIAL: Initial = {
    let mut area = [0u8; 576];
    (area[0], area[1], area[24], area[25]) = (0x7f, 0x03, 0x80, 0x1f);
    Initial(area)
};

/// Sets CR0.TS.
fn set_task_switched() {
    // SAFETY: TS affects FPU instructions only, and the kernel executes them only between CLTS and here.
    unsafe {
        let mut cr0: u64;
        asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
        cr0 |= 1 << 3;
        asm!("mov cr0, {}", in(reg) cr0, options(nomem, nostack, preserves_flags));
    }
}

/// # Safety
/// The value is valid for this CPU; without XSAVE it is 0.
unsafe fn activate(xcr0: u64) {
    let active = &XCR0.0[percpu::id()];
    if active.get() != xcr0 {
        // SAFETY: by the contract of this function.
        unsafe { write_xcr0(xcr0) };
        active.set(xcr0);
    }
}

/// # Safety
/// `area` is 0 or a frame of its owner.
unsafe fn save(area: u64, host: u64) {
    if area == 0 {
        return;
    }
    let base = crate::mem::phys_to_virt(PhysAddr(area));
    // SAFETY: the area is a 4096-byte frame, 64-byte aligned; XSAVE with the host's XCR0 fits (`init_cpu`).
    unsafe {
        if host != 0 {
            asm!("xsave64 [{}]", in(reg) base, in("eax") host as u32, in("edx") (host >> 32) as u32, options(nostack, preserves_flags));
        } else {
            asm!("fxsave64 [{}]", in(reg) base, options(nostack, preserves_flags));
        }
    }
}

/// # Safety
/// `area` is an initialized area.
unsafe fn restore(area: *const u8, host: u64) {
    // SAFETY: as in `save`; the header was written by XSAVE or `init_area`, so XRSTOR does not fault.
    unsafe {
        if host != 0 {
            asm!("xrstor64 [{}]", in(reg) area, in("eax") host as u32, in("edx") (host >> 32) as u32, options(nostack, preserves_flags, readonly));
        } else {
            asm!("fxrstor64 [{}]", in(reg) area, options(nostack, preserves_flags, readonly));
        }
    }
}
