//! Bootable ISO images with GRUB.

use super::{BootImage, KERNEL_FILE};
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

/// Which firmware an image boots by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// BIOS alone: small, for the emulators.
    Bios,
    /// BIOS and UEFI.
    BiosAndUefi,
}

/// Name of the image in a run's folder.
pub const FILE: &str = "nacre.iso";

const MODULES: &str = "iso9660 multiboot2 normal configfile boot";

/// Packs `image` into the ISO file `output`. `scratch` is a folder for intermediate files.
pub fn make(image: &BootImage, firmware: Firmware, scratch: &Path, output: &Path) -> Result<()> {
    let tree = scratch.join("iso");
    image.lay_out(&tree.join("boot"))?;
    let grub = tree.join("boot/grub");
    fs::create_dir_all(&grub).with_context(|| format!("cannot create {}", grub.display()))?;
    crate::workspace::write(&grub.join("grub.cfg"), menu(image, firmware))?;

    let mut command = Command::new("grub-mkrescue");
    match firmware {
        Firmware::Bios => {
            command
                .args(["-d", "/usr/lib/grub/i386-pc"])
                .arg(format!("--install-modules=biosdisk {MODULES}"));
        }
        // Which disk and video modules there are differs between the two, so that GRUB's own choice is taken.
        Firmware::BiosAndUefi => {}
    }
    command.args(["--fonts=", "--locales=", "--themes=", "-o"]).arg(output).arg(&tree);
    let result = command.stdin(Stdio::null()).output().context("cannot start grub-mkrescue")?;
    if !result.status.success() {
        bail!("grub-mkrescue failed: {}", String::from_utf8_lossy(&result.stderr).trim());
    }
    fs::remove_dir_all(&tree).or_else(ignore_missing).context("cannot remove intermediate files")
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// GRUB's configuration: boot at once, without a menu.
fn menu(image: &BootImage, firmware: Firmware) -> String {
    let mut menu = String::from("set timeout=0\nterminal_output console\n");
    if firmware == Firmware::BiosAndUefi {
        menu.push_str("insmod all_video\ninsmod multiboot2\n");
    }
    let _ = writeln!(menu, "multiboot2 /boot/{KERNEL_FILE} {}", quoted(&image.cmdline));
    for module in &image.modules {
        let _ = writeln!(menu, "module2 /boot/{0} {0}", module.name);
    }
    menu.push_str("boot\n");
    menu
}

/// Words for GRUB's shell-like language: each in single quotes, which nothing but a single quote ends.
fn quoted(cmdline: &str) -> String {
    let words: Vec<String> =
        cmdline.split_whitespace().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::Module;
    use super::*;

    #[test]
    fn the_menu_loads_the_modules_in_order_by_name() {
        let module = |name: &str| Module { name: name.into(), bytes: vec![] };
        let image = BootImage {
            kernel: vec![],
            cmdline: "log=info a'b".into(),
            modules: vec![module("root"), module("console")],
        };
        let menu = menu(&image, Firmware::Bios);
        let multiboot: Vec<&str> = menu.lines().filter(|line| line.contains("/boot/")).collect();
        assert_eq!(
            multiboot,
            [
                r"multiboot2 /boot/nacre 'log=info' 'a'\''b'",
                "module2 /boot/root root",
                "module2 /boot/console console"
            ]
        );
    }
}
