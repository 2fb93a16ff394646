//! What an insurer heard and answers for.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use contracts::account::Heard;
use contracts::envelope::Envelope;
use contracts::ids::{EventId, GroupId, NodeId, StatementId};
use contracts::time::WallTime;

use super::{cut, page};
use crate::readings::Uplink;
use crate::store::{AccountRow, Unaccounted};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    No,
    GivenUp,
    /// And an account says so.
    Said,
}

struct Row {
    group: GroupId,
    heard: Heard,
    heard_at: WallTime,
    is_accounted: bool,
    is_received: bool,
    dropped: Dropped,
}

impl Row {
    fn is_open(&self) -> bool {
        !self.is_received && self.dropped == Dropped::No
    }
}

struct Kept {
    row: AccountRow,
    is_told: bool,
}

#[derive(Default)]
pub(super) struct Accounts {
    /// The last place that was given away; a frame that comes again takes one, too.
    last_seq: u64,
    rows: BTreeMap<u64, Row>,
    by_event: BTreeMap<EventId, u64>,
    /// In the order in which they came.
    accounts: Vec<Kept>,
    receipts: Vec<(GroupId, WallTime, Envelope)>,
}

impl Accounts {
    pub(super) fn hear(&mut self, uplink: &Uplink) {
        self.last_seq += 1;
        if let Some(row) = self.row_mut(uplink.event) {
            (row.dropped, row.is_received) = (Dropped::No, false);
            return;
        }
        let row = Row {
            group: uplink.group,
            heard: uplink.heard(),
            heard_at: WallTime(cut(uplink.heard_at.0)),
            is_accounted: false,
            is_received: false,
            dropped: Dropped::No,
        };
        self.by_event.insert(uplink.event, self.last_seq);
        self.rows.insert(self.last_seq, row);
    }

    fn row_mut(&mut self, event: EventId) -> Option<&mut Row> {
        self.rows.get_mut(self.by_event.get(&event)?)
    }

    pub(super) fn is_open(&self, event: EventId) -> bool {
        self.by_event.get(&event).and_then(|seq| self.rows.get(seq)).is_some_and(Row::is_open)
    }

    pub(super) fn give_up(&mut self, event: EventId) {
        if let Some(row) = self.row_mut(event).filter(|row| row.is_open()) {
            row.dropped = Dropped::GivenUp;
        }
    }

    pub(super) fn give_up_group(&mut self, group: GroupId, is_here: impl Fn(EventId) -> bool) {
        for row in self.rows.values_mut().filter(|row| row.group == group && row.is_open()) {
            if !is_here(row.heard.event()) {
                row.dropped = Dropped::GivenUp;
            }
        }
    }

    pub(super) fn list_unreceipted(&self, group: GroupId, after: u64, limit: u32) -> Vec<(u64, Heard)> {
        let rows = self.rows.range((Excluded(after), Unbounded)).filter(|(_, row)| row.group == group && row.is_open());
        page(rows.map(|(seq, row)| (*seq, row.heard)), limit).collect()
    }

    pub(super) fn put_receipt(&mut self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) {
        if self.receipts.iter().all(|(_, _, known)| known.id() != envelope.id()) {
            self.receipts.push((group, made_at, envelope.clone()));
        }
        for event in events {
            if let Some(row) = self.row_mut(*event) {
                row.is_received = true;
            }
        }
    }

    pub(super) fn list_receipts(&self, group: GroupId, since: WallTime, limit: u32) -> Vec<Envelope> {
        let ours = self.receipts.iter().filter(|(of, made_at, _)| *of == group && *made_at >= since);
        page(ours.map(|(_, _, envelope)| envelope.clone()), limit).collect()
    }

    pub(super) fn list_unaccounted(&self, group: GroupId, limit: u32) -> Unaccounted {
        let rows = || self.rows.values().filter(|row| row.group == group);
        Unaccounted {
            heard: page(rows().filter(|row| !row.is_accounted).map(|row| row.heard), limit).collect(),
            dropped: page(rows().filter(|row| row.dropped == Dropped::GivenUp).map(|row| row.heard.event()), limit).collect(),
        }
    }

    pub(super) fn put_own(&mut self, row: &AccountRow, said: &Unaccounted) {
        self.insert(row, false);
        for heard in &said.heard {
            if let Some(row) = self.row_mut(heard.event()) {
                row.is_accounted = true;
            }
        }
        for event in &said.dropped {
            if let Some(row) = self.row_mut(*event).filter(|row| row.dropped == Dropped::GivenUp) {
                row.dropped = Dropped::Said;
            }
        }
    }

    fn insert(&mut self, row: &AccountRow, is_told: bool) {
        if self.accounts.iter().all(|kept| kept.row.id != row.id) {
            self.accounts.push(Kept { row: row.clone(), is_told });
        }
    }

    pub(super) fn put(&mut self, row: &AccountRow, accounts_max: u32) -> bool {
        let others = self.of(row.group, row.node).filter(|known| known.id != row.id).count();
        let fits = u32::try_from(others).is_ok_and(|others| others < accounts_max);
        if fits {
            self.insert(row, true);
        }
        fits
    }

    fn of(&self, group: GroupId, node: NodeId) -> impl DoubleEndedIterator<Item = &AccountRow> {
        self.accounts.iter().map(|kept| &kept.row).filter(move |row| row.group == group && row.node == node)
    }

    pub(super) fn last(&self, group: GroupId, node: NodeId) -> Option<AccountRow> {
        self.of(group, node).next_back().cloned()
    }

    pub(super) fn list(&self, group: GroupId, since: WallTime, limit: u32) -> Vec<AccountRow> {
        let ours = self.accounts.iter().map(|kept| &kept.row).filter(|row| row.group == group && row.made_at >= since);
        page(ours.cloned(), limit).collect()
    }

    pub(super) fn list_untold(&self, group: GroupId, limit: u32) -> Vec<AccountRow> {
        let untold = self.accounts.iter().filter(|kept| kept.row.group == group && !kept.is_told);
        page(untold.map(|kept| kept.row.clone()), limit).collect()
    }

    pub(super) fn set_told(&mut self, id: StatementId) {
        self.accounts.iter_mut().filter(|kept| kept.row.id == id).for_each(|kept| kept.is_told = true);
    }

    pub(super) fn prune(&mut self, before: WallTime, is_unsettled: impl Fn(EventId) -> bool) {
        let newest: BTreeMap<(GroupId, NodeId), StatementId> =
            self.accounts.iter().map(|kept| ((kept.row.group, kept.row.node), kept.row.id)).collect();
        self.accounts
            .retain(|kept| kept.row.made_at >= before || newest.get(&(kept.row.group, kept.row.node)) == Some(&kept.row.id));
        self.receipts.retain(|(_, made_at, _)| *made_at >= before);
        let is_over = |row: &Row| {
            let is_answered = row.is_received || row.dropped == Dropped::Said || !is_unsettled(row.heard.event());
            row.heard_at < before && row.is_accounted && is_answered
        };
        let over: Vec<u64> = self.rows.iter().filter(|(_, row)| is_over(row)).map(|(seq, _)| *seq).collect();
        for row in over.iter().filter_map(|seq| self.rows.remove(seq)) {
            self.by_event.remove(&row.heard.event());
        }
    }
}
