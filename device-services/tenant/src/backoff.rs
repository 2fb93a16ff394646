//! How long to wait before the next attempt.

use std::time::Duration;

/// First wait: a node that restarts is back within milliseconds.
const FIRST: Duration = Duration::from_millis(5);
/// Longest wait.
const LONGEST: Duration = Duration::from_millis(500);

/// Waits that double, from 5 ms to 500 ms by default. No randomness: a socket on the same machine has few clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::between(FIRST, LONGEST)
    }
}

impl Backoff {
    /// Waits that double from the first to the longest.
    #[must_use]
    pub const fn between(first: Duration, longest: Duration) -> Self {
        Backoff { next: first, first, longest }
    }

    /// The wait before the next attempt; the one after is twice as long.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.longest);
        wait
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
