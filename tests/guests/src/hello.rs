//! A guest prints a line and exits.

/// The guest.
pub fn run() {
    trt::println!("{}", tproto::line::HELLO);
}
