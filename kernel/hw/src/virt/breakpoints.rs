//! DR0 to DR3, which neither extension switches.
//!
//! They are switched only for guests that use them. Until then accesses exit; one that does puts the guest's values into
//! the CPU for the next run. A guest whose DR7 enables no breakpoint when it is unloaded starts over.

use core::arch::asm;

/// DR7: L0, G0, up to L3, G3.
const ENABLED: u64 = 0xff;

/// A guest's breakpoint addresses. Methods that return `bool` say whether the CPU's registers changed hands.
#[derive(Debug)]
pub(super) struct Breakpoints {
    /// Current unless `is_live`.
    saved: [u64; 4],
    /// In the CPU; only while the vCPU is loaded.
    is_live: bool,
    /// An access exited: the next run has to have them.
    is_wanted: bool,
}

impl Breakpoints {
    /// All zero, as after reset.
    pub(super) const fn new() -> Self {
        Breakpoints {
            saved: [0; 4],
            is_live: false,
            is_wanted: false,
        }
    }

    /// Whether the CPU holds the guest's; otherwise accesses have to exit.
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// The guest accessed a debug register.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The guest's values.
    pub(super) fn read(&self) -> [u64; 4] {
        if self.is_live { read() } else { self.saved }
    }

    /// New values, and DR7, for a loaded vCPU or one that enables no breakpoint.
    pub(super) fn write(&mut self, dr: [u64; 4], dr7: u64) -> bool {
        let was_live = self.is_live;
        self.saved = dr;
        if was_live || dr7 & ENABLED != 0 {
            self.make_live();
        }
        self.is_live != was_live
    }

    /// The vCPU is loaded.
    #[inline]
    pub(super) fn load(&mut self, dr7: u64) -> bool {
        let becomes_live = self.is_wanted || dr7 & ENABLED != 0;
        if becomes_live {
            self.make_live();
        }
        becomes_live
    }

    /// Takes them out of the CPU, where nobody may find them.
    #[inline]
    pub(super) fn unload(&mut self) -> bool {
        let was_live = self.is_live;
        if was_live {
            self.take_out();
        }
        was_live
    }

    #[cold]
    fn take_out(&mut self) {
        self.saved = read();
        write([0; 4]);
        (self.is_live, self.is_wanted) = (false, false);
    }

    #[cold]
    fn make_live(&mut self) {
        write(self.saved);
        self.is_live = true;
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
fn write(dr: [u64; 4]) {
    // SAFETY: breakpoint addresses take every value, and have no effect while DR7 enables none of them: in the kernel it
    // never does, since exits reset it (SDM 3C 27.5.1, APM 15.6).
    unsafe {
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", in(reg) dr[0], in(reg) dr[1], in(reg) dr[2],
            in(reg) dr[3], options(nomem, nostack, preserves_flags));
    }
}
