//! Lease profiles: how long a lease is on which kind of link, and what that costs on it. Pure.
//!
//! A lease is renewed every quarter of its length (a rule of the protocol), so its length is what there is to choose.

use contracts::time::Millis;
use serde::{Deserialize, Serialize};

/// The kind of link between this node and the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    /// Round trips far below a second, stalls are rare.
    #[default]
    Wired,
    /// Stalls of seconds, some dozens a day: a lease must outlive them.
    Cellular,
}

/// A profile that the owner names instead of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Takes over within a second or so; 99.9 % of round trips take less than 100 ms.
    Lan,
    /// Outlives stalls of several seconds.
    Wan,
}

impl Profile {
    /// What suits a link.
    #[must_use]
    pub const fn of(link: Link) -> Self {
        match link {
            Link::Wired => Self::Lan,
            Link::Cellular => Self::Wan,
        }
    }

    /// Length of a lease.
    #[must_use]
    pub const fn ttl(self) -> Millis {
        match self {
            Self::Lan => Millis(1_000),
            Self::Wan => Millis(10_000),
        }
    }

    /// Within this time a provider serves: one and a half leases, three round trips, and the start of the containers.
    #[must_use]
    pub const fn deadline(self) -> Millis {
        match self {
            Self::Lan => Millis(3_000),
            Self::Wan => Millis(20_000),
        }
    }
}

/// A holder renews so often while it is answered.
#[must_use]
pub const fn renewed_every(ttl: Millis) -> Millis {
    Millis(ttl.0 / 4)
}

/// What one contract costs on the customer's link in bits per second, both directions, at the most: renewals and pings to provider and
/// witness, and what keeps a quiet connection open. Fitted from above to the measurements in `docs/measurements.md`; contracts between the
/// same nodes share datagrams and cost far less each.
#[must_use]
pub fn lease_bps(ttl: Millis) -> u64 {
    const PER_TTL_BITS: u64 = 25_200;
    const QUIET_BPS: u64 = 460;
    PER_TTL_BITS * 1_000 / ttl.0.max(1) + QUIET_BPS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_cost_is_what_was_measured_or_a_little_more() {
        // Customer-provider and customer-witness of one contract, from docs/measurements.md.
        for (ttl, measured) in [(300, 39_493 + 39_566), (1_000, 12_087 + 12_848), (10_000, 1_215 + 1_199), (30_000, 656 + 631)] {
            let stated = lease_bps(Millis(ttl));
            assert!((measured..=measured * 5 / 4).contains(&stated), "ttl {ttl} ms: {stated} stated, {measured} measured");
        }
    }

    #[test]
    fn profiles_are_fit_for_a_contract() {
        for profile in [Profile::Lan, Profile::Wan] {
            assert!(profile.deadline() >= profile.ttl().scaled(3, 2), "{profile:?}");
        }
        assert_eq!((Profile::of(Link::Wired), Profile::of(Link::Cellular)), (Profile::Lan, Profile::Wan));
    }
}
