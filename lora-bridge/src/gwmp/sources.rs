//! A gateway that floods: how many packets each source address may bring, so that the others do not notice.

use std::collections::HashMap;
use std::net::SocketAddr;

use contracts::time::{BootTime, Millis};

/// A source that was silent for so long has its whole allowance again and need not be remembered.
const FORGET_AFTER: Millis = Millis::from_secs(10);

/// Packets per second of one source, and in one burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    pub burst: u32,
}

impl Rate {
    /// Unlimited.
    pub const NONE: Self = Self { per_second: u32::MAX, burst: u32::MAX };
}

/// Tokens in thousandths, so that a millisecond's share is a whole number.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    milli_tokens: u64,
    filled: BootTime,
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: BootTime) {
        let more = u64::from(rate.per_second).saturating_mul(now.since(self.filled).0);
        self.milli_tokens = self.milli_tokens.saturating_add(more).min(u64::from(rate.burst) * 1_000);
        self.filled = now;
    }
}

/// One bucket per source address, and one that all share for whom there is no room.
#[derive(Debug)]
pub(crate) struct Sources {
    rate: Rate,
    buckets: HashMap<SocketAddr, Bucket>,
    others: Bucket,
    max: usize,
    swept: BootTime,
}

impl Sources {
    pub(crate) fn new(rate: Rate, max: usize) -> Self {
        let full = Bucket { milli_tokens: u64::from(rate.burst) * 1_000, filled: BootTime(0) };
        Self { rate, buckets: HashMap::new(), others: full, max, swept: BootTime(0) }
    }

    fn bucket(&mut self, from: SocketAddr, now: BootTime) -> &mut Bucket {
        if !self.buckets.contains_key(&from) {
            if self.buckets.len() >= self.max && now.since(self.swept) >= Millis::from_secs(1) {
                self.swept = now;
                self.buckets.retain(|_, bucket| now.since(bucket.filled) < FORGET_AFTER);
            }
            if self.buckets.len() >= self.max {
                return &mut self.others;
            }
        }
        let full = Bucket { milli_tokens: u64::from(self.rate.burst) * 1_000, filled: now };
        self.buckets.entry(from).or_insert(full)
    }

    /// Whether the source may bring a datagram now; it costs one packet.
    pub(crate) fn admit(&mut self, from: SocketAddr, now: BootTime) -> bool {
        let rate = self.rate;
        let bucket = self.bucket(from, now);
        bucket.fill(rate, now);
        let is_admitted = bucket.milli_tokens >= 1_000;
        bucket.milli_tokens -= if is_admitted { 1_000 } else { 0 };
        is_admitted
    }

    /// The datagram held so many packets beside the first.
    pub(crate) fn charge(&mut self, from: SocketAddr, packets: u64, now: BootTime) {
        let bucket = self.bucket(from, now);
        bucket.milli_tokens = bucket.milli_tokens.saturating_sub(packets * 1_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn each_source_has_its_own_allowance() {
        let mut sources = Sources::new(Rate { per_second: 10, burst: 20 }, 2);
        let start = BootTime(50_000);
        let admitted = |sources: &mut Sources, port, now| (0..100).filter(|_| sources.admit(at(port), now)).count();
        assert_eq!(admitted(&mut sources, 1, start), 20);
        assert_eq!(admitted(&mut sources, 2, start), 20, "another source does not notice");
        assert_eq!(admitted(&mut sources, 1, start + Millis(500)), 5);
        assert_eq!(admitted(&mut sources, 3, start + Millis(500)), 20, "no room: the shared allowance");
        assert_eq!(admitted(&mut sources, 4, start + Millis(500)), 0, "which is used up");
        sources.charge(at(1), 1_000, start + Millis(500));
        assert_eq!(admitted(&mut sources, 1, start + Millis(600)), 1, "never below nothing");
        assert_eq!(admitted(&mut sources, 4, start + Millis(20_000)), 20, "silent sources are forgotten");
        assert!(sources.buckets.len() <= 2);
        let mut unlimited = Sources::new(Rate::NONE, 1);
        assert_eq!(admitted(&mut unlimited, 1, start), 100);
    }
}
