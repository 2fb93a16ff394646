//! Whether containers keep running: one that ends is started again at once, one that ends again and again does not serve. Pure.

use contracts::time::{BootTime, Millis};

/// Ends that follow each other within this time are one failure. It has lasted when its first and last end are so far apart.
pub const STEADY: Millis = Millis::from_secs(10);

/// The ends of one deployment's containers, lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health(Option<Ends>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    first: BootTime,
    last: BootTime,
}

impl Health {
    /// A container did not run that should, or could not be started.
    pub fn note_end(&mut self, now: BootTime) {
        self.0 = match self.0 {
            Some(Ends { first, last }) if now.since(last) <= STEADY => Some(Ends { first, last: now }),
            Some(_) | None => Some(Ends { first: now, last: now }),
        };
    }

    /// The containers have not run for [`STEADY`] without an end since `first`, which was longer ago.
    #[must_use]
    pub fn is_failing(&self, now: BootTime) -> bool {
        self.0.is_some_and(|Ends { first, last }| last.since(first) >= STEADY && now.since(last) <= STEADY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> BootTime {
        BootTime(1_000_000 + seconds * 1_000)
    }

    fn after(ends: &[u64]) -> Health {
        let mut health = Health::default();
        ends.iter().for_each(|end| health.note_end(at(*end)));
        health
    }

    #[test]
    fn one_end_is_no_failure() {
        assert!(!Health::default().is_failing(at(0)));
        for now in 0..30 {
            assert!(!after(&[0]).is_failing(at(now)), "{now}");
            assert!(!after(&[0, 11, 22]).is_failing(at(22 + now)), "rare ends, {now}");
        }
    }

    #[test]
    fn ends_that_go_on_are_one_until_it_is_steady_again() {
        assert!(!after(&[0, 5, 9]).is_failing(at(9)));
        assert!(after(&[0, 5, 10]).is_failing(at(10)));
        assert!(after(&[0, 5, 10]).is_failing(at(20)));
        assert!(!after(&[0, 5, 10]).is_failing(at(21)), "it has run steadily");
        assert!(!after(&[0, 5, 10, 25]).is_failing(at(25)), "another failure begins");
    }
}
