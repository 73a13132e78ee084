//! Who runs next, and for how long.

pub mod budget;
pub mod deadlines;
