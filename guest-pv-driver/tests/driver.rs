//! Drivers on a fake device.

use guest_pv_driver::abi::device::{Fault, Kind, config, feature, reg};
use guest_pv_driver::abi::op::{self, Status};
use guest_pv_driver::abi::ring::{self, Completion};
use guest_pv_driver::fake::Fake;
use guest_pv_driver::{
    Block, BlockDevice, Clock, Console, Control, Device, Entropy, Error, Hal, Net, QueueMemory,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

fn memory<T: Default>() -> &'static mut T {
    Box::leak(Box::default())
}

fn disk(fake: &Fake) -> Block<&Fake> {
    fake.set(config::BLOCK_SECTORS, 64);
    Block::new(fake, 0, memory()).unwrap()
}

#[test]
fn a_disk_reads_what_was_written() {
    let content = Rc::new(RefCell::new(vec![0u8; 64 * 512]));
    let of_device = content.clone();
    let fake = Fake::new(Kind::Block, move |_, request, buffer| {
        let mut content = of_device.borrow_mut();
        let range = request.offset as usize * 512..request.offset as usize * 512 + buffer.len();
        match request.op {
            op::READ => buffer.copy_from_slice(&content[range]),
            op::WRITE => content[range].copy_from_slice(buffer),
            _ => return Some((Status::Unsupported, 0)),
        }
        Some((Status::Done, buffer.len() as u32))
    });
    let mut disk = disk(&fake);
    // More often than the queue has places, so that everything wraps.
    for round in 0..200u64 {
        disk.write(round % 60, &[round as u8; 1024]).unwrap();
        let mut back = [0; 512];
        disk.read(round % 60 + 1, &mut back).unwrap();
        assert_eq!(back, [round as u8; 512]);
    }
    assert_eq!(disk.discard(0, 1), Err(Error::Failed(Status::Unsupported)));
    assert_eq!(disk.flush(), Ok(()), "a disk without cache has nothing to flush");
}

#[test]
fn only_offered_features_are_accepted() {
    let fake = Fake::new(Kind::Block, |_, _, _| Some((Status::Done, 0)));
    fake.set(reg::OFFERED, feature::BLOCK_READ_ONLY | 1 << 40);
    let disk = disk(&fake);
    assert!(disk.is_read_only());
    assert_eq!(fake.read_register(reg::ACCEPTED), feature::BLOCK_READ_ONLY as u32);
    assert_eq!(fake.read_register(reg::ACCEPTED + 4), 0);
}

#[test]
fn requests_complete_in_any_order_and_a_full_queue_says_so() {
    let order = Rc::new(Cell::new(0u64));
    let next = order.clone();
    let fake = Fake::new(Kind::Block, move |_, request, _| {
        (request.offset == next.get()).then_some((Status::Done, request.offset as u32))
    });
    let mut disk = disk(&fake);
    let buffer = Box::leak(Box::new([0u8; 512])).as_mut_ptr();
    for sector in (0..64).rev() {
        // SAFETY: the buffer exists for ever and nobody looks at it.
        unsafe { disk.submit(op::READ, sector, buffer, 512).unwrap() };
    }
    // SAFETY: as above.
    assert_eq!(unsafe { disk.submit(op::READ, 0, buffer, 512) }, Err(Error::Full));
    disk.publish();
    // The last one that was submitted is the first that ends.
    let mut done = vec![disk.collect().unwrap().unwrap().len];
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Busy));
    for sector in 1..64 {
        order.set(sector);
        fake.poll();
        done.extend(disk.collect().unwrap().map(|completion| completion.len));
    }
    assert_eq!(done, (0..64).collect::<Vec<u32>>());
    assert_eq!(disk.collect(), Ok(None));
}

#[test]
fn a_device_that_is_not_there_or_of_another_kind_is_refused() {
    let fake = Fake::new(Kind::Console, |_, _, _| None);
    assert_eq!(Block::new(&fake, 0, memory()).unwrap_err(), Error::WrongKind);
    assert_eq!(Device::open(&fake, 0x1000).unwrap_err(), Error::NoDevice);
}

