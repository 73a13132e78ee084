//! The machine as a monitor and a guest see it: exits in, vCPU page and output out.

mod cpu;
mod devices;
mod interrupts;
mod pv;
mod virtio;

use super::*;
use crate::facts::CpuidRegs;
use crate::layout;
use crate::vcpu::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, FakeVcpu};
use alloc::string::ToString;
use alloc::vec;
use hypercall_abi::boot_info::Machine as MachineBits;
use hypercall_abi::exit::{ControlAccess, ControlOperation, ExitKind, NestedFault, PortIo};
use hypercall_abi::vcpu::{CS, SS, Segment, gpr};
use proptest::prelude::*;
use vdev::guest_mem::VecMemory;
use vmm_protocol::manifest::{MONITOR_MODULE, OnCrash, OnReset};

const TSC_HZ: u64 = 1_000_000_000;
const BOOT_TSC: u64 = 5_000_000;
const ENTRY: u64 = 0x20_0040;

const MSR_X2APIC_SVR: u32 = 0x80f;
const MSR_X2APIC_TPR: u32 = 0x808;
const MSR_X2APIC_EOI: u32 = 0x80b;
const MSR_X2APIC_LVT_TIMER: u32 = 0x832;
const MSR_X2APIC_SELF_IPI: u32 = 0x83f;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

fn host_cpuid(leaf: u32, _: u32) -> CpuidRegs {
    match leaf {
        0 => CpuidRegs::new(0xd, u32::from_le_bytes(*b"Auth"), 0x444d_4163, 0x6974_6e65),
        0x8000_0000 => CpuidRegs::new(0x8000_0008, 0, 0, 0),
        0x8000_0008 => CpuidRegs::new(0x3028, 0, 0, 0),
        _ => CpuidRegs::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    }
}

fn host() -> Host<'static> {
    let facts = HostFacts { machine: MachineBits::all(), guest_xcr0: 7, tsc_hz: TSC_HZ };
    Host { cpuid: &host_cpuid, facts, unix_ns: 1_700_000_000_000_000_000, waited: || 0, apic_page: None }
}

fn config() -> VmConfig {
    VmConfig {
        name: "test".into(),
        kernel: "kernel".into(),
        initrd: vec![],
        cmdline: "quiet".into(),
        memory_mib: 4,
        balloon: None,
        console: Default::default(),
        packed_queues: false,
        cpu: 0,
        priority: 16,
        on_reset: OnReset::End,
        on_crash: OnCrash::Report,
        vmm: MONITOR_MODULE.into(),
        hide_features: vec![],
        statistics: false,
        disks: vec![],
        vsock: None,
        cards: vec![],
        debug: false,
    }
}

/// A flat Multiboot kernel at 2 MiB.
fn kernel() -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let mut image: Vec<u8> = [magic, flags, checksum, 0x20_0000, 0x20_0000, 0, 0, ENTRY as u32]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    image.resize(0x80, 0x90);
    image
}

struct Vm {
    machine: Machine,
    memory: VecMemory,
    vcpu: FakeVcpu,
    now: u64,
}

impl Vm {
    fn new() -> Vm {
        Vm::with(&config())
    }

    fn with(config: &VmConfig) -> Vm {
        Vm::on(&host(), config, Devices::default())
    }

    fn with_devices(config: &VmConfig, devices: Devices) -> Vm {
        Vm::on(&host(), config, devices)
    }

    fn on(host: &Host<'_>, config: &VmConfig, devices: Devices) -> Vm {
        let (mut memory, mut vcpu) = (VecMemory::new(4 << 20), FakeVcpu::new());
        let images = BootImages { kernel: &kernel(), modules: &[] };
        let machine =
            Machine::boot(config, &images, devices, host, &mut memory, &mut vcpu, BOOT_TSC).unwrap();
        Vm { machine, memory, vcpu, now: BOOT_TSC }
    }

    /// The guest stops for this reason; the hardware says how long the instruction is.
    fn exit(&mut self, kind: ExitKind, info: [u64; 2]) -> Action {
        self.exit_of_length(kind, info, 2)
    }

    fn exit_of_length(&mut self, kind: ExitKind, info: [u64; 2], length: u32) -> Action {
        let page = &mut self.vcpu.page;
        page.inject = Event::NONE;
        page.exit_kind = kind as u32;
        page.exit_info = [0; 8];
        page.exit_info[..2].copy_from_slice(&info);
        page.exit_length = length;
        self.machine.handle_exit(&mut self.vcpu, &mut self.memory, self.now)
    }

