//! How often a step on the way of readings takes what has gathered.
//!
//! Each turn of a step costs about as much as some ten readings in it: changes of thread, statements, requests, signatures. Steps that take
//! what waits as soon as they can do so share the core with each other, and the batches stay small until the core is full.

use std::time::Duration;

use tokio::time::Instant;

/// Between the beginnings of two turns. What comes slower does not wait; under load a reading waits half of it at each step.
pub const INTERVAL: Duration = Duration::from_millis(3);

/// Holds up a step whose last turn began just now.
#[derive(Debug, Default)]
pub struct Pace {
    last: Option<Instant>,
}

impl Pace {
    /// Returns at once if the last turn began [`INTERVAL`] ago or longer, else when that is over. Dropped before, nothing has begun.
    pub async fn turn(&mut self) {
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + INTERVAL).await;
        }
        self.last = Some(Instant::now());
    }

    /// Nothing had gathered: what comes next need not wait for this turn.
    pub const fn found_nothing(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_in_a_row_are_held_up_and_lone_ones_are_not() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        pace.turn().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        pace.turn().await;
        assert_eq!(begun.elapsed(), INTERVAL);
        tokio::time::advance(INTERVAL * 2).await;
        pace.turn().await;
        assert_eq!(begun.elapsed(), INTERVAL * 3);
        pace.found_nothing();
        pace.turn().await;
        assert_eq!(begun.elapsed(), INTERVAL * 3);
    }
}
