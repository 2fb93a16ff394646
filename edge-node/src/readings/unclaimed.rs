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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId, NodeId, SessionId};

    use super::*;
    use crate::readings::{Kind, Reception, Uplink};
    use crate::store::{MemoryDisk, Store};

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);
    const OWED: GroupId = GroupId::from_bytes([2; 16]);
    const HOUR: u64 = 3_600_000;
    const LIMITS: Limits = Limits { keep: Millis(HOUR), wait: Millis(10 * HOUR), max: 2_000 };

    fn uplink(group: GroupId, f_cnt: u32, heard_at: WallTime) -> Uplink {
        let (device, session) = (DevEui::from_u64(u64::from(group.as_bytes()[0])), SessionId::from_bytes([7; 8]));
        Uplink {
            event: EventId::new(device, session, f_cnt),
            group,
            device,
            dev_addr: DevAddr::from_u32(1),
            session,
            joined: None,
            f_cnt,
            f_port: Some(1),
            confirmed: false,
            frm_payload: String::new(),
            phy: String::new(),
            heard_at,
            kind: Kind::Live,
            epoch: Epoch(0),
            deliver: true,
            rx: Reception {
                gateway: "00".to_owned(),
                tmst: 0,
                frequency_hz: 0,
                data_rate: "SF7BW125".to_owned(),
                rssi_dbm: 0,
                snr_tenth_db: 0,
            },
            others: Vec::new(),
        }
    }

    async fn counters(store: &Store, group: GroupId) -> Vec<u32> {
        let waiting = store.list_undecoded(group, 0, 100_000).await.unwrap();
        waiting.iter().map(|stored| stored.uplink.f_cnt).collect()
    }

    async fn check(store: Store) {
        let clock = Clock::manual();
        clock.advance(Millis(100 * HOUR));
        let now = clock.wall();
        let log = Log::start(store.clone());
        let destinations = Destinations::default();
        destinations.set(GROUP, Destination::Here);
        destinations.set(OWED, Destination::Cloud(NodeId::from_bytes([3; 32])));
        // Five of 11 hours ago, 3,000 of two hours ago, 500 of now.
        let heard_at = |n: u32| match n {
            0..5 => now - Millis(11 * HOUR),
            5..3_005 => now - Millis(2 * HOUR),
            _ => now,
        };
        for group in [GROUP, OWED] {
            log.append((0..3_505).map(|n| uplink(group, n, heard_at(n))).collect()).await.unwrap();
        }
        let limits = Limits { max: 10_000, ..LIMITS };
        assert_eq!(give_up(&log, &destinations, &clock, limits).await.unwrap(), 5, "too old");
        store.prune_uplinks(now - LIMITS.keep).await.unwrap();
        assert_eq!(counters(&store, GROUP).await, (5..3_505).collect::<Vec<_>>());
        assert_eq!(give_up(&log, &destinations, &clock, LIMITS).await.unwrap(), 1_500, "too many");
        store.prune_uplinks(now - LIMITS.keep).await.unwrap();
        assert_eq!(counters(&store, GROUP).await, (1_505..3_505).collect::<Vec<_>>(), "the oldest went");
        assert_eq!(give_up(&log, &destinations, &clock, LIMITS).await.unwrap(), 0);
        let few = Limits { max: 1, ..LIMITS };
        assert_eq!(give_up(&log, &destinations, &clock, few).await.unwrap(), 1_500);
        store.prune_uplinks(now - LIMITS.keep).await.unwrap();
        assert_eq!(counters(&store, GROUP).await, (3_005..3_505).collect::<Vec<_>>(), "what is kept anyway stays");
        assert_eq!(log.given_up(), 3_005);
        assert_eq!(counters(&store, OWED).await.len(), 3_505, "what is owed to a cloud is never given up");
        let newest: BTreeMap<DevEui, u32> =
            store.list_pruned(GROUP).await.unwrap().into_iter().map(|mark| (mark.device, mark.f_cnt)).collect();
        assert_eq!(newest, BTreeMap::from([(DevEui::from_u64(1), 3_004)]), "its counters go on");
    }

    #[tokio::test]
    async fn what_nobody_takes_goes_by_age_and_by_number_oldest_first() {
        check(Store::memory(MemoryDisk::default())).await;
        let directory = tempfile::tempdir().unwrap();
        check(Store::open(&directory.path().join("node.db")).await.unwrap()).await;
    }
}
