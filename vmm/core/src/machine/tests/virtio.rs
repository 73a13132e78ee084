//! A virtio disk on the board: registers by device memory, requests by rings, interrupts by the I/O APIC.

use super::*;
use crate::virtio::VirtioDevice;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::RefCell;
use core::task::Poll;
use vdev::block::{Backend, Completion, Disk, Geometry, MemoryDisk, Request, Token};
use vdev::guest_mem::GuestMemory;
use vdev::net::Cable;
use vdev::virtio::block::Block;
use vdev::virtio::console::ConsoleDevice;
use vdev::virtio::mirror::Mirror;
use vdev::virtio::net::Net;

const DESCRIPTORS: u64 = 0x30_0000;
const AVAILABLE: u64 = 0x30_1000;
const USED: u64 = 0x30_2000;
const HEADER: u64 = 0x30_3000;
const DATA: u64 = 0x30_4000;
const STATUS: u64 = 0x30_5000;
const VECTOR: u32 = 0x55;
/// The queue of frames from the driver.
const TRANSMIT: u32 = 1;

const NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const DEVICE_STATUS: u64 = 0x70;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

fn disks(count: u8) -> Devices {
    let disk = |byte: u8| Disk::new(Box::new(MemoryDisk::writable(vec![byte; 0x10_000].leak())));
    let virtio = (0..count).map(|byte| VirtioDevice::Block(Block::new(disk(byte), [byte; 20], 1))).collect();
    Devices { virtio, ..Devices::default() }
}

impl Vm {
    /// Brings the device at `base` up, and its interrupt at input `gsi` of the I/O APIC, edge-triggered as Linux sets it.
    fn start_device(&mut self, base: u64, gsi: u32) {
        self.start_device_with(base, gsi, 0);
    }

    /// The same with some of the device's own features.
    fn start_device_with(&mut self, base: u64, gsi: u32, features: u32) {
        self.poke(layout::IO_APIC, 0x10 + 2 * gsi);
        self.poke(layout::IO_APIC + 0x10, VECTOR);
        for status in [0, 1, 3] {
            self.poke(base + DEVICE_STATUS, status);
        }
        self.poke(base + 0x24, 0);
        self.poke(base + 0x20, features);
        self.poke(base + 0x24, 1);
        self.poke(base + 0x20, 1);
        self.poke(base + DEVICE_STATUS, 11);
        self.poke(base + 0x38, 4);
        self.poke(base + 0x80, DESCRIPTORS as u32);
        self.poke(base + 0x90, AVAILABLE as u32);
        self.poke(base + 0xa0, USED as u32);
        self.poke(base + 0x44, 1);
        self.poke(base + DEVICE_STATUS, 15);
    }

    /// Offers a request to read sector 0, for the `count`th time.
    fn offer_read(&mut self, count: u16) {
        let chain = [(HEADER, 16, 1), (DATA, 512, 3), (STATUS, 1, 2)];
        for (index, (gpa, len, flags)) in (0u64..).zip(chain) {
            let rest = len | flags << 32 | (index + 1) << 48;
            self.memory.write_u64(DESCRIPTORS + 16 * index, gpa).unwrap();
            self.memory.write_u64(DESCRIPTORS + 16 * index + 8, rest).unwrap();
        }
        self.memory.write_u8(STATUS, 0xff).unwrap();
        self.memory.write_u16(AVAILABLE + 2, count).unwrap();
    }
}

#[test]
fn a_guest_reads_a_disk_and_is_interrupted() {
    let mut vm = Vm::with_devices(&config(), disks(2));
    vm.enable_interrupts();
    vm.set_if(true);
    let base = layout::VIRTIO + 0x1000;
    assert_eq!(vm.peek(base), 0x7472_6976);
    assert_eq!(vm.peek(base + 0x100), 0x80);
    vm.start_device(base, 17);
    for count in 1..4 {
        vm.offer_read(count);
        vm.poke(base + NOTIFY, 0);
        assert_eq!((vm.memory.read_u8(STATUS), vm.memory.read_u8(DATA + 511)), (Ok(0), Ok(1)));
        assert_eq!(vm.memory.read_u16(USED + 2), Ok(count));
        assert_eq!(vm.enter().0, Event::interrupt(VECTOR as u8));
        assert_eq!(vm.peek(base + INTERRUPT_STATUS), 1);
        vm.poke(base + INTERRUPT_ACK, 1);
        assert!(vm.write_msr(MSR_X2APIC_EOI, 0));
        assert!(!vm.enter().0.is_valid());
    }
    assert_eq!(vm.peek(layout::VIRTIO + DEVICE_STATUS), 0, "the other disk is as it was");
}

