//! VMX: `region` switches it on and says what it offers, `vcpu` is one guest CPU. Same files as for SVM.

mod entry;
mod init;
mod insn;
mod page;
pub mod region;
mod registers;
mod state;
mod vcpu;

pub use vcpu::Vcpu;