    fn enter(&mut self) -> (Event, RunFlags) {
        self.machine.prepare_entry(&mut self.vcpu, self.now);
        let flags = RunFlags::from_bits_retain(self.vcpu.page.run_flags);
        assert!(flags.contains(RunFlags::HLT_BLOCKS), "always");
        (self.vcpu.page.inject, flags - RunFlags::HLT_BLOCKS)
    }

    fn port(&mut self, port: u16, size: u8, is_in: bool) -> Action {
        let io = PortIo { port, size, is_in, is_string: false, is_rep: false };
        self.exit(ExitKind::PortIo, [io.encode(), 0])
    }

    fn write_port(&mut self, port: u16, size: u8, value: u64) -> Action {
        self.vcpu.page.gpr[gpr::RAX] = value;
        self.port(port, size, false)
    }

    fn read_port(&mut self, port: u16, size: u8) -> u64 {
        self.vcpu.page.gpr[gpr::RAX] = 0xaaaa_aaaa_aaaa_aaaa;
        assert_eq!(self.port(port, size, true), Action::Run);
        self.vcpu.page.gpr[gpr::RAX]
    }

    /// Whether the write was accepted: not, if the guest takes a #GP.
    fn write_msr(&mut self, index: u32, value: u64) -> bool {
        self.vcpu.page.gpr[gpr::RCX] = index.into();
        crate::vcpu::write_edx_eax(&mut self.vcpu.page, value);
        assert_eq!(self.exit(ExitKind::MsrWrite, [0, 0]), Action::Run);
        self.vcpu.page.inject != Event::exception(13, Some(0))
    }

    fn read_msr(&mut self, index: u32) -> Option<u64> {
        self.vcpu.page.gpr[gpr::RCX] = index.into();
        assert_eq!(self.exit(ExitKind::MsrRead, [0, 0]), Action::Run);
        let is_fault = self.vcpu.page.inject.is_valid();
        (!is_fault).then(|| crate::vcpu::read_edx_eax(&self.vcpu.page))
    }

    fn control(&mut self, register: u8, operation: ControlOperation, source: u16) -> Action {
        let access = ControlAccess { register, operation, gpr: gpr::RBX as u8, source };
        self.exit(ExitKind::ControlAccess, [access.encode(), 0])
    }

    fn write_control(&mut self, register: u8, value: u64) -> bool {
        self.vcpu.page.gpr[gpr::RBX] = value;
        assert_eq!(self.control(register, ControlOperation::Write, 0), Action::Run);
        !self.vcpu.page.inject.is_valid()
    }

    /// Executes `code` at the instruction pointer after an access to device memory at `address`.
    fn device_access(&mut self, code: &[u8], address: u64) -> Action {
        self.memory.write(ENTRY, code).unwrap();
        self.vcpu.page.rip = ENTRY;
        self.exit(ExitKind::NestedFault, [address, NestedFault::WRITE.bits()])
    }

    /// Writes a 32-bit device register by `mov [rbx], eax`.
    fn poke(&mut self, address: u64, value: u32) {
        self.vcpu.page.gpr[gpr::RBX] = address;
        self.vcpu.page.gpr[gpr::RAX] = value.into();
        assert_eq!(self.device_access(&[0x89, 0x03], address), Action::Run);
        assert!(!self.vcpu.page.inject.is_valid());
    }

    /// Reads a 32-bit device register by `mov eax, [rbx]`.
    fn peek(&mut self, address: u64) -> u32 {
        self.vcpu.page.gpr[gpr::RBX] = address;
        assert_eq!(self.device_access(&[0x8b, 0x03], address), Action::Run);
        self.vcpu.page.gpr[gpr::RAX] as u32
    }

    fn output(&mut self, port: usize) -> Vec<u8> {
        self.machine.take_output(port).collect()
    }

    fn set_if(&mut self, is_set: bool) {
        self.vcpu.page.rflags = if is_set { 2 | RFLAGS_IF } else { 2 };
    }

