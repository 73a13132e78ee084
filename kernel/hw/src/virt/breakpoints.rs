//! DR0 to DR3, which neither extension switches.
//!
//! They are in the CPU while a guest runs that has breakpoints, and stay there afterwards: user code cannot read them, DR7
//! enables none outside of guests, and other guests' accesses exit. So nothing is switched as long as a CPU runs one
//! guest with breakpoints.
//!
//! Accesses exit, too. One that does opens the registers for the next run, after which they are read back.

use crate::percpu;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use hypercall_abi::boot_info::MAX_CPUS;
use kcore::addr::PhysAddr;

/// DR7: L0, G0, up to L3, G3.
const ENABLED: u64 = 0xff;

/// Whose values each CPU holds, 0 for nobody's: see [`Breakpoints::owner`].
static OWNERS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// A guest's breakpoint addresses. The vCPU's CPU alone uses them.
#[derive(Debug)]
pub(super) struct Breakpoints {
    /// Tells vCPUs apart: the frame of the VMCS or VMCB.
    owner: u64,
    /// Current unless `is_open`.
    saved: [u64; 4],
    /// The guest may access those in the CPU; only while the vCPU is loaded.
    is_open: bool,
    /// An access exited: the next run has to be open.
    is_wanted: bool,
}

impl Breakpoints {
    /// All zero, as after reset.
    pub(super) const fn new(frame: PhysAddr) -> Self {
        Breakpoints {
            owner: frame.0,
            saved: [0; 4],
            is_open: false,
            is_wanted: false,
        }
    }

    /// Whether the guest may access the registers; otherwise accesses have to exit.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// The guest accessed a debug register.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The guest's values.
    pub(super) fn read(&self) -> [u64; 4] {
        if self.is_open { read() } else { self.saved }
    }

    /// New values, and DR7. The vCPU is loaded, or DR7 enables no breakpoint.
    pub(super) fn write(&mut self, dr: [u64; 4], dr7: u64) {
        self.forget();
        self.saved = dr;
        if self.is_open || dr7 & ENABLED != 0 {
            self.put_into_cpu();
        }
    }

    /// The vCPU is loaded. Says whether the guest may access the registers.
    #[inline]
    pub(super) fn load(&mut self, dr7: u64) -> bool {
        if self.is_wanted || dr7 & ENABLED != 0 {
            self.put_into_cpu();
            self.is_open = self.is_wanted;
        }
        self.is_open
    }

    /// The vCPU is unloaded. Says whether the guest may have changed the registers.
    #[inline]
    pub(super) fn unload(&mut self) -> bool {
        let was_open = self.is_open;
        if was_open {
            self.close();
        }
        was_open
    }

    #[cold]
    fn close(&mut self) {
        self.saved = read();
        (self.is_open, self.is_wanted) = (false, false);
    }

    #[inline]
    fn put_into_cpu(&self) {
        let owner = &OWNERS[percpu::id()];
        if owner.load(Ordering::Relaxed) != self.owner {
            write(self.saved);
            owner.store(self.owner, Ordering::Relaxed);
        }
    }

    /// What the CPU holds is not this guest's any more, or the guest ends.
    pub(super) fn forget(&self) {
        let owner = &OWNERS[percpu::id()];
        if owner.load(Ordering::Relaxed) == self.owner {
            owner.store(0, Ordering::Relaxed);
        }
    }
}

/// Reads DR0 to DR3.
fn read() -> [u64; 4] {
    let mut dr = [0; 4];
    // SAFETY: reading debug registers has no effect while DR7.GD is clear, which the kernel never sets.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", out(reg) dr[0], out(reg) dr[1], out(reg) dr[2],
            out(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
    dr
}

/// Writes DR0 to DR3.
#[cold]
fn write(dr: [u64; 4]) {
    // SAFETY: breakpoint addresses take every value, and have no effect while DR7 enables none of them: in the kernel it
    // never does, since exits reset it (SDM 3C 27.5.1, APM 15.6).
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) dr[0], in(reg) dr[1], in(reg) dr[2],
            in(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
}
