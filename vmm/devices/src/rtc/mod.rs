//! Real-time clock and CMOS memory (Motorola MC146818A data sheet, with the PC's century byte).
//!
//! Data path: the time is computed from the TSC when a register is read; setting it moves the base. Alarm,
//! periodic and update events show in register C and interrupt nobody: on this board the clock has no
//! interrupt line.

mod calendar;
#[cfg(test)]
mod tests;

use crate::tick::convert;
use bitflags::bitflags;
use calendar::{DateTime, SECONDS_PER_DAY};

/// Selects a register; write-only.
pub const INDEX_PORT: u16 = 0x70;
/// The selected register.
pub const DATA_PORT: u16 = 0x71;

const CMOS_BYTES: usize = 128;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Centuries, in BCD in either data mode.
const CENTURY: u8 = 0x32;

/// Register A: an update of the time is near or under way.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Register A at reset: 32.768 kHz time base, periodic rate 1024 Hz.
const REGISTER_A_DEFAULT: u8 = 0x26;
/// Register D: the battery is good.
const VALID_RAM_AND_TIME: u8 = 1 << 7;
/// Alarm bytes from here on match everything.
const ALARM_WILDCARD: u8 = 0xc0;
/// Hours: afternoon, in 12-hour mode.
const PM: u8 = 1 << 7;
/// UIP is set this long before an update.
const UPDATE_NOTICE_US: u64 = 244;

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct RegisterB: u8 {
        const HOURS_24 = 1 << 1;
        const BINARY = 1 << 2;
        const UPDATE_ENABLE = 1 << 4;
        const ALARM_ENABLE = 1 << 5;
        const PERIODIC_ENABLE = 1 << 6;
        /// The time stands still and can be set.
        const SET = 1 << 7;
        const _ = !0;
    }

    /// Events in register C, at the bits of their enables in register B.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct RegisterC: u8 {
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        const ANY_ENABLED = 1 << 7;
    }
}

/// The clock and its memory.
#[derive(Clone)]
pub struct Rtc {
    tsc_hz: u64,
    index: u8,
    /// Memory, and registers in the guest's encoding; time registers are current after [`Self::encode_time`].
    cmos: [u8; CMOS_BYTES],
    /// Unix time at `base_tsc`, where a second begins.
    base_seconds: i64,
    base_tsc: u64,
    /// When register C was last read.
    events_seen_tsc: u64,
}

impl Rtc {
    /// A clock that shows `unix_seconds` (UTC) at guest TSC `at_tsc`.
    pub fn new(unix_seconds: u64, at_tsc: u64, tsc_hz: u64) -> Self {
        let mut cmos = [0; CMOS_BYTES];
        cmos[usize::from(REGISTER_A)] = REGISTER_A_DEFAULT;
        cmos[usize::from(REGISTER_B)] = RegisterB::HOURS_24.bits();
        cmos[usize::from(REGISTER_D)] = VALID_RAM_AND_TIME;
        // The registers end with the year 9999.
        let end = DateTime { year: 9999, month: 12, day: 31, weekday: 0, hour: 23, minute: 59, second: 59 };
        let end = end.to_unix();
        Self {
            tsc_hz: tsc_hz.max(1),
            index: REGISTER_D,
            cmos,
            base_seconds: i64::try_from(unix_seconds).map_or(end, |seconds| seconds.min(end)),
            base_tsc: at_tsc,
            events_seen_tsc: at_tsc,
        }
    }

    /// Records the memory sizes where PC firmware looks for them: below 1 MiB, from 1 MiB, from 16 MiB, from
    /// 4 GiB.
    ///
    /// `below_4g` and `above_4g` are bytes of memory on either side of 4 GiB.
    pub fn set_memory_size(&mut self, below_4g: u64, above_4g: u64) {
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        let units = |bytes: u64, unit: u64, max: u64| (bytes / unit).min(max).to_le_bytes();
        let [low, high, ..] = units(below_4g, KIB, 640);
        (self.cmos[0x15], self.cmos[0x16]) = (low, high);
        let [low, high, ..] = units(below_4g.saturating_sub(MIB), KIB, 0xffff);
        (self.cmos[0x17], self.cmos[0x18]) = (low, high);
        (self.cmos[0x30], self.cmos[0x31]) = (low, high);
        let [low, high, ..] = units(below_4g.saturating_sub(16 * MIB), 64 * KIB, 0xffff);
        (self.cmos[0x34], self.cmos[0x35]) = (low, high);
        let [low, middle, high, ..] = units(above_4g, 64 * KIB, 0x00ff_ffff);
        (self.cmos[0x5b], self.cmos[0x5c], self.cmos[0x5d]) = (low, middle, high);
    }

