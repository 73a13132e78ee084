//! Paravirtual devices on the board: found by CPUID, configured by device memory, rung by hypercall.

use super::*;
use alloc::boxed::Box;
use core::sync::atomic::AtomicU32;
use hypercall_abi::guest::device::{Interrupt, Kind, MAGIC, PAGE_BYTES, State, config, feature, reg};
use hypercall_abi::guest::ring::{self, Completion, Word};
use hypercall_abi::guest::{DOORBELL_CALL, cpuid, op};
use hypercall_abi::vcpu::LINES;
use vdev::block::{Disk, MemoryDisk};
use vdev::net::Cable;
use vdev::pvring::{Block, Control, Core, Net};

const RING: u64 = 0x30_0000;
const DATA: u64 = 0x30_2000;
const VECTOR: u8 = 0x61;
const DISK: u64 = layout::PV + 3 * PAGE_BYTES;
const CONSOLE: u64 = layout::PV;

fn vm() -> Vm {
    let disk = Disk::new(Box::new(MemoryDisk::writable(vec![0x5a; 0x10_000].leak())));
    let pv = vec![
        Core::console(),
        Core::Clock(TSC_HZ),
        Core::Control(Control::default()),
        Core::Block(Block::new(disk)),
    ];
    let mut vm = Vm::with_devices(&config(), Devices { pv, ..Devices::default() });
    vm.enable_interrupts();
    vm.set_if(true);
    vm
}

impl Vm {
    fn poke_u64(&mut self, address: u64, value: u64) {
        self.poke(address, value as u32);
        self.poke(address + 4, (value >> 32) as u32);
    }

    fn peek_u64(&mut self, address: u64) -> u64 {
        u64::from(self.peek(address)) | u64::from(self.peek(address + 4)) << 32
    }

    /// Brings a device up, with a queue of four places and an interrupt.
    fn start_pv(&mut self, page: u64, queue: u64) {
        let base = page + reg::QUEUE + queue * reg::QUEUE_STRIDE;
        self.poke_u64(base + reg::QUEUE_ADDRESS, RING);
        self.poke(base + reg::QUEUE_SIZE, 4);
        self.poke_u64(base + reg::QUEUE_INTERRUPT, Interrupt { vector: VECTOR, apic_id: 0 }.encode());
        self.poke(page + reg::STATE, State::Running as u32);
        assert_eq!(self.peek(page + reg::STATE), State::Running as u32);
    }

    /// Submits the `nth` request, wanting an interrupt for it.
    fn submit(&mut self, nth: u32, op: u8, address: u64, len: u32) {
        let request = ring::Request { address, len, op, id: 9, ..ring::Request::default() };
        let at = RING + ring::REQUESTS as u64 + u64::from(nth % 4) * 32;
        for (word, offset) in request.encode().into_iter().zip((0..).step_by(8)) {
            self.memory.write_u64(at + offset, word).unwrap();
        }
        self.memory.write_u64(RING, Word { produced: nth + 1, threshold: nth }.encode()).unwrap();
    }

    fn call(&mut self, rax: u64, level: u64) -> u64 {
        self.vcpu.page.gpr[gpr::RAX] = rax;
        let rip = self.vcpu.page.rip;
        assert_eq!(self.exit_of_length(ExitKind::Hypercall, [level, 0], 3), Action::Run);
        assert_eq!(self.vcpu.page.rip, rip + 3);
        self.vcpu.page.gpr[gpr::RAX]
    }

    fn completion(&self, nth: u64) -> Completion {
        let at = RING + ring::completions(4) as u64 + nth % 4 * 8;
        Completion::decode(self.memory.read_u64(at).unwrap())
    }
}

#[test]
fn the_devices_are_found_by_cpuid() {
    let mut vm = vm();
    let mut leaf = |leaf: u32| {
        vm.vcpu.page.gpr[gpr::RAX] = leaf.into();
        vm.exit(ExitKind::Cpuid, [0, 0]);
        [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].map(|index| vm.vcpu.page.gpr[index] as u32)
    };
    assert_eq!(leaf(cpuid::BASE), [0x4000_0101, 0x7263_614e, 0x6575_4765, 0x7650_7473]);
    assert_eq!(leaf(cpuid::BASE + 1), [cpuid::VERSION, 4, layout::PV as u32, 0]);
    assert_eq!(leaf(0x4000_0000)[0], 0x4000_0001, "KVM's interface is as it was");
    let kinds = [Kind::Console, Kind::Clock, Kind::Control, Kind::Block];
    for (page, kind) in (layout::PV..).step_by(0x1000).zip(kinds) {
        assert_eq!((vm.peek(page), vm.peek(page + reg::KIND)), (MAGIC, kind as u32));
    }
    assert_eq!(vm.peek(layout::PV + 4 * PAGE_BYTES), u32::MAX);
}

#[test]
fn a_guest_reads_a_disk_by_hypercall_and_is_interrupted() {
    let mut vm = vm();
    vm.start_pv(DISK, 0);
    for nth in 0..6 {
        vm.submit(nth, op::READ, DATA, 512);
        vm.memory.write_u8(DATA + 511, 0).unwrap();
        assert_eq!(vm.call(DOORBELL_CALL + 24, 0), DOORBELL_CALL + 24, "the call changes no register");
        assert_eq!(vm.completion(nth.into()), Completion { id: 9, status: 0, len: 512 });
        assert_eq!(vm.memory.read_u8(DATA + 511), Ok(0x5a));
        assert_eq!(vm.enter().0, Event::interrupt(VECTOR));
        vm.vcpu.page.inject = Event::NONE;
        assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
    }
}

