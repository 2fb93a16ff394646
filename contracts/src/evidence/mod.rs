//! Evidence: signed statements that count in a contract, and the rules that turn them into a verdict.
//!
//! - the statements: reports of custody, readiness and deliveries, cancellations, disputes, the verdict itself
//! - [`Evidence`] — any of them, read from an envelope
//! - [`judge`] — the rules: from the text of the contract and its evidence in order to where it stands and how it ends. Same inputs,
//!   same verdict, on anybody's machine

pub mod judge;

use serde::{Deserialize, Serialize};

use crate::contract::text::Party;
use crate::contract::{Outcome, Terms};
use crate::envelope::{Envelope, Error, Invalid, Key, Statement};
use crate::ids::{ContractId, Epoch, GroupId, NodeId, StatementId};
use crate::money::{Amount, Currency};
use crate::resources::INTEGER_MAX;
use crate::time::{Millis, WallTime};

/// A custody certificate (its members' signed grants) is at most this long.
pub const CERTIFICATE_BYTES_MAX: usize = 64 << 10;
/// Merkle roots in one delivery report.
pub const ROOTS_MAX: usize = 1_024;
/// Length of a text that people read.
pub const REASON_BYTES_MAX: usize = 1_000;
/// Evidence that one author may add to one contract.
pub const EVIDENCE_PER_AUTHOR_MAX: usize = 1_000;
/// Statements that a verdict or a dispute may name: all that the members of one contract can have added.
pub const INPUTS_MAX: usize = 7 * EVIDENCE_PER_AUTHOR_MAX;
/// Shortest time that a provider gets for an answer to a challenge.
pub const ANSWER_MIN: Millis = Millis(1_000);
/// Longest time that a provider gets for an answer: below what a download would take.
pub const ANSWER_MAX: Millis = Millis(3_600_000);

/// The provider has taken over. Signed by the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeoverReport {
    pub contract: ContractId,
    pub group: GroupId,
    pub node: NodeId,
    pub epoch: Epoch,
    /// The grants of a majority, as the custody driver writes them; base64.
    #[serde(with = "crate::envelope::base64_bytes")]
    pub certificate: Vec<u8>,
    /// When it last promised the customer not to vote for another.
    pub last_promise_at: WallTime,
    /// When it first asked for custody after that.
    pub asked_at: WallTime,
    pub certified_at: WallTime,
    /// When its containers served: the deadline runs from `certified_at` to here.
    pub serving_at: WallTime,
}

/// The provider has stopped and released custody. Signed by the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseReport {
    pub contract: ContractId,
    pub group: GroupId,
    pub node: NodeId,
    pub epoch: Epoch,
    pub released_at: WallTime,
}

/// The customer holds custody again. Signed by the customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandbackReport {
    pub contract: ContractId,
    pub group: GroupId,
    pub node: NodeId,
    /// The epoch in which the customer holds now; above the provider's.
    pub epoch: Epoch,
    #[serde(with = "crate::envelope::base64_bytes")]
    pub certificate: Vec<u8>,
    pub held_at: WallTime,
}

/// "Show that you still hold everything." Signed by the customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadinessChallenge {
    pub contract: ContractId,
    pub node: NodeId,
    /// 32 random bytes, hexadecimal.
    pub challenge: String,
    pub issued_at: WallTime,
    /// The provider's answer must be with the arbitrator by then.
    pub answer_by: WallTime,
}

/// The keyed hash over all blocks in the order of the challenge. Signed by the provider, by the customer (what it expects), or by both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadinessAnswer {
    pub contract: ContractId,
    pub challenge: String,
    pub blocks: u64,
    /// 32 bytes, hexadecimal.
    pub keyed_hash: String,
}

/// What a node heard, delivered and settled in a stretch of time. Signed by the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeliveryReport {
    pub contract: ContractId,
    pub group: GroupId,
    pub node: NodeId,
    pub epoch: Epoch,
    pub from: WallTime,
    pub until: WallTime,
    pub frames_heard: u64,
    pub readings_delivered: u64,
    pub readings_settled: u64,
    /// Merkle roots of the batches delivered, hexadecimal, in order; see [`crate::proof`].
    pub roots: Vec<String>,
}

/// What a witness granted. Signed by the witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WitnessReport {
    pub contract: ContractId,
    pub group: GroupId,
    pub node: NodeId,
    pub epoch: Epoch,
    pub granted_to: NodeId,
    pub granted_at: WallTime,
}

/// Takes the contract back: signed by one party before the provider is ready, by both after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancellation {
    pub contract: ContractId,
    pub reason: String,
}

/// A party says that the other broke the contract. Signed by the party's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispute {
    pub contract: ContractId,
    pub node: NodeId,
    pub reason: String,
}

