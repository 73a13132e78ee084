//! Flows of UDP between two Linux guests: `flows answer` in one sends back what comes, until it is told to end. `flows ask` in the
//! other looks at each answer, has its card use another number of pairs of queues meanwhile, and says what each pair carried.
#![cfg_attr(target_os = "none", no_std, no_main)]

/// A Linux program is nothing for the machine itself.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
mod ethtool;
#[cfg(not(target_os = "none"))]
mod flows;

#[cfg(not(target_os = "none"))]
fn main() -> std::io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("ask") => flows::ask(),
        _ => flows::answer(),
    }
}
