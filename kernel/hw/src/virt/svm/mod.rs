//! AMD-V (SVM): the privileged part. What can be decided without privileged instructions is in `kcore::virt::svm`,
//! whose references to the manual ("APM") hold here as well.
//!
//! Who saves what around a run:
//! 1. VMRUN and #VMEXIT: CS SS DS ES, GDTR IDTR, CR0 CR3 CR4, EFER, RFLAGS RIP RSP RAX, DR7, PAT; CR2 and DR6 of the
//!    guest only, the kernel does without.
//! 2. VMLOAD and VMSAVE, in `entry`: FS GS LDTR TR, KERNEL_GS_BASE, STAR LSTAR CSTAR SFMASK, SYSENTER.
//! 3. `entry`: the other general-purpose registers, in the vCPU page.
//! 4. `vcpu`, at load and unload: DR0 to DR3 (`debug`), TSC_AUX.
//! 5. The kernel: FPU state and XCR0.

mod entry;
mod entry_checker;
mod insn;
mod probe;
pub mod region;
mod state;
mod vcpu;

pub use vcpu::Vcpu;
