//! Uplinks that no tenant has decoded yet, in memory: under load each is wanted a few milliseconds after it was written, and to read and parse
//! it again costs more than all else on its way to the tenant.
//!
//! What is on the disk counts: this holds only what a commit added, gives out only what a sync covers, and knows behind which place in the log
//! it holds everything. Whoever wants to read from before that, and everybody when it is in doubt, reads the database.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::sync::{Mutex, MutexGuard, PoisonError};

use contracts::ids::{EventId, GroupId};

use super::Change;
use crate::readings::{StoredUplink, Uplink};

/// At most this many uplinks are held; of more the oldest are only in the database.
const HELD_MAX: usize = 2_048;

/// The uplinks.
#[derive(Debug, Default)]
pub(super) struct Undecoded(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The last commit that was begun, and the last whose end is known.
    begun: u64,
    ended: u64,
    /// The last number that the log has given away, if it is known.
    last: Option<u64>,
    /// All deliverable uplinks behind this place that have no reading are held; `None`: nobody knows.
    complete_after: Option<u64>,
    held: BTreeMap<u64, Uplink>,
    places: BTreeMap<EventId, u64>,
}

/// What one transaction adds to the log.
#[derive(Debug)]
pub(super) struct Addition {
    turn: u64,
    /// The last number that was given away before, and until now; `None`: it has to be asked for.
    before: Option<u64>,
    last: Option<u64>,
    /// Every row was added, or was made deliverable, under the number that it got.
    is_whole: bool,
}

impl Addition {
    /// The last number that was given away, if it is known.
    pub(super) const fn last(&self) -> Option<u64> {
        self.last
    }

    /// What the database says was the last number before.
    pub(super) const fn begin_at(&mut self, last: u64) {
        (self.before, self.last) = (Some(last), Some(last));
    }

    /// Numbers up to `last` were given to `rows` rows, of which the database took `taken`.
    pub(super) const fn add(&mut self, last: u64, rows: usize, taken: u64) {
        self.last = Some(last);
        self.is_whole = self.is_whole && taken == rows as u64;
    }
}

impl Undecoded {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called by whoever has the connection that writes, when his transaction begins.
    pub(super) fn begin(&self) -> Addition {
        let mut state = self.state();
        if state.begun != state.ended {
            state.doubt();
        }
        state.begun += 1;
        Addition { turn: state.begun, before: state.last, last: state.last, is_whole: true }
    }

    /// The transaction is committed. Before its rows count as synced.
    pub(super) fn end(&self, addition: &Addition, changes: &[Change]) {
        let mut state = self.state();
        if state.begun != addition.turn {
            return;
        }
        state.ended = addition.turn;
        state.last = addition.last;
        let Some(before) = addition.before else { return };
        if addition.is_whole {
            state.complete_after.get_or_insert(before);
            state.apply(before, changes);
        } else {
            state.held.clear();
            state.places.clear();
            state.complete_after = addition.last;
        }
    }

    /// Something else than a commit changed the log.
    pub(super) fn doubt(&self) {
        self.state().doubt();
    }

    /// What a group's tenant still has to decode behind the cursor and up to `synced`, in order. `None`: only the database knows.
    pub(super) fn list(&self, group: GroupId, after: u64, synced: u64, limit: u32) -> Option<Vec<StoredUplink>> {
        let state = self.state();
        state.complete_after.filter(|complete_after| *complete_after <= after)?;
        if after >= synced {
            return Some(Vec::new());
        }
        let held = state.held.range((Excluded(after), Included(synced))).filter(|(_, uplink)| uplink.group == group);
        Some(held.take(limit as usize).map(|(seq, uplink)| StoredUplink { seq: *seq, uplink: uplink.clone() }).collect())
    }
}

impl State {
    fn doubt(&mut self) {
        self.held.clear();
        self.places.clear();
        (self.last, self.complete_after) = (None, None);
    }

