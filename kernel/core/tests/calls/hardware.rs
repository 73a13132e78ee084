//! What the kernel's files use of a CPU. Each test thread is a CPU of its own, with a clock that stands still while the kernel runs.

use core::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

std::thread_local! {
    static ID: usize = {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        COUNT.fetch_add(1, Ordering::Relaxed)
    };
    static LOCAL: Cell<u64> = const { Cell::new(0) };
    static NOW: Cell<u64> = const { Cell::new(1) };
    static ARMED: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Makes `local` this CPU's.
pub fn install(local: u64) {
    LOCAL.set(local);
    ARMED.set(u64::MAX);
}

/// Lets time pass.
pub fn pass(ticks: u64) {
    NOW.set(NOW.get() + ticks);
}

/// Whether the timer fires now; then it is stopped.
pub fn fires() -> bool {
    let fires = ARMED.get() <= NOW.get();
    if fires {
        ARMED.set(u64::MAX);
    }
    fires
}

/// The kernel's `cpu`, and that of `khw`.
pub mod cpu {
    pub use crate::kernel_cpu::*;

    pub fn idle() {
        panic!("a thread that only idles is always ready");
    }

    pub fn interrupt_window() {}

    pub mod control {
        pub fn read_cr3() -> u64 {
            0
        }

        /// # Safety
        /// None needed.
        pub unsafe fn write_cr3(_: u64) {}
    }

    pub mod fpu {
        pub fn release() {}
    }

    pub mod mitigation {
        pub fn between_domains() {}
    }

    pub mod tsc {
        pub fn read() -> u64 {
            crate::hardware::NOW.get()
        }
    }
}

pub mod desc {
    use kcore::addr::PhysAddr;

    pub const TSS: u16 = 0;
    pub const KERNEL_CODE: u16 = 0;

    pub fn idt_base() -> u64 {
        0
    }

    #[derive(Debug)]
    pub struct CpuTables;

    impl CpuTables {
        pub fn gdt_base(_: *mut Self) -> u64 {
            0
        }

        pub fn tss_base(_: *mut Self) -> u64 {
            0
        }

        /// # Safety
        /// None needed, as for the others.
        pub unsafe fn set_frame_end(_: *mut Self, _: u64) {}

        /// # Safety
        /// None needed.
        pub unsafe fn use_io_bitmap(_: *mut Self, _: [PhysAddr; 2]) {}

        /// # Safety
        /// None needed.
        pub unsafe fn open_io_bitmap(_: *mut Self, _: bool) {}

        /// # Safety
        /// None needed.
        pub unsafe fn reload_tr(_: *mut Self) {}
    }
}

pub mod entry {
    pub const SYSCALL: u64 = 0x100;

    /// The registers that calls look at.
    #[derive(Clone, Debug, Default)]
    pub struct Frame {
        pub rax: u64,
        pub rbx: u64,
        pub rcx: u64,
        pub rdx: u64,
        pub rsi: u64,
        pub rdi: u64,
        pub rbp: u64,
        pub r8: u64,
        pub r9: u64,
        pub r10: u64,
        pub r11: u64,
        pub r12: u64,
        pub r13: u64,
        pub r14: u64,
        pub r15: u64,
        pub rip: u64,
        pub rsp: u64,
        pub rflags: u64,
        pub vector: u64,
    }
}

pub mod irq {
    pub mod lapic {
        pub fn arm(when: u64) {
            crate::hardware::ARMED.set(when);
        }
    }
}

pub mod percpu {
    #[derive(Debug)]
    pub struct Block {
        pub this: u64,
    }

    pub fn id() -> usize {
        crate::hardware::ID.with(|id| *id)
    }

    pub fn local() -> u64 {
        crate::hardware::LOCAL.get()
    }

    pub fn block(_: usize) -> Option<&'static Block> {
        None
    }

    pub fn set_frame_end(_: u64) {}
}

pub mod smp {
    /// Requests are served where the kernel serves them.
    pub fn serve(work: impl FnOnce()) {
        work();
    }

    pub fn epoch() -> u32 {
        0
    }

    pub fn has_request() -> bool {
        false
    }

    pub fn interrupt(_: usize) {
        panic!("there is one CPU");
    }
}

pub mod virt {
    #[derive(Debug)]
    pub struct HostState {
        pub gdt_base: u64,
        pub idt_base: u64,
        pub tss_base: u64,
        pub tss_selector: u16,
        pub code_selector: u16,
        pub gs_base: u64,
    }

    pub fn exits_shorten_tr() -> bool {
        false
    }
}
