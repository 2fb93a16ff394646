//! The clauses of the rules that look pedantic, each with a switch, so that checkers can show that none is idle.

use std::fmt;

/// A clause of the custody rules; see the module's page for the sentence that carries the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// Answers count for the request whose `seq` they echo. Off: for the newest request.
    S1,
    /// Votes are synced before they leave. Off: they are synced after.
    S2,
    /// A restarted member abstains for one ttl. Off: it votes at once.
    S3,
    /// A vote ends what the member held or promised for lower epochs. Off: it goes on holding, and answers lower renewals.
    S4,
    /// A vote is a promise. Off: the voter is free at once.
    S5,
    /// Only the sender that was voted for is promised anything. Off: whoever renews the epoch.
    S6,
    /// Promises in grants count from the sending of the claim. Off: from their arrival, however late.
    S7,
    /// Promises count for less time than they bind. Off: for the same.
    S8,
    /// The holder's own vote is a promise. Off: it is given away when asked for.
    S9,
    /// A contract never makes a holder where there was one. Off: every start believes the contract.
    S10,
    /// A release counts only from the one voted for, in that epoch. Off: from anybody at any time.
    S11,
    /// Who stands by a certified winner does so after a restart too, against its own vote. Off: only its vote is on disk.
    S12,
    /// Without a majority an epoch is over. Off: the fenced node goes on renewing it.
    L1,
    /// Ask before a claim. Off: claim at once.
    L2,
    /// Random delays, and silence of the later in a duel. Off: both try again at once.
    L3,
    /// Refusals name the voted epoch. Off: nobody learns from a refusal.
    L4,
    /// The successor of a release is preferred for one ttl only. Off: for ever.
    L5,
    /// Who voted for another stands by the certified winner of that epoch. Off: it refuses until a higher epoch.
    L6,
}

impl Mark {
    pub const ALL: [Self; 18] = [
        Self::S1,
        Self::S2,
        Self::S3,
        Self::S4,
        Self::S5,
        Self::S6,
        Self::S7,
        Self::S8,
        Self::S9,
        Self::S10,
        Self::S11,
        Self::S12,
        Self::L1,
        Self::L2,
        Self::L3,
        Self::L4,
        Self::L5,
        Self::L6,
    ];

    const fn bit(self) -> u32 {
        1 << self as u8
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which clauses are in force. The product knows only [`Rules::ALL`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules(u32);

impl Rules {
    pub const ALL: Self = Self(u32::MAX);

    #[must_use]
    pub const fn without(self, mark: Mark) -> Self {
        Self(self.0 & !mark.bit())
    }

    #[must_use]
    pub const fn has(self, mark: Mark) -> bool {
        self.0 & mark.bit() != 0
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::ALL
    }
}
