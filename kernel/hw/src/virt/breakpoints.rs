//! DR0 to DR3, which neither extension switches.
//!
//! They are in the CPU while a guest runs that has breakpoints, and stay there afterwards: user code cannot read them, DR7
//! enables none outside of guests, and other guests' accesses exit. So nothing is switched as long as a CPU runs one
//! guest.
//!
//! Accesses exit, too. One that does opens the registers until the run ends, after which they are read back.

use core::arch::asm;

/// DR7: L0, G0, up to L3, G3.
const ENABLED: u64 = 0xff;

/// A guest's breakpoint addresses. The vCPU's CPU alone uses them.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    /// Current unless `is_open`.
    saved: [u64; 4],
    /// The guest may access those in the CPU.
    is_open: bool,
    /// An access exited: the next entry has to be open.
    is_wanted: bool,
}

impl Breakpoints {
    /// Whether the guest may access the registers; otherwise accesses have to exit.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// The guest accessed a debug register. [`Self::load`] has to follow.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The guest's values.
    pub(super) fn read(&self) -> [u64; 4] {
        if self.is_open { read() } else { self.saved }
    }

    /// New values, while the guest may not access them. [`Self::load`] has to follow.
    pub(super) fn write(&mut self, dr: [u64; 4]) {
        self.saved = dr;
    }

    /// Puts the values into the CPU if they matter there. Says whether the guest may access them from now on.
    pub(super) fn load(&mut self, dr7: u64) -> bool {
        if self.is_open || !self.is_wanted && dr7 & ENABLED == 0 {
            return false;
        }
        write(self.saved);
        self.is_open = self.is_wanted;
        self.is_open
    }

    /// The guest may not access them any more.
    #[cold]
    pub(super) fn close(&mut self) {
        self.saved = read();
        (self.is_open, self.is_wanted) = (false, false);
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
