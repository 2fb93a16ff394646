//! Who may act right now: the check that stands directly before each downlink.
//!
//! The driver publishes for each group until when which epoch is held. A check compares that with the clock and takes no lock, so it
//! is right at the very millisecond the hold ends even if the driver is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use contracts::ids::Epoch;
use contracts::time::BootTime;
use kit::clock::Clock;

/// The hold of one group; clones look at the same one.
#[derive(Debug, Clone)]
pub struct Hold {
    cell: Arc<Cell>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Cell {
    epoch: AtomicU64,
    until_ms: AtomicU64,
}

impl Hold {
    pub(super) fn new(clock: Clock) -> Self {
        Self { cell: Arc::default(), clock }
    }

    /// Whether this node holds `epoch` at this moment. Lock-free; about the price of reading the clock.
    #[must_use]
    pub fn holds(&self, epoch: Epoch) -> bool {
        self.until(epoch).is_some_and(|until| self.clock.boot() < until)
    }

    /// The epoch held at this moment, if any.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        let epoch = Epoch(self.cell.epoch.load(Ordering::SeqCst));
        self.holds(epoch).then_some(epoch)
    }

    /// Until when `epoch` is held, as far as is known now.
    #[must_use]
    pub fn until(&self, epoch: Epoch) -> Option<BootTime> {
        // Epochs only rise: the same epoch before and after means that the time between belongs to it (or is already zero).
        let before = self.cell.epoch.load(Ordering::SeqCst);
        let until = self.cell.until_ms.load(Ordering::SeqCst);
        let after = self.cell.epoch.load(Ordering::SeqCst);
        (before == epoch.0 && after == epoch.0 && until > 0).then_some(BootTime(until))
    }

    /// Only the driver, and only one task, publishes.
    pub(super) fn publish(&self, held: Option<(Epoch, BootTime)>) {
        match held {
            None => self.cell.until_ms.store(0, Ordering::SeqCst),
            Some((epoch, until)) => {
                if self.cell.epoch.load(Ordering::SeqCst) != epoch.0 {
                    self.cell.until_ms.store(0, Ordering::SeqCst);
                    self.cell.epoch.store(epoch.0, Ordering::SeqCst);
                }
                self.cell.until_ms.store(until.0, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::time::Millis;

    use super::*;

    #[test]
    fn ends_at_the_very_millisecond_though_nobody_says_so() {
        let clock = Clock::manual();
        let hold = Hold::new(clock.clone());
        assert!(!hold.holds(Epoch(0)) && hold.epoch().is_none());
        hold.publish(Some((Epoch(3), BootTime(100))));
        clock.advance(Millis(99));
        assert!(hold.holds(Epoch(3)) && !hold.holds(Epoch(2)) && !hold.holds(Epoch(4)));
        assert_eq!(hold.epoch(), Some(Epoch(3)));
        clock.advance(Millis(1));
        assert!(!hold.holds(Epoch(3)) && hold.epoch().is_none());
    }

    #[test]
    fn a_withdrawn_hold_is_none_and_a_later_epoch_ends_the_former() {
        let hold = Hold::new(Clock::manual());
        hold.publish(Some((Epoch(3), BootTime(100))));
        hold.publish(None);
        assert!(!hold.holds(Epoch(3)));
        hold.publish(Some((Epoch(4), BootTime(50))));
        assert!(!hold.holds(Epoch(3)) && hold.holds(Epoch(4)));
    }

    /// Readers on other threads never see the time of one epoch with the number of another.
    #[test]
    fn no_reader_ever_mixes_two_epochs() {
        let hold = Hold::new(Clock::manual());
        let reader = hold.clone();
        let stop = Arc::new(AtomicU64::new(0));
        let stopped = Arc::clone(&stop);
        let checks = std::thread::spawn(move || {
            while stopped.load(Ordering::SeqCst) == 0 {
                let epoch = Epoch(reader.cell.epoch.load(Ordering::SeqCst));
                if let Some(until) = reader.until(epoch) {
                    assert_eq!(until.0, epoch.0 * 10, "the time of another epoch");
                }
            }
        });
        for epoch in 1..200_000 {
            hold.publish(Some((Epoch(epoch), BootTime(epoch * 10))));
        }
        stop.store(1, Ordering::SeqCst);
        checks.join().expect("no mix");
    }
}
