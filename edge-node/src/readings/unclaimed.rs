//! Uplinks that no service takes, on a node whose readings end in its own log: the disk is not theirs for ever.
//!
//! What goes to a customer's cloud is never given up: it is owed.

use contracts::time::{Millis, WallTime};
use kit::clock::Clock;

use super::log::{self, Log};
use super::north::{Destination, Destinations};
use super::{Name, StoredUplink};
use crate::config::Readings;
use crate::store;

/// Uplinks read at a time.
const PAGE: u32 = 1_024;

/// How long, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// None is given up before.
    pub keep: Millis,
    /// All are after this.
    pub wait: Millis,
    /// Beyond so many the oldest go first.
    pub max: u64,
}

impl From<&Readings> for Limits {
    fn from(readings: &Readings) -> Self {
        let hours = |hours: u16| Millis::from_secs(u64::from(hours) * 3_600);
        Self { keep: hours(readings.keep_hours), wait: hours(readings.unclaimed_hours), max: readings.unclaimed_max }
    }
}

/// Why they stay for now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database")]
    Store(#[from] store::Error),
    #[error("the reading log")]
    Log(#[from] log::Error),
}

/// Those of a page, in the order of the log, that are given up; `excess` of them are more than may wait.
fn given_up(page: &[StoredUplink], excess: u64, limits: Limits, now: WallTime) -> Vec<Name> {
    let is_over = |(place, stored): &(u64, &StoredUplink)| {
        let age = now.since(stored.uplink.heard_at);
        age > limits.keep && (age >= limits.wait || *place < excess)
    };
    (0..).zip(page).filter(is_over).map(|(_, stored)| stored.uplink.name()).collect()
}

/// Gives up what waits too long, and the oldest of too many: as if somebody had taken them, so that they are pruned like all others and their
/// devices' counters stay known. Returns how many.
///
/// # Errors
/// [`Error`]; what is left is for the next time.
pub async fn give_up(log: &Log, destinations: &Destinations, clock: &Clock, limits: Limits) -> Result<u64, Error> {
    let mut count = 0;
    for (group, waiting) in log.store().count_waiting().await? {
        match destinations.get(group) {
            Some(Destination::Here) => {}
            Some(Destination::Cloud(_)) | None => continue,
        }
        let mut excess = waiting.undecoded.saturating_sub(limits.max);
        let mut after = 0;
        loop {
            let page = log.store().list_undecoded(group, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.seq;
            let names = given_up(&page, excess, limits, clock.wall());
            let given = names.len() as u64;
            excess = excess.saturating_sub(page.len() as u64);
            if given == 0 && excess == 0 {
                // The log is in the order in which they came.
                break;
            }
            count += given;
            log.give_up(names).await?;
        }
    }
    Ok(count)
}
