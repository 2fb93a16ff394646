//! From what the machines want said to datagrams: signed, packed per node, with a sign of life where one is needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use contracts::custody::Message;
use contracts::envelope::Envelope;
use contracts::ids::{GroupId, NodeId};
use contracts::time::BootTime;

use super::super::group::{Group, Signer};
use super::super::life::Lives;
use super::super::statement::MemberClock;
use super::super::wire::{self, Item, LIFE_BYTES, MESSAGE_BYTES_MAX, Renewal, Said, Signed};
use super::{Driver, Form, MESSAGES_PATH, Outgoing};

/// Long messages on their way out at a time; more are dropped, the protocol repeats them.
pub(super) const STREAMS_OUT_MAX: usize = 16;

/// What leaves for one node.
#[derive(Default)]
struct Parcel {
    items: Vec<Bytes>,
    renewals: Vec<Renewal>,
    /// A group of which something is in it that needs a sign of life.
    needs_life: Option<GroupId>,
}

impl Driver {
    pub(super) fn send(&mut self) {
        let now = self.now();
        let heard = |node| self.members.lives(node).and_then(Lives::show);
        let statements = self.setup.statements.as_ref();
        let signer = Signer { keypair: &self.setup.keypair, boot: self.boot, now, statements, heard: &heard };
        let mut parcels: BTreeMap<NodeId, Parcel> = BTreeMap::new();
        for Outgoing { group: id, to, message, decided, form } in std::mem::take(&mut self.sends) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let Some(peer) = group.node(to) else { continue };
            let in_block = in_block(group, message, form, now);
            if let Some(renewal) = in_block.filter(|renewal| self.members.named(peer, renewal.group) == Some(id)) {
                let parcel = parcels.entry(peer).or_default();
                parcel.needs_life = parcel.needs_life.or(Some(id).filter(|_| !renewal.is_answer));
                parcel.renewals.push(renewal);
                continue;
            }
            let said = group.say(to, message, decided, &signer, &*self.setup.records);
            let needs_life = said.as_ref().is_some_and(Said::needs_life);
            match said.and_then(|said| Item::new(id, said).write()) {
                Some(item) => {
                    let parcel = parcels.entry(peer).or_default();
                    parcel.needs_life = parcel.needs_life.or(Some(id).filter(|_| needs_life));
                    parcel.items.push(item);
                }
                None => {
                    tracing::error!(group = %id, peer = %peer.short(), "a custody message cannot be sent: its attachment is too long");
                    self.shared.counters.sends_dropped.add_one();
                }
            }
        }
        for (peer, group) in std::mem::take(&mut self.anchors_wanted) {
            parcels.entry(peer).or_default().items.extend(Item::new(group, Said::AnchorWanted).write());
        }
        for (peer, parcel) in parcels {
            self.send_to(peer, parcel);
        }
    }

    /// The anchor of the signs of life that come next, where the peer may not have it.
    fn anchor_for(&mut self, peer: NodeId, group: GroupId) -> Option<Bytes> {
        let clock = MemberClock { boot: self.boot, ms: self.now().0 };
        let entropy = &self.setup.entropy;
        let anchor = self.members.lives_mut(peer)?.anchor(peer, clock, || [entropy(), entropy()])?;
        Item::new(group, Said::Anchor(Signed::new(Envelope::sign(anchor, &self.setup.keypair)))).write()
    }

    fn send_to(&mut self, peer: NodeId, parcel: Parcel) {
        let Parcel { mut items, renewals, needs_life } = parcel;
        let Some(bytes_max) = self.setup.transport.datagram_bytes_max(peer) else {
            self.shared.counters.sends_dropped.add((items.len() + renewals.len()) as u64);
            return;
        };
        let bytes_max = if needs_life.is_some() { bytes_max.saturating_sub(LIFE_BYTES) } else { bytes_max };
        if let Some(anchor) = needs_life.and_then(|group| self.anchor_for(peer, group)) {
            items.insert(0, anchor);
        }
        items.extend(wire::write_renewals(&renewals, bytes_max));
        let (datagrams, too_long) = wire::pack(items, bytes_max);
        for datagram in datagrams {
            let datagram = self.with_life(peer, needs_life, datagram);
            match self.setup.transport.datagram(peer, datagram) {
                Ok(()) => self.shared.counters.datagrams_sent.add_one(),
                Err(_) => self.shared.counters.sends_dropped.add_one(),
            }
        }
        for item in too_long {
            let message =
                if item.len() + LIFE_BYTES <= MESSAGE_BYTES_MAX { self.with_life(peer, needs_life, item) } else { item };
            self.send_over_stream(peer, message);
        }
    }

    fn with_life(&mut self, peer: NodeId, needs_life: Option<GroupId>, datagram: Bytes) -> Bytes {
        let lives = needs_life.and_then(|_| self.members.lives_mut(peer));
        match lives.and_then(Lives::reveal) {
            Some(life) => wire::with_life(life, &datagram),
            None => datagram,
        }
    }

    fn send_over_stream(&self, peer: NodeId, item: Bytes) {
        let Ok(permit) = Arc::clone(&self.streams_out).try_acquire_owned() else {
            self.shared.counters.sends_dropped.add_one();
            return;
        };
        let (transport, shared) = (Arc::clone(&self.setup.transport), Arc::clone(&self.shared));
        kit::task::spawn(async move {
            let request = Request::post(MESSAGES_PATH).body(Body::from(item));
            let answered = match request {
                Ok(request) => transport.request(peer, request).await.is_ok_and(|response| response.status().is_success()),
                Err(_) => false,
            };
            let counter = if answered { &shared.counters.streams_sent } else { &shared.counters.sends_dropped };
            counter.add_one();
            drop(permit);
        });
    }
}

/// A renewal or its answer in short form, if it may take that: a holder whose renewals were not answered in time repeats them whole.
fn in_block(group: &Group, message: Message, form: Form, now: BootTime) -> Option<Renewal> {
    let name = wire::short(group.id);
    match message {
        Message::Renew { epoch, seq, certified: false } if group.is_well_held(now) => {
            Some(Renewal { group: name, epoch, seq, is_answer: false })
        }
        Message::Renewed { epoch, seq } if form == Form::Short => Some(Renewal { group: name, epoch, seq, is_answer: true }),
        Message::Renew { .. }
        | Message::Renewed { .. }
        | Message::RenewRefused { .. }
        | Message::Ask { .. }
        | Message::AskYes { .. }
        | Message::AskNo { .. }
        | Message::Claim { .. }
        | Message::Grant { .. }
        | Message::ClaimRefused { .. }
        | Message::Release { .. }
        | Message::Query { .. }
        | Message::QueryAnswer { .. } => None,
    }
}
