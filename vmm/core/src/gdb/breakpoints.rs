//! Breakpoints: instructions that exit in the guest's code, and the CPU's four debug registers (SDM 3B 17.2).

use alloc::vec::Vec;
use gdbstub::target::ext::breakpoints::WatchKind;
use hypercall_abi::vcpu::{Groups, VcpuPage};
use vdev::guest_mem::GuestMemory;

use crate::fault::GENERAL_PROTECTION;
use crate::vcpu::Vcpu;

/// The one-byte breakpoint instruction.
pub(super) const INT3: u8 = 0xcc;
/// The same where INT3 does not exit. Outside the kernel's privilege it raises #GP.
pub(super) const HLT: u8 = 0xf4;
/// DR7: bit that reads as one.
const DR7_FIXED: u64 = 1 << 10;

/// Instructions in whose place a breakpoint is.
#[derive(Clone, Debug)]
pub(super) struct Software {
    /// The instruction that breaks.
    instruction: u8,
    patches: Vec<Patch>,
}

#[derive(Clone, Copy, Debug)]
struct Patch {
    linear: u64,
    /// Where the byte is: page tables may have changed when it is put back.
    physical: u64,
    original: u8,
}

impl Software {
    /// None, with this instruction for all to come.
    pub(super) fn new(instruction: u8) -> Self {
        Software { instruction, patches: Vec::new() }
    }

    /// The exceptions, as bits, by which the instruction may show beside #BP.
    pub(super) fn exceptions(&self) -> u32 {
        if self.instruction == HLT && !self.patches.is_empty() { 1 << GENERAL_PROTECTION } else { 0 }
    }

    /// Puts one at `linear`, which is at `physical`. `false` if no memory is there.
    pub(super) fn add(&mut self, memory: &mut impl GuestMemory, linear: u64, physical: u64) -> bool {
        if self.has(linear) {
            return true;
        }
        let Ok(original) = memory.read_u8(physical) else {
            return false;
        };
        self.patches.push(Patch { linear, physical, original });
        memory.write_u8(physical, self.instruction).is_ok()
    }

    /// Puts the original back, unless the guest has written something else there.
    pub(super) fn remove(&mut self, memory: &mut impl GuestMemory, linear: u64) -> bool {
        let Some(index) = self.patches.iter().position(|patch| patch.linear == linear) else {
            return false;
        };
        let patch = self.patches.swap_remove(index);
        if memory.read_u8(patch.physical) == Ok(self.instruction) {
            // It could be read, so it can be written.
            let _ = memory.write_u8(patch.physical, patch.original);
        }
        true
    }

    /// Removes all.
    pub(super) fn clear(&mut self, memory: &mut impl GuestMemory) {
        while let Some(patch) = self.patches.last() {
            let linear = patch.linear;
            self.remove(memory, linear);
        }
    }

    /// Whether there is one at `linear`.
    pub(super) fn has(&self, linear: u64) -> bool {
        self.patches.iter().any(|patch| patch.linear == linear)
    }
}

/// What a debug register watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    pub(super) linear: u64,
    pub(super) bytes: u64,
    /// None for the execution of the instruction there.
    pub(super) kind: Option<WatchKind>,
}

impl Watch {
    /// R/W and LEN in DR7; none if the CPU cannot watch this.
    fn condition(&self) -> Option<u64> {
        let length = match self.bytes {
            1 => 0,
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => return None,
        };
        let access = match self.kind {
            None if self.bytes == 1 => 0b00,
            Some(WatchKind::Write) => 0b01,
            Some(WatchKind::ReadWrite) => 0b11,
            // Of reads alone the CPU knows nothing.
            _ => return None,
        };
        self.linear.is_multiple_of(self.bytes).then_some(length << 2 | access)
    }
}

/// The debug registers, as long as the debugger has them. What the guest wants in them waits here: its own
/// breakpoints rest meanwhile, but it finds its values when it looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Hardware {
    slots: [Option<Watch>; 4],
    guests: Option<([u64; 4], u64)>,
}

impl Hardware {
    /// Watches; `false` if the CPU cannot, or all registers are in use.
    pub(super) fn add(&mut self, vcpu: &mut impl Vcpu, watch: Watch) -> bool {
        let free = self.slots.iter_mut().find(|slot| slot.is_none());
        let Some(slot) = free.filter(|_| watch.condition().is_some()) else {
            return false;
        };
        *slot = Some(watch);
        self.take(vcpu);
        true
    }

    /// Ends it.
    pub(super) fn remove(&mut self, vcpu: &mut impl Vcpu, watch: Watch) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| **slot == Some(watch)) else {
            return false;
        };
        *slot = None;
        if self.is_used() {
            self.take(vcpu);
        } else {
            self.give_back(vcpu);
        }
        true
    }

    /// Ends all.
    pub(super) fn clear(&mut self, vcpu: &mut impl Vcpu) {
        self.slots = [None; 4];
        self.give_back(vcpu);
    }

    /// Whether the debugger has the registers.
    pub(super) fn is_used(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    /// What the causes in DR6 say was reached.
    pub(super) fn hit(&self, causes: u64) -> Option<Watch> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(index, _)| causes >> index & 1 != 0).find_map(|(_, slot)| *slot)
    }

    /// Puts the debugger's values into the registers.
    pub(super) fn take(&mut self, vcpu: &mut impl Vcpu) {
        if !self.is_used() {
            return;
        }
        let page = vcpu.state(Groups::DEBUG);
        self.guests.get_or_insert((page.dr, page.dr7));
        let mut dr7 = DR7_FIXED;
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some((watch, condition)) = slot.and_then(|watch| Some((watch, watch.condition()?))) {
                page.dr[index] = watch.linear;
                dr7 |= 1 << (2 * index) | condition << (16 + 4 * index);
            }
        }
        page.dr7 = dr7;
        page.dirty |= Groups::DEBUG.bits();
    }

    /// Puts the guest's values into them.
    pub(super) fn give_back(&mut self, vcpu: &mut impl Vcpu) {
        if let Some((dr, dr7)) = self.guests.take() {
            let page: &mut VcpuPage = vcpu.state(Groups::DEBUG);
            (page.dr, page.dr7) = (dr, dr7);
            page.dirty |= Groups::DEBUG.bits();
        }
    }
}
