//! A VMM that looks for the pattern of the guest `poison`: what the guest has in its registers must not come with an exit, but
//! in the vCPU page, and must not stay anywhere else.

use crate::registers::Registers;
use monitor::vm::Watch;
use tproto::poison::is_pattern;
use usys::process::ProcessInfo;
use usys::{Window, layout};
use vmm_protocol::outcome::Outcome;

/// Looks at each exit, and at the end.
#[derive(Debug)]
pub(crate) struct Witness {
    heap_bytes: u64,
    registers: Registers,
    exits: u32,
    /// Exits with the pattern in a register.
    seen: u32,
}

impl Witness {
    pub(crate) fn new(info: &'static ProcessInfo) -> Self {
        Witness { heap_bytes: info.header.heap_bytes, registers: Registers::new(), exits: 0, seen: 0 }
    }
}

impl Watch for Witness {
    #[inline(always)]
    fn after_exit(&mut self) {
        self.registers.take();
        self.exits += 1;
        self.seen += u32::from(self.registers.words().any(is_pattern));
    }

    fn judge(&mut self, outcome: Outcome) -> Outcome {
        // What was taken out of the registers is in memory now.
        self.registers.clear();
        let words = words_in_memory(self.heap_bytes);
        log::info!("looked at {} exits", self.exits);
        if self.exits > 0 && self.seen == 0 && words == 0 {
            return outcome;
        }
        Outcome::unsupported(format_args!(
            "the VMM has the guest's pattern in {words} words of its memory, and saw it in its registers at {} of {} exits",
            self.seen, self.exits
        ))
    }
}

/// Words with the pattern in this process's heap, and in the message area that the kernel writes. Not in its stack: a VMM reads the
/// guest's general registers in the vCPU page, and so may leave copies there.
fn words_in_memory(heap_bytes: u64) -> usize {
    count(layout::HEAP, heap_bytes) + count(layout::UTCB, 4096)
}

fn count(start: u64, bytes: u64) -> usize {
    // SAFETY: the memory is this process's own. It is read only, by a volatile copy of one word at a time, whatever Rust keeps
    // there.
    let window = unsafe { Window::from_raw(start as *mut u8, bytes as usize) };
    (0..bytes as usize).step_by(8).filter(|&offset| window.read_u64(offset).is_ok_and(is_pattern)).count()
}
