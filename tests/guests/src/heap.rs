//! Memory for drivers that allocate; the runtime and the other guests have none.

use core::mem::MaybeUninit;
use talc::TalcCell;
use talc::cell::TalcSyncCell;
use talc::source::Claim;

const BYTES: usize = 256 << 10;

static mut MEMORY: [MaybeUninit<u8>; BYTES] = [MaybeUninit::uninit(); BYTES];

#[global_allocator]
// SAFETY: the memory is nobody else's; there is one CPU, and no interrupt handler allocates.
static HEAP: TalcSyncCell<Claim, talc::DefaultBinning> =
    unsafe { TalcSyncCell::new(TalcCell::new(Claim::array(&raw mut MEMORY))) };
