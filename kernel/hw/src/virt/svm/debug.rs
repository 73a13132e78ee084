//! DR0 to DR3, which neither VMRUN nor VMLOAD switches. DR6 and DR7 are in the VMCB.
//!
//! They are switched only for guests that use them: until then accesses exit, and the first one puts the guest's
//! values into the CPU. A guest whose DR7 enables no breakpoint when it is unloaded loses the CPU's registers again.

use super::insn;

/// DR7: L0, G0, up to L3, G3.
const ENABLED: u64 = 0xff;

/// A guest's breakpoint addresses.
#[derive(Debug)]
pub(super) struct Breakpoints {
    /// Current unless `live`.
    saved: [u64; 4],
    /// In the CPU, as long as the vCPU is loaded.
    live: bool,
}

impl Breakpoints {
    /// All zero, as after reset.
    pub(super) const fn new() -> Self {
        Breakpoints {
            saved: [0; 4],
            live: false,
        }
    }

    /// Whether accesses have to exit.
    pub(super) fn must_exit(&self) -> bool {
        !self.live
    }

    /// Puts them into the CPU, where they stay while the vCPU is loaded.
    pub(super) fn make_live(&mut self) {
        if !self.live {
            insn::write_breakpoints(self.saved);
            self.live = true;
        }
    }

    /// The guest's values.
    pub(super) fn read(&self) -> [u64; 4] {
        if self.live {
            insn::read_breakpoints()
        } else {
            self.saved
        }
    }

    /// New values, and DR7.
    pub(super) fn write(&mut self, dr: [u64; 4], dr7: u64) {
        self.saved = dr;
        if self.live {
            insn::write_breakpoints(dr);
        } else if dr7 & ENABLED != 0 {
            self.make_live();
        }
    }

    /// The vCPU is loaded: a guest that uses breakpoints gets them back.
    pub(super) fn load(&mut self, dr7: u64) {
        if dr7 & ENABLED != 0 {
            self.make_live();
        }
    }

    /// Takes them out of the CPU, where nobody may find them.
    pub(super) fn unload(&mut self) {
        if self.live {
            self.saved = insn::read_breakpoints();
            insn::write_breakpoints([0; 4]);
            self.live = false;
        }
    }
}
