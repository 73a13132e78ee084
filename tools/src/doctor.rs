//! What this machine has, and what to do about what it lacks: one page.

use crate::run::machine::{self, Machine};
use crate::setup::{self, Need};
use crate::{compile, guest};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    area: &'static str,
    what: String,
    found: String,
    /// What to do about it, if anything is to be done.
    advice: Option<String>,
}

/// Prints the page.
pub fn doctor(args: &DoctorArgs) -> Result<()> {
    let findings = examine()?;
    if args.json {
        println!("{}", as_json(&findings));
    } else {
        print!("{}", as_page(&findings));
    }
    Ok(())
}

fn examine() -> Result<Vec<Finding>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut findings = vec![system(&cpuinfo), memory()];
    findings.extend(virtualization(&cpuinfo));
    findings.extend([kvm(), nested(), iommu()]);
    findings.extend(rust()?);
    let groups =
        [setup::QEMU, setup::BOCHS, setup::IMAGE, setup::UEFI_IMAGE, setup::OVMF, setup::DISK, setup::QCOW2];
    findings.extend(groups.iter().flat_map(|group| group.iter()).map(package));
    findings.push(guest_linux()?);
    findings.extend([Machine::Svm, Machine::Vtx, Machine::SvmBochs, Machine::Kvm].map(readiness));
    findings.push(plain("machines", "auto", Machine::Auto.resolve().name()));
    Ok(findings)
}

fn plain(area: &'static str, what: impl Into<String>, found: impl Into<String>) -> Finding {
    Finding { area, what: what.into(), found: found.into(), advice: None }
}

fn check(area: &'static str, what: &str, is_there: bool, advice: &str) -> Finding {
    let advice = (!is_there).then(|| advice.to_owned());
    Finding { area, what: what.into(), found: if is_there { "yes" } else { "no" }.into(), advice }
}

fn system(cpuinfo: &str) -> Finding {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("unknown system")
        .trim_matches('"');
    let cpu = field(cpuinfo, "model name").unwrap_or("unknown CPU");
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    plain("this machine", "system", format!("{name}, {count} x {cpu}"))
}

fn memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        field(&meminfo, "MemAvailable").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    let mib = available.map_or(0, |kib| kib / 1024);
    let advice = (mib < 1536)
        .then(|| "an emulator with its default memory needs 1.5 GiB; use --host-memory 512".into());
    Finding { area: "this machine", what: "free memory".into(), found: format!("{mib} MiB"), advice }
}

/// The value of a field of /proc/cpuinfo or /proc/meminfo.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn virtualization(cpuinfo: &str) -> Vec<Finding> {
    const AREA: &str = "hardware virtualization (only machine kvm needs it)";
    let vendor = field(cpuinfo, "vendor_id").unwrap_or("unknown");
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    let vmx_flags = field(cpuinfo, "vmx flags").unwrap_or_default();
    let has = |flags: &str, flag: &str| flags.split(' ').any(|word| word == flag);
    let mut findings = vec![plain(AREA, "vendor", vendor)];
    let bios = "switch virtualization on in the firmware, or use machine svm or vtx, which need none";
    if vendor == "AuthenticAMD" {
        findings.push(check(AREA, "AMD-V", has(flags, "svm"), bios));
        findings.push(check(AREA, "NPT", has(flags, "npt"), "machine kvm needs it"));
    } else {
        findings.push(check(AREA, "VT-x", has(flags, "vmx"), bios));
        // Kernels before 5.12 list them among the other flags.
        let vmx = |flag| has(vmx_flags, flag) || has(flags, flag);
        findings.push(check(AREA, "EPT", vmx("ept"), "machine kvm needs it"));
        findings.push(check(AREA, "unrestricted guest", vmx("unrestricted_guest"), "machine kvm needs it"));
    }
    findings
}

fn kvm() -> Finding {
    let advice = if Path::new("/dev/kvm").exists() {
        "add yourself to group kvm: sudo usermod -aG kvm $USER, then log in again"
    } else {
        "load KVM: sudo modprobe kvm_intel (or kvm_amd); without hardware virtualization, machine kvm is not to be had"
    };
    check("KVM", "usable (/dev/kvm)", machine::kvm_is_usable(), advice)
}

