//! The reading log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use contracts::ids::{DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::WallTime;
use lora_bridge::mac::session::Mark;

use super::{cut, page};
use crate::readings::{Kind, Reading, StoredUplink, Uplink};
use crate::store::{Change, Error, Result, Waiting};

/// One event. What the row was made with stays, also if a buffered uplink becomes deliverable under another group or time; its body does not.
struct Row {
    event: EventId,
    group: GroupId,
    device: DevEui,
    session: SessionId,
    f_cnt: u32,
    heard_at: WallTime,
    kind: Kind,
    epoch: Epoch,
    body: Uplink,
    deliver: bool,
    decoded: Option<String>,
    reading_seq: Option<u64>,
    settled: bool,
}

impl Row {
    const fn mark(&self) -> Mark {
        Mark { device: self.device, session: self.session, f_cnt: self.f_cnt }
    }

    fn reading(&self) -> Result<Reading> {
        let decoded = serde_json::from_str(self.decoded.as_deref().unwrap_or_default())
            .map_err(|e| Error::Row { table: "uplink", reason: e.to_string() })?;
        let Self { event, group, device, session, f_cnt, heard_at, kind, epoch, .. } = *self;
        Ok(Reading { event, group, device, session, f_cnt, heard_at, kind, epoch, decoded })
    }

    /// Characters of the uplink and of the reading.
    fn length(&self) -> u64 {
        let body = serde_json::to_string(&self.body).unwrap_or_default();
        let length = |text: &str| text.chars().take_while(|c| *c != '\0').count() as u64;
        length(&body) + self.decoded.as_deref().map_or(0, length)
    }
}

/// Rows by their place, and the places by what is looked for.
#[derive(Default)]
pub(super) struct Log {
    /// The last place that was given away; an event that comes again takes one, too.
    last_seq: u64,
    rows: BTreeMap<u64, Row>,
    by_event: BTreeMap<EventId, u64>,
    /// Not settled.
    open: BTreeSet<(GroupId, u64)>,
    /// Deliverable and not decoded.
    undecoded: BTreeSet<(GroupId, u64)>,
    /// Decoded, by the order of publishing.
    published: BTreeMap<u64, u64>,
    /// Decoded and not settled, by the order of publishing.
    unsettled: BTreeMap<(GroupId, u64), u64>,
    /// The highest counter of each session that was pruned.
    pruned: BTreeMap<(GroupId, DevEui, SessionId), u32>,
    /// What was published and settled since the last sync.
    unsynced: Vec<Unsynced>,
}

#[derive(Debug, Clone, Copy)]
enum Unsynced {
    Published(EventId),
    Settled(EventId),
}

impl Log {
    /// Returns how many readings were published.
    pub(super) fn apply(&mut self, change: &Change) -> u64 {
        match change {
            Change::Append(uplinks) | Change::Hear(uplinks) => {
                uplinks.iter().for_each(|uplink| self.insert(uplink));
                0
            }
            Change::Publish(group, readings) => {
                readings.iter().map(|r| u64::from(self.publish(*group, r.event, &r.decoded))).sum()
            }
            Change::Settle(names) => {
                names.iter().for_each(|name| self.settle(name.event()));
                0
            }
            Change::Forget(events) => {
                events.iter().for_each(|event| self.forget(*event));
                0
            }
            Change::Import(uplinks) => {
                let mut published = 0;
                for (uplink, decoded) in uplinks {
                    self.insert(uplink);
                    if let Some(decoded) = decoded {
                        published += u64::from(self.publish(uplink.group, uplink.event, decoded));
                    }
                }
                published
            }
        }
    }

    fn insert(&mut self, uplink: &Uplink) {
        self.last_seq += 1;
        let (heard_at, epoch) = (WallTime(cut(uplink.heard_at.0)), Epoch(cut(uplink.epoch.0)));
        if self.by_event.contains_key(&uplink.event) {
            self.deliver(uplink, epoch);
            return;
        }
        let row = Row {
            event: uplink.event,
            group: uplink.group,
            device: uplink.device,
            session: uplink.session,
            f_cnt: uplink.f_cnt,
            heard_at,
            kind: uplink.kind,
            epoch,
            body: uplink.clone(),
            deliver: uplink.deliver,
            decoded: None,
            reading_seq: None,
            settled: false,
        };
        self.add(self.last_seq, row);
    }

