//! How long to wait before the next attempt.

use std::time::Duration;

/// First wait: a node that restarts is back within milliseconds.
const FIRST_MS: u64 = 5;
/// Longest wait.
const LONGEST_MS: u64 = 500;

/// Waits that double from 5 ms to 500 ms. No randomness: a socket on the same machine has few clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    next_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { next_ms: FIRST_MS }
    }
}

impl Backoff {
    /// The wait before the next attempt; the one after is twice as long.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next_ms;
        self.next_ms = (wait * 2).min(LONGEST_MS);
        Duration::from_millis(wait)
    }

    /// After a success.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}
