//! `cargo nacre`: builds, runs and tests Nacre. Everything is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    nacre::cli::main()
}
