//! A token bucket: so many events per second, twice as many at once.

use contracts::time::BootTime;

/// Tokens are counted in thousandths, so that a millisecond at any whole rate adds a whole number of them.
const TOKEN: u64 = 1_000;

/// Pure: the time comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    per_second: u64,
    thousandths: u64,
    refilled_at: BootTime,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(per_second: u32, now: BootTime) -> Self {
        let per_second = u64::from(per_second);
        Self { per_second, thousandths: 2 * per_second * TOKEN, refilled_at: now }
    }

    /// Takes one token; false if there is none.
    pub fn take(&mut self, now: BootTime) -> bool {
        let refill = now.since(self.refilled_at).0.saturating_mul(self.per_second);
        self.thousandths = self.thousandths.saturating_add(refill).min(2 * self.per_second * TOKEN);
        self.refilled_at = self.refilled_at.max(now);
        let enough = self.thousandths >= TOKEN;
        if enough {
            self.thousandths -= TOKEN;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_a_flood_to_the_rate_and_forgives_with_time() {
        let mut bucket = TokenBucket::new(10, BootTime(0));
        let taken = |bucket: &mut TokenBucket, now| (0..1_000).filter(|_| bucket.take(BootTime(now))).count();
        assert_eq!(taken(&mut bucket, 0), 20, "twice the rate at once");
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 1_100), 10);
        assert_eq!(taken(&mut bucket, 1_000_000), 20, "never more than the bucket holds");
        assert_eq!(taken(&mut bucket, 0), 0, "a clock that steps back gives nothing");
    }
}
