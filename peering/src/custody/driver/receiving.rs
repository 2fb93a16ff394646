//! From datagrams to events of machines: who may say what, and whether it is alive.

use contracts::custody::{Event, Message};
use contracts::ids::{GroupId, NodeId};
use contracts::time::BootTime;

use super::super::group::Attachment;
use super::super::life::{Life, LifeAnchor, Lives, Taken};
use super::super::members::Admission;
use super::super::wire::{self, Item, Renewal, Said};
use super::{Driver, Form};
use crate::transport::Datagram;

impl Driver {
    pub(super) fn receive(&mut self, message: &Datagram) {
        let (from, now) = (message.from, self.now());
        let content = wire::read(message.bytes.clone());
        self.shared.counters.malformed.add(content.malformed);
        let (anchors, items): (Vec<_>, Vec<_>) = content.items.into_iter().partition(|item| matches!(item.said, Said::Anchor(_)));
        for item in anchors {
            if self.admits(from, now) {
                self.receive_anchor(from, item);
            }
        }
        let life = content.life.map_or(Taken::Unknown, |life| self.take_life(from, life));
        for item in items {
            if self.admits(from, now) && (!item.said.needs_life() || self.is_alive(from, life, Some(item.group()))) {
                self.receive_item(from, item);
            }
        }
        for renewal in content.renewals {
            let group = self.members.named(from, renewal.group);
            if self.admits(from, now) && (renewal.is_answer || self.is_alive(from, life, group)) {
                self.receive_renewal(from, renewal);
            }
        }
    }

    fn receive_anchor(&mut self, from: NodeId, item: Item) {
        let me = self.setup.transport.me();
        let Said::Anchor(signed) = item.said else { return };
        let is_one =
            self.members.lives_mut(from).is_some_and(|lives| lives.hear_anchor(signed.envelope::<LifeAnchor>(from), from, me));
        if !is_one {
            self.shared.counters.forged.add_one();
        }
    }

    fn take_life(&mut self, from: NodeId, life: Life) -> Taken {
        // It costs some hashes, as an item does.
        match self.members.admit(from, self.now()) {
            Admission::Admitted => self.members.lives_mut(from).map_or(Taken::Unknown, |lives| lives.take(life)),
            Admission::Stranger | Admission::TooMany => Taken::Stale,
        }
    }

    /// Whether what was said counts that needs a sign of life; if none can be checked the anchor is asked for.
    fn is_alive(&mut self, from: NodeId, life: Taken, group: Option<GroupId>) -> bool {
        match life {
            Taken::Fresh => return true,
            Taken::Stale => {}
            Taken::Unknown => {
                if let Some(group) = group.filter(|id| self.groups.get(id).is_some_and(|group| group.member(from).is_some())) {
                    self.anchors_wanted.insert(from, group);
                }
            }
        }
        self.shared.counters.unproven.add_one();
        false
    }

    /// Counts one thing that `from` said; false if it is not listened to.
    fn admits(&mut self, from: NodeId, now: BootTime) -> bool {
        let counters = &self.shared.counters;
        counters.received.add_one();
        match self.members.admit(from, now) {
            Admission::Admitted => true,
            Admission::Stranger => {
                counters.strangers.add_one();
                false
            }
            Admission::TooMany => {
                counters.rate.add_one();
                false
            }
        }
    }

    fn receive_item(&mut self, from: NodeId, item: Item) {
        let counters = &self.shared.counters;
        let id = item.group();
        let Some(group) = self.groups.get(&id) else {
            counters.unknown_group.add_one();
            return;
        };
        let Some(member) = group.member(from) else {
            counters.strangers.add_one();
            return;
        };
        if matches!(item.said, Said::AnchorWanted) {
            return self.members.lives_mut(from).map_or((), Lives::give_up);
        }
        match group.open(from, item.said) {
            Ok((message, attachment)) => {
                self.note_answer(from, &message);
                self.apply(id, Event::Received { from: member, message }, attachment);
            }
            Err(_) => counters.forged.add_one(),
        }
    }

    /// A renewal in short form is answered in short form; who does not understand that asks again with the whole id.
    fn receive_renewal(&mut self, peer: NodeId, renewal: Renewal) {
        let named = self.members.named(peer, renewal.group);
        let member = named.and_then(|id| self.groups.get(&id)?.member(peer).map(|member| (id, member)));
        let Some((id, from)) = member else {
            self.shared.counters.unknown_group.add_one();
            return;
        };
        let Renewal { epoch, seq, is_answer, .. } = renewal;
        let message = if is_answer { Message::Renewed { epoch, seq } } else { Message::Renew { epoch, seq, certified: false } };
        let already = self.sends.len();
        self.note_answer(peer, &message);
        self.apply(id, Event::Received { from, message }, Attachment::None);
        for outgoing in self.sends.iter_mut().skip(already) {
            outgoing.form = Form::Short;
        }
    }

    /// Whoever promises has checked a sign of life.
    fn note_answer(&mut self, from: NodeId, message: &Message) {
        let is_promise = matches!(message, Message::Renewed { .. } | Message::Grant { .. });
        if let Some(lives) = self.members.lives_mut(from).filter(|_| is_promise) {
            lives.note_answer();
        }
    }
}
