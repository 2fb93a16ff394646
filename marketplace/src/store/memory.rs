//! The store in memory: for tests, trials and simulation. Forgets everything at its end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId, OwnerId, StatementId};
use contracts::time::WallTime;

use super::{Counts, Error, HISTORY_ROWS_MAX, ListingFilter, MatchFilter, NodeFilter, Rows, Store, Window, build_book};
use crate::book::Book;
use crate::resource::{Event, EventKind, Listing, ListingKind, ListingState, Match, MatchState, Node, Round, Subject, Totals};

#[derive(Debug, Default)]
pub struct Memory(Mutex<Tables>);

/// Rows by sequence number; numbers are never used twice.
#[derive(Debug, Default)]
struct Tables {
    nodes: BTreeMap<u64, Node>,
    listings: BTreeMap<u64, Listing>,
    matches: BTreeMap<u64, Match>,
    events: BTreeMap<u64, Event>,
    rounds: BTreeMap<u64, Round>,
    listing_seq: BTreeMap<StatementId, u64>,
    node_seq: BTreeMap<NodeId, u64>,
    last_seq: u64,
    last_event: u64,
}

impl Memory {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn window<T: Clone>(rows: &BTreeMap<u64, T>, window: Window, wanted: impl Fn(&T) -> bool) -> Rows<T> {
    let after = rows.range(window.after.saturating_add(1)..).filter(|(_, row)| wanted(row));
    after.take(window.limit as usize).map(|(seq, row)| (*seq, row.clone())).collect()
}

fn is<T: PartialEq>(filter: Option<T>, value: T) -> bool {
    filter.is_none_or(|f| f == value)
}

impl Tables {
    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(self.node_seq.get(&id)?)
    }

    fn listing(&self, id: StatementId) -> Option<&Listing> {
        self.listings.get(self.listing_seq.get(&id)?)
    }

    fn tell(&mut self, kind: EventKind, subject: Subject, id: StatementId, (node, peer): (NodeId, Option<NodeId>), at: WallTime) {
        self.last_event += 1;
        self.events.insert(self.last_event, Event { seq: self.last_event, kind, subject, id, node, peer, at });
    }

    /// Moves every match that `of` picks to `state` and tells it.
    fn end_matches(&mut self, of: impl Fn(&Match) -> bool, state: MatchState, kind: EventKind, now: WallTime) -> u64 {
        let mut ended: Vec<(StatementId, NodeId, NodeId)> = Vec::new();
        for row in self.matches.values_mut().filter(|m| of(m)) {
            row.state = state;
            ended.push((row.id, row.provider, row.customer));
        }
        ended.sort_unstable();
        for (id, provider, customer) in &ended {
            self.tell(kind, Subject::Match, *id, (*provider, Some(*customer)), now);
        }
        ended.len() as u64
    }

    /// The match with the records as they are now.
    fn introduce(&self, row: &Match) -> Match {
        let mut row = row.clone();
        for (node, record) in [(row.provider, &mut row.provider_record), (row.customer, &mut row.customer_record)] {
            if let Some(known) = self.node(node) {
                record.clone_from(&known.record);
            }
        }
        row
    }

    fn demand_is_active(&self, demand: StatementId) -> bool {
        self.matches.values().any(|m| m.demand == demand && m.state.is_active())
    }
}

