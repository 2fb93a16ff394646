//! The edge arbitrator: signs contracts for its owner, and never outside the owner's policy.

use contracts::contract::Contract;
use contracts::envelope::{Envelope, Keypair, Statement as _};
use contracts::time::WallTime;

use crate::dmu::estimate::radio;
use crate::dmu::negotiation::Proposal;
use crate::dmu::policy::Policy;

/// Why the edge arbitrator does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Invalid(#[from] contracts::envelope::Invalid),
    #[error("this node is not a party of the contract")]
    NotAParty,
    #[error("the owner's policy does not allow it: {0}")]
    Policy(&'static str),
    #[error("the text is not what was negotiated: {0}")]
    NotAgreed(&'static str),
}

/// Holds the key; signs what the policy and the negotiation allow.
#[derive(Debug, Clone)]
pub struct EdgeArbitrator {
    keypair: Keypair,
    policy: Policy,
}

impl EdgeArbitrator {
    #[must_use]
    pub const fn new(keypair: Keypair, policy: Policy) -> Self {
        Self { keypair, policy }
    }

    /// Signs a text that this node wrote itself (customer).
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn sign(&self, contract: &Contract, agreed: &Proposal, now: WallTime) -> Result<Envelope, Refusal> {
        self.check(contract, agreed, now)?;
        Ok(Envelope::sign(contract, &self.keypair))
    }

    /// Adds this node's signature to a text that the other party signed (provider).
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn cosign(&self, envelope: &mut Envelope, contract: &Contract, agreed: &Proposal, now: WallTime) -> Result<(), Refusal> {
        self.check(contract, agreed, now)?;
        envelope.cosign(&self.keypair);
        Ok(())
    }

    fn check(&self, contract: &Contract, agreed: &Proposal, now: WallTime) -> Result<(), Refusal> {
        contract.validate()?;
        self.check_agreed(contract, agreed)?;
        let policy = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::Policy(what)) };
        policy(contract.money.currency == self.policy.currency, "currency")?;
        policy(contract.arbitrator == self.policy.arbitrator, "arbitrator")?;
        policy(contract.witnesses.iter().all(|w| self.policy.witnesses.contains(w)), "witnesses")?;
        policy(contract.valid_until > now, "valid_until has passed")?;
        let me = self.keypair.node_id();
        match (contract.customer.node == me, contract.provider.node == me) {
            (true, false) => self.check_as_customer(contract),
            (false, true) => self.check_as_provider(contract),
            _ => Err(Refusal::NotAParty),
        }
    }

    fn check_agreed(&self, contract: &Contract, agreed: &Proposal) -> Result<(), Refusal> {
        let same = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::NotAgreed(what)) };
        same(contract.money.premium_per_day == agreed.price_per_day, "price")?;
        same(contract.money.provider_stake == agreed.provider_stake, "provider_stake")?;
        same(contract.terms.deadline == agreed.deadline, "deadline")?;
        same(contract.terms.ttl == agreed.ttl, "ttl")?;
        same(contract.money.days == agreed.days, "days")
    }

    fn check_as_customer(&self, contract: &Contract) -> Result<(), Refusal> {
        let rules = self.policy.customer.as_ref().ok_or(Refusal::Policy("this node buys no insurance"))?;
        let policy = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::Policy(what)) };
        policy(contract.money.premium_per_day <= rules.bid_per_day_max, "price above bid_per_day_max")?;
        policy(contract.money.served_hour_cost <= rules.served_hour_cost_max, "served_hour_cost above the maximum")?;
        policy(contract.money.customer_stake <= rules.stake_max, "customer_stake above stake_max")?;
        policy(contract.money.provider_stake >= rules.provider_stake_min, "provider_stake below the minimum")
    }

    fn check_as_provider(&self, contract: &Contract) -> Result<(), Refusal> {
        let rules = self.policy.provider.as_ref().ok_or(Refusal::Policy("this node sells no insurance"))?;
        let policy = |holds: bool, what| if holds { Ok(()) } else { Err(Refusal::Policy(what)) };
        policy(contract.money.premium_per_day >= rules.ask_per_day_min, "price below ask_per_day_min")?;
        policy(contract.money.served_hour_cost >= rules.served_hour_cost, "served_hour_cost below the cost")?;
        policy(contract.money.provider_stake <= rules.stake_max, "provider_stake above stake_max")?;
        policy(contract.terms.deadline >= rules.deadline_min, "deadline below deadline_min")?;
        policy(contract.terms.handback_quiet <= rules.handback_quiet_max, "handback_quiet above the maximum")?;
        policy(contract.money.days <= rules.days_max, "days above days_max")?;
        policy(rules.capabilities.is_superset(&contract.blueprint.capabilities), "a capability that this node does not have")?;
        policy(contract.money.included_hours <= rules.included_hours_max, "included_hours above the maximum")?;
        policy(contract.terms.buffer_bytes_max <= rules.buffer_bytes_max, "buffer_bytes_max above the maximum")?;
        policy(rules.capacity.covers(&contract.blueprint.needs), "needs above the capacity")?;
        let limits = contract.blueprint.services.iter().map(|s| s.memory_bytes_max).fold(0, u64::saturating_add);
        policy(limits <= rules.capacity.memory_bytes, "the services' memory limits are above the capacity")?;
        let devices = contract.devices.len() as u64;
        let interfaces = &contract.blueprint.needs.interfaces;
        let has_slots = |(kind, region)| {
            interfaces.iter().any(|i| (i.kind.as_str(), i.region.as_str()) == (kind, region) && i.slots >= devices)
        };
        policy(radio(&contract.blueprint.capabilities).is_none_or(has_slots), "more devices than radio slots asked for")
    }
}
