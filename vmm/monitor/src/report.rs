//! Telling the root task how the VM ended.

use core::sync::atomic::Ordering;
use usys::object::FOREVER;
use usys::process::{self, ProcessInfo};
use vmm_protocol::outcome::Outcome;
use vmm_protocol::process::{REPORT, Report};

/// Reports the outcome, and waits for the root task to end this process.
pub fn end(info: &'static ProcessInfo, outcome: &Outcome) -> ! {
    let Some(page) = info.window(REPORT) else { usys::start::fault() };
    let bytes = outcome.encode();
    let Ok(len) = page.write(Report::OUTCOME, &bytes).and_then(|()| page.atomic_u32(Report::LEN)) else {
        usys::start::fault()
    };
    len.store(bytes.len() as u32, Ordering::Release);
    loop {
        // The root task looks at the page whenever it is signalled; a signal that failed could not be made up for.
        let _ = process::parent().signal();
        let _ = process::events().wait(FOREVER);
    }
}
