//! The wall clock: an MC146818 (data sheet; a PC's is at ports 0x70 and 0x71).

use usys::cpu;
use usys::port::PortRange;
use usys::power::open;

/// Port of the index register; the data register is behind it.
const INDEX: u16 = 0x70;
/// Register A: bit 7 is set while the time changes.
const REGISTER_A: u8 = 10;
/// Register B: the format.
const REGISTER_B: u8 = 11;
/// Register of the century on PCs (FADT names it; every emulator has it here).
const CENTURY: u8 = 0x32;
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
const AFTERNOON: u8 = 1 << 7;
/// An update takes at most 2 ms; this many reads take longer.
const PATIENCE: u32 = 10_000;

/// A point in time, by both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// Seconds since 1970 (UTC); 0 if the machine has no clock.
    pub seconds: u64,
    /// TSC.
    pub tsc: u64,
}

/// What the registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    seconds: u8,
    minutes: u8,
    hours: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
    format: u8,
}

impl WallClock {
    /// The time now.
    pub fn read() -> Self {
        let registers = open(INDEX, 2).and_then(|ports| read_stable(&ports));
        let seconds = registers.and_then(|registers| registers.seconds_since_1970());
        WallClock { seconds: seconds.unwrap_or(0), tsc: cpu::now() }
    }
}

/// Two reads in a row that agree, so that no update fell between.
fn read_stable(ports: &PortRange) -> Option<Registers> {
    let register = |index: u8| {
        ports.write(0, index);
        ports.read(1)
    };
    let mut last = None;
    for _ in 0..PATIENCE {
        if register(REGISTER_A) & UPDATE_IN_PROGRESS != 0 {
            continue;
        }
        let now = Registers {
            seconds: register(0),
            minutes: register(2),
            hours: register(4),
            day: register(7),
            month: register(8),
            year: register(9),
            century: register(CENTURY),
            format: register(REGISTER_B),
        };
        if last == Some(now) {
            return last;
        }
        last = Some(now);
    }
    None
}

impl Registers {
    fn seconds_since_1970(self) -> Option<u64> {
        let number = |raw: u8| {
            let value = if self.format & BINARY != 0 { raw } else { (raw >> 4) * 10 + (raw & 15) };
            u64::from(value)
        };
        let is_24 = self.format & HOURS_24 != 0;
        let hours = match (is_24, self.hours & AFTERNOON != 0) {
            (true, _) => number(self.hours),
            (false, is_afternoon) => number(self.hours & !AFTERNOON) % 12 + if is_afternoon { 12 } else { 0 },
        };
        // A clock without the century register is younger than 2000.
        let century = Some(number(self.century)).filter(|century| (19..=21).contains(century)).unwrap_or(20);
        let year = century * 100 + number(self.year);
        let (month, day) = (number(self.month), number(self.day));
        let (minutes, seconds) = (number(self.minutes), number(self.seconds));
        let is_time = hours < 24 && minutes < 60 && seconds < 60;
        if !is_time || year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        Some(((days_since_1970(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds)
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, with years that begin in March so that the leap day is the last.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // Months from March have 31, 30, 31, 30, 31 days, again and again: 153 in five.
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + leap_days + day_of_year - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Registers = Registers {
        seconds: 0x56,
        minutes: 0x34,
        hours: 0x12,
        day: 0x29,
        month: 0x02,
        year: 0x24,
        century: 0x20,
        format: HOURS_24,
    };

    #[test]
    fn every_format_says_the_same_time() {
        let expected = Some(1_709_210_096);
        assert_eq!(NOON.seconds_since_1970(), expected);
        let twelve = Registers { hours: 0x12 | AFTERNOON, format: 0, ..NOON };
        assert_eq!(twelve.seconds_since_1970(), expected);
        let binary = Registers {
            seconds: 56,
            minutes: 34,
            hours: 12,
            day: 29,
            month: 2,
            year: 24,
            century: 0xff,
            format: HOURS_24 | BINARY,
        };
        assert_eq!(binary.seconds_since_1970(), expected);
    }

    #[test]
    fn calendar_corners_are_right() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2100, 3, 1) - days_since_1970(2100, 2, 28), 1);
    }

    #[test]
    fn an_absent_clock_is_no_time() {
        let absent = Registers {
            seconds: 0xff,
            minutes: 0xff,
            hours: 0xff,
            day: 0xff,
            month: 0xff,
            year: 0xff,
            century: 0xff,
            format: 0xff,
        };
        assert_eq!(absent.seconds_since_1970(), None);
    }
}
