//! Reserves downlink counters: on this disk and on the disks of enough other members that every later majority has one that knows.

use std::collections::BTreeMap;

use contracts::ids::{DevEui, Epoch, GroupId, NodeId};
use contracts::write_ahead::{Bound, Reservation};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::Parts;
use crate::edge2edge::client::Client;

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
    fn needed(&self) -> usize {
        let all = self.others.len() + 1;
        if self.others.is_empty() { 0 } else { all / 2 }
    }
}

/// Serves a group's wishes until the link is closed. What cannot be reserved now is asked for again by the bridge.
pub async fn run(
    parts: Parts,
    group: GroupId,
    mut wishes: mpsc::UnboundedReceiver<Vec<(DevEui, u32)>>,
    members: watch::Receiver<Members>,
) {
    let mut seq = 0;
    while let Some(mut wanted) = wishes.recv().await {
        while let Ok(more) = wishes.try_recv() {
            wanted.extend(more);
        }
        // The highest per device; earlier wishes are contained in it.
        let wanted: BTreeMap<DevEui, u32> = wanted.into_iter().fold(BTreeMap::new(), |mut all, (device, upto)| {
            let known = all.entry(device).or_insert(upto);
            *known = upto.max(*known);
            all
        });
        let bound = |(device, upto): (&DevEui, &u32)| {
            Some(Bound { device: *device, session: parts.links.session(group, *device)?, upto: *upto })
        };
        let bounds: Vec<Bound> = wanted.iter().filter_map(bound).collect();
        let members = members.borrow().clone();
        seq += 1;
        if reserve(&parts, group, &members, seq, &bounds).await
            && parts.bridge.reserved(wanted.into_iter().collect()).await.is_err()
        {
            return;
        }
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