#[test]
fn a_device_that_went_mad_makes_the_driver_fail_and_nothing_else() {
    let nonsense: [(usize, u64); 5] = [
        // Many more completions than requests.
        (ring::DEVICE_WORD, 1000),
        (ring::DEVICE_WORD, u64::MAX),
        // Names that no request in flight has, and that none can have.
        (ring::completions(64), Completion { id: 1, status: 0, len: 0 }.encode()),
        (ring::completions(64), Completion { id: 64, status: 0, len: 0 }.encode()),
        (ring::completions(64), u64::MAX),
    ];
    for (offset, value) in nonsense {
        let fake = Fake::new(Kind::Block, |_, _, _| None);
        let mut disk = disk(&fake);
        // SAFETY: the buffer exists for ever.
        unsafe { disk.submit(op::READ, 0, Box::leak(Box::new([0u8; 512])).as_mut_ptr(), 512).unwrap() };
        disk.publish();
        if offset != ring::DEVICE_WORD {
            fake.poke(0, ring::DEVICE_WORD, 1);
        }
        fake.poke(0, offset, value);
        assert_eq!(disk.collect(), Err(Error::Broken), "{offset:#x} {value:#x}");
        assert_eq!(fake.read_register(reg::STATE), 0, "the device was reset");
    }
}

/// Gives up at once.
#[derive(Clone, Copy)]
struct Hasty<'a>(&'a Fake);

// SAFETY: the answers are the fake's; a page is contiguous with nothing.
unsafe impl Hal for Hasty<'_> {
    fn translate(&self, pointer: *const u8, len: usize) -> (u64, usize) {
        let (address, len) = self.0.translate(pointer, len);
        (address, len.min(4096 - (address & 4095) as usize))
    }
    fn read_register(&self, address: u64) -> u32 {
        self.0.read_register(address)
    }
    fn write_register(&self, address: u64, value: u32) {
        self.0.write_register(address, value);
    }
    fn ring(&self, call: u64) {
        self.0.ring(call);
    }
    fn keep_waiting(&self) -> bool {
        false
    }
}

#[test]
fn a_stopped_or_silent_device_is_an_error_and_is_reset() {
    let fake = Fake::new(Kind::Block, |_, _, _| None);
    let mut disk = Block::new(Hasty(&fake), 0, memory()).unwrap();
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::TimedOut));
    assert_eq!(fake.read_register(reg::STATE), 0);
    let mut disk = Block::new(Hasty(&fake), 0, memory()).unwrap();
    fake.poke(0, ring::FAULT, Fault::Address as u64);
    assert_eq!(disk.read(0, &mut [0; 512]), Err(Error::Stopped(Some(Fault::Address))));
}

#[test]
fn a_buffer_in_many_pages_goes_out_as_a_table() {
    let fake = Fake::new(Kind::Block, |_, request, buffer| {
        buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 100) as u8);
        assert_eq!(request.flags, ring::INDIRECT);
        Some((Status::Done, buffer.len() as u32))
    });
    let mut disk = Block::new(Hasty(&fake), 0, memory()).unwrap();
    let mut buffer = vec![0u8; 40 * 512];
    disk.read(0, &mut buffer).unwrap();
    assert!(buffer.iter().enumerate().all(|(at, byte)| *byte == (at / 100) as u8));
    let mut long = vec![0u8; 512 << 10];
    assert_eq!(disk.read(0, &mut long), Err(Error::TooScattered));
}