#[async_trait]
impl Store for Memory {
    async fn ping(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn register_node(&self, node: &Node) -> Result<(), Error> {
        let mut tables = self.tables();
        let seq = tables.node_seq.get(&node.id).copied().unwrap_or_else(|| tables.next_seq());
        tables.node_seq.insert(node.id, seq);
        tables.nodes.insert(seq, node.clone());
        Ok(())
    }

    async fn get_node(&self, id: NodeId) -> Result<Option<Node>, Error> {
        Ok(self.tables().node(id).cloned())
    }

    async fn list_nodes(&self, filter: NodeFilter, page: Window) -> Result<Rows<Node>, Error> {
        Ok(window(&self.tables().nodes, page, |n| is(filter.owner, n.owner) && is(filter.role, n.role)))
    }

    async fn count_nodes(&self, owner: OwnerId) -> Result<Counts, Error> {
        let tables = self.tables();
        let of_owner = tables.nodes.values().filter(|n| n.owner == owner).count() as u64;
        Ok(Counts { of_node: 0, of_owner, all: tables.nodes.len() as u64 })
    }

    async fn create_listing(&self, listing: &Listing) -> Result<(), Error> {
        let mut tables = self.tables();
        if tables.listing_seq.contains_key(&listing.id) || tables.node(listing.node).is_none() {
            return Err(Error::corrupt("a listing twice or without its node"));
        }
        let seq = tables.next_seq();
        tables.listing_seq.insert(listing.id, seq);
        tables.listings.insert(seq, listing.clone());
        tables.tell(EventKind::Listed, listing.kind.into(), listing.id, (listing.node, None), listing.listed_at);
        Ok(())
    }

    async fn get_listing(&self, id: StatementId) -> Result<Option<Listing>, Error> {
        Ok(self.tables().listing(id).cloned())
    }

    async fn list_listings(&self, filter: ListingFilter, page: Window) -> Result<Rows<Listing>, Error> {
        let wanted = |l: &Listing| {
            l.kind == filter.kind && is(filter.node, l.node) && is(filter.owner, l.owner) && is(filter.state, l.state)
        };
        Ok(window(&self.tables().listings, page, wanted))
    }

    async fn count_listings(&self, node: NodeId, owner: OwnerId) -> Result<Counts, Error> {
        let tables = self.tables();
        let open = |of: &dyn Fn(&Listing) -> bool| {
            tables.listings.values().filter(|l| l.state == ListingState::Open && of(l)).count() as u64
        };
        Ok(Counts { of_node: open(&|l| l.node == node), of_owner: open(&|l| l.owner == owner), all: open(&|_| true) })
    }

    async fn withdraw_listing(&self, id: StatementId, withdrawal: &Envelope, now: WallTime) -> Result<(), Error> {
        let mut tables = self.tables();
        let Some(seq) = tables.listing_seq.get(&id).copied() else { return Ok(()) };
        let Some(row) = tables.listings.get_mut(&seq).filter(|l| l.state == ListingState::Open) else { return Ok(()) };
        row.state = ListingState::Withdrawn;
        row.withdrawal = Some(withdrawal.clone());
        let (kind, node) = (row.kind, row.node);
        tables.tell(EventKind::Withdrawn, kind.into(), id, (node, None), now);
        let held = |m: &Match| m.state == MatchState::Held && (m.offer == id || m.demand == id);
        tables.end_matches(held, MatchState::Released, EventKind::Released, now);
        Ok(())
    }

    async fn create_matches(&self, matches: &[Match], rounds: &[Round], now: WallTime) -> Result<Vec<StatementId>, Error> {
        let mut tables = self.tables();
        let mut created = Vec::new();
        for row in matches {
            let is_open = |id| tables.listing(id).is_some_and(|l| l.state == ListingState::Open);
            if is_open(row.offer) && is_open(row.demand) && !tables.demand_is_active(row.demand) {
                let seq = tables.next_seq();
                tables.matches.insert(seq, row.clone());
                tables.tell(EventKind::Matched, Subject::Match, row.id, (row.provider, Some(row.customer)), now);
                created.push(row.id);
            }
        }
        for round in rounds {
            let seq = tables.next_seq();
            tables.rounds.insert(seq, round.clone());
        }
        Ok(created)
    }

    async fn get_match(&self, id: StatementId) -> Result<Option<Match>, Error> {
        let tables = self.tables();
        Ok(tables.matches.values().find(|m| m.id == id).map(|m| tables.introduce(m)))
    }

    async fn list_matches(&self, filter: MatchFilter, page: Window) -> Result<Rows<Match>, Error> {
        let tables = self.tables();
        let wanted = |m: &Match| {
            filter.node.is_none_or(|n| m.provider == n || m.customer == n)
                && filter.listing.is_none_or(|l| m.offer == l || m.demand == l)
                && is(filter.state, m.state)
        };
        let rows = window(&tables.matches, page, wanted);
        Ok(rows.into_iter().map(|(seq, m)| (seq, tables.introduce(&m))).collect())
    }

    async fn confirm_match(&self, id: StatementId, contract: ContractId, until: WallTime, now: WallTime) -> Result<(), Error> {
        let mut tables = self.tables();
        let Some(row) = tables.matches.values_mut().find(|m| m.id == id && m.state == MatchState::Held) else { return Ok(()) };
        (row.state, row.contract, row.until) = (MatchState::Confirmed, Some(contract), until);
        let parties = (row.provider, Some(row.customer));
        tables.tell(EventKind::Confirmed, Subject::Match, id, parties, now);
        Ok(())
    }

    async fn expire(&self, now: WallTime) -> Result<u64, Error> {
        let mut tables = self.tables();
        let mut over: Vec<(StatementId, ListingKind, NodeId)> = Vec::new();
        for row in tables.listings.values_mut().filter(|l| l.state == ListingState::Open && l.valid_until <= now) {
            row.state = ListingState::Expired;
            over.push((row.id, row.kind, row.node));
        }
        over.sort_unstable();
        for (id, kind, node) in &over {
            tables.tell(EventKind::Expired, (*kind).into(), *id, (*node, None), now);
        }
        let holds =
            tables.end_matches(|m| m.state == MatchState::Held && m.until <= now, MatchState::Expired, EventKind::Expired, now);
        let ended =
            tables.end_matches(|m| m.state == MatchState::Confirmed && m.until <= now, MatchState::Ended, EventKind::Ended, now);
        Ok(over.len() as u64 + holds + ended)
    }

    async fn purge(&self, before: WallTime) -> Result<(), Error> {
        let mut tables = self.tables();
        tables.listings.retain(|_, l| l.valid_until >= before);
        let kept: BTreeMap<StatementId, u64> = tables.listings.iter().map(|(seq, l)| (l.id, *seq)).collect();
        tables.matches.retain(|_, m| kept.contains_key(&m.offer) && kept.contains_key(&m.demand));
        tables.listing_seq = kept;
        let first_event = tables.last_event.saturating_sub(HISTORY_ROWS_MAX);
        tables.events.retain(|seq, _| *seq > first_event);
        while tables.rounds.len() as u64 > HISTORY_ROWS_MAX {
            tables.rounds.pop_first();
        }
        Ok(())
    }

    async fn read_book(&self, now: WallTime) -> Result<Book, Error> {
        let tables = self.tables();
        let open = || tables.listings.values().filter(|l| l.state == ListingState::Open && l.valid_until > now);
        let free = |l: &&Listing| l.kind == ListingKind::Offer || !tables.demand_is_active(l.id);
        let valid = open().filter(|l| l.valid_from <= now).filter(free).map(|l| (l.id, l.kind, l.statement.clone())).collect();
        let active = tables.matches.values().filter(|m| m.state.is_active());
        let claims = active.filter_map(|m| Some((m.offer, tables.listing(m.demand)?.statement.clone()))).collect();
        let mut proposals = BTreeMap::new();
        for row in tables.matches.values() {
            *proposals.entry((row.offer, row.demand)).or_default() += 1;
        }
        let opens_at = open().map(|l| l.valid_from).filter(|from| *from > now).min();
        build_book(valid, claims, proposals.into_iter().collect(), opens_at)
    }

    async fn list_events(&self, node: Option<NodeId>, page: Window) -> Result<Vec<Event>, Error> {
        let of_node = |e: &Event| node.is_none_or(|n| e.node == n || e.peer == Some(n));
        Ok(window(&self.tables().events, page, of_node).into_iter().map(|(_, event)| event).collect())
    }

    async fn event_range(&self) -> Result<(u64, u64), Error> {
        let tables = self.tables();
        Ok((tables.events.first_key_value().map_or(0, |(seq, _)| *seq), tables.last_event))
    }

    async fn list_rounds(&self, page: Window) -> Result<Rows<Round>, Error> {
        Ok(window(&self.tables().rounds, page, |_| true))
    }

    async fn last_round(&self) -> Result<u64, Error> {
        Ok(self.tables().rounds.last_key_value().map_or(0, |(_, row)| row.round))
    }

    async fn read_totals(&self) -> Result<Totals, Error> {
        let tables = self.tables();
        let open = |kind| tables.listings.values().filter(|l| l.state == ListingState::Open && l.kind == kind).count() as u64;
        let matches = |state| tables.matches.values().filter(|m| m.state == state).count() as u64;
        Ok(Totals {
            nodes: tables.nodes.len() as u64,
            offers_open: open(ListingKind::Offer),
            demands_open: open(ListingKind::Demand),
            matches_held: matches(MatchState::Held),
            matches_confirmed: matches(MatchState::Confirmed),
        })
    }

    async fn close(&self) {}
}
