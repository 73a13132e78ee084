//! Arithmetic between clocks of different rates.

/// `ticks` of a clock of `from_hz`, counted by a clock of `to_hz`; rounded down, saturating.
pub(crate) fn convert(ticks: u64, from_hz: u64, to_hz: u64) -> u64 {
    let scaled = u128::from(ticks) * u128::from(to_hz) / u128::from(from_hz.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// How many ticks of a clock of `to_hz` must pass until one of `from_hz` has counted `ticks`; saturating.
pub(crate) fn convert_up(ticks: u128, from_hz: u64, to_hz: u64) -> u64 {
    let scaled = ticks.saturating_mul(u128::from(to_hz)).div_ceil(u128::from(from_hz.max(1)));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_converted_count_is_reached_exactly_when_the_other_clock_says_so() {
        let wait = convert_up(1000, 3_579_545, 2_000_000_000);
        assert_eq!(convert(wait, 2_000_000_000, 3_579_545), 1000);
        assert_eq!(convert(wait - 1, 2_000_000_000, 3_579_545), 999);
    }

    #[test]
    fn extreme_rates_saturate() {
        assert_eq!(convert(u64::MAX, 1, u64::MAX), u64::MAX);
        assert_eq!(convert_up(u128::MAX, 0, u64::MAX), u64::MAX);
        assert_eq!(convert(7, 0, 1), 7);
    }
}