    /// Reads a byte; ports that are none of these float.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        if port != DATA_PORT {
            return 0xff;
        }
        match self.index {
            REGISTER_A if self.is_update_near(now) => self.register(REGISTER_A) | UPDATE_IN_PROGRESS,
            REGISTER_C => self.take_events(now),
            index => {
                self.encode_time(now);
                self.register(index)
            }
        }
    }

    /// Writes a byte. Bit 7 of the index port masks NMIs on a PC and is ignored.
    pub fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            INDEX_PORT => self.index = value & 0x7f,
            DATA_PORT => self.write_selected(value, now),
            _ => {}
        }
    }

    fn write_selected(&mut self, value: u8, now: u64) {
        match self.index {
            REGISTER_C | REGISTER_D => {}
            REGISTER_A => self.set_register(REGISTER_A, value & !UPDATE_IN_PROGRESS),
            REGISTER_B => {
                // The time is kept through a stop in the bytes that the guest sees; modes change how they are
                // read.
                self.encode_time(now);
                let was_set = self.register_b().contains(RegisterB::SET);
                self.set_register(REGISTER_B, value);
                if was_set && !self.register_b().contains(RegisterB::SET) {
                    self.decode_time(now);
                }
            }
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                self.encode_time(now);
                self.set_register(self.index, value);
                if !self.register_b().contains(RegisterB::SET) {
                    self.decode_time(now);
                }
            }
            index => self.set_register(index, value),
        }
    }

    fn register(&self, index: u8) -> u8 {
        self.cmos[usize::from(index) % CMOS_BYTES]
    }

    fn set_register(&mut self, index: u8, value: u8) {
        self.cmos[usize::from(index) % CMOS_BYTES] = value;
    }

    fn register_b(&self) -> RegisterB {
        RegisterB::from_bits_retain(self.register(REGISTER_B))
    }

    fn seconds_at(&self, now: u64) -> i64 {
        let elapsed = now.saturating_sub(self.base_tsc) / self.tsc_hz;
        self.base_seconds.saturating_add(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }

    fn is_update_near(&self, now: u64) -> bool {
        let into_second = now.saturating_sub(self.base_tsc) % self.tsc_hz;
        let notice = convert(UPDATE_NOTICE_US, 1_000_000, self.tsc_hz).max(1);
        !self.register_b().contains(RegisterB::SET) && self.tsc_hz - into_second <= notice
    }

    /// Brings the time registers up to date, unless the guest stopped the time.
    fn encode_time(&mut self, now: u64) {
        if self.register_b().contains(RegisterB::SET) {
            return;
        }
        // The date repeats after 400 years, so what exceeds the registers still gives valid bytes.
        let time = DateTime::from_unix(self.seconds_at(now).min(i64::MAX / 2));
        let hour = self.encode_hour(time.hour);
        let century = (time.year / 100 % 100) as u8;
        let year = (time.year % 100) as u8;
        for (register, value) in [
            (SECONDS, self.encode(time.second)),
            (MINUTES, self.encode(time.minute)),
            (HOURS, hour),
            (WEEKDAY, self.encode(time.weekday)),
            (DAY, self.encode(time.day)),
            (MONTH, self.encode(time.month)),
            (YEAR, self.encode(year)),
            (CENTURY, to_bcd(century)),
        ] {
            self.set_register(register, value);
        }
    }

    /// Takes the time from the registers; the seconds go on in their old phase.
    fn decode_time(&mut self, now: u64) {
        let century = i64::from(from_bcd(self.register(CENTURY)));
        let time = DateTime {
            year: century * 100 + i64::from(self.decode(self.register(YEAR))),
            month: self.decode(self.register(MONTH)),
            day: self.decode(self.register(DAY)),
            weekday: 0,
            hour: self.decode_hour(self.register(HOURS)),
            minute: self.decode(self.register(MINUTES)),
            second: self.decode(self.register(SECONDS)),
        };
        self.base_seconds = time.to_unix();
        self.base_tsc = now - now.saturating_sub(self.base_tsc) % self.tsc_hz;
        self.events_seen_tsc = now;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register_b().contains(RegisterB::BINARY) { value } else { to_bcd(value) }
    }

    fn decode(&self, byte: u8) -> u8 {
        if self.register_b().contains(RegisterB::BINARY) { byte } else { from_bcd(byte) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register_b().contains(RegisterB::HOURS_24) {
            return self.encode(hour);
        }
        // Midnight and noon are 12.
        let of_half_day = (hour + 11) % 12 + 1;
        self.encode(of_half_day) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.register_b().contains(RegisterB::HOURS_24) {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    /// Reads and clears register C: what happened since it was read before.
    fn take_events(&mut self, now: u64) -> u8 {
        let since = core::mem::replace(&mut self.events_seen_tsc, now);
        let mut events = RegisterC::empty();
        if !self.register_b().contains(RegisterB::SET) {
            let (first, last) = (self.seconds_at(since), self.seconds_at(now));
            events.set(RegisterC::UPDATE, first < last);
            events.set(RegisterC::ALARM, self.does_alarm_match(first, last));
        }
        if let Some(rate_hz) = self.periodic_rate() {
            let ticks = |tsc| convert(tsc, self.tsc_hz, rate_hz);
            events.set(RegisterC::PERIODIC, ticks(since) < ticks(now));
        }
        let is_any_enabled = events.bits() & self.register_b().bits() != 0;
        events.set(RegisterC::ANY_ENABLED, is_any_enabled);
        events.bits()
    }

    /// The alarm matches a second after `first`, up to `last`.
    fn does_alarm_match(&self, first: i64, last: i64) -> bool {
        // A day has every time of day; most reads look at a second or none.
        let count = last.saturating_sub(first).clamp(0, SECONDS_PER_DAY);
        (0..count).any(|ago| {
            let time = DateTime::from_unix(last.min(i64::MAX / 2) - ago);
            let matches = |alarm: u8, byte: u8| {
                let alarm = self.register(alarm);
                alarm >= ALARM_WILDCARD || alarm == byte
            };
            matches(SECONDS_ALARM, self.encode(time.second))
                && matches(MINUTES_ALARM, self.encode(time.minute))
                && matches(HOURS_ALARM, self.encode_hour(time.hour))
        })
    }

    /// Rate of the periodic event in Hz, for the 32.768 kHz time base.
    fn periodic_rate(&self) -> Option<u64> {
        match self.register(REGISTER_A) & 0xf {
            0 => None,
            selection @ 1..=2 => Some(256 >> (selection - 1)),
            selection => Some(32_768 >> (selection - 1)),
        }
    }
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

/// Digits above nine count as what they are; nothing here can exceed 165.
fn from_bcd(byte: u8) -> u8 {
    (byte >> 4) * 10 + (byte & 0xf)
}
