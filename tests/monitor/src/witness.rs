//! A VMM that looks for the pattern of the guest `poison`: what the guest has in its registers must not come with an exit, but
//! in the vCPU page, and must not stay anywhere else.

use crate::registers::Registers;
use core::hint::black_box;
use monitor::vm::Watch;
use tproto::poison::{CANONICAL, MASK, MASKED};
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
        // Copies of what the vCPU page said are the VMM's to keep: they are told, and no failure.
        log::info!("looked at {} exits; the pattern is in {words} words of memory", self.exits);
        if self.exits > 0 && self.seen == 0 {
            return outcome;
        }
        Outcome::unsupported(format_args!(
            "the VMM saw the guest's pattern in its registers at {} of {} exits",
            self.seen, self.exits
        ))
    }
}

fn is_pattern(word: u64) -> bool {
    // As in the guest `witness`: the pattern itself never exists here.
    (word ^ black_box(MASK)) & CANONICAL == black_box(MASKED)
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