#[test]
fn user_code_rings_no_doorbell_and_other_calls_are_kvms() {
    let mut vm = vm();
    vm.start_pv(DISK, 0);
    vm.submit(0, op::READ, DATA, 512);
    vm.call(DOORBELL_CALL + 24, 3);
    assert_eq!(vm.memory.read_u64(RING + ring::DEVICE_WORD as u64), Ok(0));
    assert_eq!(vm.call(DOORBELL_CALL + 32, 0) as u32 as i32, -1000);
    assert_eq!(vm.call(DOORBELL_CALL + 25, 0), DOORBELL_CALL + 25, "a queue that is not used");
}

#[test]
fn a_driver_that_breaks_the_contract_stops_its_device_and_is_in_the_log() {
    let mut vm = vm();
    vm.start_pv(DISK, 0);
    vm.submit(0, op::READ, u64::MAX, 512);
    vm.call(DOORBELL_CALL + 24, 0);
    assert_eq!((vm.peek(DISK + reg::STATE), vm.peek(DISK + reg::FAULT)), (2, 4));
    let lines = vm.machine.take_log();
    assert!(matches!(&*lines, [line] if line.contains("Block") && line.contains("Address")), "{lines:?}");
    let images = BootImages { kernel: &kernel(), modules: &[] };
    vm.machine.reset(&images, &mut vm.memory, &mut vm.vcpu, vm.now).unwrap();
    assert_eq!(vm.peek(DISK + reg::STATE), 0, "the next guest finds it as after power-on");
}

#[test]
fn console_and_log_reach_the_host_and_what_is_typed_reaches_the_guest() {
    let mut vm = vm();
    vm.memory.write(DATA, b"hello").unwrap();
    vm.start_pv(CONSOLE, 1);
    vm.submit(0, op::WRITE, DATA, 5);
    vm.call(DOORBELL_CALL + 1, 0);
    assert!(vm.machine.take_has_output());
    assert_eq!(vm.output(0), b"hello");
    assert_eq!(vm.enter().0, Event::interrupt(VECTOR));
    assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
    vm.poke(CONSOLE + reg::STATE, 0);
    vm.memory.write(RING, &[0; 0x200]).unwrap();
    vm.start_pv(CONSOLE, 0);
    vm.submit(0, op::READ, DATA, 16);
    vm.call(DOORBELL_CALL, 0);
    assert_eq!(vm.machine.input(0, b"typed"), 5);
    vm.enter();
    assert_eq!(vm.vcpu.page.deadline, vm.now, "the guest stops, so that the device can go on");
    vm.exit(ExitKind::Deadline, [0, 0]);
    assert_eq!((vm.completion(0).len, vm.memory.read_u8(DATA + 4)), (5, Ok(b'd')));
    assert_eq!(vm.enter().0, Event::interrupt(VECTOR));
}

#[test]
fn the_clock_agrees_with_kvms() {
    let mut vm = vm();
    vm.now += 2 * TSC_HZ;
    let clock = layout::PV + PAGE_BYTES;
    assert_eq!(vm.peek_u64(clock + config::CLOCK_TSC_HZ), TSC_HZ);
    assert_eq!(vm.peek_u64(clock + config::CLOCK_UNIX_NS), 1_700_000_000_000_000_000);
}

#[test]
fn frames_for_a_driver_that_is_the_end_of_the_channel_interrupt_it_past_the_vmm() {
    const CARD: u64 = layout::PV;
    const LINE: usize = 2;
    let page: &'static PageWords = Box::leak(Box::new([const { AtomicU32::new(0) }; 1024]));
    let card = Net::new(Box::new(Cable::new().0), [2; 6]).with_channel(layout::PV_CHANNELS, Some(LINE));
    let devices = Devices { pv: vec![Core::Net(card)], ..Devices::default() };
    let mut vm = Vm::on(&Host { apic_page: Some(page), ..host() }, &config(), devices);
    vm.enable_interrupts();
    let vector = |vm: &mut Vm, (offset, value)| {
        vm.poke(CARD + offset, value);
        vm.enter();
        let mut lines = vm.vcpu.page.lines;
        let vector = core::mem::take(&mut lines[LINE]);
        assert_eq!(lines, [0; LINES], "other lines are nobody's");
        vector
    };
    let interrupt = Interrupt { vector: VECTOR, apic_id: 0 }.encode();
    let low = reg::QUEUE + reg::QUEUE_INTERRUPT;
    vector(&mut vm, (low + 4, (interrupt >> 32) as u32));
    assert_eq!(vector(&mut vm, (low, interrupt as u32)), 0, "the driver has not started");
    assert_eq!(vector(&mut vm, (reg::ACCEPTED, feature::NET_DIRECT as u32)), 0);
    assert_eq!(vector(&mut vm, (reg::STATE, State::Running as u32)), VECTOR);
    assert_eq!(vector(&mut vm, (low, 0)), 0, "the driver polls");
    assert_eq!(vector(&mut vm, (low, interrupt as u32)), VECTOR);
    assert_eq!(vector(&mut vm, (reg::STATE, State::Reset as u32)), 0);
}
