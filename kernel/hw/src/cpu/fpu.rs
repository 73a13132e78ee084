//! FPU state: owned by vCPUs, switched eagerly, never by #NM.
//!
//! User code has no FPU: CR0.TS is set whenever no guest runs (VM exits load the host's CR0 with it for free), so FPU
//! instructions fault. The state of a guest stays in the registers while its VMM runs, which may know it anyway, and is
//! taken out before another domain runs: TS alone would not keep speculation out (CVE-2018-3665). The same goes for the guest's
//! XCR0 and TSC_AUX, so that a guest that is run again by the same domain costs nothing here.

use super::{cpuid, msr, tsc};
use crate::percpu;
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kcore::addr::PhysAddr;
use kcore::virt::xsave;

/// XCR0 bits the kernel can switch: x87, SSE, AVX, AVX-512, PKRU. What fits a save area of one page.
const SUPPORTED: u64 = 0b10_1110_0111;

/// Where the guest's XCR0 is in its area: bytes 464 to 511 are left to software (SDM 1 10.5.1, APM 2 11.4.4.2).
const GUEST_XCR0: usize = 464;

/// Where MXCSR, its mask, and the header of XSAVE are in an area (SDM 1 table 10-2, 13.4).
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const HEADER: usize = 512;

static HOST_XCR0: AtomicU64 = AtomicU64::new(0);

/// The bits that MXCSR has.
static MXCSR_BITS: AtomicU32 = AtomicU32::new(0);

/// XCR0 bits that guests may set; 0 without XSAVE.
pub fn guest_xcr0() -> u64 {
    HOST_XCR0.load(Ordering::Relaxed)
}

/// Prepares this CPU. Without XSAVE the kernel falls back to FXSAVE and guests get no XSAVE.
///
/// # Safety
/// CR4.OSXSAVE is set exactly if `has_xsave`.
pub unsafe fn init_cpu(has_xsave: bool) {
    let mut legacy = Legacy([0; 576]);
    // SAFETY: FXSAVE writes 512 bytes, and the area is aligned. TS is clear meanwhile.
    unsafe {
        asm!("clts", "fxsave64 [{}]", in(reg) &raw mut legacy, options(nostack, preserves_flags));
    }
    set_task_switched();
    let mask = legacy.0[MXCSR_MASK..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    // 0 is what CPUs without "denormals are zeros" leave there (SDM 1 11.6.6).
    MXCSR_BITS.store(if mask == 0 { 0xffbf } else { mask }, Ordering::Relaxed);
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
    const XSAVES: u32 = 1 << 3;
    if cpuid::leaf(0xd, 1).eax & XSAVES != 0 {
        // What the firmware left there would be the host's state, for a guest's XSAVES (SDM 1 13.11).
        // SAFETY: CPUID says that there is the register; no state is enabled.
        unsafe { msr::write(msr::XSS, 0) };
    }
}

/// # Safety
/// CR4.OSXSAVE is set.
unsafe fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: by the contract of this function.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    (high as u64) << 32 | low as u64
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
        base.add(MXCSR).cast::<u32>().write(0x1f80);
        base.add(GUEST_XCR0).cast::<u64>().write(1);
    }
}

/// The XCR0 of the guest whose area this is; 0 without XSAVE.
///
/// # Safety
/// The area was initialized.
pub unsafe fn xcr0_of(area: PhysAddr) -> u64 {
    if guest_xcr0() == 0 {
        return 0;
    }
    // SAFETY: the area is initialized; there is XSAVE.
    unsafe { if percpu::fpu_owner() == area.0 { read_xcr0() } else { saved_xcr0(area.0).read() } }
}

/// Changes it.
///
/// # Safety
/// There is XSAVE, and the value is a valid one within [`guest_xcr0`]; else as [`xcr0_of`].
pub unsafe fn set_xcr0_of(area: PhysAddr, xcr0: u64) {
    // SAFETY: by the contract of this function.
    unsafe {
        if percpu::fpu_owner() == area.0 {
            write_xcr0(xcr0);
        } else {
            saved_xcr0(area.0).write(xcr0);
        }
    }
}

