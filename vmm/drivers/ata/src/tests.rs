//! The driver's state machine and a drive.

use crate::drive::{Command, Drive, Failure, Next};
use crate::fake::{Behaviour, FakeDrive};
use crate::identity::Identity;
use crate::registers::error;
use alloc::vec;
use alloc::vec::Vec;
use vmm_protocol::block::SECTOR_BYTES;

/// Runs a command as the process does: it waits for interrupts, and loses patience.
fn run(drive: &mut Drive<FakeDrive>, command: Command, data: &mut [u8]) -> Result<(), Failure> {
    let mut next = drive.begin(command, data);
    for looks in 1.. {
        next = match next {
            Next::Done(result) => return result,
            // The deadline of the command, then that of the reset.
            _ if looks % 10_000 == 0 => drive.reset(),
            Next::Interrupt if drive.bus().intrq => drive.go_on(data),
            Next::Poll => drive.go_on(data),
            Next::Interrupt => drive.reset(),
        };
    }
    unreachable!()
}

fn identified(behaviour: Behaviour) -> (Drive<FakeDrive>, Identity) {
    let mut drive = Drive::new(FakeDrive::new(behaviour));
    let mut data = [0; SECTOR_BYTES];
    run(&mut drive, Command::Identify, &mut data).unwrap();
    let identity = Identity::parse(&data).unwrap();
    drive.configure(&identity, 1);
    (drive, identity)
}

fn with_multiple(behaviour: Behaviour) -> Drive<FakeDrive> {
    let (mut drive, identity) = identified(behaviour);
    run(&mut drive, Command::SetMultiple(identity.max_multiple), &mut []).unwrap();
    drive.configure(&identity, identity.max_multiple);
    drive
}

fn pattern(count: u32, salt: u8) -> Vec<u8> {
    (0..count as usize * SECTOR_BYTES).map(|index| (index / 7) as u8 ^ salt).collect()
}

#[test]
fn a_drive_says_what_it_is() {
    let (_, identity) = identified(Behaviour::default());
    let expected = Identity {
        model: "Fake 1".into(),
        sectors: 1 << 30,
        has_lba48: true,
        max_multiple: 16,
        can_flush: true,
        can_flush_ext: true,
        has_cache: true,
    };
    assert_eq!(identity, expected);
    let (_, short) = identified(Behaviour { has_lba48: false, ..Behaviour::default() });
    assert_eq!((short.sectors, short.can_flush_ext), ((1 << 28) - 1, false));
}

#[test]
fn sectors_are_read_back_as_written_in_every_form_of_the_commands() {
    let low = 12_345;
    for (behaviour, sector) in [
        (Behaviour::default(), low),
        (Behaviour::default(), (1 << 28) - 2),
        (Behaviour::default(), (1 << 29) + 77),
        (Behaviour { has_lba48: false, ..Behaviour::default() }, low),
        (Behaviour { busy: 0, ..Behaviour::default() }, low),
        (Behaviour { busy: 300, ..Behaviour::default() }, low),
    ] {
        for is_multiple in [false, true] {
            let mut drive = match is_multiple {
                true => with_multiple(behaviour.clone()),
                false => identified(behaviour.clone()).0,
            };
            for count in [1, 2, 15, 16, 17, 128, 256] {
                let mut data = pattern(count, count as u8);
                let what = (behaviour.has_lba48, sector, is_multiple, count);
                assert_eq!(run(&mut drive, Command::Write { sector, count }, &mut data), Ok(()), "{what:?}");
                let mut back = vec![0; data.len()];
                assert_eq!(run(&mut drive, Command::Read { sector, count }, &mut back), Ok(()), "{what:?}");
                assert!(back == data, "{what:?}");
                let last = sector + u64::from(count) - 1;
                assert_eq!(drive.bus().content.get(&last).map(Vec::len), Some(SECTOR_BYTES), "{what:?}");
            }
            assert_eq!(drive.bus().resets, 0);
        }
    }
}

#[test]
fn a_flush_reaches_the_drive() {
    let (mut drive, _) = identified(Behaviour::default());
    assert_eq!(run(&mut drive, Command::Flush, &mut []), Ok(()));
    assert_eq!(drive.bus().flushes, 1);
}

