//! A machine's clocks: boot time that runs too fast or too slow, wall time that is set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contracts::time::WallTime;
use kit::clock::{Clock, TimeSource};
use tokio::time::Instant;

/// Wall time of every machine at the start: 2026-01-01 00:00:00 UTC, milliseconds.
pub const WALL_START: WallTime = WallTime(1_767_225_600_000);

/// The clocks of one machine; clones are the same ones. Must be made within the runtime whose time is virtual.
#[derive(Debug, Clone)]
pub struct MachineClock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Since when the present rate holds: true and local microseconds.
    anchor: (u64, u64),
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl MachineClock {
    #[must_use]
    pub fn new(start: Instant, drift_ppm: i64) -> Self {
        // A machine has been up for a while when the simulation starts.
        const UP_US: u64 = 3_600_000_000;
        let state = State { anchor: (0, UP_US), drift_ppm, wall_offset_ms: 0 };
        Self(Arc::new(Inner { start, state: Mutex::new(state) }))
    }

    #[must_use]
    pub fn clock(&self) -> Clock {
        Clock::simulated(Arc::clone(&self.0) as Arc<dyn TimeSource>)
    }

    /// From now on the clock is wrong by so many parts per million.
    pub fn set_drift(&self, drift_ppm: i64) {
        let now = (self.0.true_us(), self.0.boot_micros());
        let mut state = self.0.state();
        state.anchor = now;
        state.drift_ppm = drift_ppm;
    }

    /// Sets the wall clock forwards or back.
    pub fn step_wall(&self, by_ms: i64) {
        self.0.state().wall_offset_ms += by_ms;
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn true_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl TimeSource for Inner {
    fn boot_micros(&self) -> u64 {
        let true_us = self.true_us();
        let State { anchor: (true_then, local_then), drift_ppm, .. } = *self.state();
        let elapsed = true_us.saturating_sub(true_then);
        let rate = u64::try_from(1_000_000 + drift_ppm).unwrap_or(1_000_000);
        local_then + u64::try_from(u128::from(elapsed) * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX)
    }

    fn wall(&self) -> WallTime {
        let offset = self.state().wall_offset_ms;
        WallTime((WALL_START.0 + self.true_us() / 1_000).saturating_add_signed(offset))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fast_clock_is_fast_from_when_it_is_told() {
        let machine = MachineClock::new(Instant::now(), 0);
        let clock = machine.clock();
        let start = clock.boot();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(clock.boot().since(start).0, 10_000);
        machine.set_drift(100_000);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(clock.boot().since(start).0, 21_000);
        machine.set_drift(-100_000);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(clock.boot().since(start).0, 30_000);
    }

    #[tokio::test(start_paused = true)]
    async fn setting_the_wall_clock_leaves_boot_time_alone() {
        let machine = MachineClock::new(Instant::now(), 0);
        let clock = machine.clock();
        let (boot, wall) = (clock.boot(), clock.wall());
        machine.step_wall(-3_600_000);
        assert_eq!((clock.boot(), clock.wall().0), (boot, wall.0 - 3_600_000));
    }
}
