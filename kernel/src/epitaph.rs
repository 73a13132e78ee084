//! The end of the kernel: what it says before it stops.
//!
//! Lines begin with `epitaph:` so that `cargo nacre` finds them; addresses are raw, and symbolised on the host.

use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use khw::console::Writer;
use khw::cpu::port;
use khw::entry::Frame;

static SPOKEN: AtomicBool = AtomicBool::new(false);
static REBOOT: AtomicBool = AtomicBool::new(false);

/// What a panic ends with: a reset, or stopped CPUs.
pub fn set_reboot(reboot: bool) {
    REBOOT.store(reboot, Ordering::Relaxed);
}

/// A panic of the kernel: a bug in it.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    if begin() {
        let _ = writeln!(Writer, "epitaph: panic: {}", info.message());
        if let Some(at) = info.location() {
            let _ = writeln!(Writer, "epitaph: at {}:{}", at.file(), at.line());
        }
        context();
        backtrace(khw::cpu::control::frame_pointer());
    }
    stop()
}

/// An exception in the kernel.
pub fn kernel_fault(frame: &Frame) -> ! {
    if begin() {
        let _ = writeln!(
            Writer,
            "epitaph: exception {} in the kernel, error {:#x}, cr2 {:#x}",
            frame.vector,
            frame.error,
            khw::cpu::control::read_cr2()
        );
        let f = frame;
        let _ = writeln!(
            Writer,
            "epitaph: rip {:#x} rsp {:#x} rflags {:#x} cs {:#x}",
            f.rip, f.rsp, f.rflags, f.cs
        );
        let _ =
            writeln!(Writer, "epitaph: rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x}", f.rax, f.rbx, f.rcx, f.rdx);
        let _ =
            writeln!(Writer, "epitaph: rsi {:#x} rdi {:#x} rbp {:#x} r8 {:#x}", f.rsi, f.rdi, f.rbp, f.r8);
        let _ =
            writeln!(Writer, "epitaph: r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x}", f.r9, f.r10, f.r11, f.r12);
        let _ = writeln!(Writer, "epitaph: r13 {:#x} r14 {:#x} r15 {:#x}", f.r13, f.r14, f.r15);
        context();
        if f.cs & 3 == 0 {
            let _ = writeln!(Writer, "epitaph: backtrace {:#x}", f.rip);
            backtrace(f.rbp);
        }
    }
    stop()
}

/// Reads an address that is not mapped: the test of [`kernel_fault`].
#[inline(never)]
pub(crate) fn fault_on_purpose() {
    // SAFETY: the page at 0 is never mapped in the kernel, so this only faults, as asked for.
    unsafe { core::arch::asm!("mov rax, [0]", out("rax") _, options(nostack, readonly)) }
}

/// A machine check while a guest ran: the machine is broken.
pub fn machine_check() -> ! {
    if begin() {
        let _ = writeln!(Writer, "epitaph: machine check while a guest ran");
        context();
    }
    stop()
}

/// Whether this is the first to end.
fn begin() -> bool {
    khw::console::last_words();
    !SPOKEN.swap(true, Ordering::AcqRel)
}

/// Who ran.
fn context() {
    let local = khw::percpu::local();
    if local == 0 {
        let _ = writeln!(Writer, "epitaph: cpu 0, during boot");
        return;
    }
    let local = crate::cpu::local();
    let _ = write!(Writer, "epitaph: cpu {}", local.id);
    if let Some(ec) = local.ec.get() {
        let _ = write!(Writer, ", context {ec:p} of domain {}, user rip {:#x}", ec.pd.id, ec.frame().rip);
    }
    let _ = writeln!(Writer);
}

/// Return addresses along the chain of frame pointers, as far as it stays in the kernel.
fn backtrace(mut frame: u64) {
    for _ in 0..24 {
        if frame < khw::mem::PHYS_BASE || !frame.is_multiple_of(8) {
            return;
        }
        // SAFETY: a frame pointer in the kernel half is on a kernel stack: the kernel is built with frame pointers, and
        // entry code zeroes RBP first. Should it be wrong all the same, the second fault finds `SPOKEN` set and stops.
        let [next, address] = unsafe { *(frame as *const [u64; 2]) };
        if address < khw::mem::KERNEL_BASE {
            return;
        }
        let _ = writeln!(Writer, "epitaph: backtrace {address:#x}");
        frame = next;
    }
}

/// Ends a test machine with a failure; elsewhere stops.
pub fn end_with_failure() -> ! {
    stop()
}

/// Stops this CPU if another one wrote the epitaph.
pub fn stop_if_over() {
    if SPOKEN.load(Ordering::Acquire) {
        khw::cpu::halt();
    }
}

fn stop() -> ! {
    khw::smp::stop_others();
    if REBOOT.load(Ordering::Relaxed) {
        // Reset control register of PCI chipsets: system reset, then full reset.
        port::write8(0xcf9, 2);
        port::write8(0xcf9, 6);
    }
    // Test machines: end with a failure (QEMU: isa-debug-exit; Bochs: shutdown port). Elsewhere nobody listens.
    port::write8(0xf4, 0x7f);
    for &byte in b"Shutdown" {
        port::write8(0x8900, byte);
    }
    khw::cpu::halt()
}
