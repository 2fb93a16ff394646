//! From where things stand to what is to be done next. Pure; carrying out all steps brings a node that is free to an offer, and one that
//! wants insurance to a contract in standby. Steps are found anew from what is on disk, at the marketplace and at the arbitrator, so a
//! restart at any point goes on where it stopped.

use std::collections::BTreeSet;

use contracts::contract::State;
use contracts::ids::{ContractId, GroupId, NodeId, StatementId};
use contracts::time::{Millis, WallTime};
use marketplace::resource::{ListingKind, MatchState};

/// A listing is valid for so long.
pub const VALIDITY: Millis = Millis::from_secs(600);
/// Its successor is listed when so much of it is left.
pub const RENEWAL: Millis = Millis::from_secs(120);

/// This node's part in a contract or a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Customer,
    Provider,
    /// The cloud that receives the readings.
    Receiver,
}

/// A listing of this node that the marketplace shows as open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub id: StatementId,
    pub kind: ListingKind,
    pub valid_from: WallTime,
    pub valid_until: WallTime,
    /// It says what this node would say now.
    pub fits: bool,
}

/// A match of one of this node's listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub id: StatementId,
    pub offer: StatementId,
    pub demand: StatementId,
    pub part: Part,
    pub state: MatchState,
    pub until: WallTime,
}

/// A contract that this node has a part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deal {
    pub id: ContractId,
    pub part: Part,
    pub state: State,
    pub group: GroupId,
    pub matched_by: Option<StatementId>,
    pub provider: NodeId,
    pub receiver: NodeId,
    /// The customer should have submitted it by now.
    pub overdue: bool,
    /// It has ended, and this node is not done with it: as a customer it does not have custody back yet.
    pub winding_up: bool,
}

/// Everything that the next steps depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    pub now: WallTime,
    /// There is something to offer.
    pub sells: bool,
    /// The group for which insurance is wanted, if the owner wants it and its services run.
    pub buys_for: Option<GroupId>,
    /// After contracts that went wrong insurance is not looked for before.
    pub buys_from: Option<WallTime>,
    pub listings: Vec<Listed>,
    pub pairs: Vec<Pair>,
    pub deals: Vec<Deal>,
    /// Matches that came to nothing.
    pub given_up: BTreeSet<StatementId>,
    /// Matches whose other side is in the directory.
    pub admitted: BTreeSet<StatementId>,
    /// Who was told of a contract in force.
    pub announced: BTreeSet<(ContractId, NodeId)>,
}

/// One thing to do. Each may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Take a listing back.
    Withdraw(StatementId),
    /// List an offer or a demand, from now or from the end of the present one.
    List(ListingKind),
    /// Let the other side of a match talk to this node.
    Admit(StatementId),
    /// Customer: negotiate and write the text.
    Meet(StatementId),
    /// Customer: get the provider's signature.
    Sign(ContractId),
    /// Bring it to the arbitrator.
    Submit(ContractId),
    /// Tell the marketplace that a match became a contract.
    Confirm { pair: StatementId, contract: ContractId },
    /// Customer: tell provider and cloud that it is in force.
    Announce { contract: ContractId, to: NodeId },
    /// Provider: fetch, load, prove.
    Prepare(ContractId),
}

const fn is_open(state: State) -> bool {
    match state {
        State::Proposed | State::Agreed => true,
        State::Preparing
        | State::Standby { .. }
        | State::TakenOver { .. }
        | State::HandingBack { .. }
        | State::Disputed { .. } => true,
        State::Ended { .. } => false,
    }
}

impl Situation {
    fn is_held(&self, listing: StatementId) -> bool {
        let of_listing = |pair: &&Pair| pair.offer == listing || pair.demand == listing;
        self.pairs.iter().filter(of_listing).any(|pair| pair.state == MatchState::Held && pair.until > self.now)
    }

