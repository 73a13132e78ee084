//! Guest memory by linear address, as a debugger sees it: without faults, permissions or traces in the page tables.

use vdev::guest_mem::{GuestMemory, OutOfRange};

use crate::emulate::{Access, Paging};
use crate::vcpu::{MODE, Vcpu};

const PAGE: u64 = 4096;

/// Memory whose page tables a walk does not mark.
struct Unmarked<'a, M>(&'a M);

impl<M: GuestMemory> GuestMemory for Unmarked<'_, M> {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), OutOfRange> {
        self.0.read(gpa, into)
    }

    fn write(&mut self, _gpa: u64, _from: &[u8]) -> Result<(), OutOfRange> {
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// The guest-physical address of `linear`, if it is mapped.
pub(super) fn translate(vcpu: &mut impl Vcpu, memory: &impl GuestMemory, linear: u64) -> Option<u64> {
    let paging = Paging::for_debugger(vcpu.state(MODE));
    paging.translate(&mut Unmarked(memory), linear, Access::Read).ok()
}

/// Reads; returns how many bytes could be read before the first that could not.
pub(super) fn read(vcpu: &mut impl Vcpu, memory: &impl GuestMemory, linear: u64, into: &mut [u8]) -> usize {
    let mut done = 0;
    while done < into.len() {
        let at = linear.wrapping_add(done as u64);
        let len = (into.len() - done).min((PAGE - at % PAGE) as usize);
        let part = &mut into[done..done + len];
        let is_read = translate(vcpu, memory, at).is_some_and(|physical| memory.read(physical, part).is_ok());
        if !is_read {
            break;
        }
        done += len;
    }
    done
}

/// Writes all or up to the first byte that cannot be written; says whether it was all.
pub(super) fn write(vcpu: &mut impl Vcpu, memory: &mut impl GuestMemory, linear: u64, from: &[u8]) -> bool {
    let mut done = 0;
    while done < from.len() {
        let at = linear.wrapping_add(done as u64);
        let len = (from.len() - done).min((PAGE - at % PAGE) as usize);
        let is_written = translate(vcpu, memory, at)
            .is_some_and(|physical| memory.write(physical, &from[done..done + len]).is_ok());
        if !is_written {
            return false;
        }
        done += len;
    }
    true
}
