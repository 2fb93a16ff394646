//! Time for those who act: wall time for records, boot time (suspended time included) for leases.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use contracts::time::{BootTime, Millis, WallTime};

/// A source of time; shared by all parts of a process.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    /// Microseconds, moved by hand; wall time starts at a fixed date.
    Manual(Arc<AtomicU64>),
    Simulated(Arc<dyn TimeSource>),
}

/// The clocks of a simulated machine: they may drift and be set.
pub trait TimeSource: std::fmt::Debug + Send + Sync {
    /// As [`Clock::boot_micros`].
    fn boot_micros(&self) -> u64;
    /// As [`Clock::wall`].
    fn wall(&self) -> WallTime;
}

/// Where the manual clock's wall time starts: 2026-01-01 00:00:00 UTC.
const MANUAL_WALL_START: WallTime = WallTime(1_767_225_600_000);

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until [`Self::advance`]; for tests and simulation.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(0))))
    }

    /// The clock of a simulated machine.
    #[must_use]
    pub fn simulated(source: Arc<dyn TimeSource>) -> Self {
        Self(Source::Simulated(source))
    }

    /// Moves a manual clock; the system's clocks are not moved.
    pub fn advance(&self, by: Millis) {
        if let Source::Manual(micros) = &self.0 {
            micros.fetch_add(by.0 * 1_000, Ordering::SeqCst);
        }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn wall(&self) -> WallTime {
        match &self.0 {
            Source::System => {
                #[expect(clippy::disallowed_methods, reason = "this is where everybody else's wall time comes from")]
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                WallTime(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
            }
            Source::Manual(micros) => MANUAL_WALL_START + Millis(micros.load(Ordering::SeqCst) / 1_000),
            Source::Simulated(source) => source.wall(),
        }
    }

    /// `CLOCK_BOOTTIME` in milliseconds.
    #[must_use]
    pub fn boot(&self) -> BootTime {
        BootTime(self.boot_micros() / 1_000)
    }

    /// `CLOCK_BOOTTIME` in microseconds, for measuring.
    #[must_use]
    pub fn boot_micros(&self) -> u64 {
        match &self.0 {
            Source::System => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
                let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
                seconds * 1_000_000 + nanos / 1_000
            }
            Source::Manual(micros) => micros.load(Ordering::SeqCst),
            Source::Simulated(source) => source.boot_micros(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual();
        let (wall, boot) = (clock.wall(), clock.boot());
        clock.clone().advance(Millis(250));
        assert_eq!(clock.wall(), wall + Millis(250));
        assert_eq!(clock.boot(), boot + Millis(250));
    }

    #[test]
    fn the_system_clock_goes_on() {
        let clock = Clock::system();
        let first = clock.boot_micros();
        assert!(first > 0 && clock.boot_micros() >= first && clock.wall().0 > MANUAL_WALL_START.0);
    }
}