#[test]
fn a_console_takes_what_is_typed_in_pieces() {
    let typed = Rc::new(RefCell::new(Vec::<&'static [u8]>::new()));
    let shown = Rc::new(RefCell::new(Vec::new()));
    let (of_device, screen) = (typed.clone(), shown.clone());
    let fake = Fake::new(Kind::Console, move |queue, _, buffer| {
        if queue == 1 {
            screen.borrow_mut().extend_from_slice(buffer);
            return Some((Status::Done, buffer.len() as u32));
        }
        let text = of_device.borrow_mut().pop()?;
        buffer[..text.len()].copy_from_slice(text);
        Some((Status::Done, text.len() as u32))
    });
    let mut console = Console::new(&fake, 0, memory()).unwrap();
    console.write(b"hello").unwrap();
    assert_eq!(*shown.borrow(), b"hello");
    let mut bytes = [0; 4];
    assert_eq!(console.read(&mut bytes), Ok(0));
    assert_eq!(console.sleep_is_safe(), Ok(true));
    for _ in 0..20 {
        typed.borrow_mut().push(b"abcdef");
        fake.poll();
        assert_eq!(console.sleep_is_safe(), Ok(false));
        assert_eq!((console.read(&mut bytes), &bytes), (Ok(4), b"abcd"));
        assert_eq!((console.read(&mut bytes), &bytes[..2]), (Ok(2), &b"ef"[..]));
        assert_eq!(console.read(&mut bytes), Ok(0));
    }
}

#[test]
fn frames_go_both_ways() {
    let wire = Rc::new(RefCell::new(std::collections::VecDeque::<Vec<u8>>::new()));
    let of_device = wire.clone();
    // What is sent comes back.
    let fake = Fake::new(Kind::Net, move |queue, _, buffer| {
        if queue == 1 {
            of_device.borrow_mut().push_back(buffer.to_vec());
            return Some((Status::Done, buffer.len() as u32));
        }
        let frame = of_device.borrow_mut().pop_front()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Some((Status::Done, frame.len() as u32))
    });
    fake.set(config::NET_ADDRESS, 0x0605_0403_0201);
    fake.set(config::NET_MTU, 1500);
    let mut net = Net::new(&fake, 0, memory()).unwrap();
    assert_eq!((net.address(), net.mtu()), ([1, 2, 3, 4, 5, 6], 1500));
    for round in 0..100u8 {
        for frame in 0..20 {
            net.send(60, |bytes| bytes.fill(round ^ frame)).unwrap();
        }
        net.flush();
        fake.poll();
        for frame in 0..20 {
            let received = net.receive(<[u8]>::to_vec).unwrap();
            assert_eq!(received, Some(vec![round ^ frame; 60]));
        }
        assert_eq!(net.receive(|_| ()), Ok(None));
    }
    assert_eq!(net.send(2049, |_| ()), Err(Error::TooScattered));
}

#[test]
fn a_sender_without_room_sleeps_until_the_device_has_sent_a_frame() {
    let is_stuck = Rc::new(Cell::new(true));
    let of_device = is_stuck.clone();
    let fake = Fake::new(Kind::Net, move |queue, _, buffer| {
        let is_sent = queue == 1 && !of_device.get();
        is_sent.then_some((Status::Done, buffer.len() as u32))
    });
    let mut net = Net::new(&fake, 0, memory()).unwrap();
    let mut sent = 0;
    while !net.is_full().unwrap() {
        net.send(60, |bytes| bytes.fill(1)).unwrap();
        sent += 1;
    }
    net.flush();
    assert!(sent > 1);
    assert_eq!(net.send(60, |_| ()), Err(Error::Full));
    assert_eq!(net.sleep_is_safe(), Ok(true));
    is_stuck.set(false);
    fake.poll();
    assert_eq!(net.is_full(), Ok(false));
    assert_eq!(net.sleep_is_safe(), Ok(true), "only a frame ends this sleep");
}

#[test]
fn random_bytes_fill_the_buffer_also_in_pieces() {
    let fake = Fake::new(Kind::Entropy, |_, _, buffer| {
        let len = buffer.len().min(3);
        buffer[..len].fill(0x55);
        Some((Status::Done, len as u32))
    });
    let mut bytes = [0; 10];
    Entropy::new(&fake, 0, memory::<QueueMemory>()).unwrap().fill(&mut bytes).unwrap();
    assert_eq!(bytes, [0x55; 10]);
}

#[test]
fn the_clock_turns_ticks_into_time() {
    let fake = Fake::new(Kind::Clock, |_, _, _| None);
    fake.set(config::CLOCK_TSC_HZ, 2_000_000_000);
    fake.set(config::CLOCK_UNIX_NS, 1_700_000_000_000_000_000);
    let clock = Clock::new(&fake, 0).unwrap();
    assert_eq!(clock.nanoseconds(u64::MAX), u64::MAX / 2);
    assert_eq!(clock.unix_nanoseconds(4_000_000_000), Some(1_700_000_002_000_000_000));
    fake.set(config::CLOCK_UNIX_NS, 0);
    assert_eq!(Clock::new(&fake, 0).unwrap().unix_nanoseconds(4_000_000_000), None);
}

#[test]
fn the_control_device_gets_the_log_and_the_exit_code() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let of_device = seen.clone();
    let fake = Fake::new(Kind::Control, move |_, request, buffer| {
        of_device.borrow_mut().push((request.op, request.argument, buffer.to_vec()));
        Some((Status::Done, 0))
    });
    let mut control = Control::new(&fake, 0, memory()).unwrap();
    control.log("all is well").unwrap();
    control.exit(7).unwrap();
    let expected = [(op::WRITE, 0, b"all is well".to_vec()), (op::EXIT, 7, vec![])];
    assert_eq!(*seen.borrow(), expected);
}
