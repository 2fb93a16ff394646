//! The text of a contract. Both nodes sign the same bytes; the arbitrator's countersignature puts it in force.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::blueprint::Blueprint;
use crate::envelope::{Invalid, Statement};
use crate::ids::{DevEui, GroupId, NodeId, OwnerId, StatementId};
use crate::money::{Amount, Currency};
use crate::resources::INTEGER_MAX;
use crate::time::{Millis, WallTime};

/// At most this many devices in one contract.
pub const DEVICES_MAX: usize = 10_000;
/// At most this many witnesses beside the two parties.
pub const WITNESSES_MAX: usize = 5;
/// Shortest lease that is taken.
pub const TTL_MIN: Millis = Millis(200);
/// Longest lease that is taken.
pub const TTL_MAX: Millis = Millis(600_000);

/// What two nodes agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub customer: Party,
    pub provider: Party,
    /// Members that only vote, in order; the custody group's member list is customer, provider, witnesses.
    pub witnesses: Vec<NodeId>,
    /// Holds the stakes and judges.
    pub arbitrator: NodeId,
    /// The customer's cloud node: where readings go, whoever makes them.
    pub readings_to: NodeId,
    /// Custody belongs to a group of devices, not to the contract.
    pub group: GroupId,
    pub devices: BTreeSet<DevEui>,
    pub blueprint: Blueprint,
    /// CIDv1 of the sealed network configuration (device addresses and network session keys): opened from standby on.
    pub network_configuration: String,
    /// CIDv1 of the sealed application configuration: opened when the services start.
    pub application_configuration: String,
    pub terms: Terms,
    pub money: Money,
    /// The match that brought the parties together, if a market did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_by: Option<StatementId>,
    pub nonce: u64,
    pub valid_from: WallTime,
    pub valid_until: WallTime,
}

/// One side of a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Party {
    pub node: NodeId,
    pub owner: OwnerId,
}

/// How custody is kept and given back. Hold factor, sync before vote, abstention and write-ahead are not negotiable and not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Length of a lease.
    pub ttl: Millis,
    /// The provider serves within this time of the customer's failure.
    pub deadline: Millis,
    /// The customer takes over again after it was back, level and quiet for this long.
    pub handback_quiet: Millis,
    /// How long members go on answering the provider's renewals after the customer is level.
    pub handback_deadline: Millis,
    /// How long the provider goes on serving if the contract ends while it holds custody.
    pub grace: Millis,
    /// Downlink counters reserved ahead per device.
    pub counter_block: u16,
    pub buffer_frames_max: u64,
    pub buffer_bytes_max: u64,
    pub buffer_hours_max: u32,
    /// The customer sends every raw frame to the provider on receipt.
    pub mirror: bool,
    /// Takeovers after which the contract has done its work and is settled; before that it returns to standby.
    pub activations_max: u32,
}

/// Who pays what, and what is at stake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Money {
    pub currency: Currency,
    pub premium_per_day: Amount,
    pub days: u32,
    /// Hours of serving that the premium includes.
    pub included_hours: u32,
    pub served_hour_cost: Amount,
    /// At most this many hours are paid beyond the included ones.
    pub served_hours_max: u32,
    pub customer_stake: Amount,
    pub provider_stake: Amount,
}

impl Money {
    /// The payment for the whole term: premium per day times days.
    #[must_use]
    pub fn premium(&self) -> Option<Amount> {
        self.premium_per_day.scaled_down(u64::from(self.days), 1)
    }

    /// Most that the customer can owe: the premium and all served hours.
    #[must_use]
    pub fn payment_max(&self) -> Option<Amount> {
        let served = self.served_hour_cost.scaled_down(u64::from(self.served_hours_max), 1)?;
        self.premium()?.checked_add(served)
    }
}

impl Contract {
    /// The members of the custody group in order: customer, provider, witnesses. Customer and provider can hold, witnesses only vote.
    #[must_use]
    pub fn members(&self) -> Vec<NodeId> {
        [self.customer.node, self.provider.node].into_iter().chain(self.witnesses.iter().copied()).collect()
    }
}

impl Statement for Contract {
    const TYPE: &'static str = "application/vnd.antirio.contract.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless(self.customer.node != self.provider.node, "provider", "nobody insures itself")?;
        Invalid::unless((1..=WITNESSES_MAX).contains(&self.witnesses.len()), "witnesses", "one to five")?;
        let members: BTreeSet<_> = self.members().into_iter().collect();
        Invalid::unless(members.len() == self.witnesses.len() + 2, "witnesses", "every member once")?;
        Invalid::unless(members.len() % 2 == 1, "witnesses", "an odd number of members")?;
        Invalid::unless(
            self.customer.owner != self.provider.owner || self.witnesses.len() > 1,
            "witnesses",
            "no owner has a majority",
        )?;
        Invalid::unless((1..=DEVICES_MAX).contains(&self.devices.len()), "devices", "1 to 10,000")?;
        self.blueprint.validate()?;
        for (cid, field) in [
            (&self.network_configuration, "network_configuration"),
            (&self.application_configuration, "application_configuration"),
        ] {
            Invalid::unless((32..=128).contains(&cid.len()) && cid.is_ascii(), field, "a CIDv1 in base32")?;
        }
        self.terms.validate()?;
        Invalid::unless(self.nonce <= INTEGER_MAX, "nonce", "too large")?;
        Invalid::unless(self.money.payment_max().is_some(), "money", "the payment is too large")?;
        Invalid::unless((1..=3_650).contains(&self.money.days), "money.days", "1 to 3,650")?;
        let term = Millis::from_secs(u64::from(self.money.days) * 86_400);
        Invalid::unless(self.valid_until > self.valid_from, "valid_until", "after valid_from")?;
        Invalid::unless(self.valid_until.since(self.valid_from) <= term, "valid_until", "within the days that are paid")
    }
}

/// Shortest time for the customer to take custody back when contract and grace are over.
const TAKE_BACK_MIN: Millis = Millis(60_000);

impl Terms {
    /// When a contract and its grace are over members promise nothing more to the provider, and so long the witnesses go on voting: the customer's
    /// next custody brings it the downlink counters that the provider reserved, whether or not the provider can be asked.
    #[must_use]
    pub fn take_back(&self) -> Millis {
        TAKE_BACK_MIN.max(self.ttl * 10)
    }

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((TTL_MIN..=TTL_MAX).contains(&self.ttl), "terms.ttl", "200 ms to ten minutes")?;
        Invalid::unless(self.deadline >= self.ttl.scaled(3, 2), "terms.deadline", "at least one and a half ttl")?;
        Invalid::unless((2..=1_024).contains(&self.counter_block), "terms.counter_block", "2 to 1,024")?;
        Invalid::unless((1..=10_000_000).contains(&self.buffer_frames_max), "terms.buffer_frames_max", "1 to 10,000,000")?;
        Invalid::unless((1..=10_000_000_000).contains(&self.buffer_bytes_max), "terms.buffer_bytes_max", "1 byte to 10 GB")?;
        Invalid::unless((1..=720).contains(&self.buffer_hours_max), "terms.buffer_hours_max", "1 to 720")?;
        Invalid::unless((1..=1_000_000).contains(&self.activations_max), "terms.activations_max", "1 to 1,000,000")?;
        let day = Millis::from_secs(86_400);
        let lengths = [self.deadline, self.handback_quiet, self.handback_deadline, self.grace];
        Invalid::unless(lengths.iter().all(|l| *l <= day), "terms", "no length of time above one day")
    }
}
