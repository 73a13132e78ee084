//! What a driver says of requests that its device failed.

/// How many failures are written to the log.
const MAX_COMPLAINTS: u32 = 20;

/// Counts failures: a user that asks for what fails, again and again, does not fill the log.
#[derive(Clone, Debug, Default)]
pub struct Complaints(u32);

impl Complaints {
    /// Whether one more is written to the log.
    pub fn take(&mut self) -> bool {
        let is_allowed = self.0 < MAX_COMPLAINTS;
        self.0 += u32::from(is_allowed);
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_are_complained_of_and_no_others() {
        let mut complaints = Complaints::default();
        assert_eq!((0..1000).filter(|_| complaints.take()).count(), MAX_COMPLAINTS as usize);
    }
}
