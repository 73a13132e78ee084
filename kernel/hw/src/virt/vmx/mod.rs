//! VMX: `region` switches it on and says what it offers, `vcpu` is one guest CPU.

mod answer;
mod apic;
mod entry;
mod entry_checker;
mod exit;
mod init;
mod insn;
pub mod region;
mod registers;
mod state;
mod vcpu;

pub use vcpu::Vcpu;