    /// Insurance is wanted for a group that has none. Not while an earlier contract for it is wound up: the next one would begin with custody
    /// at its provider, and would owe service from a takeover before its time. Not before the pause after contracts that went wrong.
    fn buys(&self) -> bool {
        let is_bound = |group| {
            let of_group = |deal: &&Deal| deal.part == Part::Customer && deal.group == group;
            self.deals.iter().filter(of_group).any(|deal| is_open(deal.state) || deal.winding_up)
        };
        self.buys_for.is_some_and(|group| !is_bound(group)) && self.buys_from.is_none_or(|from| from <= self.now)
    }

    /// A listing with a held match is left alone: withdrawing it would release the match.
    fn list(&self, kind: ListingKind, wanted: bool, steps: &mut BTreeSet<Step>) {
        let live = self.listings.iter().filter(|l| l.kind == kind && l.valid_until > self.now);
        let (next, mut present): (Vec<&Listed>, Vec<&Listed>) = live.partition(|l| l.valid_from > self.now);
        present.sort_by_key(|l| (self.is_held(l.id), l.fits, l.valid_until, l.id));
        let kept = if wanted { present.pop() } else { None };
        let misfit = kept.filter(|l| !l.fits && !self.is_held(l.id));
        let superfluous = present.into_iter().chain(misfit).filter(|l| !self.is_held(l.id));
        steps.extend(superfluous.map(|l| Step::Withdraw(l.id)));
        let useless_next = next.iter().filter(|l| !wanted || !l.fits);
        steps.extend(useless_next.map(|l| Step::Withdraw(l.id)));
        let has_next = !next.is_empty();
        let due = match kept {
            None => !has_next,
            Some(kept) => misfit.is_none() && !has_next && kept.valid_until.since(self.now) < RENEWAL,
        };
        if wanted && due {
            steps.insert(Step::List(kind));
        }
    }

    fn talk(&self, steps: &mut BTreeSet<Step>) {
        let held = || self.pairs.iter().filter(|pair| pair.state == MatchState::Held && pair.until > self.now);
        for pair in held() {
            if !self.admitted.contains(&pair.id) {
                steps.insert(Step::Admit(pair.id));
            }
            let deal = self
                .deals
                .iter()
                .find(|deal| deal.matched_by == Some(pair.id) && (deal.state == State::Agreed || deal.state.is_in_force()));
            if let Some(deal) = deal {
                steps.insert(Step::Confirm { pair: pair.id, contract: deal.id });
            }
        }
        let meets = |pair: &&Pair| {
            let ours = self.listings.iter().any(|l| l.id == pair.demand && l.valid_until > self.now);
            pair.part == Part::Customer && ours && self.admitted.contains(&pair.id) && !self.given_up.contains(&pair.id)
        };
        // One at a time: the first that becomes a contract is enough.
        steps.extend(held().filter(meets).map(|pair| Step::Meet(pair.id)).min().filter(|_| self.buys()));
    }

    fn conclude(&self, deal: &Deal, steps: &mut BTreeSet<Step>) {
        match (deal.part, deal.state) {
            (Part::Customer, State::Proposed) => {
                steps.insert(Step::Sign(deal.id));
            }
            (Part::Customer, State::Agreed) => {
                steps.insert(Step::Submit(deal.id));
            }
            (Part::Provider, State::Agreed) if deal.overdue => {
                steps.insert(Step::Submit(deal.id));
            }
            (Part::Provider, State::Preparing) => {
                steps.insert(Step::Prepare(deal.id));
            }
            (Part::Customer | Part::Provider | Part::Receiver, _) => {}
        }
        if deal.part == Part::Customer && deal.state.is_in_force() {
            let unaware = [deal.provider, deal.receiver].into_iter().filter(|to| !self.announced.contains(&(deal.id, *to)));
            steps.extend(unaware.map(|to| Step::Announce { contract: deal.id, to }));
        }
    }
}

/// What to do next, each step once.
#[must_use]
pub fn steps(situation: &Situation) -> BTreeSet<Step> {
    let mut steps = BTreeSet::new();
    situation.list(ListingKind::Offer, situation.sells, &mut steps);
    situation.list(ListingKind::Demand, situation.buys(), &mut steps);
    situation.talk(&mut steps);
    for deal in &situation.deals {
        situation.conclude(deal, &mut steps);
    }
    steps
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
