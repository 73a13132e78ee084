//! Failures of the tool itself, told apart by what the user can do about them.

use std::fmt::{self, Display};

/// Which exit code a failure of the tool gets (`README.md`, "Exit codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the user asked for makes no sense: an option, a manifest, a file that is no kernel.
    Usage,
    /// This machine lacks something.
    Setup,
    /// Nacre did not do what it should.
    Internal,
}

impl Kind {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Setup => 69,
            Kind::Internal => 72,
        }
    }

    /// Its name in `--json`.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Usage => "bad-usage",
            Kind::Setup => "setup-failed",
            Kind::Internal => "nacre-failed",
        }
    }
}

/// An error with its [`Kind`]; errors without one count as [`Kind::Internal`].
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The user asked for something that makes no sense; `message` says what, and what to do.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Failure { kind: Kind::Usage, message: message.into() }.into()
}

/// This machine lacks something; `message` says what, and what to do.
pub fn setup(message: impl Into<String>) -> anyhow::Error {
    Failure { kind: Kind::Setup, message: message.into() }.into()
}

/// The kind of an error, found anywhere in its chain.
pub fn kind(error: &anyhow::Error) -> Kind {
    error.downcast_ref::<Failure>().map_or(Kind::Internal, |failure| failure.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_kind_survives_added_context() {
        let error = Err::<(), _>(usage("no such file")).context("reading the manifest").unwrap_err();
        assert_eq!(kind(&error), Kind::Usage);
        assert_eq!(kind(&anyhow::anyhow!("plain")), Kind::Internal);
    }
}
