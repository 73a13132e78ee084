//! Modules of the guest's kernel: which ones a VM's devices need, and in which order they load.

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::endian::LittleEndian;
use std::path::Path;

/// Drivers that are kept of the kernel's package, by the names of their files; those they depend on come along.
pub const DRIVERS: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio-rng",
    "virtio_console",
    "virtio_net",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
];

/// A module of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its file's name, without `.ko`.
    pub name: String,
    /// Its file.
    pub bytes: Vec<u8>,
}

/// The modules named `wanted` and those that they depend on, each once and behind what it needs. `read` finds a module's
/// file by its name, in which `-` and `_` are the same.
pub fn in_load_order(wanted: &[&str], read: &impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    wanted.iter().try_for_each(|name| add(name, read, &mut modules, 0))?;
    Ok(modules)
}

fn add(
    name: &str,
    read: &impl Fn(&str) -> Result<Vec<u8>>,
    modules: &mut Vec<Module>,
    depth: usize,
) -> Result<()> {
    const DEEPEST: usize = 16;
    if modules.iter().any(|module| is_same(&module.name, name)) {
        return Ok(());
    }
    if depth > DEEPEST {
        bail!("module {name} needs itself");
    }
    let bytes = read(name)?;
    for needed in dependencies(&bytes).with_context(|| format!("module {name}"))? {
        add(&needed, read, modules, depth + 1)?;
    }
    modules.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Whether two names mean one module.
pub fn is_same(one: &str, other: &str) -> bool {
    one.replace('-', "_") == other.replace('-', "_")
}

/// What a module needs: the names behind `depends=` among the zero-terminated strings of its section `.modinfo`.
fn dependencies(bytes: &[u8]) -> Result<Vec<String>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
    let section = file.section_header_by_name(".modinfo")?.context("no .modinfo")?;
    let (data, _) = file.section_data(&section)?;
    let depends = data.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The file of the module `name` somewhere below `folder`.
pub fn find(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            let is_it = path.extension().is_some_and(|extension| extension == "ko")
                && path.file_stem().is_some_and(|stem| is_same(&stem.to_string_lossy(), name));
            if is_it {
                return crate::workspace::read(&path);
            }
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            }
        }
    }
    bail!("the kernel has no module {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 file with a `.modinfo` of this content.
    fn module(info: &[u8]) -> Vec<u8> {
        const HEADERS: u64 = 64;
        const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
        let names_at = HEADERS + 3 * 64;
        let info_at = names_at + NAMES.len() as u64;
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([1, 0, 62, 0, 1, 0, 0, 0]);
        for value in [0, 0, HEADERS] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        for (name, kind, at, len) in
            [(0u32, 0u32, 0, 0), (1, 1, info_at, info.len()), (10, 3, names_at, NAMES.len())]
        {
            bytes.extend(name.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            for value in [0, 0, at, len as u64, 0, 1, 0] {
                bytes.extend(value.to_le_bytes());
            }
        }
        bytes.extend(NAMES);
        bytes.extend(info);
        bytes
    }

    #[test]
    fn a_module_comes_behind_what_it_needs_and_once() {
        let read = |name: &str| {
            Ok(match name {
                "a-b" => module(b"license=GPL\0depends=c,d\0name=a_b\0"),
                "c" => module(b"depends=d\0"),
                "d" => module(b"depends=\0"),
                other => bail!("no {other}"),
            })
        };
        let names = |wanted: &[&str]| {
            let modules = in_load_order(wanted, &read)?;
            Ok::<_, anyhow::Error>(modules.into_iter().map(|module| module.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["a-b", "c"]).unwrap(), ["d", "c", "a-b"]);
        assert!(names(&["e"]).is_err());
    }

    #[test]
    fn modules_that_need_each_other_are_an_error() {
        let read = |name: &str| Ok(module(if name == "a" { b"depends=b\0" } else { b"depends=a\0" }));
        assert!(in_load_order(&["a"], &read).is_err());
    }

    #[test]
    fn what_is_no_module_is_an_error() {
        assert!(in_load_order(&["a"], &|_| Ok(b"text".to_vec())).is_err());
    }
}