/// Which rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The agreed number of takeovers was served and handed back.
    ActivationsServed,
    /// The term ended after at least one takeover that was served.
    TermServed,
    /// The term ended without a takeover; the provider was ready.
    TermWaited,
    /// Taken back before the provider was ready, or by both.
    CancelledByParties,
    /// The term ended and the provider had never been ready.
    NeverReady,
    /// The provider asked for custody later than it owed.
    AskedLate,
    /// The provider served later than the deadline after its certificate.
    ServedLate,
    /// Readiness challenges one after another stayed without an answer.
    MissedProofs,
    /// A witness granted custody to the provider, and within the dispute the provider showed no service of that epoch.
    GrantedNotServed,
    /// A dispute in which no rule found a breach.
    DisputeUnfounded,
}

/// A statement that counted, and when the arbitrator received it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub statement: StatementId,
    pub received_at: WallTime,
}

/// How a contract ended, by which rule, on which evidence. Signed by the arbitrator; [`judge::judge`] recomputes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub contract: ContractId,
    pub arbitrator: NodeId,
    pub customer: Party,
    pub provider: Party,
    pub outcome: Outcome,
    pub rule: Rule,
    /// All evidence in the order in which it was received.
    pub inputs: Vec<Input>,
    pub in_force_since: WallTime,
    pub judged_at: WallTime,
    pub activations: u32,
    /// How long the provider served.
    pub served: Millis,
    /// Days started on which the provider was ready.
    pub standby_days: u32,
    pub currency: Currency,
    pub provider_stake: Amount,
}

macro_rules! statement {
    ($type:ident, $kind:literal, |$it:ident| $check:expr) => {
        impl Statement for $type {
            const TYPE: &'static str = concat!("application/vnd.antirio.", $kind, ".v1+json");

            fn validate(&self) -> Result<(), Invalid> {
                let $it = self;
                $check
            }
        }
    };
}

fn number(value: u64, field: &'static str) -> Result<(), Invalid> {
    Invalid::unless(value <= INTEGER_MAX, field, "too large")
}

fn digest(text: &str, field: &'static str) -> Result<(), Invalid> {
    let canonical = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    Invalid::unless(text.len() == 64 && text.bytes().all(canonical), field, "64 lower-case hexadecimal digits")
}

fn reason(text: &str) -> Result<(), Invalid> {
    Invalid::unless(text.len() <= REASON_BYTES_MAX, "reason", "at most 1,000 bytes")
}

fn certificate(bytes: &[u8]) -> Result<(), Invalid> {
    Invalid::unless((1..=CERTIFICATE_BYTES_MAX).contains(&bytes.len()), "certificate", "1 byte to 64 KiB")
}

statement!(TakeoverReport, "takeover-report", |it| {
    number(it.epoch.0, "epoch")?;
    certificate(&it.certificate)?;
    let in_order = it.last_promise_at <= it.asked_at && it.asked_at <= it.certified_at && it.certified_at <= it.serving_at;
    Invalid::unless(in_order, "serving_at", "promise, ask, certificate and service follow one another")?;
    number(it.serving_at.0, "serving_at")
});
statement!(ReleaseReport, "release-report", |it| {
    number(it.epoch.0, "epoch")?;
    number(it.released_at.0, "released_at")
});
statement!(HandbackReport, "handback-report", |it| {
    number(it.epoch.0, "epoch")?;
    certificate(&it.certificate)?;
    number(it.held_at.0, "held_at")
});
statement!(ReadinessChallenge, "readiness-challenge", |it| {
    digest(&it.challenge, "challenge")?;
    number(it.answer_by.0, "answer_by")?;
    let within = it.answer_by.since(it.issued_at);
    Invalid::unless((ANSWER_MIN..=ANSWER_MAX).contains(&within), "answer_by", "one second to one hour after issued_at")
});
statement!(ReadinessAnswer, "readiness-answer", |it| {
    digest(&it.challenge, "challenge")?;
    number(it.blocks, "blocks")?;
    digest(&it.keyed_hash, "keyed_hash")
});
statement!(DeliveryReport, "delivery-report", |it| {
    number(it.epoch.0, "epoch")?;
    Invalid::unless(it.until >= it.from, "until", "not before from")?;
    number(it.until.0, "until")?;
    [it.frames_heard, it.readings_delivered, it.readings_settled].into_iter().try_for_each(|n| number(n, "counts"))?;
    Invalid::unless(it.roots.len() <= ROOTS_MAX, "roots", "at most 1,024")?;
    it.roots.iter().try_for_each(|root| digest(root, "roots"))
});
statement!(WitnessReport, "witness-report", |it| {
    number(it.epoch.0, "epoch")?;
    number(it.granted_at.0, "granted_at")
});
statement!(Cancellation, "cancellation", |it| reason(&it.reason));
statement!(Dispute, "dispute", |it| reason(&it.reason));
statement!(Verdict, "verdict", |it| {
    Invalid::unless(it.inputs.len() <= INPUTS_MAX, "inputs", "at most 7,000")?;
    number(it.served.0, "served")?;
    number(it.judged_at.0, "judged_at")
});

