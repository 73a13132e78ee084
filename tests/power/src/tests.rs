//! A disk that loses its power, behind the block device of a VM: what it may lose, and what not.

use crate::cache::Cache;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;
use block_channel::{Client, Server, Signal};
use core::task::Poll;
use drv_ata::drive::{Command, Failure, Medium};
use proptest::prelude::*;
use usys::Window;
use vdev::block::{self, BlockError, Completion, Token};
use vdev::guest_mem::{GuestMemory, VecMemory};
use vdev::segment::Segment;
use vmm_protocol::block::{CHANNEL_BYTES, DiskInfo, Operation, SECTOR_BYTES, Status};

const SECTORS: u64 = 64;
const DISK: DiskInfo = DiskInfo { sectors: SECTORS, is_read_only: false, has_cache: true };

/// A medium in memory.
struct Plate(Vec<u8>);

impl Medium for Plate {
    fn execute(&mut self, command: Command, data: &mut [u8]) -> Result<(), Failure> {
        let sectors = &mut self.0;
        match command {
            Command::Read { sector, count } => data.copy_from_slice(&sectors[range(sector, count)]),
            Command::Write { sector, count } => sectors[range(sector, count)].copy_from_slice(data),
            _ => {}
        }
        Ok(())
    }
}

fn range(sector: u64, count: u32) -> core::ops::Range<usize> {
    let start = sector as usize * SECTOR_BYTES;
    start..start + count as usize * SECTOR_BYTES
}

struct Mute;

impl Signal for Mute {
    fn signal(&self) {}
}

/// A VM's disk, its driver, and what each sector may hold: the last thing that a completed flush covered, and what was written since.
struct Lab {
    disk: block::Disk,
    server: Server<Mute>,
    cache: Cache<Plate>,
    memory: VecMemory,
    /// What is written next; each sector begins with its number.
    number: u64,
    durable: Vec<u64>,
    since: Vec<BTreeSet<u64>>,
    latest: Vec<u64>,
}

impl Lab {
    fn new(seed: u64) -> Self {
        let window = Window::leak(CHANNEL_BYTES);
        let mut client = Client::new(window, Mute).unwrap();
        let mut server = Server::new(window, Mute, 1, DISK).unwrap();
        server.begin();
        assert_eq!(client.connect(), Some(DISK));
        Lab {
            disk: block::Disk::new(Box::new(client)),
            server,
            cache: Cache::new(Plate(vec![0; SECTORS as usize * SECTOR_BYTES]), SECTORS - 1, seed),
            memory: VecMemory::new(1 << 20),
            number: 0,
            durable: vec![0; SECTORS as usize],
            since: vec![BTreeSet::new(); SECTORS as usize],
            latest: vec![0; SECTORS as usize],
        }
    }

    /// Lets the driver do all that it has to do.
    fn run(&mut self, request: block::Request<'_>) -> Completion {
        if let Poll::Ready(completion) = self.disk.submit(&mut self.memory, Token(0), &request) {
            return completion;
        }
        while let Some(request) = self.server.take() {
            let mut buffer = vec![0; request.bytes()];
            let data = self.server.data(request.slot, request.bytes()).unwrap();
            data.read(0, &mut buffer).unwrap();
            let (sector, count) = (request.sector, request.count);
            let result = self.cache.execute(
                match request.operation {
                    Operation::Read => Command::Read { sector, count },
                    Operation::Write => Command::Write { sector, count },
                    Operation::Flush => Command::Flush,
                },
                &mut buffer,
            );
            data.write(0, &buffer).unwrap();
            self.server.complete(request.slot, if result.is_ok() { Status::Done } else { Status::Io });
        }
        let (_, completion) = self.disk.take_completed(&mut self.memory).expect("the driver is done");
        completion
    }

    fn write(&mut self, sector: u64, count: u64) -> Completion {
        for index in 0..count {
            self.number += 1;
            self.memory.write_u64(index * SECTOR_BYTES as u64, self.number).unwrap();
            self.since[(sector + index) as usize].insert(self.number);
        }
        let from = [Segment { gpa: 0, len: count as u32 * SECTOR_BYTES as u32 }];
        let completion = self.run(block::Request::Write { sector, from: &from });
        for index in 0..count {
            self.latest[(sector + index) as usize] = self.number - (count - 1 - index);
        }
        completion
    }

    fn flush(&mut self) -> Completion {
        let completion = self.run(block::Request::Flush);
        if completion.is_ok() {
            self.durable.clone_from(&self.latest);
            self.since.iter_mut().for_each(BTreeSet::clear);
        }
        completion
    }

    fn read(&mut self, sector: u64) -> Result<u64, BlockError> {
        let into = [Segment { gpa: 0x8000, len: SECTOR_BYTES as u32 }];
        self.run(block::Request::Read { sector, into: &into })?;
        Ok(self.memory.read_u64(0x8000).unwrap())
    }

    /// Turns the power on again, and looks at every sector. Returns how many lost what was written to them.
    fn recover(&mut self) -> u64 {
        self.read(SECTORS - 1).unwrap();
        let mut lost = 0;
        for sector in 0..SECTORS {
            let found = self.read(sector).unwrap();
            let index = sector as usize;
            let is_allowed = found == self.durable[index] || self.since[index].contains(&found);
            assert!(is_allowed, "sector {sector}: {found} is neither flushed nor written since");
            lost += u64::from(found != self.latest[index]);
            (self.durable[index], self.latest[index]) = (found, found);
            self.since[index].clear();
        }
        lost
    }
}

proptest! {
    #[test]
    fn a_completed_flush_covers_what_was_written_before_it(
        seed: u64, steps in prop::collection::vec((0..SECTORS - 9, 1..9u64, 0..4u8), 200),
    ) {
        let mut lab = Lab::new(seed);
        for (sector, count, then) in steps {
            if lab.write(sector, count).is_err() {
                prop_assert_eq!(lab.read(sector), Err(BlockError::Io));
                prop_assert_eq!(lab.flush(), Err(BlockError::Io));
                lab.recover();
            } else {
                prop_assert_eq!(lab.read(sector), Ok(lab.latest[sector as usize]));
                if then == 0 {
                    prop_assert_eq!(lab.flush(), Ok(()));
                    let at = range(sector, 1).start;
                    let on_plate = lab.cache.medium().0[at..].first_chunk().copied().map(u64::from_le_bytes);
                    prop_assert_eq!(on_plate, Some(lab.latest[sector as usize]));
                }
            }
        }
    }
}

#[test]
fn without_a_flush_something_is_lost_and_something_is_not() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..20 {
        let mut lab = Lab::new(seed);
        let mut sector = 0;
        while lab.write(sector % 56, 4).is_ok() {
            sector += 4;
        }
        let gone = lab.recover();
        lost += gone;
        kept += 56 - gone;
    }
    assert!(lost > 100 && kept > 100, "{lost} lost, {kept} kept");
}

#[test]
fn the_same_seed_loses_the_same() {
    let run = |seed| {
        let mut lab = Lab::new(seed);
        let mut writes = 0;
        while lab.write(writes % 32, 2).is_ok() {
            writes += 1;
        }
        lab.recover();
        (writes, lab.durable)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
