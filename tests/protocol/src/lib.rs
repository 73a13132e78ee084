//! What the test guests and the host's test runner agree on.
//!
//! 1. A guest prints one line per check, `ok: …` or `FAIL: …`, then `done: N passed, M failed`.
//! 2. It ends by writing [`exit::PASS`] or [`exit::FAIL`] to [`exit::PORT`].
//! 3. [`cases::CASES`] says which guest runs how, and how its virtual machine has to end.
#![no_std]
#![forbid(unsafe_code)]

pub mod balloon;
pub mod cases;
pub mod crash;
pub mod disk;
pub mod exit;
pub mod line;
pub mod poison;
pub mod power;
pub mod pv;
pub mod switch;
pub mod web;

pub use cases::{CASES, Case, Expect, Machine};
