//! Who broke the rules of custody, recomputed from signed statements by anybody: no clock, no network, no trust in whoever shows them.
//!
//! Only what the accused signed itself convicts it. What would excuse it (a release, a certificate that ended the promise) must be among the
//! statements; whoever judges hears the accused first. The table of what can and cannot be proven is in `docs/custody-model.md`.

use std::collections::BTreeMap;

use contracts::custody::MemberIndex;
use contracts::envelope::{Envelope, Statement};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::Millis;

use super::life::{Proven, Shown};
use super::statement::{Grant, MemberClock, RefusalStatement, Release};

/// Statements looked at; what follows them is left out.
pub const STATEMENTS_MAX: usize = 100_000;

/// The group that is judged, as its contract has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub group: GroupId,
    /// In the order of the member list.
    pub members: Vec<NodeId>,
    pub ttl: Millis,
}

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offence {
    /// Votes for two candidates in one epoch (rule 1).
    TwoVotes,
    /// A vote in a lower epoch after one in a higher, by the voter's own clock (rule 1).
    VoteBackwards,
    /// A vote for another while its own earlier vote bound it, by its own clock, and nothing had ended that promise (rule 1, S5).
    BrokenPromise,
    /// The same by a candidate in its own favour (rule 4).
    EarlyClaim,
    /// Two releases of one epoch that say different things (rule 6).
    TwoReleases,
    /// Refused custody for the sake of another member that it did not hear: no sign of life, or still the same one a ttl later, by its own clock.
    PromisedToSilence,
}

/// A member, what it did, and the two statements that prove it (places in the list that was judged).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conviction {
    pub member: NodeId,
    pub offence: Offence,
    /// Of the later statement.
    pub epoch: Epoch,
    pub proof: [usize; 2],
}

/// One vote, read and verified.
#[derive(Debug, Clone, Copy)]
struct Vote {
    place: usize,
    by: NodeId,
    epoch: Epoch,
    candidate: NodeId,
    clock: MemberClock,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Released {
    place: usize,
    by: NodeId,
    statement: Release,
}

/// What is proven by `statements`, each offence of a member and epoch once. What does not verify, is of another group, or is not signed by exactly one
/// member proves nothing and is passed over. Pure; equal statements give equal convictions.
#[must_use]
pub fn convict(terms: &Terms, statements: &[Envelope]) -> Vec<Conviction> {
    let statements = || statements.iter().take(STATEMENTS_MAX).enumerate();
    let votes: Vec<Vote> = statements()
        .filter_map(|(place, envelope)| {
            let (by, Grant { group, epoch, candidate, clock, .. }) = read::<Grant>(terms, envelope)?;
            let is_ours = group == terms.group && terms.members.contains(&candidate);
            is_ours.then_some(Vote { place, by, epoch, candidate, clock })
        })
        .collect();
    let releases: Vec<Released> = statements()
        .filter_map(|(place, envelope)| {
            let (by, statement) = read::<Release>(terms, envelope)?;
            (statement.group == terms.group).then_some(Released { place, by, statement })
        })
        .collect();
    let excuses = Excuses { elected: elected(terms, &votes), releases: &releases, members: &terms.members };
    let mut found = BTreeMap::new();
    let mut note = |conviction: Conviction| {
        found.entry((conviction.member, conviction.offence, conviction.epoch)).or_insert(conviction);
    };
    for (place, first) in votes.iter().enumerate() {
        for second in votes[place + 1..].iter().filter(|second| second.by == first.by) {
            if let Some(conviction) = contradiction(terms, first, second, &excuses) {
                note(conviction);
            }
        }
    }
    for (place, first) in releases.iter().enumerate() {
        let same = |second: &&Released| second.by == first.by && second.statement.epoch == first.statement.epoch;
        for second in releases[place + 1..].iter().filter(same) {
            if second.statement != first.statement {
                let proof = [first.place, second.place];
                note(Conviction { member: first.by, offence: Offence::TwoReleases, epoch: first.statement.epoch, proof });
            }
        }
    }
    for conviction in silence(terms, statements()) {
        note(conviction);
    }
    found.into_values().collect()
}

/// A refusal for the sake of another member.
struct ForAnother {
    place: usize,
    by: NodeId,
    to: NodeId,
    epoch: Epoch,
    clock: MemberClock,
    heard: Proven,
}

/// Who refused for the sake of a member that it did not hear. A promise ends one ttl after the renewal that it answers, and each renewal brings another
/// sign of life: whoever shows nothing newer a ttl later is bound by nothing.
fn silence<'a>(terms: &Terms, statements: impl Iterator<Item = (usize, &'a Envelope)>) -> Vec<Conviction> {
    let convicted = |member, epoch, proof| Conviction { member, offence: Offence::PromisedToSilence, epoch, proof };
    let mut found = Vec::new();
    let mut refusals: Vec<ForAnother> = Vec::new();
    for (place, envelope) in statements {
        let Some((by, statement)) = read::<RefusalStatement>(terms, envelope) else { continue };
        let RefusalStatement { group, voted_epoch: epoch, clock, promised: Some(promised), .. } = statement else { continue };
        if group != terms.group {
            continue;
        }
        let is_of_another = promised.to != by && terms.members.contains(&promised.to);
        let heard = promised.life.as_ref().filter(|_| is_of_another).and_then(|life: &Shown| life.check(promised.to, by));
        match heard {
            Some(heard) => refusals.push(ForAnother { place, by, to: promised.to, epoch, clock, heard }),
            None => found.push(convicted(by, epoch, [place, place])),
        }
    }
    refusals.sort_by_key(|refusal| refusal.clock.ms);
    // Per pair and boots, in time: the refusals that showed something newer than all before them.
    let mut newest: BTreeMap<_, Vec<&ForAnother>> = BTreeMap::new();
    for later in &refusals {
        let newest = newest.entry((later.by, later.to, later.clock.boot.0, later.heard.began.boot.0)).or_default();
        let first = newest.partition_point(|earlier| later.heard.is_after(&earlier.heard));
        match newest.get(first) {
            Some(earlier) if later.clock.ms - earlier.clock.ms >= terms.ttl.0 => {
                found.push(convicted(later.by, later.epoch, [earlier.place, later.place]));
            }
            Some(_) => {}
            None => newest.push(later),
        }
    }
    found
}

