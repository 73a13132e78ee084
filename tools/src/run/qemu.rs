//! QEMU: the machines `svm` and `kvm`.

use super::Options;
use super::machine::{Iommu, Machine};
use super::network::MachineCard;
use crate::image::disks::MachineDisk;
use crate::image::{BootImage, KERNEL_FILE, iso};
use std::process::Command;
use vmm_protocol::manifest::{DiskDriver, Uplink};
use vmm_protocol::process::driver::{self, ata};

/// Name of the socket that COM1 is connected to, in the run's folder.
pub const LINK_SOCKET: &str = "link.sock";
/// Name of a link to the log of what is written to the first disk, in the run's folder.
pub const WRITE_LOG: &str = "writes.log";
/// Exit code of QEMU when the root task ends the machine: isa-debug-exit, `(0x10 << 1) | 1`.
pub const END: i32 = 33;

/// Number of the first virtio device on the PCI bus.
const FIRST_VIRTIO_DEVICE: usize = 8;
/// Number of the first network card on the PCI bus.
const FIRST_CARD: usize = FIRST_VIRTIO_DEVICE + driver::virtio::MAX_DEVICES;

const PROGRAM: &str = "qemu-system-x86_64";

/// The command that boots `image`, laid out in the folder in which the command will run. Relative names keep spaces and
/// commas in paths away from QEMU's own syntax.
pub fn command(
    options: &Options,
    image: &BootImage,
    disks: &[MachineDisk],
    cards: &[MachineCard],
) -> Command {
    // What waits for this computer's disk must not see its own clock run ahead.
    let has_disk = disks.iter().any(|disk| disk.driver == DiskDriver::VirtioBlk);
    let mut command = machine(options, has_disk);
    disks.iter().for_each(|disk| add_disk(&mut command, disk, options));
    cards.iter().enumerate().for_each(|(index, card)| add_card(&mut command, index, card, options.iommu));
    let modules: Vec<String> = image.modules.iter().map(|module| format!("{0} {0}", module.name)).collect();
    command.args(["-kernel", KERNEL_FILE, "-append", &image.cmdline, "-initrd", &modules.join(",")]);
    command
}

/// The command that boots [`iso::FILE`]: by UEFI with the given firmware file, else by BIOS.
pub fn iso_command(options: &Options, uefi: Option<&str>) -> Command {
    let mut command = machine(options, false);
    if let Some(firmware) = uefi {
        command.args(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={firmware}")]);
    }
    command.args(["-cdrom", iso::FILE]);
    command
}

/// Connects a disk.
fn add_disk(command: &mut Command, disk: &MachineDisk, options: &Options) {
    let MachineDisk { device, file, .. } = disk;
    let mut drive = format!("if=none,id={file},{}", source(disk, options.write_log.is_some()));
    if disk.driver == DiskDriver::VirtioBlk {
        if disk.is_read_only {
            drive += ",readonly=on";
        }
        // Each at an address of its own, behind the chipset's, in the order of the manifest.
        let address = FIRST_VIRTIO_DEVICE + device;
        let platform = platform(options.iommu);
        let virtio = format!("virtio-blk-pci-non-transitional,drive={file},addr={address:#x}{platform}");
        command.args(["-device", &virtio]);
    } else {
        let (command_block, control) = (ata::COMMAND[*device], ata::CONTROL[*device]);
        if disk.is_read_only {
            // An ATA disk cannot be read-only: what nobody is to write goes to a temporary file.
            drive += ",snapshot=on";
        }
        let irq = ata::IRQ[*device];
        command.args([
            "-device",
            &format!("isa-ide,id=ata{device},iobase={command_block:#x},iobase2={control:#x},irq={irq}"),
            "-device",
            &format!("ide-hd,drive={file},bus=ata{device}.0"),
        ]);
    }
    command.args(["-drive", &drive]);
}

/// Where a disk's content is.
fn source(disk: &MachineDisk, is_logged: bool) -> String {
    let MachineDisk { file, format, .. } = disk;
    if is_logged && disk.driver == DiskDriver::VirtioBlk && disk.device == 0 {
        let (file, log) = (format!("file.driver=file,file.filename={file}"), "log.driver=file,log.filename");
        return format!("driver=blklogwrites,{file},{log}={WRITE_LOG}");
    }
    format!("file={file},format={}", format.name())
}

/// What has a virtio device go through the IOMMU, if there is one.
fn platform(iommu: Iommu) -> &'static str {
    if iommu == Iommu::None { "" } else { ",iommu_platform=on" }
}

/// Connects a network card to a network of its own.
fn add_card(command: &mut Command, index: usize, card: &MachineCard, iommu: Iommu) {
    let rules: String = card.publish.iter().map(|publish| format!(",hostfwd={}", publish.rule())).collect();
    let address = FIRST_CARD + index;
    let (model, platform) = match card.driver {
        Uplink::Ne2000 => ("ne2k_pci", ""),
        _ => ("virtio-net-pci-non-transitional", platform(iommu)),
    };
    // Nobody boots from it.
    let device = format!("{model},netdev=net{index},addr={address:#x},romfile={platform}");
    command.args(["-netdev", &format!("user,id=net{index}{rules}"), "-device", &device]);
}

/// The machine without what it boots. If its clock counts instructions, it skips the time in which the CPUs sleep, or lasts for that.
fn machine(options: &Options, does_last: bool) -> Command {
    let mut command = Command::new(PROGRAM);
    // With KVM, interrupts go through an IOMMU only if QEMU has the I/O APIC.
    let has_split_irqs = options.machine == Machine::Kvm && options.iommu != Iommu::None;
    let machine = if has_split_irqs { "q35,kernel-irqchip=split" } else { "q35" };
    command.args(["-machine", machine, "-nodefaults", "-display", "none", "-no-reboot"]);
    match options.iommu {
        Iommu::None => {}
        // Since 9.2 it translates nothing unless passing through is ruled out.
        Iommu::Amd => drop(command.args(["-device", "amd-iommu,pt=off"])),
        Iommu::Intel => drop(command.args(["-device", "intel-iommu"])),
    }
    let (accelerator, model) =
        if options.machine == Machine::Kvm { ("kvm", "host") } else { ("tcg", "EPYC,+svm,+npt") };
    command.args(["-accel", accelerator, "-cpu", options.cpu_model.as_deref().unwrap_or(model)]);
    command.args(["-m", &options.host_memory_mib.to_string(), "-smp", &options.host_cpus.to_string()]);
    if options.deterministic {
        let icount = if does_last { "shift=0,sleep=on" } else { "shift=0,sleep=off" };
        command.args(["-icount", icount, "-rtc", "base=2000-01-01,clock=vm"]);
    } else {
        command.args(["-rtc", "base=utc,clock=host"]);
    }
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    if options.has_edu {
        command.args(["-device", "edu,dma_mask=0xffffffffffff"]);
    }
    // Timers that can interrupt by message: a device for the tests of message-signalled interrupts.
    command.args(["-global", "hpet.msi=on"]);
    command.args(["-chardev", &format!("socket,id=link,path={LINK_SOCKET}"), "-serial", "chardev:link"]);
    if let Some(port) = options.gdb_nacre {
        command.args(["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
    }
    // The kernel's log, port 0xE9, is QEMU's stdout.
    command.args(["-debugcon", "stdio"]);
    command
}
