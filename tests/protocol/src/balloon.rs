//! What the guest of the paravirtual balloon is told and says.

/// With this `mode=` it uses its memory while it is another's.
pub const GREEDY: &str = "greedy";
/// What it says when it has its pages back, as far as it knows.
pub const BACK: &str = "the pages come back";
