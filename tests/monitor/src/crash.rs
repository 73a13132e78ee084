//! A VMM that crashes while its guest runs.

use core::sync::atomic::Ordering;
use monitor::vm::Watch;
use tproto::crash::ADDRESS;
use usys::process::ProcessInfo;
use vmm_protocol::process::OUTPUT;

/// The exit at which it crashes: the guest and its devices are at work by then.
const EXIT: u32 = 20;

/// Crashes at an exit.
#[derive(Debug)]
pub(crate) struct Crash {
    left: u32,
}

impl Crash {
    pub(crate) fn new() -> Self {
        Crash { left: EXIT }
    }
}

impl Watch for Crash {
    fn after_exit(&mut self) {
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => {
                log::info!("crashing");
                // SAFETY: nothing is mapped there: the read is the crash that this VMM is for.
                unsafe { (ADDRESS as *const u64).read_volatile() };
            }
        }
    }
}

/// Whether no VMM before this one has sent anything. The ring outlives the VMM.
pub(crate) fn is_first_life(info: &'static ProcessInfo) -> bool {
    let head = info.window(OUTPUT).and_then(|ring| {
        let head = ring.atomic_u32(usys::ring::HEAD).ok()?;
        Some(head.load(Ordering::Relaxed))
    });
    head == Some(0)
}
