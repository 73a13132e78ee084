//! VMX: encodings and decisions (SDM 3C chapters 24 to 28, appendices A to C).

pub mod checks;
pub mod control_registers;
pub mod controls;
pub mod entry_checker;
pub mod exit;
pub mod fields;
pub mod msr_bitmap;
pub mod syscall_msrs;
pub mod vpid;