fn nested() -> Finding {
    let advice = "for machine kvm: echo 'options kvm_intel nested=1' | sudo tee /etc/modprobe.d/nested.conf (or kvm_amd), then \
                  load the module again";
    check("KVM", "nested virtualization", machine::nesting().is_some(), advice)
}

fn iommu() -> Finding {
    let has = fs::read_dir("/sys/class/iommu").is_ok_and(|mut entries| entries.next().is_some());
    let has = if has { "yes" } else { "no" };
    plain(
        "KVM",
        "IOMMU",
        format!(
            "{has} (not needed: machine svm emulates one, which confines the drivers virtio-blk and virtio-net; they are \
             trusted with DMA on machine kvm without --iommu; ata and ne2000 do none)"
        ),
    )
}

fn rust() -> Result<Vec<Finding>> {
    let version = version_of(compile::rustc().arg("--version")).unwrap_or_else(|| "missing".into());
    let advice = format!("rustup target add {}", compile::BARE_TARGET);
    let target = check("tools", compile::BARE_TARGET, setup::has_rust_target()?, &advice);
    let deny = version_of(compile::cargo().args(["deny", "--version"]));
    Ok(vec![
        plain("tools", "Rust", version),
        target,
        plain("tools", "cargo-deny", deny.unwrap_or_else(|| "missing (optional)".into())),
    ])
}

fn version_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

fn package(need: &Need) -> Finding {
    let version =
        version_of(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", need.package]));
    if need.is_met() {
        return plain("packages", need.package, version.unwrap_or_else(|| "yes".into()));
    }
    let advice = format!("for {}: sudo apt-get install {}", need.purpose, need.package);
    Finding { area: "packages", what: need.package.into(), found: "missing".into(), advice: Some(advice) }
}

fn guest_linux() -> Result<Finding> {
    let found = match guest::debian::cached()? {
        Some(linux) => linux
            .versions
            .iter()
            .map(|package| format!("{} {}", package.package, package.version))
            .collect::<Vec<_>>()
            .join(", "),
        None => "not fetched yet; `cargo nacre run` does that".into(),
    };
    Ok(plain("guest", "linux", found))
}

fn readiness(machine: Machine) -> Finding {
    let missing: Vec<&str> = machine
        .needs()
        .iter()
        .flat_map(|group| group.iter())
        .filter(|need| !need.is_met())
        .map(|need| need.package)
        .collect();
    let found = if !missing.is_empty() {
        format!("needs {} (run installs them, as root)", missing.join(", "))
    } else if let Some(why) = machine.why_not() {
        format!("not to be had: {why}")
    } else {
        "ready".into()
    };
    plain("machines", machine.name(), found)
}

fn as_json(findings: &[Finding]) -> Value {
    findings
        .iter()
        .map(|finding| {
            json!({ "area": finding.area, "what": finding.what, "found": finding.found, "advice": finding.advice })
        })
        .collect()
}

fn as_page(findings: &[Finding]) -> String {
    let mut page = String::new();
    let mut area = "";
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            let _ = writeln!(page, "{area}");
        }
        let _ = writeln!(page, "  {:<24} {}", finding.what, finding.found);
        if let Some(advice) = &finding.advice {
            let _ = writeln!(page, "  {:<24} -> {advice}", "");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: A CPU\nflags\t\t: fpu vmx\n";
        assert_eq!(field(text, "model name"), Some("A CPU"));
        assert_eq!(field(text, "flags"), Some("fpu vmx"));
        assert_eq!(field(text, "vmx flags"), None);
    }

    #[test]
    fn an_intel_cpu_without_ept_gets_advice() {
        let findings = virtualization("vendor_id : GenuineIntel\nflags : fpu vmx\nvmx flags : vnmi\n");
        let ept = findings.iter().find(|finding| finding.what == "EPT").unwrap();
        assert_eq!((&*ept.found, ept.advice.is_some()), ("no", true));
        assert!(findings.iter().any(|finding| finding.what == "VT-x" && finding.found == "yes"));
    }

    #[test]
    fn the_page_groups_by_area() {
        let page = as_page(&[plain("a", "x", "1"), plain("a", "y", "2"), check("b", "z", false, "do it")]);
        assert_eq!(page.lines().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>(), ["a", "b"]);
        assert!(page.contains("-> do it"));
    }
}
