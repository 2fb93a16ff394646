//! The tables beside the reading log.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

use contracts::envelope::Envelope;
use contracts::ids::{ContractId, DevEui, Epoch, EventId, GroupId, NodeId};
use contracts::node_record::NodeRecord;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reserved};

use super::accounts::Accounts;
use super::log::Log;
use super::{cut, page};
use crate::readings::{Reading, StoredUplink};
use crate::store::{AgreementRow, Change, InboxBatch, Received};

#[derive(Default)]
pub(super) struct Tables {
    pub(super) log: Log,
    pub(super) accounts: Accounts,
    pub(super) inbox: Inbox,
    pub(super) agreements: BTreeMap<ContractId, AgreementRow>,
    /// With the epoch of the record.
    pub(super) records: BTreeMap<NodeId, (u64, Envelope)>,
    pub(super) reserved: BTreeMap<GroupId, Reserved>,
    pub(super) tenant_state: BTreeMap<GroupId, BTreeMap<String, Vec<u8>>>,
}

impl Tables {
    /// Returns how many readings were published.
    pub(super) fn apply(&mut self, change: &Change) -> u64 {
        match change {
            Change::Append(_) | Change::Publish(..) | Change::Settle(_) | Change::Import(_) => self.log.apply(change),
            Change::Hear(uplinks) => {
                uplinks.iter().for_each(|uplink| self.accounts.hear(uplink));
                self.log.apply(change)
            }
            Change::Forget(events) => {
                events.iter().filter(|event| self.log.is_kept(**event)).for_each(|event| self.accounts.give_up(*event));
                self.log.apply(change)
            }
        }
    }

    pub(super) fn wipe_uplinks(&mut self, group: GroupId) {
        self.log.wipe(group);
        self.accounts.give_up_group(group, |event| self.log.contains(event));
    }

    pub(super) fn prune_uplinks(&mut self, before: WallTime) -> u64 {
        self.log.prune(before, |event| self.accounts.is_open(event))
    }

    pub(super) fn prune_accounts(&mut self, before: WallTime) {
        self.accounts.prune(before, |event| self.log.is_unsettled(event));
    }

    pub(super) fn put_receipt(&mut self, group: GroupId, made_at: WallTime, envelope: &Envelope, events: &[EventId]) {
        self.accounts.put_receipt(group, made_at, envelope, events);
        self.log.apply(&Change::Forget(events.to_vec()));
    }

    pub(super) fn list_unreceipted_uplinks(&self, group: GroupId, limit: u32) -> Vec<StoredUplink> {
        let open = self.accounts.list_unreceipted(group, 0, u32::MAX);
        page(open.into_iter().filter_map(|(_, heard)| self.log.find(heard.event())), limit).collect()
    }

    pub(super) fn put_agreement(&mut self, row: &AgreementRow) -> bool {
        let changed = self.agreements.get(&row.contract).is_some_and(|known| known.version != row.version);
        if !changed {
            self.agreements.insert(row.contract, AgreementRow { version: row.version + 1, ..row.clone() });
        }
        !changed
    }

    pub(super) fn put_record(&mut self, record: &NodeRecord, envelope: &Envelope) {
        let epoch = cut(record.record_epoch);
        if self.records.get(&record.node).is_none_or(|(known, _)| epoch >= *known) {
            self.records.insert(record.node, (epoch, envelope.clone()));
        }
    }

    pub(super) fn raise_reserved(&mut self, group: GroupId, bounds: &[Bound]) {
        self.reserved.entry(group).or_default().raise_all(bounds);
    }

    pub(super) fn list_reserved(&self, group: GroupId) -> Reserved {
        self.reserved.get(&group).cloned().unwrap_or_default()
    }

    pub(super) fn put_tenant_value(&mut self, group: GroupId, key: &str, value: &[u8], keys_max: u32) -> bool {
        let values = self.tenant_state.entry(group).or_default();
        let others = values.keys().filter(|other| *other != key && !other.starts_with('.')).count();
        let fits = u32::try_from(others).is_ok_and(|others| others < keys_max);
        if fits {
            values.insert(key.to_owned(), value.to_vec());
        }
        fits
    }
}

/// What a cloud node received.
#[derive(Default)]
pub(super) struct Inbox {
    /// The last place that was given away; a reading that comes again takes one, too.
    last_seq: u64,
    rows: BTreeMap<u64, Received>,
    events: BTreeMap<EventId, GroupId>,
    by_device: BTreeSet<(DevEui, u64)>,
}

impl Inbox {
    /// Returns how many were new.
    pub(super) fn insert(&mut self, batch: &InboxBatch) -> u64 {
        let mut new = 0;
        for reading in &batch.readings {
            self.last_seq += 1;
            if self.events.contains_key(&reading.event) {
                continue;
            }
            self.events.insert(reading.event, reading.group);
            new += 1;
            self.by_device.insert((reading.device, self.last_seq));
            let reading =
                Reading { heard_at: WallTime(cut(reading.heard_at.0)), epoch: Epoch(cut(reading.epoch.0)), ..reading.clone() };
            let received_at = WallTime(cut(batch.received_at.0));
            self.rows.insert(self.last_seq, Received { seq: self.last_seq, reading, delivered_by: batch.from, received_at });
        }
        new
    }

    pub(super) fn list(&self, after: u64, device: Option<DevEui>, limit: u32) -> Vec<Received> {
        match device {
            None => page(self.rows.range((Excluded(after), Unbounded)).map(|(_, row)| row.clone()), limit).collect(),
            Some(device) => {
                let places = self.by_device.range((Excluded((device, after)), Included((device, u64::MAX))));
                page(places.filter_map(|(_, seq)| self.rows.get(seq).cloned()), limit).collect()
            }
        }
    }

    pub(super) fn find(&self, group: GroupId, events: &[EventId]) -> Vec<EventId> {
        events.iter().filter(|event| self.events.get(event) == Some(&group)).copied().collect()
    }

    pub(super) fn count(&self) -> u64 {
        self.rows.len() as u64
    }
}