fn saved_xcr0(area: u64) -> *mut u64 {
    // In the direct map, inside of the frame.
    crate::mem::phys_to_virt(PhysAddr(area + GUEST_XCR0 as u64)).cast()
}

/// Puts the state of `area` and its XCR0 into the registers, saving whose state was there. Says whether it was another's.
///
/// # Safety
/// The area is initialized, exclusive to this owner, and stays until its owner forgets it; interrupts are off.
#[inline]
pub unsafe fn switch_to(area: PhysAddr) -> bool {
    let is_other = percpu::fpu_owner() != area.0;
    if is_other {
        // SAFETY: by the contract of this function.
        unsafe { load(area.0) };
    }
    is_other
}

/// # Safety
/// As [`switch_to`].
#[cold]
unsafe fn load(area: u64) {
    let host = guest_xcr0();
    // SAFETY: the caller's contract covers the new area; the old one was given under the same contract. TS is clear
    // meanwhile. What is in an area as XCR0 was checked, or the CPU took it.
    unsafe {
        asm!("clts", options(nomem, nostack, preserves_flags));
        save(percpu::fpu_owner(), host);
        restore(crate::mem::phys_to_virt(PhysAddr(area)), host);
        if host != 0 {
            write_xcr0(saved_xcr0(area).read());
        }
        set_task_switched();
    }
    percpu::set_fpu_owner(area);
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
        save(area, host);
        restore((&raw const INITIAL).cast(), host);
        set_task_switched();
    }
    tsc::set_aux(0);
}

/// Takes the state out of the registers if it is `area`'s: on the CPU where it may be live.
pub fn put_back(area: PhysAddr) {
    if percpu::fpu_owner() == area.0 {
        release();
    }
}

/// Copies the state into a page.
///
/// # Safety
/// The area is initialized, and not in the registers. The page is RAM that Rust has no references to.
pub unsafe fn copy_to(area: PhysAddr, page: PhysAddr) {
    // SAFETY: by the contract of this function; whoever reads the page meanwhile gets what it asked for.
    unsafe { crate::mem::phys_to_virt(page).copy_from_nonoverlapping(crate::mem::phys_to_virt(area), 4096) };
}

/// Replaces the state by a page's, but for XCR0; false, with nothing changed, if XRSTOR would refuse it.
///
/// # Safety
/// As [`copy_to`].
pub unsafe fn copy_from(area: PhysAddr, page: PhysAddr) -> bool {
    let (to, from) = (crate::mem::phys_to_virt(area), crate::mem::phys_to_virt(page));
    // SAFETY: all offsets are inside the two frames. The page may change at any time: what is checked is read once, and
    // written behind what the copy brought.
    unsafe {
        let mxcsr = from.add(MXCSR).cast::<u32>().read_volatile();
        let header = from.add(HEADER).cast::<[u64; 8]>().read_volatile();
        if !xsave::is_restorable(mxcsr, &header, MXCSR_BITS.load(Ordering::Relaxed), guest_xcr0()) {
            return false;
        }
        let xcr0 = saved_xcr0(area.0).read();
        to.copy_from_nonoverlapping(from, 4096);
        to.add(MXCSR).cast::<u32>().write(mxcsr);
        to.add(HEADER).cast::<[u64; 8]>().write(header);
        saved_xcr0(area.0).write(xcr0);
    }
    true
}

/// The legacy region and the header. FXRSTOR and XRSTOR read no further if XSTATE_BV is 0, which asks for initial values (SDM 1 13.8).
#[repr(C, align(64))]
struct Legacy([u8; 576]);
static INITIAL: Legacy = {
    let mut area = [0u8; 576];
    (area[0], area[1], area[24], area[25]) = (0x7f, 0x03, 0x80, 0x1f);
    Legacy(area)
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

/// Saves the registers into their owner's area, if they have one, and leaves the host's XCR0.
///
/// The guest's is read back rather than remembered: QEMU's TCG (seen with 7.2) executes XSETBV in an SVM guest although it is
/// intercepted.
///
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
            saved_xcr0(area).write(read_xcr0());
            write_xcr0(host);
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
