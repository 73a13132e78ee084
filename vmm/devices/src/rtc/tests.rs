use super::*;
use proptest::prelude::*;

/// 2024-02-29 12:34:56 UTC, a Thursday.
const LEAP_DAY: u64 = 1_709_210_096;
const HZ: u64 = 1_000_000;

fn read(rtc: &mut Rtc, register: u8, now: u64) -> u8 {
    rtc.write(INDEX_PORT, register, now);
    rtc.read(DATA_PORT, now)
}

fn write(rtc: &mut Rtc, register: u8, value: u8, now: u64) {
    rtc.write(INDEX_PORT, register, now);
    rtc.write(DATA_PORT, value, now);
}

#[test]
fn the_time_reads_in_bcd_and_goes_on() {
    let mut rtc = Rtc::new(LEAP_DAY, 500, HZ);
    let date = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|r| read(&mut rtc, r, 500));
    assert_eq!(date, [0x56, 0x34, 0x12, 0x05, 0x29, 0x02, 0x24, 0x20]);
    assert_eq!(read(&mut rtc, SECONDS, 500 + 3 * HZ), 0x59);
    assert_eq!(read(&mut rtc, DAY, 500 + 86_400 * HZ), 0x01);
    assert_eq!(read(&mut rtc, MONTH, 500 + 86_400 * HZ), 0x03);
}

#[test]
fn data_modes_change_how_the_same_time_reads() {
    let mut rtc = Rtc::new(LEAP_DAY + 3600, 0, HZ);
    write(&mut rtc, REGISTER_B, 0x06, 0);
    assert_eq!((read(&mut rtc, HOURS, 0), read(&mut rtc, SECONDS, 0)), (13, 56));
    write(&mut rtc, REGISTER_B, 0x04, 0);
    assert_eq!(read(&mut rtc, HOURS, 0), 0x81);
    write(&mut rtc, REGISTER_B, 0x00, 0);
    assert_eq!(read(&mut rtc, HOURS, 12 * 3600 * HZ), 0x01);
    assert_eq!(read(&mut rtc, HOURS, 11 * 3600 * HZ), 0x12, "midnight");
}

#[test]
fn a_time_set_while_stopped_starts_with_the_release() {
    let mut rtc = Rtc::new(LEAP_DAY, 0, HZ);
    write(&mut rtc, REGISTER_B, 0x82, 0);
    for (register, value) in
        [(YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x58)]
    {
        write(&mut rtc, register, value, HZ);
    }
    write(&mut rtc, CENTURY, 0x19, HZ);
    assert_eq!(read(&mut rtc, SECONDS, 9 * HZ), 0x58, "the time stands still");
    write(&mut rtc, REGISTER_B, 0x02, 9 * HZ);
    let later = 11 * HZ;
    let date =
        [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY].map(|r| read(&mut rtc, r, later));
    assert_eq!(date, [0x00, 0x00, 0x00, 0x07, 0x01, 0x01, 0x00, 0x20]);
}

#[test]
fn update_in_progress_announces_the_next_second() {
    let mut rtc = Rtc::new(LEAP_DAY, 0, HZ);
    assert_eq!(read(&mut rtc, REGISTER_A, HZ - 245), 0x26);
    assert_eq!(read(&mut rtc, REGISTER_A, HZ - 244), 0xa6);
    assert_eq!(read(&mut rtc, REGISTER_A, HZ), 0x26);
    write(&mut rtc, REGISTER_B, 0x82, HZ);
    assert_eq!(read(&mut rtc, REGISTER_A, 2 * HZ - 1), 0x26);
}

#[test]
fn events_show_once_and_say_whether_one_is_enabled() {
    let mut rtc = Rtc::new(LEAP_DAY, 0, HZ);
    write(&mut rtc, REGISTER_A, 0x20, 0);
    assert_eq!(read(&mut rtc, REGISTER_C, 10), 0);
    assert_eq!(read(&mut rtc, REGISTER_C, HZ), 0x10);
    assert_eq!(read(&mut rtc, REGISTER_C, HZ), 0);
    for (register, value) in [(SECONDS_ALARM, 0x02), (MINUTES_ALARM, 0x35), (HOURS_ALARM, 0xff)] {
        write(&mut rtc, register, value, HZ);
    }
    write(&mut rtc, REGISTER_B, 0x22, HZ);
    assert_eq!(read(&mut rtc, REGISTER_C, 5 * HZ), 0x10);
    assert_eq!(read(&mut rtc, REGISTER_C, 6 * HZ), 0xb0);
    write(&mut rtc, REGISTER_A, 0x26, 6 * HZ);
    assert_eq!(read(&mut rtc, REGISTER_C, 6 * HZ + HZ / 1000), 0x40);
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let mut rtc = Rtc::new(0, 0, HZ);
    rtc.set_memory_size(512 << 20, 1 << 30);
    let word = |rtc: &mut Rtc, low| u16::from_le_bytes([read(rtc, low, 0), read(rtc, low + 1, 0)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 0xffff);
    assert_eq!(word(&mut rtc, 0x34), (512 - 16) * 16);
    assert_eq!(word(&mut rtc, 0x5b), 1024 * 16);
    assert_eq!(read(&mut rtc, 0x5d, 0), 0);
}

#[test]
fn memory_keeps_what_is_written_and_status_registers_do_not() {
    let mut rtc = Rtc::new(0, 0, HZ);
    write(&mut rtc, 0x0f, 0x0a, 0);
    write(&mut rtc, 0x8f | 0x70, 0x77, 0);
    assert_eq!(read(&mut rtc, 0x0f, 0), 0x0a);
    assert_eq!(read(&mut rtc, 0x7f, 0), 0x77, "the NMI mask is no part of the index");
    write(&mut rtc, REGISTER_D, 0, 0);
    assert_eq!(read(&mut rtc, REGISTER_D, 0), 0x80);
    assert_eq!(rtc.read(INDEX_PORT, 0), 0xff);
}

proptest! {
    #[test]
    fn any_access_sequence_is_survived(
        accesses in prop::collection::vec((0u8..0x40, any::<u8>(), any::<bool>(), any::<u64>()), 0..100),
        unix_seconds: u64, at_tsc: u64, tsc_hz: u64,
    ) {
        let mut rtc = Rtc::new(unix_seconds, at_tsc, tsc_hz);
        rtc.set_memory_size(unix_seconds, at_tsc);
        for (register, value, is_write, now) in accesses {
            if is_write {
                write(&mut rtc, register, value, now);
            }
            let _ = read(&mut rtc, register, now);
        }
        prop_assert_eq!(read(&mut rtc, REGISTER_D, at_tsc), 0x80);
    }
}
