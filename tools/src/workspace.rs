//! Where the sources, the build results and the caches are.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    // `cargo run` sets the variable; the constant serves a binary that is started directly.
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target)
}

/// A folder of the tool's own below [`target`], created if need be.
pub fn own_dir(name: &str) -> Result<PathBuf> {
    let dir = target().join("nacre").join(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// An executable built for the bare target.
pub fn bare_binary(name: &str) -> PathBuf {
    built("release", name)
}

/// The kernel that this process boots: the one with the checkers in `test`, else the release build.
pub fn kernel_binary() -> PathBuf {
    built(crate::compile::kernel_profile(), "kernel")
}

fn built(profile: &str, name: &str) -> PathBuf {
    target().join(crate::compile::BARE_TARGET).join(profile).join(name)
}

/// Reads a file, with its path in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file, with its path in the error.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
