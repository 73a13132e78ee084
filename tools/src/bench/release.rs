//! What is measured is what is shipped: nothing from outside the sources may take a check out of the release build.

use crate::{failure, workspace};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};
use toml::{Table, Value};

/// Refuses to measure where the environment, or a configuration of cargo that is not ours, changes how the release is built.
///
/// # Errors
/// Names what changes it.
pub fn refuse_other_builds() -> Result<()> {
    if let Some(name) =
        env::vars_os().filter_map(|(name, _)| name.into_string().ok()).find(|name| changes_build(name))
    {
        return Err(refusal(&format!("the variable {name}")));
    }
    let root = workspace::root();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default_home);
    let own = table_in(&root.join(".cargo").join("config.toml"))?.unwrap_or_default();
    let above = root.ancestors().skip(1).map(|folder| folder.join(".cargo")).chain(home);
    for folder in above {
        for file in ["config.toml", "config"].map(|name| folder.join(name)) {
            let foreign = table_in(&file)?.unwrap_or_default();
            if let Some(key) = key_that_changes_build(&foreign, &own) {
                return Err(refusal(&format!("`{key}` in {}", file.display())));
            }
        }
    }
    Ok(())
}

fn default_home() -> Option<PathBuf> {
    let home: OsString = env::var_os("HOME")?;
    Some(PathBuf::from(home).join(".cargo"))
}

fn refusal(what: &str) -> anyhow::Error {
    failure::usage(format!(
        "{what} changes the build, so that the figures would not be the release's: unset it"
    ))
}

/// Whether a variable changes cargo's release profile, or the compiler's options.
fn changes_build(variable: &str) -> bool {
    variable.starts_with("CARGO_PROFILE_RELEASE_")
        || variable == "RUSTFLAGS"
        || variable == "CARGO_ENCODED_RUSTFLAGS"
        || variable == "CARGO_BUILD_RUSTFLAGS"
        || (variable.starts_with("CARGO_TARGET_") && variable.ends_with("_RUSTFLAGS"))
}

/// A configuration, if the file is there.
fn table_in(file: &Path) -> Result<Option<Table>> {
    let Ok(text) = fs::read_to_string(file) else {
        return Ok(None);
    };
    let table = text.parse().with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Some(table))
}

/// What in a configuration does the same, unless our own says it as well: a checkout may lie in another one.
fn key_that_changes_build(table: &Table, own: &Table) -> Option<String> {
    let targets = table.get("target").and_then(Value::as_table);
    let of_targets = targets
        .into_iter()
        .flat_map(Table::keys)
        .map(|name| ["target", name, "rustflags"].map(str::to_owned).to_vec());
    [["profile", "release"], ["build", "rustflags"]]
        .map(|path| path.map(str::to_owned).to_vec())
        .into_iter()
        .chain(of_targets)
        .find(|path| {
            let value = lookup(table, path);
            value.is_some() && value != lookup(own, path)
        })
        .map(|path| path.join("."))
}

fn lookup<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(first)?;
    if rest.is_empty() { Some(value) } else { lookup(value.as_table()?, rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_build_is_told_apart_from_what_does_not() {
        for name in [
            "CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS",
            "RUSTFLAGS",
            "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
        ] {
            assert!(changes_build(name), "{name}");
        }
        for name in ["CARGO_TARGET_DIR", "CARGO_PROFILE_DEV_DEBUG", "CARGO_NET_OFFLINE"] {
            assert!(!changes_build(name), "{name}");
        }
    }

    #[test]
    fn a_configuration_is_refused_for_what_it_changes() {
        let own = "[target.x86_64-unknown-none]\nrustflags = ['-g']".parse().unwrap();
        let key = |text: &str| key_that_changes_build(&text.parse().unwrap(), &own);
        assert_eq!(key("[net]\noffline = true\n[build]\njobs = 2"), None);
        assert_eq!(key("[target.x86_64-unknown-none]\nrustflags = ['-g']"), None);
        assert_eq!(key("[profile.release]\ndebug-assertions = false").as_deref(), Some("profile.release"));
        assert_eq!(
            key("[target.x86_64-unknown-none]\nrustflags = []").as_deref(),
            Some("target.x86_64-unknown-none.rustflags")
        );
    }
}