#[test]
fn each_error_of_the_drive_has_a_name_and_the_next_command_works() {
    for (reason, failure) in [
        (error::UNC, Failure::Medium),
        (error::IDNF, Failure::NotFound),
        (error::ABRT, Failure::Aborted),
        (error::ICRC | error::ABRT, Failure::Transfer),
    ] {
        let bad = [(105, reason)].into_iter().collect();
        let mut drive = with_multiple(Behaviour { bad, max_multiple: 4, ..Behaviour::default() });
        let mut data = pattern(12, 0);
        assert_eq!(run(&mut drive, Command::Read { sector: 100, count: 12 }, &mut data), Err(failure));
        assert_eq!(run(&mut drive, Command::Write { sector: 100, count: 12 }, &mut data), Err(failure));
        assert_eq!(run(&mut drive, Command::Read { sector: 106, count: 12 }, &mut data), Ok(()));
    }
    let (mut drive, _) = identified(Behaviour { sectors: 50, ..Behaviour::default() });
    let beyond = run(&mut drive, Command::Write { sector: 50, count: 1 }, &mut [0; SECTOR_BYTES]);
    assert_eq!(beyond, Err(Failure::NotFound));
}

#[test]
fn a_drive_that_hangs_is_reset_and_works_again() {
    let mut drive = with_multiple(Behaviour::default());
    let mut data = pattern(20, 3);
    for command in
        [Command::Read { sector: 0, count: 20 }, Command::Write { sector: 0, count: 20 }, Command::Flush]
    {
        drive.bus().behaviour.hangs = 1;
        let length = if command == Command::Flush { 0 } else { data.len() };
        assert_eq!(run(&mut drive, command, &mut data[..length]), Err(Failure::TimedOut));
        let resets = drive.bus().resets;
        assert_eq!(run(&mut drive, Command::Write { sector: 7, count: 20 }, &mut data), Ok(()));
        assert_eq!(drive.bus().resets, resets);
    }
}

#[test]
fn a_drive_that_does_not_come_back_from_its_reset_is_given_up() {
    let mut drive = with_multiple(Behaviour::default());
    (drive.bus().behaviour.hangs, drive.bus().behaviour.dies) = (1, true);
    let mut data = [0; SECTOR_BYTES];
    assert_eq!(run(&mut drive, Command::Read { sector: 0, count: 1 }, &mut data), Err(Failure::Dead));
    assert_eq!(run(&mut drive, Command::Read { sector: 0, count: 1 }, &mut data), Err(Failure::Dead));
}

#[test]
fn an_empty_channel_is_noticed() {
    let mut drive = Drive::new(FakeDrive::new(Behaviour { is_absent: true, ..Behaviour::default() }));
    let mut data = [0; SECTOR_BYTES];
    assert_eq!(run(&mut drive, Command::Identify, &mut data), Err(Failure::Absent));
}

#[test]
fn interrupts_that_mean_nothing_do_no_harm() {
    let mut drive = with_multiple(Behaviour { busy: 1000, ..Behaviour::default() });
    let mut data = pattern(40, 9);
    let mut next = drive.begin(Command::Write { sector: 3, count: 40 }, &mut data);
    while !matches!(next, Next::Done(_)) {
        next = drive.go_on(&mut data);
    }
    assert_eq!(next, Next::Done(Ok(())));
    assert_eq!(drive.bus().content.len(), 40);
    assert_eq!(drive.go_on(&mut data), Next::Done(Ok(())), "and afterwards neither");
}

#[test]
fn drives_that_this_driver_cannot_use_are_refused() {
    let parse = |change: fn(&mut [u8; SECTOR_BYTES])| {
        let (mut drive, mut data) = (Drive::new(FakeDrive::new(Behaviour::default())), [0; SECTOR_BYTES]);
        run(&mut drive, Command::Identify, &mut data).unwrap();
        change(&mut data);
        Identity::parse(&data)
    };
    assert!(parse(|_| ()).is_ok());
    assert!(parse(|data| data[1] = 0x80).is_err(), "a packet device");
    assert!(parse(|data| data[99] = 0).is_err(), "no LBA");
    assert!(parse(|data| data[213] = 0x50).is_err(), "long sectors");
    assert!(parse(|data| data[200..208].fill(0)).is_err(), "no sectors");
    assert!(Identity::parse(&[0xff; SECTOR_BYTES]).is_err());
}
