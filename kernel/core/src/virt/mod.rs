//! Virtualization logic that needs no privileged instruction: layouts, control choice, exit decoding, entry rules.

pub mod doorbell;
pub mod fetch;
pub mod svm;
pub mod vapic;
pub mod vmx;
pub mod xcr0;
pub mod xsave;
