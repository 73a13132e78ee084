//! The runtime of the test guests: everything between a virtual machine's reset and a test's first line.
//!
//! 1. A guest is one ELF64 image, entered in 32-bit protected mode by PVH ([`boot`]), that runs alike in Nacre's
//!    VMM and on QEMU's q35; [`is_nacre`] tells a test which board it is on.
//! 2. Memory below 4 GiB is mapped one to one, for user mode too; there is one CPU, one stack and no heap.
//! 3. Rust code here uses no x87, SSE or AVX register: a test that loads them finds them as it left them.
//! 4. Every exception is reported and ends the guest as failed, unless [`trap::catch`] or a handler takes it.
#![no_std]

pub mod alarm;
pub mod boot;
pub mod check;
pub mod clock;
pub mod cpu;
pub mod debug;
pub mod desc;
pub mod fpu;
pub mod gprs;
pub mod ioapic;
pub mod irq;
pub mod lapic;
pub mod mmio;
pub mod modes;
pub mod msr;
pub mod paging;
pub mod port;
pub mod pvh;
pub mod serial;
pub mod trap;
pub mod user;

pub use check::finish;
pub use cpu::is_nacre;

/// Makes `$run`, a `fn()`, a bootable guest: it is called with the runtime set up, and the guest ends with its tally.
///
/// On a host target this expands to an empty `main`, so that the workspace builds there.
#[macro_export]
macro_rules! guest {
    ($run:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn trt_guest() -> ! {
            let run: fn() = $run;
            run();
            $crate::finish()
        }

        #[cfg(not(target_os = "none"))]
        fn main() {}
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{}{info}", tproto::line::FAIL);
    port::exit(tproto::exit::FAIL)
}
