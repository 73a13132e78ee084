//! The Nacre microhypervisor: objects, capabilities, hypercalls, scheduling.
//!
//! Reading order: [`boot`] (kernel entry to the root task), [`trap`] (how user code comes in), [`hypercall`] (decode, range,
//! capability, rights, act), [`object`] (one kernel object a file), [`sched`] (who runs next), `khw::virt` (the world switch).
#![no_std]

pub mod boot;
pub mod cap;
pub mod cpu;
pub mod epitaph;
pub mod fast;
pub mod hypercall;
pub mod object;
pub mod reclaim;
pub mod sched;
pub mod trace;
pub mod trap;