/// The registers of devices as a guest reads them by itself.
#[derive(Debug, Default)]
struct Shown(RefCell<BTreeMap<(usize, u64), u32>>);

impl Shown {
    fn at(&self, device: usize, at: u64) -> u32 {
        self.0.borrow()[&(device, at)]
    }
}

impl Mirror for Shown {
    fn store(&self, device: usize, at: u64, value: u32) {
        self.0.borrow_mut().insert((device, at), value);
    }
}

#[test]
fn an_interrupt_s_reason_is_read_where_it_is_shown_and_its_end_is_a_quiet_access() {
    let shown = Rc::new(Shown::default());
    let reasons = |shown: &Shown| [0, 1].map(|device| shown.at(device, INTERRUPT_STATUS));
    let mut vm = Vm::with_devices(&config(), Devices { mirror: Some(shown.clone()), ..disks(2) });
    let base = layout::VIRTIO + 0x1000;
    vm.start_device(base, 17);
    vm.offer_read(1);
    vm.poke(base + NOTIFY, 0);
    assert_eq!(reasons(&shown), [0, 1]);

    vm.enter_long_mode();
    // mov [rbx], eax
    vm.memory.write(ENTRY, &[0x89, 0x03]).unwrap();
    vm.vcpu.page.gpr[gpr::RAX] = 1;
    assert!(!vm.store(base + NOTIFY), "there may be something to be done");
    assert!(!vm.store(base + 0x1000 + INTERRUPT_ACK), "there is no such device");
    assert_eq!(vm.vcpu.page.rip, ENTRY);
    assert!(vm.store(base + INTERRUPT_ACK));
    assert_eq!(vm.vcpu.page.rip, ENTRY + 2);
    assert_eq!(reasons(&shown), [0, 0]);
}

/// A VM with a network card whose driver has frames to send.
fn with_card() -> (Vm, Cable) {
    let (near, far) = Cable::new();
    let virtio = vec![VirtioDevice::Net(Net::new(Box::new(near), [2; 6], 1))];
    let mut vm = Vm::with_devices(&config(), Devices { virtio, ..Devices::default() });
    vm.enable_interrupts();
    vm.set_if(true);
    vm.start_device(layout::VIRTIO, 16);
    vm.poke(layout::VIRTIO + 0x30, TRANSMIT);
    vm.poke(layout::VIRTIO + 0x38, 8);
    for (register, address) in [(0x80, 0x1000), (0x90, 0x1100), (0xa0, 0x1200)] {
        vm.poke(layout::VIRTIO + register, (DATA + address) as u32);
    }
    vm.poke(layout::VIRTIO + 0x44, 1);
    vm.memory.write_u64(DATA + 0x1000, DATA).unwrap();
    vm.memory.write_u64(DATA + 0x1008, 72).unwrap();
    (vm, far)
}

impl Vm {
    /// Sends the `count`th frame.
    fn send_frame(&mut self, count: u16) {
        self.memory.write_u16(DATA + 0x1102, count).unwrap();
        self.poke(layout::VIRTIO + NOTIFY, TRANSMIT);
        assert_eq!(self.memory.read_u16(DATA + 0x1202), Ok(count));
    }

    /// The guest runs until `now`; what it is interrupted by then.
    fn run_until(&mut self, now: u64) -> Event {
        self.now = now;
        self.exit(ExitKind::Deadline, [0, 0]);
        self.enter().0
    }
}

#[test]
fn a_card_tells_that_it_sent_a_frame_two_milliseconds_after_the_last() {
    let (mut vm, _far) = with_card();
    let wait = host().facts.tsc_hz / 500;
    for count in 1..3 {
        vm.send_frame(count);
        assert!(!vm.enter().0.is_valid());
        assert_eq!(vm.vcpu.page.deadline, vm.now + wait);
        assert!(!vm.run_until(vm.now + wait - 1).is_valid());
    }
    assert_eq!(vm.run_until(vm.now + 1), Event::interrupt(VECTOR as u8));
    assert!(vm.vcpu.page.deadline > vm.now);
}