    /// Local APIC in x2APIC mode and enabled; ttyS0's receive interrupt as vector 0x40.
    fn enable_interrupts(&mut self) {
        assert!(self.write_msr(MSR_APIC_BASE, layout::LOCAL_APIC | 0xd00));
        assert!(self.write_msr(MSR_X2APIC_SVR, 0x1ff));
        self.poke(layout::IO_APIC, 0x10 + 2 * 4);
        self.poke(layout::IO_APIC + 0x10, 0x40);
        self.write_port(0x3f9, 1, 1);
        self.write_port(0x3fc, 1, 8);
    }
}

#[test]
fn what_cannot_be_emulated_ends_the_vm_with_an_explanation() {
    let mut vm = Vm::new();
    let Action::End(Outcome::Unsupported { what }) = vm.exit(ExitKind::TaskSwitch, [0, 0]) else { panic!() };
    assert_eq!(what, "a hardware task switch at 0x200040");
    let Action::End(Outcome::Unsupported { what }) = vm.exit(ExitKind::Unhandled, [1, 0x99]) else {
        panic!()
    };
    assert!(what.starts_with("SVM exit 0x99"));
    let refused = vm.exit(ExitKind::EntryFailure, [4, 33]);
    assert_eq!(refused, Action::End(Outcome::EntryFailure { rule: 4, detail: 33 }));
}

#[test]
fn a_restarted_guest_finds_everything_as_new() {
    let mut vm = Vm::new();
    vm.enable_interrupts();
    vm.memory.write(ENTRY, &[0]).unwrap();
    vm.now += 500;
    let images = BootImages { kernel: &kernel(), modules: &[] };
    vm.machine.reset(&images, &mut vm.memory, &mut vm.vcpu, vm.now).unwrap();
    assert_eq!((vm.vcpu.page.rip, vm.memory.read_u8(ENTRY)), (ENTRY, Ok(0x90)));
    assert_eq!(vm.read_msr(0x10), Some(0));
    assert_eq!(vm.read_msr(MSR_APIC_BASE), Some(layout::LOCAL_APIC | 0x900));
}

#[test]
fn a_vm_that_cannot_start_says_why() {
    let mut config = config();
    config.hide_features = vec!["avx3".into()];
    let images = BootImages { kernel: &kernel(), modules: &[] };
    let start = |config: &VmConfig| {
        let mut memory = VecMemory::new((config.memory_mib as usize) << 20);
        Machine::boot(config, &images, Devices::default(), &host(), &mut memory, &mut FakeVcpu::new(), 0)
            .map(|_| ())
            .unwrap_err()
    };
    assert!(start(&config).to_string().contains("\"avx3\""));
    config.hide_features.clear();
    config.memory_mib = 1;
    assert!(start(&config).to_string().contains("raise --memory"));
}

#[test]
fn only_the_state_that_an_exit_needs_is_asked_for() {
    let mut vm = Vm::new();
    vm.vcpu.required = Groups::empty();
    vm.write_port(0x3f8, 1, b'x'.into());
    vm.read_msr(0x10);
    vm.enter();
    assert_eq!(vm.vcpu.required, Groups::empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_exit_makes_the_machine_panic(
        exits in prop::collection::vec((0u32..34, prop::array::uniform8(any::<u64>()), any::<[u64; 4]>(), 0u32..17), 1..6),
        code in prop::collection::vec(any::<u8>(), 16),
        small in any::<bool>(),
        mode in 0..3,
    ) {
        let mut vm = Vm::new();
        vm.memory.write(ENTRY, &code).unwrap();
        if mode == 0 {
            vm.vcpu.page.cr0 = 0x10;
            vm.vcpu.page.segments[CS] = Segment::new(0x2000, 0x20_0000, 0xffff, 0x9b);
        }
        for (kind, info, registers, length) in exits {
            let page = &mut vm.vcpu.page;
            page.exit_kind = kind;
            page.exit_info = info.map(|value| if small { value % 0x1000 } else { value });
            page.gpr[..4].copy_from_slice(&registers.map(|value| if small { value % 0x1000 } else { value }));
            page.exit_length = length;
            page.rip = if mode == 0 { 0x40 } else { ENTRY };
            if let Action::End(Outcome::Unsupported { what }) =
                vm.machine.handle_exit(&mut vm.vcpu, &mut vm.memory, vm.now)
            {
                prop_assert!(!what.is_empty());
            }
            vm.now += 1000;
            vm.enter();
            vm.vcpu.page.inject = Event::NONE;
        }
    }
}
