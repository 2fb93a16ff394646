//! The other members of all groups of a node: which groups are shared with each, how often it is pinged, what it may say.

use std::collections::{BTreeMap, BTreeSet};

use contracts::ids::{GroupId, NodeId};
use contracts::time::{BootTime, Millis};
use tokio::sync::watch;

use super::Shared;
use super::life::Lives;
use super::view::GroupConfig;
use super::wire::{ShortGroup, short};
use crate::rate::TokenBucket;
use crate::transport::{PeerState, Transport};

/// Items of one member per second: twelve a ttl and group at the most, for some hundred groups.
const ITEMS_PER_SECOND_MAX: u32 = 4_000;

struct Member {
    state: watch::Receiver<PeerState>,
    items: TokenBucket,
    lives: Lives,
    /// The groups shared with it, by the short form of their ids.
    groups: BTreeMap<ShortGroup, BTreeSet<GroupId>>,
    /// Of those groups: it is pinged once per the shortest.
    ttls: Ttls,
}

/// What becomes of one item of a node.
pub(super) enum Admission {
    Admitted,
    /// It is in no group here.
    Stranger,
    TooMany,
}

#[derive(Default)]
pub(super) struct Members(BTreeMap<NodeId, Member>);

impl Members {
    /// A group comes: its members are kept warm.
    pub(super) fn enter(&mut self, group: &GroupConfig, transport: &dyn Transport, shared: &Shared, now: BootTime) {
        let me = transport.me();
        for node in group.members.iter().filter(|node| **node != me) {
            let member = self.0.entry(*node).or_insert_with(|| {
                shared.add_member(*node);
                let items = TokenBucket::new(ITEMS_PER_SECOND_MAX, now);
                Member {
                    state: transport.peer(*node),
                    items,
                    lives: Lives::default(),
                    groups: BTreeMap::new(),
                    ttls: Ttls::default(),
                }
            });
            let before = member.ttls.shortest();
            member.groups.entry(short(group.group)).or_default().insert(group.group);
            member.ttls.put(group.ttl);
            member.keep_warm(*node, before, transport);
        }
    }

    /// A group goes; whoever is in no other is let cool.
    pub(super) fn leave(&mut self, group: &GroupConfig, transport: &dyn Transport, shared: &Shared) {
        let me = transport.me();
        for node in group.members.iter().filter(|node| **node != me) {
            let Some(member) = self.0.get_mut(node) else { continue };
            let before = member.ttls.shortest();
            member.forget(group);
            if member.groups.is_empty() {
                self.0.remove(node);
                shared.remove_member(*node);
                transport.let_cool(*node);
            } else {
                member.keep_warm(*node, before, transport);
            }
        }
    }

    pub(super) fn let_all_cool(&self, transport: &dyn Transport) {
        for node in self.0.keys() {
            transport.let_cool(*node);
        }
    }

    /// Who does not answer, in the order of the ids.
    pub(super) fn missing(&self) -> Vec<NodeId> {
        self.0.iter().filter(|(_, member)| member.state.borrow().missing).map(|(node, _)| *node).collect()
    }

    pub(super) fn groups_with(&self, node: NodeId) -> impl Iterator<Item = GroupId> + '_ {
        self.0.get(&node).into_iter().flat_map(|member| member.groups.values().flatten().copied())
    }

    /// The one group shared with `node` that `name` stands for; none if there is none, or more than one.
    pub(super) fn named(&self, node: NodeId, name: ShortGroup) -> Option<GroupId> {
        let groups = self.0.get(&node)?.groups.get(&name)?;
        if groups.len() == 1 { groups.first().copied() } else { None }
    }

    /// Signs of life between this node and `node`.
    pub(super) fn lives(&self, node: NodeId) -> Option<&Lives> {
        self.0.get(&node).map(|member| &member.lives)
    }

    pub(super) fn lives_mut(&mut self, node: NodeId) -> Option<&mut Lives> {
        self.0.get_mut(&node).map(|member| &mut member.lives)
    }

    /// Counts one item of `node`.
    pub(super) fn admit(&mut self, node: NodeId, now: BootTime) -> Admission {
        let Some(member) = self.0.get_mut(&node) else { return Admission::Stranger };
        if member.items.take(now) { Admission::Admitted } else { Admission::TooMany }
    }
}

impl Member {
    fn keep_warm(&self, node: NodeId, before: Option<Millis>, transport: &dyn Transport) {
        if let Some(every) = self.ttls.shortest().filter(|every| Some(*every) != before) {
            transport.keep_warm(node, every);
        }
    }

    fn forget(&mut self, group: &GroupConfig) {
        let name = short(group.group);
        if let Some(groups) = self.groups.get_mut(&name) {
            groups.remove(&group.group);
            if groups.is_empty() {
                self.groups.remove(&name);
            }
        }
        self.ttls.take(group.ttl);
    }
}

/// How many groups have each ttl.
#[derive(Debug, Default)]
pub(super) struct Ttls(BTreeMap<Millis, usize>);

impl Ttls {
    pub(super) fn put(&mut self, ttl: Millis) {
        *self.0.entry(ttl).or_default() += 1;
    }

    pub(super) fn take(&mut self, ttl: Millis) {
        if let Some(count) = self.0.get_mut(&ttl) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(&ttl);
            }
        }
    }

    pub(super) fn shortest(&self) -> Option<Millis> {
        self.0.keys().next().copied()
    }

    pub(super) fn longest(&self) -> Option<Millis> {
        self.0.keys().next_back().copied()
    }
}