#[test]
fn what_else_a_driver_notifies_does_not_put_off_for_ever_what_it_is_to_be_told() {
    const RECEIVE: u32 = 0;
    let (mut vm, _far) = with_card();
    let wait = host().facts.tsc_hz / 500;
    for count in 1..3 {
        let first = vm.now;
        vm.send_frame(count);
        while !vm.enter().0.is_valid() {
            assert!(vm.vcpu.page.deadline <= first + 8 * wait);
            vm.now = vm.vcpu.page.deadline.min(vm.now + wait / 2);
            vm.poke(layout::VIRTIO + NOTIFY, RECEIVE);
        }
        assert_eq!(vm.now, first + 8 * wait);
        vm.poke(layout::VIRTIO + INTERRUPT_ACK, 1);
        vm.write_msr(MSR_X2APIC_EOI, 0);
    }
}

#[test]
fn a_virtio_console_is_the_console_once_its_driver_is_up() {
    let virtio = vec![VirtioDevice::Console(ConsoleDevice::new())];
    let mut vm = Vm::with_devices(&config(), Devices { virtio, ..Devices::default() });
    vm.enable_interrupts();
    vm.set_if(true);
    assert_eq!(vm.machine.input(0, b"early"), 5, "the serial port takes it");
    vm.start_device(layout::VIRTIO, 16);
    vm.memory.write_u64(DESCRIPTORS, DATA).unwrap();
    vm.memory.write_u64(DESCRIPTORS + 8, 512 | 2 << 32).unwrap();
    vm.memory.write_u16(AVAILABLE + 2, 1).unwrap();
    assert_eq!(vm.machine.input(0, b"typed"), 5);
    vm.enter();
    assert_eq!(vm.vcpu.page.deadline, vm.now, "the device has to look at it");
    vm.exit(ExitKind::Deadline, [0, 0]);
    let mut typed = [0; 5];
    vm.memory.read(DATA, &mut typed).unwrap();
    assert_eq!((&typed, vm.memory.read_u64(USED + 4)), (b"typed", Ok(5 << 32)));

    vm.poke(layout::VIRTIO + 0x30, TRANSMIT);
    vm.poke(layout::VIRTIO + 0x38, 4);
    for (register, address) in [(0x80, 0x1000), (0x90, 0x1100), (0xa0, 0x1200)] {
        vm.poke(layout::VIRTIO + register, (DATA + address) as u32);
    }
    vm.poke(layout::VIRTIO + 0x44, 1);
    vm.memory.write(DATA, b"said").unwrap();
    vm.memory.write_u64(DATA + 0x1000, DATA).unwrap();
    vm.memory.write_u64(DATA + 0x1008, 4).unwrap();
    vm.memory.write_u16(DATA + 0x1102, 1).unwrap();
    vm.machine.take_has_output();
    vm.poke(layout::VIRTIO + NOTIFY, TRANSMIT);
    assert!(vm.machine.take_has_output());
    assert_eq!(vm.machine.take_output(0).collect::<Vec<u8>>(), b"said");
}

#[test]
fn a_driver_of_a_console_hears_how_large_its_terminal_is() {
    const SIZE: u32 = 1;
    let virtio = vec![VirtioDevice::Console(ConsoleDevice::new())];
    let mut vm = Vm::with_devices(&config(), Devices { virtio, ..Devices::default() });
    vm.enable_interrupts();
    vm.set_if(true);
    vm.machine.set_console_size(80, 25);
    vm.start_device_with(layout::VIRTIO, 16, SIZE);
    assert!(vm.machine.take_has_output() && vm.machine.take_wants_console_size());
    assert!(!vm.enter().0.is_valid());
    vm.machine.set_console_size(100, 30);
    assert_eq!(vm.enter().0, Event::interrupt(VECTOR as u8));
    assert_eq!(
        (vm.peek(layout::VIRTIO + INTERRUPT_STATUS), vm.peek(layout::VIRTIO + 0x100)),
        (2, 30 << 16 | 100)
    );
    assert!(!vm.machine.take_wants_console_size());
}