/// An operator's signed word that money came in from outside for an owner. The first payment rail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deposit {
    /// The arbitrator whose ledger is meant.
    pub arbitrator: NodeId,
    pub operator: Key,
    pub owner: crate::ids::OwnerId,
    pub currency: Currency,
    pub amount: Amount,
    /// Makes two orders with the same text two orders.
    pub nonce: u64,
    pub valid_until: WallTime,
}

/// An operator's signed word that money went out to an owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdraw {
    pub arbitrator: NodeId,
    pub operator: Key,
    pub owner: crate::ids::OwnerId,
    pub currency: Currency,
    pub amount: Amount,
    pub nonce: u64,
    pub valid_until: WallTime,
}

statement!(Deposit, "deposit", |it| {
    number(it.nonce, "nonce")?;
    Invalid::unless(!it.amount.is_zero(), "amount", "above zero")
});
statement!(Withdraw, "withdraw", |it| {
    number(it.nonce, "nonce")?;
    Invalid::unless(!it.amount.is_zero(), "amount", "above zero")
});

/// Any statement that counts in a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Takeover(TakeoverReport),
    Release(ReleaseReport),
    Handback(HandbackReport),
    Challenge(ReadinessChallenge),
    Answer(ReadinessAnswer),
    Delivery(DeliveryReport),
    Witness(WitnessReport),
    Cancellation(Cancellation),
    Dispute(Dispute),
}

impl Item {
    #[must_use]
    pub const fn contract(&self) -> ContractId {
        match self {
            Self::Takeover(it) => it.contract,
            Self::Release(it) => it.contract,
            Self::Handback(it) => it.contract,
            Self::Challenge(it) => it.contract,
            Self::Answer(it) => it.contract,
            Self::Delivery(it) => it.contract,
            Self::Witness(it) => it.contract,
            Self::Cancellation(it) => it.contract,
            Self::Dispute(it) => it.contract,
        }
    }

    /// Who must have signed; none if the rules decide by all signatures.
    #[must_use]
    pub const fn author(&self) -> Option<NodeId> {
        match self {
            Self::Takeover(it) => Some(it.node),
            Self::Release(it) => Some(it.node),
            Self::Handback(it) => Some(it.node),
            Self::Challenge(it) => Some(it.node),
            Self::Delivery(it) => Some(it.node),
            Self::Witness(it) => Some(it.node),
            Self::Dispute(it) => Some(it.node),
            Self::Answer(_) | Self::Cancellation(_) => None,
        }
    }

    /// The group that it names.
    #[must_use]
    pub const fn group(&self) -> Option<GroupId> {
        match self {
            Self::Takeover(it) => Some(it.group),
            Self::Release(it) => Some(it.group),
            Self::Handback(it) => Some(it.group),
            Self::Delivery(it) => Some(it.group),
            Self::Witness(it) => Some(it.group),
            Self::Challenge(_) | Self::Answer(_) | Self::Cancellation(_) | Self::Dispute(_) => None,
        }
    }
}

/// Evidence whose signatures were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub id: StatementId,
    pub signers: Vec<Key>,
    pub item: Item,
}

impl Evidence {
    /// Reads evidence of any kind; all signatures verify, the author's among them.
    ///
    /// # Errors
    /// As [`Envelope::verify`]; [`Error::Type`] for a statement that is no evidence.
    pub fn read(envelope: &Envelope) -> Result<Self, Error> {
        fn verify<T: Statement>(envelope: &Envelope, item: fn(T) -> Item) -> Result<Evidence, Error> {
            let verified = envelope.verify::<T>()?;
            let evidence = Evidence { id: verified.id, signers: verified.signers, item: item(verified.statement) };
            match evidence.item.author().map(Key::from).filter(|key| !evidence.signers.contains(key)) {
                Some(key) => Err(Error::Missing { key }),
                None => Ok(evidence),
            }
        }
        match envelope.payload_type.as_str() {
            TakeoverReport::TYPE => verify(envelope, Item::Takeover),
            ReleaseReport::TYPE => verify(envelope, Item::Release),
            HandbackReport::TYPE => verify(envelope, Item::Handback),
            ReadinessChallenge::TYPE => verify(envelope, Item::Challenge),
            ReadinessAnswer::TYPE => verify(envelope, Item::Answer),
            DeliveryReport::TYPE => verify(envelope, Item::Delivery),
            WitnessReport::TYPE => verify(envelope, Item::Witness),
            Cancellation::TYPE => verify(envelope, Item::Cancellation),
            Dispute::TYPE => verify(envelope, Item::Dispute),
            other => {
                Err(Error::Type { found: other.chars().take(100).collect(), wanted: "a statement that counts in a contract" })
            }
        }
    }

    /// Whether the node signed.
    #[must_use]
    pub fn is_signed_by(&self, node: NodeId) -> bool {
        self.signers.contains(&Key::from(node))
    }
}

/// A provider asks within one lease after its last promise ran out; one lease more if it restarted meanwhile (handover.md, rule 5).
pub(crate) const fn ask_deadline(terms: &Terms) -> Millis {
    terms.ttl.scaled(3, 1)
}
