//! The driver's side of the queues, and the device's side of `vdev`.

use crate::device::{Device, Failure, MEMORY_BYTES, QUEUE_SIZE};
use alloc::boxed::Box;
use alloc::vec::Vec;
use uplink::Card as _;
use usys::Window;
use vdev::net::{Cable, Link, MAX_FRAME};
use vdev::virtio::net::Net;
use virtio_driver::fake::{FakeDevice, memory};
use virtio_driver::{Queue, SetupError};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

struct Test {
    device: Device<FakeDevice<Net>>,
    /// The other end of the device's cable.
    wire: Cable,
    window: Window,
}

impl Test {
    fn new() -> Self {
        let (end, wire) = Cable::new();
        let memory = memory(MEMORY_BYTES);
        let fake = FakeDevice::new(Net::new(Box::new(end), MAC, 1), memory);
        Test { device: Device::new(fake, memory).unwrap(), wire, window: memory.window }
    }

    fn arrive(&mut self, frame: &[u8]) {
        self.wire.send(frame, None);
        self.device.registers().poll();
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut into = [0; MAX_FRAME];
        let received = self.device.receive(&mut into).unwrap();
        self.device.publish();
        received.map(|bytes| into[..bytes].to_vec())
    }

    /// What left.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let mut into = [0; MAX_FRAME];
        self.wire.receive(&mut into).map(|(bytes, missing)| {
            assert_eq!(missing, None);
            into[..bytes].to_vec()
        })
    }
}

fn frame(bytes: usize, salt: u8) -> Vec<u8> {
    (0..bytes).map(|index| (index / 3) as u8 ^ salt).collect()
}

#[test]
fn frames_of_every_length_arrive_and_leave_as_they_were() {
    let mut test = Test::new();
    assert_eq!(test.device.address(), Some(MAC));
    for bytes in (14..=MAX_FRAME).step_by(5) {
        test.arrive(&frame(bytes, 1));
        assert_eq!(test.receive(), Some(frame(bytes, 1)));
        assert_eq!(test.receive(), None);
        assert_eq!(test.device.send(&frame(bytes, 2)), Ok(true));
        test.device.publish();
        assert_eq!(test.sent(), Some(frame(bytes, 2)));
    }
    assert_eq!(test.device.send(&[0; 13]), Ok(true));
    assert_eq!(test.device.send(&[0; MAX_FRAME + 1]), Ok(true));
    test.device.publish();
    assert_eq!(test.sent(), None);
}

#[test]
fn many_frames_at_once_keep_their_order_and_need_one_notification() {
    let mut test = Test::new();
    let before = test.device.registers().notifications;
    for index in 0..QUEUE_SIZE as u8 {
        assert_eq!(test.device.send(&frame(60, index)), Ok(true));
    }
    test.device.publish();
    test.device.publish();
    assert_eq!(test.device.registers().notifications - before, 1);
    for index in 0..200 {
        test.wire.send(&frame(100, index), None);
    }
    for index in 0..QUEUE_SIZE as u8 {
        assert_eq!(test.sent(), Some(frame(60, index)));
    }
    for index in 0..200 {
        test.device.registers().poll();
        assert_eq!(test.receive(), Some(frame(100, index)));
    }
}

#[test]
fn a_queue_without_room_says_so_and_has_room_when_the_device_is_done() {
    let mut test = Test::new();
    test.device.registers().is_deaf = true;
    for index in 0..QUEUE_SIZE as u8 {
        assert_eq!(test.device.send(&frame(60, index)), Ok(true));
    }
    assert_eq!(test.device.send(&frame(60, 200)), Ok(false));
    test.device.registers().is_deaf = false;
    test.device.registers().poll();
    assert_eq!(test.device.send(&frame(60, 200)), Ok(true));
}

#[test]
fn a_device_that_gives_back_what_it_was_not_given_is_broken_until_it_is_restarted() {
    for (queue, id) in [(0, 64u32), (0, u32::MAX), (2048, 0)] {
        let mut test = Test::new();
        let used = queue + Queue::used_at(QUEUE_SIZE);
        if queue != 0 {
            test.device.registers().is_deaf = true;
            (0..QUEUE_SIZE).for_each(|_| assert_eq!(test.device.send(&frame(60, 0)), Ok(true)));
            // One of them twice.
            test.window.write(used + 12, &id.to_le_bytes()).unwrap();
        }
        test.window.write(used + 4, &id.to_le_bytes()).unwrap();
        test.window.write(used + 2, &2u16.to_le_bytes()).unwrap();
        let result = match queue {
            0 => test.device.receive(&mut [0; MAX_FRAME]).map(drop),
            _ => test.device.send(&frame(60, 0)).map(drop),
        };
        assert_eq!(result, Err(Failure::Broken), "{queue} {id}");
        test.device.registers().is_deaf = false;
        test.device.restart().unwrap();
        test.arrive(&frame(77, 7));
        assert_eq!(test.receive(), Some(frame(77, 7)));
    }
}

#[test]
fn a_length_that_no_frame_has_is_passed_over() {
    for bytes in [0u32, 12 + 13, 12 + MAX_FRAME as u32 + 1, u32::MAX] {
        let mut test = Test::new();
        let used = Queue::used_at(QUEUE_SIZE);
        test.window.write(used + 4, &0u32.to_le_bytes()).unwrap();
        test.window.write(used + 8, &bytes.to_le_bytes()).unwrap();
        test.window.write(used + 2, &1u16.to_le_bytes()).unwrap();
        assert_eq!(test.receive(), None, "{bytes}");
    }
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let (end, _wire) = Cable::new();
    let memory = memory(MEMORY_BYTES - 8);
    let fake = FakeDevice::new(Net::new(Box::new(end), MAC, 1), memory);
    assert_eq!(Device::new(fake, memory).map(drop).unwrap_err(), SetupError::Memory);
}
