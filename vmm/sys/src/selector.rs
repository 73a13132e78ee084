//! Free selectors of this process's object space.

use crate::error::{Error, Result};
use crate::lock::Mutex;
use crate::range::RangeSet;
use hypercall_abi::{Hypercall, Selector, Status};

static FREE: Mutex<RangeSet> = Mutex::new(RangeSet::new());

/// Makes the selectors from `first` on available to [`allocate`]. Called once, before `main`.
pub(crate) fn init(first: Selector) {
    FREE.lock().put(first.0.into(), u64::from(Selector::END - first.0));
}

/// Takes a free selector.
pub fn allocate() -> Result<Selector> {
    let selector = FREE.lock().take(1, 1);
    // Running out is an error of the call that the selector was for; `Derive` stands for all of them.
    selector
        .map(|selector| Selector(selector as u32))
        .ok_or(Error { call: Hypercall::Derive, status: Status::NoMemory })
}

/// Returns a selector that names nothing any more.
pub fn release(selector: Selector) {
    FREE.lock().put(selector.0.into(), 1);
}
