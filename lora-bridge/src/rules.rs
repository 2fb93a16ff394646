//! The clauses about readings that look pedantic, each with a switch, so that checkers can show that none is idle.

use std::fmt;

/// A clause. D1 is decided where a counter is taken as known, D2 where a mode is taken to deliver, D3 where progress is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Clause {
    /// What was served is a set. Off: a watermark, frames below the highest counter heard are dropped as served.
    D1,
    /// Readings are taken whatever the epoch. Off: a node whose epoch is over takes none.
    D2,
    /// Served and settled are two marks. Off: what another node served is dropped as if the customer's store had it.
    D3,
}

impl Clause {
    pub const ALL: [Self; 3] = [Self::D1, Self::D2, Self::D3];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Which clauses are in force. The product knows only [`Rules::ALL`].
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules(u8);

impl Rules {
    pub const ALL: Self = Self(u8::MAX);

    #[must_use]
    pub const fn without(self, clause: Clause) -> Self {
        Self(self.0 & !clause.bit())
    }

    #[must_use]
    pub const fn has(self, clause: Clause) -> bool {
        self.0 & clause.bit() != 0
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::ALL
    }
}
