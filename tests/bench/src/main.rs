//! The benchmark's executable: root task, portal servers and VMM in one file.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// Called by `_start`, in the root task as in the processes that it starts.
#[cfg(target_os = "none")]
// SAFETY: the only definition of this symbol in the program.
#[unsafe(no_mangle)]
extern "C" fn usys_main(info: u64) -> ! {
    // Before anything else: boot time ends here.
    let started = bench::stopwatch::now();
    // SAFETY: `_start` passes on what the kernel or the parent put into RDI, once.
    unsafe { bench::begin(info, started) }
}

#[cfg(not(target_os = "none"))]
fn main() {}
