//! The local APIC's timer (SDM 3A 10.5.4), computed from the TSC whenever somebody asks.

use crate::tick::{convert, convert_up};

/// Shorter periods than this, in µs, leave a guest no time between two wake-ups of its VMM.
const LEAST_PERIOD_US: u64 = 100;

/// LVT timer register bits 18:17.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// Decodes an LVT timer value. The manual defines nothing for the reserved encoding; it counts once here.
    pub(super) fn from_lvt(value: u32) -> Self {
        match value >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// A count on its way to zero. Ticks are those of the divided timer clock, since `start_tsc`.
#[derive(Clone, Copy, Debug)]
struct Countdown {
    start_tsc: u64,
    /// Tick of the next expiry that was not reported yet.
    next: u128,
    /// Ticks between expiries.
    reload: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    timer_hz: u64,
    tsc_hz: u64,
    mode: Mode,
    /// Power of two by which the timer clock is divided.
    divide_shift: u32,
    countdown: Option<Countdown>,
    /// TSC of the deadline; 0 when disarmed.
    deadline_tsc: u64,
}

impl Timer {
    pub(super) fn new(timer_hz: u64, tsc_hz: u64) -> Self {
        Self {
            timer_hz: timer_hz.max(1),
            tsc_hz: tsc_hz.max(1),
            mode: Mode::OneShot,
            divide_shift: 1,
            countdown: None,
            deadline_tsc: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.timer_hz, self.tsc_hz);
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Entering or leaving TSC-deadline mode disarms; between the other two the count goes on.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode && (mode == Mode::TscDeadline || self.mode == Mode::TscDeadline) {
            self.countdown = None;
            self.deadline_tsc = 0;
        }
        self.mode = mode;
    }

    /// Starts counting down from `count`; 0 stops.
    pub(super) fn start(&mut self, count: u32, now: u64) {
        self.countdown =
            (count != 0).then(|| Countdown { start_tsc: now, next: u128::from(count), reload: count });
    }

    /// Sets the divide configuration register: bits 3, 1 and 0 are one number, 7 divides by 1.
    pub(super) fn set_divide(&mut self, configuration: u32, now: u64) {
        let remaining = self.current_count(now);
        self.divide_shift = ((configuration >> 1 & 4 | configuration & 3) + 1) & 7;
        self.restart(remaining, now);
    }

    pub(super) fn current_count(&self, now: u64) -> u32 {
        let Some(countdown) = self.countdown else { return 0 };
        let elapsed = self.elapsed(&countdown, now);
        let remaining = match countdown.next.checked_sub(elapsed) {
            Some(remaining) if remaining > 0 => remaining,
            _ if self.mode == Mode::Periodic => {
                let reload = u128::from(countdown.reload);
                reload - (elapsed - countdown.next) % reload
            }
            _ => 0,
        };
        u32::try_from(remaining).unwrap_or(u32::MAX)
    }

    /// The TSC jumped from `old` to `new`. The count goes on from where it is, since its clock is another; a deadline is
    /// a value of the TSC and stays.
    pub(super) fn rebase(&mut self, old: u64, new: u64) {
        let remaining = self.current_count(old);
        self.restart(remaining, new);
    }

    /// Lets the count that is under way, if there is one, go on with `remaining` ticks at `now`.
    fn restart(&mut self, remaining: u32, now: u64) {
        if let Some(countdown) = &mut self.countdown {
            countdown.start_tsc = now;
            countdown.next = u128::from(remaining.max(1));
        }
    }

    /// TSC ticks to let pass before the next look at a timer whose period is too short to wake up for each.
    pub(super) fn least_wait(&self) -> u64 {
        match self.countdown {
            Some(countdown) if self.mode == Mode::Periodic => {
                let least = convert(LEAST_PERIOD_US, 1_000_000, self.tsc_hz);
                let period = self.ticks_to_tsc(countdown.reload.into());
                if period < least { least } else { 0 }
            }
            _ => 0,
        }
    }

    /// Arms for `deadline_tsc`, or disarms with 0. Ignored outside TSC-deadline mode.
    pub(super) fn set_deadline(&mut self, deadline_tsc: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline_tsc = deadline_tsc;
        }
    }

    /// Arms for a deadline to come, if what it was armed for is not due either; says whether it was so.
    #[inline]
    pub(super) fn arm_quietly(&mut self, deadline_tsc: u64, now: u64) -> bool {
        // Disarmed is 0, and so never due.
        let is_due = self.deadline_tsc.wrapping_sub(1) < now;
        let is_quiet = self.mode == Mode::TscDeadline && !is_due && deadline_tsc > now;
        if is_quiet {
            self.deadline_tsc = deadline_tsc;
        }
        is_quiet
    }

    /// The armed deadline, or 0: expired, disarmed or in another mode.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        if self.deadline_tsc > now { self.deadline_tsc } else { 0 }
    }

    /// TSC of the next expiry, if one is to come.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        if self.mode == Mode::TscDeadline {
            return (self.deadline_tsc != 0).then_some(self.deadline_tsc);
        }
        self.countdown.map(|countdown| countdown.start_tsc.saturating_add(self.ticks_to_tsc(countdown.next)))
    }

    /// TSC ticks until the divided timer clock has counted `ticks`.
    fn ticks_to_tsc(&self, ticks: u128) -> u64 {
        convert_up(ticks << self.divide_shift, self.timer_hz, self.tsc_hz)
    }

    /// Takes the expiries up to `now` and says whether there was one. Missed periods count once.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        if self.mode == Mode::TscDeadline {
            let is_due = self.deadline_tsc != 0 && self.deadline_tsc <= now;
            if is_due {
                self.deadline_tsc = 0;
            }
            return is_due;
        }
        let Some(mut countdown) = self.countdown else {
            return false;
        };
        let elapsed = self.elapsed(&countdown, now);
        if elapsed < countdown.next {
            return false;
        }
        let reload = u128::from(countdown.reload);
        countdown.next += ((elapsed - countdown.next) / reload + 1) * reload;
        self.countdown = (self.mode == Mode::Periodic).then_some(countdown);
        true
    }

    fn elapsed(&self, countdown: &Countdown, now: u64) -> u128 {
        let tsc = now.saturating_sub(countdown.start_tsc);
        u128::from(convert(tsc, self.tsc_hz, self.timer_hz) >> self.divide_shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 1 GHz timer clock under a 2 GHz TSC, undivided.
    fn timer(mode: Mode) -> Timer {
        let mut timer = Timer::new(1_000_000_000, 2_000_000_000);
        timer.set_divide(0b1011, 0);
        timer.set_mode(mode);
        timer
    }

    #[test]
    fn a_one_shot_count_expires_once() {
        let mut timer = timer(Mode::OneShot);
        timer.start(100, 1000);
        assert_eq!(timer.current_count(1000), 100);
        assert_eq!(timer.current_count(1100), 50);
        assert_eq!(timer.next_expiry(), Some(1200));
        assert!(!timer.expire(1199));
        assert!(timer.expire(1200));
        assert_eq!(timer.current_count(1200), 0);
        assert_eq!(timer.next_expiry(), None);
        assert!(!timer.expire(5000));
    }

    #[test]
    fn a_periodic_count_keeps_its_phase_when_expiries_are_seen_late() {
        let mut timer = timer(Mode::Periodic);
        timer.start(100, 0);
        assert!(timer.expire(730));
        assert!(!timer.expire(730), "three missed periods are one expiry");
        assert_eq!(timer.next_expiry(), Some(800));
        assert_eq!(timer.current_count(740), 30);
        assert_eq!(timer.current_count(800), 100);
    }

    #[test]
    fn divide_configurations_are_those_of_the_manual() {
        let divisors =
            [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128)];
        for (configuration, divisor) in divisors.into_iter().chain([(0b1011, 1)]) {
            let mut timer = timer(Mode::OneShot);
            timer.set_divide(configuration, 0);
            timer.start(10, 0);
            assert_eq!(timer.next_expiry(), Some(20 * divisor), "{configuration:#b}");
        }
    }

    #[test]
    fn changing_the_divisor_keeps_the_count() {
        let mut timer = timer(Mode::OneShot);
        timer.start(100, 0);
        timer.set_divide(0b0000, 100);
        assert_eq!(timer.current_count(100), 50);
        assert_eq!(timer.next_expiry(), Some(300));
    }

    #[test]
    fn a_count_does_not_notice_that_the_guest_sets_its_tsc() {
        for new in [0, 5_000_000, u64::MAX / 2] {
            let mut timer = timer(Mode::OneShot);
            timer.start(100, 1_000_000);
            timer.rebase(1_000_080, new);
            assert_eq!(timer.current_count(new), 60);
            assert_eq!(timer.next_expiry(), Some(new + 120));
        }
    }

    #[test]
    fn a_deadline_expires_once_and_reads_zero_afterwards() {
        let mut timer = timer(Mode::TscDeadline);
        timer.set_deadline(500);
        assert_eq!((timer.deadline(499), timer.deadline(500)), (500, 0));
        assert!(!timer.expire(499));
        assert!(timer.expire(500));
        assert_eq!(timer.next_expiry(), None);
    }

    #[test]
    fn changing_to_or_from_deadline_mode_disarms() {
        let mut timer = timer(Mode::TscDeadline);
        timer.set_deadline(500);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.next_expiry(), None);
        timer.set_deadline(500);
        assert_eq!(timer.deadline(0), 0, "other modes ignore the deadline");
        timer.start(5, 0);
        timer.set_mode(Mode::Periodic);
        assert!(timer.next_expiry().is_some());
        timer.set_mode(Mode::TscDeadline);
        assert_eq!(timer.next_expiry(), None);
    }

    proptest! {
        #[test]
        fn the_timer_expires_exactly_when_it_announced(
            timer_hz in 1u64.., tsc_hz in 1u64.., count in 1u32.., configuration: u32, start: u64,
            is_periodic: bool,
        ) {
            let mut timer = Timer::new(timer_hz, tsc_hz);
            timer.set_mode(if is_periodic { Mode::Periodic } else { Mode::OneShot });
            timer.set_divide(configuration, start);
            timer.start(count, start);
            let expiry = timer.next_expiry().unwrap();
            if expiry < u64::MAX {
                prop_assert!(!timer.expire(expiry - 1));
                prop_assert!(timer.current_count(expiry - 1) > 0);
                prop_assert!(timer.expire(expiry));
            }
        }
    }
}
