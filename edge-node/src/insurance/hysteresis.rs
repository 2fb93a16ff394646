//! How long a customer must be back before custody is given back: longer, the more often it went of late. Pure.

use contracts::time::{BootTime, Millis};

/// Takeovers of so long count.
const MEMORY: Millis = Millis::from_secs(24 * 3_600);
/// Longest quiet time that doubling comes to.
const QUIET_MAX: Millis = Millis::from_secs(3_600);
/// A contract with a shorter quiet time is one for a demonstration or a test, in which takeovers follow one another on purpose.
const DOUBLED_FROM: Millis = Millis::from_secs(60);
/// More takeovers than these change nothing any more.
const TAKEOVERS_MAX: usize = 32;

/// When this node took a group over, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takeovers(Vec<BootTime>);

impl Takeovers {
    /// One more.
    pub fn note(&mut self, now: BootTime) {
        self.0.retain(|at| now.since(*at) < MEMORY);
        if self.0.len() == TAKEOVERS_MAX {
            self.0.remove(0);
        }
        self.0.push(now);
    }

    /// The quiet time that is due: `agreed`, doubled for each takeover within a day before the present one, up to an hour.
    #[must_use]
    pub fn quiet(&self, agreed: Millis, now: BootTime) -> Millis {
        if agreed < DOUBLED_FROM {
            return agreed;
        }
        let recent = self.0.iter().filter(|at| now.since(**at) < MEMORY).count();
        (1..recent).fold(agreed, |quiet, _| Millis(quiet.0.saturating_mul(2).min(QUIET_MAX.0.max(agreed.0))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    #[test]
    fn each_takeover_within_a_day_doubles_the_quiet_time_up_to_an_hour() {
        let mut takeovers = Takeovers::default();
        let quiet = |takeovers: &Takeovers, now| takeovers.quiet(Millis(5 * MINUTE), BootTime(now)).0 / MINUTE;
        assert_eq!(quiet(&takeovers, 0), 5, "custody from before this process");
        let mut seen = Vec::new();
        for n in 0..7 {
            takeovers.note(BootTime(n * 30 * MINUTE));
            seen.push(quiet(&takeovers, n * 30 * MINUTE));
        }
        assert_eq!(seen, [5, 10, 20, 40, 60, 60, 60]);
        let day = 24 * 60 * MINUTE;
        assert_eq!(quiet(&takeovers, day + 4 * 30 * MINUTE), 10, "two are younger than a day");
        assert_eq!(quiet(&takeovers, 2 * day), 5);
        takeovers.note(BootTime(3 * day));
        assert_eq!(quiet(&takeovers, 3 * day), 5);
    }

    #[test]
    fn other_quiet_times_stay_what_was_agreed() {
        let mut takeovers = Takeovers::default();
        for n in 0..1_000 {
            takeovers.note(BootTime(n));
        }
        assert_eq!(takeovers.0.len(), TAKEOVERS_MAX);
        assert_eq!(takeovers.quiet(Millis(2_000), BootTime(1_000)), Millis(2_000), "of a demonstration");
        assert_eq!(takeovers.quiet(Millis(180 * MINUTE), BootTime(1_000)), Millis(180 * MINUTE), "longer than an hour");
    }
}
