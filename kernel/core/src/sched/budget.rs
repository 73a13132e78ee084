//! Processor time of a scheduling context: a sporadic server.
//!
//! Time that is used comes back one period after its use began (Sprunt, Sha and Lehoczky; with a fixed number of
//! pending refills as in seL4 MCS). So no window of a period's length ever holds more than the budget, whatever the
//! scheduling context does: saving time up does not help it.
//!
//! A context whose budget is its whole period has no limit; for it the budget is the slice after which its equals get
//! their turn.

/// Parts in which the budget can come back. Beyond that parts are joined: the earlier one comes later than it could.
const REFILLS: usize = 8;

/// Time that comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Refill {
    time: u64,
    amount: u64,
}

/// What has to happen after time was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is time left.
    Continue,
    /// The slice is over: queue behind the others of this priority. There is a new slice.
    Rotate,
    /// The budget is used up until this time.
    WaitUntil(u64),
}

/// Budget and period, and what has been used. All times are in ticks of one clock that does not go back.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    budget: u64,
    period: u64,
    /// Ready to be used. With the pending refills, always the whole budget.
    ready: u64,
    /// In ascending order of time.
    pending: [Refill; REFILLS],
    len: usize,
}

impl Budget {
    /// `budget` ticks in every `period` ticks, all of it ready. A budget of 0 counts as 1, one above the period as the
    /// period.
    pub const fn new(budget: u64, period: u64) -> Self {
        let period = if period == 0 { 1 } else { period };
        let budget = if budget == 0 { 1 } else { budget };
        let budget = if budget > period { period } else { budget };
        Budget { budget, period, ready: budget, pending: [Refill { time: 0, amount: 0 }; REFILLS], len: 0 }
    }

    /// Ticks in every period.
    pub const fn budget(&self) -> u64 {
        self.budget
    }

    /// Ticks in a period.
    pub const fn period(&self) -> u64 {
        self.period
    }

    /// Whether it is only a slice, without a limit.
    pub const fn is_round_robin(&self) -> bool {
        self.budget == self.period
    }

    /// Ticks that may be used from `now` on without a break.
    pub fn available(&self, now: u64) -> u64 {
        let back: u64 =
            self.refills().iter().take_while(|refill| refill.time <= now).map(|refill| refill.amount).sum();
        self.ready + back
    }

    /// When more time comes back, `u64::MAX` if none is missing. Once nothing is available, this is when to go on.
    pub fn next_refill(&self) -> u64 {
        self.refills().first().map_or(u64::MAX, |refill| refill.time)
    }

    /// Accounts for `used` ticks up to `now`. More than was available is taken out of what comes back.
    pub fn charge(&mut self, now: u64, used: u64) -> Verdict {
        if self.is_round_robin() {
            return self.charge_slice(used);
        }
        self.collect(now);
        if used > 0 {
            // Each whole budget that was overrun costs a further period.
            let periods = used.div_ceil(self.budget);
            let time = now.saturating_sub(used).saturating_add(self.period.saturating_mul(periods));
            self.spend(used.min(self.budget), time);
            self.collect(now);
        }
        self.verdict()
    }

    /// Gives up what is available; it comes back a period from `now`.
    pub fn forfeit(&mut self, now: u64) -> Verdict {
        if self.is_round_robin() {
            return self.charge_slice(self.ready);
        }
        self.collect(now);
        self.spend(self.ready, now.saturating_add(self.period));
        self.verdict()
    }

    fn charge_slice(&mut self, used: u64) -> Verdict {
        self.ready = self.ready.saturating_sub(used);
        if self.ready > 0 {
            return Verdict::Continue;
        }
        self.ready = self.budget;
        Verdict::Rotate
    }

    fn verdict(&self) -> Verdict {
        if self.ready > 0 { Verdict::Continue } else { Verdict::WaitUntil(self.next_refill()) }
    }

    fn refills(&self) -> &[Refill] {
        &self.pending[..self.len]
    }

    /// Makes ready what has come back by `now`.
    fn collect(&mut self, now: u64) {
        let due = self.refills().iter().take_while(|refill| refill.time <= now).count();
        if due == 0 {
            return;
        }
        self.ready += self.pending[..due].iter().map(|refill| refill.amount).sum::<u64>();
        self.drop_first(due);
    }

    fn drop_first(&mut self, count: usize) {
        self.pending.copy_within(count..self.len, 0);
        self.len -= count;
    }

    /// Takes `amount`, at most the budget, from what is ready and then from what comes back first; it all comes back at
    /// `time`.
    fn spend(&mut self, amount: u64, time: u64) {
        let mut missing = amount.saturating_sub(self.ready);
        self.ready -= amount - missing;
        while let Some(first) = self.pending[..self.len].first_mut().filter(|_| missing > 0) {
            let taken = missing.min(first.amount);
            first.amount -= taken;
            missing -= taken;
            if first.amount == 0 {
                self.drop_first(1);
            }
        }
        if amount > 0 {
            self.schedule(Refill { time, amount });
        }
    }

