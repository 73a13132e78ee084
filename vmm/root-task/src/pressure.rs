//! Where memory for a VM comes from that does not start for want of it: from the balloons of others.

use crate::vm::Vm;
use usys::abi::PAGE_SIZE;

/// A balloon takes single pages, of which a few do not make whole pieces: asked for is an eighth more, and this many.
const EXTRA_PAGES: u64 = (16 << 20) / PAGE_SIZE;

/// Asks VMs that run, the first ones first, for `pages` pages more than they are asked for already. Whether they have so many.
pub fn inflate(vms: &mut [Vm], pages: u64) -> bool {
    let spare: u64 = vms.iter().map(Vm::spare_pages).sum();
    if spare < pages {
        return false;
    }
    let mut left = (pages + pages / 8 + EXTRA_PAGES).min(spare);
    for vm in vms {
        let share = vm.spare_pages().min(left);
        left -= share;
        if share > 0 {
            vm.ask_for(vm.asked() + share);
        }
    }
    true
}

/// Lets every VM have all its memory again.
pub fn deflate(vms: &mut [Vm]) {
    vms.iter_mut().for_each(|vm| vm.ask_for(0));
}