    /// As the database does, whose rows got the numbers behind `last`, in order.
    fn apply(&mut self, mut last: u64, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Append(uplinks) | Change::Hear(uplinks) => uplinks.iter().for_each(|uplink| self.add(&mut last, uplink)),
                Change::Import(uplinks) => {
                    uplinks.iter().for_each(|(uplink, _)| self.add(&mut last, uplink));
                    let decoded = uplinks.iter().filter(|(_, decoded)| decoded.is_some());
                    decoded.for_each(|(uplink, _)| self.decoded(uplink.group, uplink.event));
                }
                Change::Publish(group, readings) => readings.iter().for_each(|reading| self.decoded(*group, reading.event)),
                // What is settled is given out as long as it is there; what is forgotten is not deliverable.
                Change::Settle(_) | Change::Forget(_) => {}
            }
        }
    }

    fn add(&mut self, last: &mut u64, uplink: &Uplink) {
        *last += 1;
        if !uplink.deliver {
            return;
        }
        self.held.insert(*last, uplink.clone());
        self.places.insert(uplink.event, *last);
        if self.held.len() > HELD_MAX
            && let Some((place, oldest)) = self.held.pop_first()
        {
            self.places.remove(&oldest.event);
            self.complete_after = Some(place);
        }
    }

    fn decoded(&mut self, group: GroupId, event: EventId) {
        let place = self.places.get(&event).copied();
        if let Some(place) = place.filter(|place| self.held.get(place).is_some_and(|uplink| uplink.group == group)) {
            self.held.remove(&place);
            self.places.remove(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::ids::{DevAddr, DevEui, Epoch, SessionId};
    use contracts::time::WallTime;

    use super::*;
    use crate::readings::{Decoded, Kind, Reception};

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);
    const OTHER: GroupId = GroupId::from_bytes([2; 16]);

    fn uplink(group: GroupId, f_cnt: u32) -> Uplink {
        let (device, session) = (DevEui::from_u64(1), SessionId::from_bytes([1; 8]));
        let rx = Reception {
            gateway: String::new(),
            tmst: 0,
            frequency_hz: 0,
            data_rate: String::new(),
            rssi_dbm: 0,
            snr_tenth_db: 0,
        };
        Uplink {
            event: EventId::new(device, session, f_cnt),
            group,
            device,
            dev_addr: DevAddr::from_u32(1),
            session,
            joined: None,
            f_cnt,
            f_port: None,
            confirmed: false,
            frm_payload: String::new(),
            phy: String::new(),
            heard_at: WallTime(0),
            kind: Kind::Live,
            epoch: Epoch(1),
            deliver: true,
            rx,
            others: Vec::new(),
        }
    }

    /// A transaction that adds `count` uplinks behind `last`, of which the database takes `taken`.
    fn append(undecoded: &Undecoded, last: u64, count: u32, taken: u64) {
        let mut addition = undecoded.begin();
        if addition.last().is_none() {
            addition.begin_at(last);
        }
        assert_eq!(addition.last(), Some(last));
        let first = u32::try_from(last).expect("few") + 1;
        let uplinks: Vec<_> = (first..first + count).map(|f_cnt| uplink(GROUP, f_cnt)).collect();
        addition.add(last + u64::from(count), uplinks.len(), taken);
        undecoded.end(&addition, &[Change::Append(uplinks)]);
    }

    fn places(undecoded: &Undecoded, after: u64, synced: u64) -> Option<Vec<u64>> {
        let page = undecoded.list(GROUP, after, synced, 100)?;
        assert!(page.iter().all(|stored| u64::from(stored.uplink.f_cnt) == stored.seq));
        Some(page.into_iter().map(|stored| stored.seq).collect())
    }

    #[test]
    fn what_is_synced_and_not_decoded_is_given_out_behind_the_cursor() {
        let undecoded = Undecoded::default();
        assert_eq!(places(&undecoded, 9, 9), None, "nothing was committed by this process");
        append(&undecoded, 5, 3, 3);
        assert_eq!(places(&undecoded, 4, 8), None, "what is before it only the database knows");
        assert_eq!(places(&undecoded, 5, 7), Some(vec![6, 7]));
        assert_eq!(places(&undecoded, 6, 8), Some(vec![7, 8]));
        assert_eq!(undecoded.list(OTHER, 5, 8, 100), Some(Vec::new()));
        assert_eq!(undecoded.list(GROUP, 5, 8, 1).map(|page| page.len()), Some(1));
        let addition = undecoded.begin();
        let reading = |f_cnt| Decoded { event: uplink(GROUP, f_cnt).event, decoded: "{}".to_owned() };
        undecoded
            .end(&addition, &[Change::Publish(OTHER, vec![reading(6)]), Change::Publish(GROUP, vec![reading(7), reading(7)])]);
        assert_eq!(places(&undecoded, 5, 8), Some(vec![6, 8]), "and another group decodes nothing of it");
    }

    #[test]
    fn in_doubt_the_database_is_read_until_something_is_added() {
        let undecoded = Undecoded::default();
        append(&undecoded, 0, 3, 3);
        let without_end = undecoded.begin();
        assert_eq!(places(&undecoded, 0, 3), Some(vec![1, 2, 3]));
        append(&undecoded, 7, 2, 2);
        assert_eq!((places(&undecoded, 0, 9), places(&undecoded, 7, 9)), (None, Some(vec![8, 9])));
        undecoded.end(&without_end, &[Change::Append(vec![uplink(GROUP, 4)])]);
        assert_eq!(places(&undecoded, 7, 9), Some(vec![8, 9]), "too late");
        append(&undecoded, 9, 3, 2);
        assert_eq!((places(&undecoded, 7, 12), places(&undecoded, 12, 12)), (None, Some(Vec::new())), "one of them was there");
        append(&undecoded, 12, 1, 1);
        assert_eq!(places(&undecoded, 12, 13), Some(vec![13]));
        undecoded.doubt();
        assert_eq!(places(&undecoded, 12, 13), None);
    }

    #[test]
    fn of_many_the_oldest_are_only_in_the_database() {
        let undecoded = Undecoded::default();
        let held = u32::try_from(HELD_MAX).expect("few");
        append(&undecoded, 0, held + 1, u64::from(held) + 1);
        let synced = u64::from(held) + 1;
        assert_eq!((places(&undecoded, 0, synced), places(&undecoded, 1, 3)), (None, Some(vec![2, 3])));
    }
}
