//! Narrowing: ranges of frames, ports and interrupts.

/// `len` units from unit `offset` of the range of `count` units that begins at `first`: its first and length. `None` if
/// it is empty or not inside.
pub const fn sub_range(first: u64, count: u64, offset: u64, len: u64) -> Option<(u64, u64)> {
    if len == 0 || offset > count || len > count - offset {
        return None;
    }
    match first.checked_add(offset) {
        Some(first) => Some((first, len)),
        None => None,
    }
}

/// The part of one range (first, count) that another one has too, `None` if they have nothing in common.
pub fn intersection(a: (u64, u64), b: (u64, u64)) -> Option<(u64, u64)> {
    let first = a.0.max(b.0);
    let end = a.0.saturating_add(a.1).min(b.0.saturating_add(b.1));
    (first < end).then(|| (first, end - first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sub_range_lies_inside() {
        assert_eq!(sub_range(100, 10, 0, 10), Some((100, 10)));
        assert_eq!(sub_range(100, 10, 9, 1), Some((109, 1)));
        for (offset, len) in [(0, 0), (0, 11), (10, 1), (11, 0), (5, u64::MAX), (u64::MAX, 1)] {
            assert_eq!(sub_range(100, 10, offset, len), None, "{offset} {len}");
        }
    }

    proptest! {
        #[test]
        fn an_intersection_holds_what_both_have(a in (0u64..50, 0u64..50), b in (0u64..50, 0u64..50)) {
            let inside = |r: (u64, u64), i| i >= r.0 && i < r.0 + r.1;
            for i in 0..120 {
                let common = intersection(a, b).is_some_and(|r| inside(r, i));
                prop_assert_eq!(common, inside(a, i) && inside(b, i));
            }
        }

        #[test]
        fn a_sub_range_of_any_numbers_ends_before_its_range(
            first in any::<u64>(), count in any::<u64>(), offset in any::<u64>(), len in any::<u64>(),
        ) {
            if let Some((sub, sub_len)) = sub_range(first, count, offset, len) {
                let end = u128::from(first) + u128::from(count);
                prop_assert!(sub >= first && u128::from(sub) + u128::from(sub_len) <= end);
            }
        }
    }
}