    /// What is buffered becomes deliverable, at the end of the log.
    fn deliver(&mut self, uplink: &Uplink, epoch: Epoch) {
        let Some(seq) = self.by_event.get(&uplink.event).copied().filter(|_| uplink.deliver) else { return };
        if self.rows.get(&seq).is_some_and(|row| row.deliver) {
            return;
        }
        if let Some(mut row) = self.remove(seq) {
            (row.deliver, row.kind, row.epoch, row.body) = (true, uplink.kind, epoch, uplink.clone());
            self.add(self.last_seq, row);
        }
    }

    fn forget(&mut self, event: EventId) {
        let kept = self.by_event.get(&event).copied().filter(|seq| self.rows.get(seq).is_some_and(|row| !row.deliver));
        if let Some(seq) = kept {
            self.remove(seq);
        }
    }

    fn publish(&mut self, group: GroupId, event: EventId, decoded: &str) -> bool {
        let next = self.published.last_key_value().map_or(1, |(last, _)| last + 1);
        let mut written = false;
        self.change(event, |row| {
            if row.group == group && row.decoded.is_none() && row.deliver {
                (row.decoded, row.reading_seq, written) = (Some(decoded.to_owned()), Some(next), true);
            }
        });
        if written {
            self.unsynced.push(Unsynced::Published(event));
        }
        written
    }

    fn settle(&mut self, event: EventId) {
        let mut is_new = false;
        self.change(event, |row| is_new = !std::mem::replace(&mut row.settled, true));
        if is_new {
            self.unsynced.push(Unsynced::Settled(event));
        }
    }

    /// Everything so far is on the disk.
    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// The power was cut.
    pub(super) fn lose_unsynced(&mut self) {
        for lost in std::mem::take(&mut self.unsynced).into_iter().rev() {
            match lost {
                Unsynced::Published(event) => self.change(event, |row| (row.decoded, row.reading_seq) = (None, None)),
                Unsynced::Settled(event) => self.change(event, |row| row.settled = false),
            }
        }
    }

    /// Changes an event's row, if there is one.
    fn change(&mut self, event: EventId, change: impl FnOnce(&mut Row)) {
        let Some(seq) = self.by_event.get(&event).copied() else { return };
        if let Some(mut row) = self.remove(seq) {
            change(&mut row);
            self.add(seq, row);
        }
    }

    fn add(&mut self, seq: u64, row: Row) {
        self.by_event.insert(row.event, seq);
        if !row.settled {
            self.open.insert((row.group, seq));
        }
        if row.deliver && row.decoded.is_none() {
            self.undecoded.insert((row.group, seq));
        }
        if let Some(place) = row.reading_seq {
            self.published.insert(place, seq);
            if !row.settled {
                self.unsettled.insert((row.group, place), seq);
            }
        }
        self.rows.insert(seq, row);
    }

    fn remove(&mut self, seq: u64) -> Option<Row> {
        let row = self.rows.remove(&seq)?;
        self.by_event.remove(&row.event);
        self.open.remove(&(row.group, seq));
        self.undecoded.remove(&(row.group, seq));
        if let Some(place) = row.reading_seq {
            self.published.remove(&place);
            self.unsettled.remove(&(row.group, place));
        }
        Some(row)
    }

    fn remove_all(&mut self, which: impl Fn(&Row) -> bool) -> u64 {
        let done: Vec<u64> = self.rows.iter().filter(|(_, row)| which(row)).map(|(seq, _)| *seq).collect();
        done.iter().filter(|seq| self.remove(**seq).is_some()).count() as u64
    }

    pub(super) fn contains(&self, event: EventId) -> bool {
        self.by_event.contains_key(&event)
    }

    pub(super) fn is_unsettled(&self, event: EventId) -> bool {
        self.by_event.get(&event).and_then(|seq| self.rows.get(seq)).is_some_and(|row| !row.settled)
    }

    /// Buffered for another node.
    pub(super) fn is_kept(&self, event: EventId) -> bool {
        self.by_event.get(&event).and_then(|seq| self.rows.get(seq)).is_some_and(|row| !row.deliver)
    }

    pub(super) fn find(&self, event: EventId) -> Option<StoredUplink> {
        let seq = *self.by_event.get(&event)?;
        self.rows.get(&seq).map(|row| StoredUplink { seq, uplink: row.body.clone() })
    }

    pub(super) fn prune(&mut self, before: WallTime, is_needed: impl Fn(EventId) -> bool) -> u64 {
        let is_old = |row: &Row| row.settled && row.heard_at.0 < cut(before.0) && !is_needed(row.event);
        for row in self.rows.values().filter(|row| is_old(row) && row.deliver) {
            let highest = self.pruned.entry((row.group, row.device, row.session)).or_default();
            *highest = row.f_cnt.max(*highest);
        }
        self.remove_all(is_old)
    }

