//! What an emulator keeps tests from asking: `kernel/doc/vm-entry.md` says why the kernel cannot answer it.

use usys::cpu;

/// Whether this is Bochs 2.7 with SVM, known by having FlushByAsid (bit 6) without decode assists (bit 7) and no hypervisor.
///
/// There a guest with interrupts off keeps its CPU, and so does one with random contents sooner or later; and the single-step
/// trap of a guest's instruction that exits instead is taken by the host.
pub fn is_bochs_svm() -> bool {
    let is_bare = cpu::cpuid(1, 0)[2] >> 31 == 0;
    let has_svm = cpu::cpuid(0x8000_0001, 0)[2] >> 2 & 1 != 0;
    is_bare && has_svm && cpu::cpuid(0x8000_000a, 0)[3] & 0xc0 == 0x40
}