    fn schedule(&mut self, new: Refill) {
        let full = self.len == REFILLS;
        if let Some(last) = self.pending[..self.len].last_mut() {
            // Use without a break is one use, and comes back as a whole when its first part does.
            if new.time <= last.time.saturating_add(last.amount) && new.time >= last.time {
                last.amount += new.amount;
                return;
            }
            if full || new.time < last.time {
                last.amount += new.amount;
                last.time = last.time.max(new.time);
                return;
            }
        }
        self.pending[self.len] = new;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn used_time_comes_back_a_period_after_its_use_began() {
        let mut budget = Budget::new(10, 100);
        assert_eq!((budget.available(50), budget.next_refill()), (10, u64::MAX));
        assert_eq!(budget.charge(54, 4), Verdict::Continue);
        assert_eq!(budget.charge(86, 6), Verdict::WaitUntil(150));
        assert_eq!((budget.available(149), budget.available(150), budget.available(180)), (0, 4, 10));
    }

    #[test]
    fn use_without_a_break_comes_back_as_a_whole() {
        let mut budget = Budget::new(10, 100);
        for now in 1..=10 {
            budget.charge(now, 1);
        }
        assert_eq!((budget.available(99), budget.available(100)), (0, 10));
    }

    #[test]
    fn too_many_parts_come_back_late_rather_than_early() {
        let mut budget = Budget::new(20, 1000);
        for part in 0..=REFILLS as u64 {
            budget.charge(part * 10 + 1, 1);
        }
        assert_eq!([1060, 1070, 1079, 1080].map(|now| budget.available(now)), [18, 18, 18, 20]);
    }

    #[test]
    fn a_whole_period_of_budget_is_a_slice_without_a_limit() {
        let mut budget = Budget::new(10, 10);
        assert_eq!(budget.charge(6, 6), Verdict::Continue);
        assert_eq!(budget.available(6), 4);
        assert_eq!(budget.charge(10, 4), Verdict::Rotate);
        assert_eq!((budget.available(10), budget.next_refill()), (10, u64::MAX));
        assert_eq!(budget.forfeit(11), Verdict::Rotate);
    }

    #[test]
    fn an_overrun_is_paid_back() {
        let mut budget = Budget::new(10, 100);
        budget.charge(10, 5);
        assert_eq!(budget.charge(60, 9), Verdict::WaitUntil(105));
        assert_eq!(budget.available(105), 1);
        assert_eq!(budget.available(151), 10);
        assert_eq!(Budget::new(10, 100).charge(25, 25), Verdict::WaitUntil(300));
    }

    #[test]
    fn what_is_given_up_comes_back_a_period_later() {
        let mut budget = Budget::new(10, 100);
        budget.charge(3, 3);
        assert_eq!(budget.forfeit(20), Verdict::WaitUntil(100));
        assert_eq!((budget.available(100), budget.available(120)), (3, 10));
    }

    #[test]
    fn strange_numbers_are_tamed() {
        assert!(Budget::new(0, 0).is_round_robin());
        assert_eq!(Budget::new(200, 100).budget(), 100);
        let mut budget = Budget::new(u64::MAX - 1, u64::MAX);
        budget.charge(u64::MAX, u64::MAX);
        budget.forfeit(0);
    }

    /// Idle for so long, then use so much (in percent of what is available) in so many parts; or give the rest up.
    type Step = (u64, u64, u64, bool);

    /// Lets the steps happen and returns each use, start and end, and the time then.
    fn simulate(budget: &mut Budget, steps: &[Step]) -> (Vec<(u64, u64)>, u64) {
        let (mut now, mut uses) = (0, Vec::new());
        for &(idle, percent, parts, forfeit) in steps {
            now += idle;
            for _ in 0..parts {
                let available = budget.available(now);
                if available == 0 {
                    now = budget.next_refill();
                    assert!(budget.available(now) > 0);
                    continue;
                }
                let used = (available * percent / 100).max(1);
                uses.push((now, now + used));
                now += used;
                match budget.charge(now, used) {
                    Verdict::WaitUntil(time) => assert!(time > now && budget.available(now) == 0),
                    Verdict::Continue => assert!(budget.available(now) > 0),
                    Verdict::Rotate => panic!("a limited budget has no slices"),
                }
            }
            if forfeit {
                budget.forfeit(now);
                assert_eq!(budget.available(now), 0);
            }
        }
        (uses, now)
    }

    proptest! {
        #[test]
        fn no_window_of_a_period_holds_more_than_the_budget(
            budget in 1u64..60,
            spare in 1u64..200,
            steps in prop::collection::vec((0u64..150, 1u64..=100, 0u64..6, prop::bool::weighted(0.1)), 1..60),
        ) {
            let period = budget + spare;
            let mut server = Budget::new(budget, period);
            let (uses, now) = simulate(&mut server, &steps);
            let edges = uses.iter().flat_map(|&(start, end)| [start, end.saturating_sub(period)]);
            for from in edges {
                let used: u64 = uses
                    .iter()
                    .map(|&(start, end)| end.min(from + period).saturating_sub(start.max(from)))
                    .sum();
                prop_assert!(used <= budget, "{used} from {from}");
            }
            // Nothing is lost: after a period without use the whole budget is there.
            prop_assert_eq!(server.available(now + period), budget);
        }

        #[test]
        fn any_charges_keep_the_budget_whole(
            budget in 1u64..60, spare in 1u64..200,
            charges in prop::collection::vec((0u64..100, 0u64..200), 0..60),
        ) {
            let mut server = Budget::new(budget, budget + spare);
            let mut now = 0;
            for (step, used) in charges {
                now += step;
                server.charge(now, used);
                prop_assert_eq!(server.available(u64::MAX), budget);
                prop_assert!(server.refills().is_sorted_by_key(|refill| refill.time));
            }
        }
    }
}