/// The statement and the one member that signed it.
fn read<T: Statement>(terms: &Terms, envelope: &Envelope) -> Option<(NodeId, T)> {
    if envelope.payload_type != T::TYPE {
        return None;
    }
    let verified = envelope.verify::<T>().ok()?;
    let [signer] = verified.signers[..] else { return None };
    let by = terms.members.iter().copied().find(|member| signer == (*member).into())?;
    Some((by, verified.statement))
}

/// Who was elected by a majority of the votes shown, per epoch.
fn elected(terms: &Terms, votes: &[Vote]) -> Vec<(Epoch, NodeId)> {
    let mut voters: BTreeMap<(Epoch, NodeId), Vec<NodeId>> = BTreeMap::new();
    for vote in votes {
        let voters = voters.entry((vote.epoch, vote.candidate)).or_default();
        if !voters.contains(&vote.by) {
            voters.push(vote.by);
        }
    }
    let majority = terms.members.len() / 2 + 1;
    voters.into_iter().filter(|(_, voters)| voters.len() >= majority).map(|(key, _)| key).collect()
}

struct Excuses<'a> {
    elected: Vec<(Epoch, NodeId)>,
    releases: &'a [Released],
    members: &'a [NodeId],
}

impl Excuses<'_> {
    /// Whether what `vote` promised was over before its time when the same member voted for `candidate` in `epoch`.
    fn ended(&self, vote: &Vote, epoch: Epoch, candidate: NodeId) -> bool {
        // A certificate of a later epoch, or of the same for somebody else, binds to its winner instead.
        let superseded =
            |(at, winner): &(Epoch, NodeId)| *at < epoch && (*at > vote.epoch || *at == vote.epoch && *winner != vote.candidate);
        let node = |member: MemberIndex| self.members.get(usize::from(member.0)).copied();
        // Who stopped in a later epoch holds none before it.
        let released = |it: &Released| {
            it.by == vote.candidate
                && (vote.epoch..epoch).contains(&it.statement.epoch)
                && it.statement.successor.and_then(node) == Some(candidate)
        };
        self.elected.iter().any(superseded) || self.releases.iter().any(released)
    }
}

fn contradiction(terms: &Terms, one: &Vote, other: &Vote, excuses: &Excuses<'_>) -> Option<Conviction> {
    let convicted = |offence, first: &Vote, second: &Vote| {
        Some(Conviction { member: one.by, offence, epoch: second.epoch, proof: [first.place, second.place] })
    };
    if one.epoch == other.epoch {
        return if one.candidate == other.candidate { None } else { convicted(Offence::TwoVotes, one, other) };
    }
    // Clocks of two boots cannot be put in order.
    if one.clock.boot != other.clock.boot {
        return None;
    }
    let (lower, higher) = if one.epoch < other.epoch { (one, other) } else { (other, one) };
    if lower.clock.ms > higher.clock.ms {
        return convicted(Offence::VoteBackwards, higher, lower);
    }
    let bound = higher.clock.ms - lower.clock.ms < terms.ttl.0 && lower.candidate != higher.candidate;
    if !bound || excuses.ended(lower, higher.epoch, higher.candidate) {
        return None;
    }
    let offence = if higher.candidate == higher.by { Offence::EarlyClaim } else { Offence::BrokenPromise };
    convicted(offence, lower, higher)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
