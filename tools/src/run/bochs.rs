//! Bochs: the machines `vtx` and `svm-bochs`.

use super::Options;
use super::machine::Machine;
use super::network::MachineCard;
use crate::image::disks::MachineDisk;
use crate::image::iso;
use crate::workspace;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use vmm_protocol::manifest::{DiskDriver, Uplink};

/// Exit code of Bochs when the root task ends the machine ("Shutdown" to port 0x8900).
pub const END: i32 = 1;

/// 50 MHz: what an ordinary PC emulates without falling behind.
const INSTRUCTIONS_PER_SECOND: u32 = 50_000_000;
/// 2000-01-01 00:20:00 UTC, in runs that repeat exactly.
const FIXED_TIME: &str = "946681200";

/// Most memory of a machine in MiB: with more, Bochs 2.7 hangs.
pub const MOST_MEMORY_MIB: u32 = 4096;
/// Most CPUs of a machine.
pub const MOST_CPUS: u16 = 8;

/// Bochs keeps at most this many MiB of a machine's memory in its own; the rest is in a file.
const MOST_HOST_MEMORY_MIB: u32 = 2048;

/// File name of the configuration in a run's folder.
pub const CONFIGURATION: &str = "bochsrc";
/// File name of the commands for Bochs's debugger.
pub const DEBUGGER_COMMANDS: &str = "debugger-commands";
/// How many triple faults of guests a run on `svm-bochs` survives.
const MOST_TRIPLE_FAULTS: usize = 1000;
const LOG: &str = "bochs.log";
/// Last byte of the first network card's address, as QEMU has it.
const FIRST_CARD_ADDRESS: usize = 0x56;

/// The command that boots [`iso::FILE`] in `folder`, with COM1 connected to a local TCP port.
pub fn command(
    options: &Options,
    disks: &[MachineDisk],
    cards: &[MachineCard],
    folder: &Path,
    port: u16,
) -> Result<Command> {
    let mut text = configuration(options, disks, port);
    for (index, card) in cards.iter().filter(|card| card.driver == Uplink::Ne2000).enumerate() {
        let file = format!("slirp{index}.conf");
        workspace::write(&folder.join(&file), network_configuration(card))?;
        let address = FIRST_CARD_ADDRESS + index;
        let _ = writeln!(
            text,
            "ne2k: card={index}, enabled=1, type=pci, mac=52:54:00:12:34:{address:02x}, ethmod=slirp, ethdev=none, script={file}"
        );
    }
    workspace::write(&folder.join(CONFIGURATION), text)?;
    // Debian's Bochs stops in its debugger before the first instruction, and at every triple fault.
    let stops = 1 + if survives_triple_faults(options.machine) { MOST_TRIPLE_FAULTS } else { 0 };
    workspace::write(&folder.join(DEBUGGER_COMMANDS), "c\n".repeat(stops))?;
    let mut command = Command::new("bochs");
    command.args(["-f", CONFIGURATION, "-rc", DEBUGGER_COMMANDS]);
    // The "term" display draws nothing without a terminal, but it wants to know which one.
    command.env("TERM", "xterm");
    Ok(command)
}

/// Whether Bochs goes on after a triple fault. With SVM it asks itself whether the guest's ends the guest only after the
/// panic that announces it.
const fn survives_triple_faults(machine: Machine) -> bool {
    matches!(machine, Machine::SvmBochs)
}

const fn model(machine: Machine) -> &'static str {
    match machine {
        Machine::SvmBochs => "ryzen",
        _ => "corei7_skylake_x",
    }
}