#[test]
fn the_size_of_the_terminal_is_shown_to_a_driver_that_does_not_want_to_hear_of_it() {
    let shown = Rc::new(Shown::default());
    let virtio = vec![VirtioDevice::Console(ConsoleDevice::new())];
    let mirror = Some(shown.clone() as Rc<dyn Mirror>);
    let mut vm = Vm::with_devices(&config(), Devices { virtio, mirror, ..Devices::default() });
    for size in [80, 100] {
        let generation = shown.at(0, CONFIG_GENERATION);
        vm.machine.set_console_size(size, 25);
        assert_eq!(vm.peek(layout::VIRTIO + CONFIG), 25 << 16 | u32::from(size));
        assert_eq!(shown.at(0, CONFIG), 25 << 16 | u32::from(size));
        assert_ne!(shown.at(0, CONFIG_GENERATION), generation);
        assert_eq!(shown.at(0, INTERRUPT_STATUS), 0);
        vm.start_device(layout::VIRTIO, 16);
    }
}

#[test]
fn where_no_device_is_nothing_answers() {
    let mut vm = Vm::with_devices(&config(), disks(1));
    assert_eq!(vm.peek(layout::VIRTIO + 0x1000), u32::MAX);
    vm.poke(layout::VIRTIO + 0x1000 + DEVICE_STATUS, 1);
    assert_eq!(vm.peek(layout::VIRTIO + DEVICE_STATUS), 0);
}

#[test]
fn a_driver_that_breaks_the_rules_stops_its_device_and_is_in_the_log() {
    let mut vm = Vm::with_devices(&config(), disks(1));
    vm.start_device(layout::VIRTIO, 16);
    vm.memory.write_u16(AVAILABLE + 2, 999).unwrap();
    vm.poke(layout::VIRTIO + NOTIFY, 0);
    assert_eq!(vm.peek(layout::VIRTIO + DEVICE_STATUS), 15 | 64);
    let lines = vm.machine.take_log();
    assert!(matches!(&*lines, [line] if line.contains("device 0") && line.contains("999")), "{lines:?}");
}

#[test]
fn a_restarted_guest_finds_its_disk_as_after_power_on() {
    let mut vm = Vm::with_devices(&config(), disks(1));
    vm.start_device(layout::VIRTIO, 16);
    let images = BootImages { kernel: &kernel(), modules: &[] };
    vm.machine.reset(&images, &mut vm.memory, &mut vm.vcpu, vm.now).unwrap();
    assert_eq!(vm.peek(layout::VIRTIO + DEVICE_STATUS), 0);
    assert_eq!(vm.peek(layout::VIRTIO + 8), 2);
}

/// Completes every request later.
#[derive(Default)]
struct Slow(Vec<Token>);

impl Backend for Slow {
    fn geometry(&self) -> Geometry {
        Geometry { sectors: 8, is_read_only: false, can_discard: false, has_cache: true }
    }

    fn submit(&mut self, _: &mut dyn GuestMemory, token: Token, _: &Request<'_>) -> Poll<Completion> {
        self.0.push(token);
        Poll::Pending
    }

    fn take_completed(&mut self, _: &mut dyn GuestMemory) -> Option<(Token, Completion)> {
        self.0.pop().map(|token| (token, Ok(())))
    }
}

#[test]
fn what_a_disk_completes_later_interrupts_when_its_server_signals() {
    let disk = Disk::new(Box::new(Slow::default()));
    let virtio = vec![VirtioDevice::Block(Block::new(disk, [0; 20], 1))];
    let mut vm = Vm::with_devices(&config(), Devices { virtio, ..Devices::default() });
    vm.enable_interrupts();
    vm.set_if(true);
    vm.start_device(layout::VIRTIO, 16);
    vm.offer_read(1);
    vm.poke(layout::VIRTIO + NOTIFY, 0);
    assert_eq!(vm.memory.read_u8(STATUS), Ok(0xff));
    assert!(!vm.enter().0.is_valid());
    vm.machine.poll_devices(&mut vm.memory, vm.now);
    assert_eq!(vm.memory.read_u8(STATUS), Ok(0));
    assert_eq!(vm.enter().0, Event::interrupt(VECTOR as u8));
}
