//! What owners post in the marketplace — offers, demands, withdrawals — and the match that clearing proposes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::envelope::{Invalid, Statement};
use crate::geo::Position;
use crate::ids::{NodeId, OwnerId, StatementId};
use crate::money::{Amount, Currency};
use crate::resources::{INTEGER_MAX, Resources};
use crate::time::{Millis, WallTime};

/// At most this many device positions in one demand; a denser fleet names the corners of its area.
pub const POSITIONS_MAX: usize = 1_024;
/// At most this many witnesses named as acceptable.
pub const WITNESSES_MAX: usize = 16;
/// A listing is valid for at most 30 days.
pub const VALIDITY_MAX: Millis = Millis::from_secs(30 * 86_400);

/// Spare resources of a provider's node. Signed by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    pub node: NodeId,
    pub owner: OwnerId,
    /// Makes two offers with the same text two statements.
    pub nonce: u64,
    pub free: Resources,
    pub capabilities: BTreeSet<String>,
    pub position: Position,
    /// How far its radio reaches.
    pub radio_range_m: u32,
    pub currency: Currency,
    /// Least premium per day of waiting.
    pub ask_per_day: Amount,
    /// Cost of an hour of serving beyond the hours that the premium includes.
    pub served_hour_cost: Amount,
    /// The takeover deadline that it can promise.
    pub deadline: Millis,
    /// Most that it puts at stake.
    pub stake_max: Amount,
    pub witnesses: BTreeSet<NodeId>,
    pub valid_from: WallTime,
    pub valid_until: WallTime,
}

/// Insurance that a customer's node looks for. Signed by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    pub node: NodeId,
    pub owner: OwnerId,
    pub nonce: u64,
    pub needs: Resources,
    pub capabilities: BTreeSet<String>,
    /// Where the devices are: each must be within the provider's radio range.
    pub devices: Vec<Position>,
    pub currency: Currency,
    /// Most premium per day of waiting.
    pub bid_per_day: Amount,
    /// Most for an hour of serving beyond the included hours.
    pub served_hour_cost_max: Amount,
    /// The longest time between the customer's failure and service by the provider.
    pub deadline_max: Millis,
    /// Least that the provider must put at stake.
    pub stake_min: Amount,
    /// Least reputation of the provider, in thousandths.
    pub reputation_min_permille: u16,
    pub witnesses: BTreeSet<NodeId>,
    /// Contract length.
    pub days: u32,
    pub valid_from: WallTime,
    pub valid_until: WallTime,
}

/// Takes an offer or a demand back, for ever: its id cannot be listed again. Signed by the node that listed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    pub node: NodeId,
    pub listing: StatementId,
}

/// A pair proposed by clearing, with a price between ask and bid. Signed by the marketplace; binds nobody but holds the capacity until `held_until`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    pub marketplace: NodeId,
    pub round: u64,
    pub offer: StatementId,
    pub demand: StatementId,
    pub provider: NodeId,
    pub customer: NodeId,
    pub currency: Currency,
    pub price_per_day: Amount,
    pub matched_at: WallTime,
    pub held_until: WallTime,
}

fn number(value: u64, field: &'static str) -> Result<(), Invalid> {
    Invalid::unless(value <= INTEGER_MAX, field, "too large")
}

fn validity(from: WallTime, until: WallTime) -> Result<(), Invalid> {
    Invalid::unless(until > from && until.since(from) <= VALIDITY_MAX, "valid_until", "after valid_from and within 30 days of it")
}

fn capabilities(set: &BTreeSet<String>) -> Result<(), Invalid> {
    Invalid::unless(
        set.len() <= 64 && set.iter().all(|c| (1..=64).contains(&c.len())),
        "capabilities",
        "at most 64 of 1 to 64 characters",
    )
}

fn witnesses(set: &BTreeSet<NodeId>) -> Result<(), Invalid> {
    Invalid::unless((1..=WITNESSES_MAX).contains(&set.len()), "witnesses", "one to sixteen")
}

impl Statement for Offer {
    const TYPE: &'static str = "application/vnd.antirio.offer.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        number(self.nonce, "nonce")?;
        Invalid::unless(self.free.is_valid(), "free", "a number is too large or an interface is named twice")?;
        Invalid::unless(self.position.is_valid(), "position", "not a place on the earth")?;
        Invalid::unless(self.radio_range_m <= 100_000, "radio_range_m", "at most 100 km")?;
        Invalid::unless((1..=86_400_000).contains(&self.deadline.0), "deadline", "1 ms to one day")?;
        capabilities(&self.capabilities)?;
        witnesses(&self.witnesses)?;
        validity(self.valid_from, self.valid_until)
    }
}

impl Statement for Demand {
    const TYPE: &'static str = "application/vnd.antirio.demand.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        number(self.nonce, "nonce")?;
        Invalid::unless(self.needs.is_valid(), "needs", "a number is too large or an interface is named twice")?;
        let positions_ok = (1..=POSITIONS_MAX).contains(&self.devices.len()) && self.devices.iter().all(|p| p.is_valid());
        Invalid::unless(positions_ok, "devices", "1 to 1,024 places on the earth")?;
        Invalid::unless((1..=86_400_000).contains(&self.deadline_max.0), "deadline_max", "1 ms to one day")?;
        Invalid::unless(self.reputation_min_permille <= 1_000, "reputation_min_permille", "at most 1,000")?;
        Invalid::unless((1..=3_650).contains(&self.days), "days", "1 to 3,650")?;
        capabilities(&self.capabilities)?;
        witnesses(&self.witnesses)?;
        validity(self.valid_from, self.valid_until)
    }
}

impl Statement for Withdrawal {
    const TYPE: &'static str = "application/vnd.antirio.withdrawal.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

impl Statement for Match {
    const TYPE: &'static str = "application/vnd.antirio.match.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        number(self.round, "round")?;
        Invalid::unless(self.provider != self.customer, "provider", "nobody insures itself")?;
        Invalid::unless(self.held_until > self.matched_at, "held_until", "after matched_at")
    }
}
