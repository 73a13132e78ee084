//! A guest whose first instruction ends its VM.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18", // XEN_ELFNOTE_PHYS32_ENTRY
    ".asciz \"Xen\"",
    ".quad trt_entry32",
    ".popsection",
    ".pushsection .text.boot, \"ax\"",
    ".code32",
    ".global trt_entry32", // as the linker script calls it
    "trt_entry32:",
    "out 0xf4, al",
    "ud2",
    ".code64",
    ".popsection",
);

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_os = "none"))]
fn main() {}
