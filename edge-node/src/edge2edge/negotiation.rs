//! What two nodes say to one another between a match and a contract in standby: proposals, signatures, the contract in force, readiness.
//!
//! | request | who asks whom | body | answer |
//! |---|---|---|---|
//! | `POST /peer/v1/negotiations` | customer, provider | [`Opening`] | [`Answer`] |
//! | `POST /peer/v1/contracts/signatures` | customer, provider | [`Text`] | [`Signed`] |
//! | `POST /peer/v1/contracts` | customer, provider and cloud | [`Text`] | nothing |
//! | `POST /peer/v1/contracts/challenges` | provider, customer | [`Ready`] | [`Challenged`] |
//! | `POST /peer/v1/contracts/answers` | provider, customer | [`Answered`] | [`Answered`], signed by both |
//!
//! Every request may be repeated.

use contracts::envelope::Envelope;
use contracts::ids::{ContractId, NodeId};
use serde::{Deserialize, Serialize};

use super::client::{Client, Error};
use crate::dmu::negotiation::{Answer, Proposal};

/// A body of these routes is at most this long: one contract in base64 with its node records.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Node records that come with a contract.
pub const NODE_RECORDS_MAX: usize = 8;

pub const NEGOTIATIONS: &str = "/peer/v1/negotiations";
pub const SIGNATURES: &str = "/peer/v1/contracts/signatures";
pub const CONTRACTS: &str = "/peer/v1/contracts";
pub const CHALLENGES: &str = "/peer/v1/contracts/challenges";
pub const ANSWERS: &str = "/peer/v1/contracts/answers";

/// One proposal of the customer, with the match that lets it ask at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// Signed by the marketplace.
    pub matched: Envelope,
    /// From 0, by one.
    pub round: u32,
    pub proposal: Proposal,
}

/// The text of a contract, with the records of those nodes in it that the other side may not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    pub contract: Envelope,
    /// At most [`NODE_RECORDS_MAX`].
    #[serde(default)]
    pub node_records: Vec<Envelope>,
}

/// The same text with the provider's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    pub contract: Envelope,
}

/// The provider holds everything and wants to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub contract: ContractId,
}

/// A signed readiness challenge of the customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenged {
    pub challenge: Envelope,
}

/// A signed readiness answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    pub answer: Envelope,
}

/// # Errors
/// The provider is away or refuses to talk at all.
pub async fn propose(client: &Client, provider: NodeId, opening: &Opening) -> Result<Answer, Error> {
    client.post(provider, NEGOTIATIONS, opening).await
}

/// # Errors
/// The provider is away or does not sign.
pub async fn ask_signature(client: &Client, provider: NodeId, text: &Text) -> Result<Envelope, Error> {
    let signed: Signed = client.post(provider, SIGNATURES, text).await?;
    Ok(signed.contract)
}

/// # Errors
/// The node is away or does not take it.
pub async fn announce(client: &Client, node: NodeId, text: &Text) -> Result<(), Error> {
    client.post(node, CONTRACTS, text).await
}

/// # Errors
/// The customer is away or has no challenge to give.
pub async fn ask_challenge(client: &Client, customer: NodeId, contract: ContractId) -> Result<Envelope, Error> {
    let challenged: Challenged = client.post(customer, CHALLENGES, &Ready { contract }).await?;
    Ok(challenged.challenge)
}

/// # Errors
/// The customer is away or expected something else.
pub async fn show_answer(client: &Client, customer: NodeId, answer: Envelope) -> Result<Envelope, Error> {
    let answered: Answered = client.post(customer, ANSWERS, &Answered { answer }).await?;
    Ok(answered.answer)
}
