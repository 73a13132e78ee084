//! The Nacre microhypervisor. Everything is in the library; this is what only an executable can have.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod start {
    use core::panic::PanicInfo;

    /// Called by `boot/start.rs` in long mode on the boot stack.
    #[unsafe(no_mangle)]
    extern "C" fn nacre_main(magic: u32, info: u32, tsc: u64) -> ! {
        nkernel::boot::main(magic, info, tsc)
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        nkernel::epitaph::panic(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {}
