//! Reserves downlink counters: on this disk and on the disks of enough other members that every later majority has one that knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use contracts::ids::{DevEui, Epoch, GroupId, NodeId};
use contracts::write_ahead::{Bound, Reservation};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lora_bridge::Reset;
use tokio::sync::{mpsc, watch};

use super::Parts;
use crate::edge2edge::client::Client;
use crate::lora::links::Wish;

/// What members answer.
type Stored = serde_json::Value;

/// The members of a group, and under which epoch this node asks; none while it serves alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub others: Vec<NodeId>,
    pub epoch: Option<Epoch>,
}

impl Members {
    /// How many of the others must have a record beside this node: a majority of all, less this node.
    pub(super) fn needed(&self) -> usize {
        let all = self.others.len() + 1;
        if self.others.is_empty() { 0 } else { all / 2 }
    }
}

/// What the writers of a group have in common.
#[derive(Debug, Clone)]
pub struct Writer {
    pub parts: Parts,
    pub group: GroupId,
    pub members: watch::Receiver<Members>,
    /// Reservations and records are numbered together. A guard that starts anew in an epoch goes on above what it used: members keep the record
    /// with the highest number.
    pub seq: Arc<AtomicU64>,
}

impl Writer {
    pub fn new(parts: &Parts, group: GroupId, members: watch::Receiver<Members>) -> Self {
        // Fewer writes than microseconds since the machine started.
        let first = parts.core.clock.boot().0.saturating_mul(1_000);
        Self { parts: parts.clone(), group, members, seq: Arc::new(AtomicU64::new(first)) }
    }
}

/// Serves a group's wishes until the link is closed. What cannot be written ahead now is asked for again by the bridge.
pub async fn run(writer: Writer, mut wishes: mpsc::UnboundedReceiver<Wish>) {
    let Writer { parts, group, members, seq } = writer;
    while let Some(first) = wishes.recv().await {
        let mut wanted = Wanted::default();
        wanted.add(first);
        while let Ok(more) = wishes.try_recv() {
            wanted.add(more);
        }
        let bounds = wanted.bounds(&parts, group);
        let members = members.borrow().clone();
        let seq = seq.fetch_add(1, Ordering::Relaxed) + 1;
        if !reserve(&parts, group, &members, seq, &bounds).await {
            continue;
        }
        let resets: Vec<_> = wanted.resets.values().map(|reset| (reset.device, reset.reset_ordinal)).collect();
        if parts.bridge.reserved(wanted.counters.into_iter().collect()).await.is_err()
            || (!resets.is_empty() && parts.bridge.reset(resets).await.is_err())
        {
            return;
        }
    }
}

/// The highest of each kind per device; earlier wishes are contained in it.
#[derive(Debug, Default)]
struct Wanted {
    counters: BTreeMap<DevEui, u32>,
    resets: BTreeMap<DevEui, Reset>,
}

impl Wanted {
    fn add(&mut self, wish: Wish) {
        match wish {
            Wish::Counters(entries) => {
                for (device, upto) in entries {
                    let known = self.counters.entry(device).or_insert(upto);
                    *known = upto.max(*known);
                }
            }
            Wish::Reset(reset) => {
                let known = self.resets.entry(reset.device).or_insert(reset);
                if known.reset_ordinal < reset.reset_ordinal {
                    *known = reset;
                }
            }
        }
    }

    /// The record: a bound for the session that begins says that it begins.
    fn bounds(&self, parts: &Parts, group: GroupId) -> Vec<Bound> {
        let counters = self.counters.iter().filter_map(|(device, upto)| {
            Some(Bound { device: *device, session: parts.links.session(group, *device)?, upto: *upto })
        });
        let begun = |reset: &Reset| Bound { device: reset.device, session: reset.session, upto: reset.f_cnt_down_reserved };
        counters.chain(self.resets.values().map(begun)).collect()
    }
}

async fn reserve(parts: &Parts, group: GroupId, members: &Members, seq: u64, bounds: &[Bound]) -> bool {
    if let Err(error) = parts.core.store.raise_reserved(group, bounds).await {
        tracing::error!(error = &error as &dyn std::error::Error, "downlink counters cannot be reserved on this disk");
        return false;
    }
    parts.reserved.raise(group, bounds);
    let needed = members.needed();
    if needed == 0 {
        return true;
    }
    let Some(epoch) = members.epoch else { return false };
    let reservation = Reservation { epoch, seq, bounds: bounds.to_vec() };
    let mut answers: FuturesUnordered<_> =
        members.others.iter().map(|member| ask(&parts.core.client, *member, group, &reservation)).collect();
    let mut stored = 0;
    while let Some(answer) = answers.next().await {
        stored += usize::from(answer);
        if stored >= needed {
            return true;
        }
    }
    false
}

async fn ask(client: &Client, member: NodeId, group: GroupId, reservation: &Reservation) -> bool {
    let stored: Result<Stored, _> = client.put(member, &format!("/peer/v1/groups/{group}/records"), reservation).await;
    match stored {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%member, %error, "a member did not store a reservation");
            false
        }
    }
}
