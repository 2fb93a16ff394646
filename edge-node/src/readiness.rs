//! Readiness: what a provider has to hold of a contract, and the answer that proves that it does.

use contracts::contract::Contract;
use contracts::evidence::ReadinessAnswer;
use contracts::ids::ContractId;
use storage::{BlockStore, Cid, parse_cid};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a content id of the contract")]
    Storage(#[from] storage::Error),
    #[error("the challenge is not 32 bytes in hexadecimal")]
    Challenge,
    #[error("{0} is not complete here")]
    Incomplete(Cid),
}

/// All content of a contract: the images and both sealed configurations, each once.
///
/// # Errors
/// A text is no content id that the store can keep.
pub fn content_of(contract: &Contract) -> Result<Vec<Cid>, storage::Error> {
    let images = contract.blueprint.services.iter().map(|service| &service.image);
    let texts = images.chain([&contract.network_configuration, &contract.application_configuration]);
    let mut cids = Vec::new();
    for text in texts {
        let cid = parse_cid(text)?;
        if !cids.contains(&cid) {
            cids.push(cid);
        }
    }
    Ok(cids)
}

/// Reads every block from disk and answers a challenge; provider and customer compute the same.
///
/// # Errors
/// [`Error`]: something is missing or damaged.
pub async fn answer(store: &BlockStore, id: ContractId, contract: &Contract, challenge: &str) -> Result<ReadinessAnswer, Error> {
    let mut nonce = [0; 32];
    hex::decode_to_slice(challenge, &mut nonce).map_err(|_| Error::Challenge)?;
    let cids = content_of(contract)?;
    let mut blocks = 0;
    for cid in &cids {
        let found = store.verify(cid).await?;
        if !found.is_complete() {
            return Err(Error::Incomplete(*cid));
        }
        blocks += found.blocks;
    }
    let hash = store.keyed_hash(&nonce, &cids).await?;
    Ok(ReadinessAnswer { contract: id, challenge: challenge.to_owned(), blocks, keyed_hash: hex::encode(hash) })
}