fn configuration(options: &Options, disks: &[MachineDisk], port: u16) -> String {
    let model = options.cpu_model.as_deref().unwrap_or(model(options.machine));
    let clock = if options.deterministic {
        format!("sync=none, time0={FIXED_TIME}")
    } else {
        // Never faster than the wall clock: an idle guest does not run ahead.
        "sync=slowdown, time0=utc".to_owned()
    };
    let mut text = String::from(
        "display_library: term\n\
         config_interface: textconfig\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n",
    );
    let memory = options.host_memory_mib;
    let _ = writeln!(text, "memory: guest={memory}, host={}", memory.min(MOST_HOST_MEMORY_MIB));
    let _ = writeln!(
        text,
        "cpu: model={model}, count={}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=0",
        options.host_cpus
    );
    let _ = writeln!(text, "clock: {clock}");
    text.push_str("pci: enabled=1, chipset=i440fx\n");
    text.push_str(&drives(disks));
    let _ = writeln!(text, "com1: enabled=1, mode=socket-client, dev=localhost:{port}");
    let cpu_panics = if survives_triple_faults(options.machine) {
        (0..options.host_cpus).map(|cpu| format!(", cpu{cpu}=report")).collect()
    } else {
        String::new()
    };
    let _ = writeln!(
        text,
        "port_e9_hack: enabled=1\n\
         speaker: enabled=0\n\
         mouse: enabled=0\n\
         log: {LOG}\n\
         panic: action=fatal{cpu_panics}\n\
         error: action=report\n\
         info: action=ignore\n\
         debug: action=ignore"
    );
    text
}

/// What the network behind a card is told. Its addresses are QEMU's.
fn network_configuration(card: &MachineCard) -> String {
    let rules = card.publish.iter().map(|publish| format!("hostfwd = {}\n", publish.rule()));
    std::iter::once("# slirp config\n".to_owned()).chain(rules).collect()
}

/// The ATA channels with the disks, each the first drive of its channel, and the CD-ROM that is booted.
fn drives(disks: &[MachineDisk]) -> String {
    let mut text = String::from("ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n");
    let disks = disks.iter().filter(|disk| disk.driver == DiskDriver::Ata).collect::<Vec<_>>();
    let cdrom = if disks.is_empty() { "ata0-master" } else { "ata1-slave" };
    if !disks.is_empty() {
        text.push_str("ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n");
    }
    for MachineDisk { device, file, is_read_only, .. } in disks {
        // Of a volatile disk the file is the base, and what is written goes to a file that is deleted.
        let mode = if *is_read_only { "volatile" } else { "flat" };
        let _ = writeln!(text, "ata{device}-master: type=disk, path={file}, mode={mode}, translation=auto");
    }
    let _ = writeln!(text, "boot: cdrom\n{cdrom}: type=cdrom, path={}, status=inserted", iso::FILE);
    text
}

/// A line of Bochs's stdout as a line of the kernel's log, unless it is the debugger's own.
pub fn kernel_line(line: &str) -> Option<&str> {
    let is_banner = line.starts_with("=====")
        || line.starts_with("Next at t=")
        || line.starts_with("bx_dbg_read_linear: ")
        || ["Bochs x86 Emulator", "Built from", "Timestamp:"]
            .iter()
            .any(|start| line.trim_start().starts_with(start));
    let is_disassembly =
        line.strip_prefix('(').and_then(|rest| rest.split_once(')')).is_some_and(|(cpu, rest)| {
            cpu.parse::<u8>().is_ok() && (rest.starts_with(" [0x") || rest.starts_with(".["))
        });
    (!is_banner && !is_disassembly).then_some(line)
}

/// What Bochs says about why it stopped, for a message.
pub fn last_words(folder: &Path) -> Option<String> {
    let log = std::fs::read_to_string(folder.join(LOG)).ok()?;
    let panic = log.lines().find(|line| line.contains(">>PANIC<<"))?;
    Some(panic.trim().to_owned())
}

/// Copies Bochs's own log next to the run's log, as the run's folder vanishes.
pub fn keep_log(folder: &Path, run_log: &Path) {
    // A convenience for whoever looks into a failure; that it fails must not hide the run's result.
    let _ = std::fs::copy(folder.join(LOG), run_log.with_extension("bochs.log"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debuggers_lines_are_not_the_kernels() {
        assert_eq!(kernel_line("(0) [0x0000fffffff0] f000:fff0 (unk. ctxt): jmpf 0xf000:e05b"), None);
        assert_eq!(
            kernel_line(
                "bx_dbg_read_linear: physical memory read error (phy=0x002e09001000, lin=0x0000000000001000)"
            ),
            None
        );
        assert_eq!(
            kernel_line("(0).[50525531] [0x00000020001c] 0010:000000000020001c (unk. ctxt): out dx, al"),
            None
        );
        assert_eq!(kernel_line("                        Bochs x86 Emulator 2.7"), None);
        assert_eq!(kernel_line("nacre: hello"), Some("nacre: hello"));
        assert_eq!(kernel_line("(x) is a line"), Some("(x) is a line"));
    }
}
