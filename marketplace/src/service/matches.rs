//! Matches: reading them, and confirming one by the contract that came of it.

use contracts::contract::Contract;
use contracts::envelope::{Envelope, Key};
use contracts::ids::{ContractId, StatementId};
use contracts::listing::VALIDITY_MAX;

use super::{Error, Service, page};
use crate::resource::{Match, MatchState, Page};
use crate::store::{MatchFilter, Window};

impl Service {
    /// Confirms a held match by a contract that names it and that both parties signed. The capacity stays in use until the contract
    /// ends. Only the contract's id and end are kept, not its text.
    ///
    /// # Errors
    /// [`Error::Statement`], [`Error::NotFound`], [`Error::ContractMismatch`], [`Error::MatchOver`], [`Error::OtherContract`], [`Error::Expired`].
    pub async fn confirm_match(&self, id: StatementId, envelope: &Envelope) -> Result<Match, Error> {
        let verified = envelope.verify::<Contract>()?;
        let contract = verified.statement;
        for key in [Key::from(contract.customer.node), Key::from(contract.provider.node)] {
            if !verified.signers.contains(&key) {
                return Err(contracts::envelope::Error::Missing { key }.into());
            }
        }
        let _one_at_a_time = self.writes.lock().await;
        let now = self.clock.wall();
        let known = self.get_match(id).await?;
        let fits = [
            (contract.matched_by == Some(id), "matched_by"),
            (contract.provider.node == known.provider, "provider"),
            (contract.customer.node == known.customer, "customer"),
        ];
        if let Some((_, what)) = fits.into_iter().find(|(holds, _)| !holds) {
            return Err(Error::ContractMismatch(what));
        }
        let contract_id = ContractId::from(verified.id);
        match known.state {
            MatchState::Confirmed if known.contract == Some(contract_id) => return Ok(known),
            MatchState::Confirmed => return Err(Error::OtherContract),
            MatchState::Held if known.until > now => {}
            MatchState::Held => return Err(Error::MatchOver(MatchState::Expired)), // the next round says so too
            over @ (MatchState::Expired | MatchState::Released | MatchState::Ended) => return Err(Error::MatchOver(over)),
        }
        if contract.valid_until <= now {
            return Err(Error::Expired(contract.valid_until.0));
        }
        if contract.valid_from.since(now) > VALIDITY_MAX {
            return Err(Error::TooFarAhead { field: "valid_from", days: VALIDITY_MAX.0 / 86_400_000 });
        }
        self.store.confirm_match(id, contract_id, contract.valid_until, now).await?;
        self.metrics.count_statement("contract");
        self.announce().await?;
        Ok(Match { state: MatchState::Confirmed, contract: Some(contract_id), until: contract.valid_until, ..known })
    }

    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get_match(&self, id: StatementId) -> Result<Match, Error> {
        self.store.get_match(id).await?.ok_or_else(|| Error::NotFound(format!("no match {id} is known")))
    }

    /// # Errors
    /// [`Error::Store`].
    pub async fn list_matches(&self, filter: MatchFilter, window: Window) -> Result<Page<Match>, Error> {
        Ok(page(self.store.list_matches(filter, window).await?, window.limit))
    }
}
