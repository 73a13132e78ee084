//! Days, months and years of the Gregorian calendar, from and to Unix time.

pub(super) const SECONDS_PER_DAY: i64 = 86_400;
/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;
/// Days in 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;

/// A moment, field by field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 for Sunday to 7.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl DateTime {
    pub(super) fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY);
        let (year, month, day) = date_from_days(days);
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        // Every cast below keeps a value under 60.
        Self {
            year,
            month,
            day,
            // 1 January 1970 was a Thursday.
            weekday: (days + 4).rem_euclid(7) as u8 + 1,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Unix time. Fields out of range are brought to the nearest that is not, and the weekday does not count.
    pub(super) fn to_unix(self) -> i64 {
        let days = days_from_date(self.year.clamp(0, 9999), self.month.clamp(1, 12), self.day.clamp(1, 31));
        days * SECONDS_PER_DAY
            + i64::from(self.hour.min(23)) * 3600
            + i64::from(self.minute.min(59)) * 60
            + i64::from(self.second.min(59))
    }
}

/// Years are counted from March here, so that the leap day is the last of its year.
fn days_from_date(year: i64, month: u8, day: u8) -> i64 {
    let months_since_march = (i64::from(month) + 9) % 12;
    let year = if month <= 2 { year - 1 } else { year };
    // From March on, each five months have 153 days.
    let day_of_year = (153 * months_since_march + 2) / 5 + i64::from(day) - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - EPOCH_DAYS
}

fn date_from_days(days: i64) -> (i64, u8, u8) {
    let days = days + EPOCH_DAYS;
    let era = days.div_euclid(ERA_DAYS);
    let day_of_era = days.rem_euclid(ERA_DAYS);
    // Take out the leap days: one in 4 years, none in 100, one in 400.
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let month = (months_since_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_have_their_dates() {
        let moment = DateTime::from_unix(1_709_210_096);
        let expected =
            DateTime { year: 2024, month: 2, day: 29, weekday: 5, hour: 12, minute: 34, second: 56 };
        assert_eq!(moment, expected);
        let epoch = DateTime::from_unix(0);
        assert_eq!((epoch.year, epoch.month, epoch.day, epoch.weekday), (1970, 1, 1, 5));
    }

    #[test]
    fn impossible_fields_become_possible_ones() {
        let moment = DateTime { year: -5, month: 0, day: 99, weekday: 0, hour: 24, minute: 60, second: 255 };
        let moment = DateTime::from_unix(moment.to_unix());
        assert_eq!((moment.year, moment.month, moment.day), (0, 1, 31));
        assert_eq!((moment.hour, moment.minute, moment.second), (23, 59, 59));
    }

    proptest! {
        #[test]
        fn every_second_of_ten_thousand_years_survives_the_round_trip(
            seconds in -62_167_219_200i64..253_402_300_800,
        ) {
            let moment = DateTime::from_unix(seconds);
            prop_assert_eq!(moment.to_unix(), seconds);
            prop_assert!((1..=12).contains(&moment.month) && (1..=31).contains(&moment.day));
        }
    }
}