    pub(super) fn wipe(&mut self, group: GroupId) {
        self.remove_all(|row| (row.settled || !row.deliver) && row.group == group);
        self.pruned.retain(|(of, _, _), _| *of != group);
    }

    /// Rows of a group behind a place, in order.
    fn behind<'a>(
        &'a self,
        index: &'a BTreeSet<(GroupId, u64)>,
        group: GroupId,
        after: u64,
    ) -> impl DoubleEndedIterator<Item = (u64, &'a Row)> {
        let places = index.range((Excluded((group, after)), Included((group, u64::MAX))));
        places.filter_map(|(_, seq)| Some((*seq, self.rows.get(seq)?)))
    }

    pub(super) fn list_undecoded(&self, group: GroupId, after: u64, limit: u32) -> Vec<StoredUplink> {
        let rows = self.behind(&self.undecoded, group, after);
        page(rows.map(|(seq, row)| StoredUplink { seq, uplink: row.body.clone() }), limit).collect()
    }

    pub(super) fn list_kept(&self, group: GroupId, after: u64, limit: u32) -> Vec<StoredUplink> {
        let rows = self.behind(&self.open, group, after).filter(|(_, row)| !row.deliver);
        page(rows.map(|(seq, row)| StoredUplink { seq, uplink: row.body.clone() }), limit).collect()
    }

    pub(super) fn list_delivered(&self, group: GroupId, since: WallTime, after: u64, limit: u32) -> Vec<StoredUplink> {
        let rows = self.delivered(group, after).filter(|(_, row)| row.heard_at >= since);
        page(rows.map(|(seq, row)| StoredUplink { seq, uplink: row.body.clone() }), limit).collect()
    }

    fn delivered(&self, group: GroupId, after: u64) -> impl Iterator<Item = (u64, &Row)> {
        let rows = self.rows.range((Excluded(after), Unbounded)).filter(move |(_, row)| row.group == group && row.deliver);
        rows.map(|(seq, row)| (*seq, row))
    }

    pub(super) fn list_open(&self, group: GroupId, after: u64, limit: u32) -> Vec<(StoredUplink, Option<String>)> {
        let rows = self.behind(&self.open, group, after).filter(|(_, row)| row.deliver);
        page(rows.map(|(seq, row)| (StoredUplink { seq, uplink: row.body.clone() }, row.decoded.clone())), limit).collect()
    }

    pub(super) fn list_unsettled(&self, group: GroupId, after: u64, limit: u32) -> Result<Vec<(u64, Reading)>> {
        let places = self.unsettled.range((Excluded((group, after)), Included((group, u64::MAX))));
        let rows = places.filter_map(|((_, place), seq)| Some((*place, self.rows.get(seq)?)));
        page(rows, limit).map(|(place, row)| Ok((place, row.reading()?))).collect()
    }

    pub(super) fn list_marks(&self, group: GroupId, after: u64, limit: u32) -> Vec<(u64, Mark, bool)> {
        page(self.delivered(group, after).map(|(seq, row)| (seq, row.mark(), row.settled)), limit).collect()
    }

    pub(super) fn list_pruned(&self, group: GroupId) -> Vec<Mark> {
        let of_group = self.pruned.iter().filter(|((of, _, _), _)| *of == group);
        of_group.map(|((_, device, session), f_cnt)| Mark { device: *device, session: *session, f_cnt: *f_cnt }).collect()
    }

    pub(super) fn last_open(&self, group: GroupId) -> u64 {
        self.behind(&self.open, group, 0).rev().find(|(_, row)| row.deliver).map_or(0, |(seq, _)| seq)
    }

    pub(super) fn has_open(&self, group: GroupId, upto: u64) -> bool {
        self.behind(&self.open, group, 0).take_while(|(seq, _)| *seq <= upto).any(|(_, row)| row.deliver)
    }

    pub(super) fn count_waiting(&self) -> BTreeMap<GroupId, Waiting> {
        let mut waiting: BTreeMap<GroupId, Waiting> = BTreeMap::new();
        for (group, _) in &self.undecoded {
            waiting.entry(*group).or_default().undecoded += 1;
        }
        for row in self.unsettled.values().filter_map(|seq| self.rows.get(seq)) {
            waiting.entry(row.group).or_default().unsettled += 1;
        }
        waiting
    }

    pub(super) fn traffic_bytes(&self, group: GroupId, since: WallTime) -> u64 {
        let rows = self.rows.values().filter(|row| row.group == group && row.heard_at.0 >= cut(since.0));
        rows.map(Row::length).sum()
    }
}
