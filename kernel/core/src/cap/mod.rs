//! Capabilities: slots, the derivation tree, narrowing, and where a selector's slot is.

pub mod range;
pub mod slot;
pub mod space;
pub mod tree;

#[cfg(test)]
mod tests;

pub use slot::{Slot, Slots};
