//! AMD-V (SVM), the part without privileged instructions. "APM" is the AMD64 Architecture Programmer's Manual,
//! volume 2 where no other is named.
//!
//! One run: [`checks`] and [`event`] refuse what must not reach VMRUN, [`intercepts`] and [`asid`] prepare the
//! control area of the [`vmcb`], and [`exit`] turns the exit code into the vendor-neutral exit. [`processor`] says
//! what this CPU can do.

pub mod asid;
pub mod checks;
pub mod entry_checker;
pub mod event;
pub mod exit;
pub mod intercepts;
pub mod msr_bitmap;
pub mod processor;
pub mod segment;
pub mod vmcb;
