//! A group as one of its members sees it: who is in it, who may hold, and the lengths of time.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::time::Millis;

/// A customer, a provider and one witness: fewer members have no majority that survives a loss.
pub const MEMBERS_MIN: u8 = 3;
/// A customer, a provider and five witnesses.
pub const MEMBERS_MAX: u8 = 7;
/// Below this scheduling jitter of ordinary machines eats the lease.
pub const TTL_MIN: Millis = Millis(100);
/// An hour without service is no insurance.
pub const TTL_MAX: Millis = Millis::from_secs(3_600);

/// Why a group cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a group has {MEMBERS_MIN} to {MEMBERS_MAX} members, not {0}")]
    Members(u8),
    #[error("member {0} is not in the group")]
    NotAMember(MemberIndex),
    #[error("a group needs somebody who may hold")]
    NoCandidate,
    #[error("member {0} may not hold")]
    NotACandidate(MemberIndex),
    #[error("ttl is {TTL_MIN} to {TTL_MAX}, not {0}")]
    Ttl(Millis),
}

/// Place of a member in the group's member list, from 0. The order decides who stays silent in a duel (L3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberIndex(pub u8);

impl fmt::Display for MemberIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Some members of a group, in the order of the member list.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<MemberIndex>", into = "Vec<MemberIndex>")]
pub struct MemberSet(u8);

impl MemberSet {
    pub const EMPTY: Self = Self(0);

    /// The first `count` members of the list.
    #[must_use]
    pub fn first(count: u8) -> Self {
        (0..count.min(MEMBERS_MAX)).map(MemberIndex).collect()
    }

    #[must_use]
    pub const fn contains(self, member: MemberIndex) -> bool {
        member.0 < MEMBERS_MAX && self.0 & (1 << member.0) != 0
    }

    /// Members beyond [`MEMBERS_MAX`] are left out.
    pub const fn insert(&mut self, member: MemberIndex) {
        if member.0 < MEMBERS_MAX {
            self.0 |= 1 << member.0;
        }
    }

    pub const fn remove(&mut self, member: MemberIndex) {
        if member.0 < MEMBERS_MAX {
            self.0 &= !(1 << member.0);
        }
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = MemberIndex> {
        (0..MEMBERS_MAX).map(MemberIndex).filter(move |member| self.contains(*member))
    }
}

impl FromIterator<MemberIndex> for MemberSet {
    fn from_iter<I: IntoIterator<Item = MemberIndex>>(members: I) -> Self {
        let mut set = Self::EMPTY;
        for member in members {
            set.insert(member);
        }
        set
    }
}

impl From<Vec<MemberIndex>> for MemberSet {
    fn from(members: Vec<MemberIndex>) -> Self {
        members.into_iter().collect()
    }
}

impl From<MemberSet> for Vec<MemberIndex> {
    fn from(set: MemberSet) -> Self {
        set.iter().collect()
    }
}

impl fmt::Debug for MemberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|member| member.0)).finish()
    }
}

/// The lengths of time of a group, all derived from `ttl` in the product ([`Timing::new`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timing {
    /// How long a promise binds the member that gave it, from receipt.
    pub ttl: Millis,
    /// How long a promise counts for the one that got it, from the sending of its request (S8).
    pub hold: Millis,
    /// Between renewals that a majority answered.
    pub renew: Millis,
    /// Between requests that no majority has answered yet.
    pub retry: Millis,
    /// Longest random delay after a failed claim.
    pub delay_max: Millis,
    /// How long a member abstains after start: the largest ttl of all its groups (S3).
    pub abstain: Millis,
}

impl Timing {
    /// hold = 0.8 ttl, renew = ttl/4, retry = ttl/12, delay up to ttl/2, abstain = ttl.
    #[must_use]
    pub const fn new(ttl: Millis) -> Self {
        Self {
            ttl,
            hold: ttl.scaled(4, 5),
            renew: ttl.scaled(1, 4),
            retry: ttl.scaled(1, 12),
            delay_max: ttl.scaled(1, 2),
            abstain: ttl,
        }
    }
}

/// One member's view of its group; fixed for the life of a [`super::Machine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Config {
    pub me: MemberIndex,
    /// Length of the member list.
    pub members: u8,
    /// Who may hold at all: the customer and the provider. The rest are witnesses, they only vote.
    pub candidates: MemberSet,
    /// Whom the contract names for the first custody. Counts only where nobody was ever voted for (S10).
    pub first_holder: MemberIndex,
    pub timing: Timing,
    /// All on in the product; checkers switch single clauses off.
    #[doc(hidden)]
    pub rules: Rules,
}

impl Config {
    /// The group with the timing that follows from `ttl`.
    ///
    /// # Errors
    /// If the numbers are outside the named limits or members are named that are not in the list.
    pub fn new(
        me: MemberIndex,
        members: u8,
        candidates: MemberSet,
        first_holder: MemberIndex,
        ttl: Millis,
    ) -> Result<Self, Error> {
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(Error::Ttl(ttl));
        }
        let config = Self { me, members, candidates, first_holder, timing: Timing::new(ttl), rules: Rules::ALL };
        config.validate().map(|()| config)
    }

    /// # Errors
    /// As [`Config::new`]; the lengths of time are not looked at (a model checker counts in small integers).
    pub fn validate(&self) -> Result<(), Error> {
        if !(MEMBERS_MIN..=MEMBERS_MAX).contains(&self.members) {
            return Err(Error::Members(self.members));
        }
        if self.candidates.is_empty() {
            return Err(Error::NoCandidate);
        }
        if !self.candidates.contains(self.first_holder) {
            return Err(Error::NotACandidate(self.first_holder));
        }
        match self.candidates.iter().chain([self.me]).find(|member| !self.is_member(*member)) {
            Some(stranger) => Err(Error::NotAMember(stranger)),
            None => Ok(()),
        }
    }

    #[must_use]
    pub const fn is_member(&self, member: MemberIndex) -> bool {
        member.0 < self.members
    }

    /// How many members are a majority of the list.
    #[must_use]
    pub const fn majority(&self) -> usize {
        self.members as usize / 2 + 1
    }

    /// All members but this one.
    pub fn others(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        let me = self.me;
        (0..self.members).map(MemberIndex).filter(move |member| *member != me)
    }
}
