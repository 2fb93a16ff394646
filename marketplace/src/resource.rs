//! What the API shows, for server and client alike. Times are milliseconds since the Unix epoch; money is in decimal strings of micro-units.

use std::fmt;
use std::str::FromStr;

use contracts::envelope::{self, Envelope, Key};
use contracts::ids::{ContractId, NodeId, OwnerId, StatementId};
use contracts::listing;
use contracts::money::Currency;
use contracts::node_record::{NodeRecord, Role};
use contracts::time::WallTime;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A text that names no variant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is none of: {known}")]
pub struct UnknownVariant {
    pub text: String,
    pub known: &'static str,
}

/// An enumeration with one text form for JSON, SQL, query strings and metrics.
macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant),*
        }

        impl $name {
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownVariant;

            fn from_str(text: &str) -> Result<Self, UnknownVariant> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(UnknownVariant { text: text.chars().take(40).collect(), known: concat!($($text, " "),*) }),
                }
            }
        }
    };
}

text_enum!(
    /// What is listed.
    ListingKind { Offer => "offer", Demand => "demand" }
);
text_enum!(
    /// Where a listing is in its life; only an open one is matched.
    ListingState { Open => "open", Withdrawn => "withdrawn", Expired => "expired" }
);
text_enum!(
    /// Where a match is in its life; `held` and `confirmed` use the provider's capacity.
    MatchState {
        /// Proposed; the capacity is held until `until`.
        Held => "held",
        /// A contract of both parties names it; the capacity is used until the contract ends.
        Confirmed => "confirmed",
        /// The hold ran out without a contract.
        Expired => "expired",
        /// One side withdrew its listing while it was held.
        Released => "released",
        /// The contract's time is over.
        Ended => "ended",
    }
);
text_enum!(
    /// What an event is about.
    Subject { Offer => "offer", Demand => "demand", Match => "match" }
);
text_enum!(
    /// What happened.
    EventKind {
        Listed => "listed", Withdrawn => "withdrawn", Matched => "matched", Expired => "expired", Confirmed => "confirmed", Released => "released", Ended => "ended",
    }
);

impl MatchState {
    /// Whether it uses capacity.
    #[must_use]
    pub const fn is_active(self) -> bool {
        match self {
            Self::Held | Self::Confirmed => true,
            Self::Expired | Self::Released | Self::Ended => false,
        }
    }
}

impl From<ListingKind> for Subject {
    fn from(kind: ListingKind) -> Self {
        match kind {
            ListingKind::Offer => Self::Offer,
            ListingKind::Demand => Self::Demand,
        }
    }
}

/// The form of a signed statement (DSSE 1.0.2): payload type, the exact payload in base64, signatures over both.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Envelope)]
pub struct EnvelopeSchema {
    /// `application/vnd.antirio.<kind>.v1+json`
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Standard base64 with padding of the statement's JSON; at most 1 MiB before encoding.
    pub payload: String,
    pub signatures: Vec<SignatureSchema>,
}

/// One ed25519 signature over the pre-authentication encoding.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Signature)]
pub struct SignatureSchema {
    /// 64 hexadecimal digits.
    pub keyid: String,
    /// Standard base64 of 64 bytes.
    pub sig: String,
}

/// RFC 9457 problem document.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemSchema {
    /// `urn:antirio:problem:<name>`, stable.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: Option<String>,
    /// The field of the input that is wrong.
    pub field: Option<String>,
}

/// The marketplace itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Marketplace {
    /// Its key: signs the matches.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its wall clock, against which validity is judged.
    #[schema(value_type = u64)]
    pub now: WallTime,
    /// The last clearing round that matched something.
    pub round: u64,
    /// The newest event, to start a stream from here.
    pub last_event: u64,
}

/// A registered node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    #[schema(value_type = String)]
    pub id: NodeId,
    #[schema(value_type = String)]
    pub owner: OwnerId,
    pub name: String,
    #[schema(value_type = String)]
    pub role: Role,
    pub record_epoch: u64,
    /// When this record (not the first one) came.
    #[schema(value_type = u64)]
    pub registered_at: WallTime,
    #[schema(value_type = EnvelopeSchema)]
    pub record: Envelope,
}

/// An offer or a demand as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    #[schema(value_type = String)]
    pub id: StatementId,
    pub kind: ListingKind,
    #[schema(value_type = String)]
    pub node: NodeId,
    #[schema(value_type = String)]
    pub owner: OwnerId,
    pub state: ListingState,
    #[schema(value_type = u64)]
    pub listed_at: WallTime,
    #[schema(value_type = u64)]
    pub valid_from: WallTime,
    #[schema(value_type = u64)]
    pub valid_until: WallTime,
    #[schema(value_type = EnvelopeSchema)]
    pub statement: Envelope,
    /// The statement that took it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<EnvelopeSchema>)]
    pub withdrawal: Option<Envelope>,
}

/// A pair that clearing proposed, with both node records so that each party can verify and dial the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Match {
    #[schema(value_type = String)]
    pub id: StatementId,
    pub round: u64,
    #[schema(value_type = String)]
    pub offer: StatementId,
    #[schema(value_type = String)]
    pub demand: StatementId,
    #[schema(value_type = String)]
    pub provider: NodeId,
    #[schema(value_type = String)]
    pub customer: NodeId,
    pub state: MatchState,
    #[schema(value_type = u64)]
    pub matched_at: WallTime,
    /// How long the capacity is held; once confirmed: until the contract ends.
    #[schema(value_type = u64)]
    pub until: WallTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub contract: Option<ContractId>,
    /// Signed by the marketplace.
    #[schema(value_type = EnvelopeSchema)]
    pub statement: Envelope,
    #[schema(value_type = EnvelopeSchema)]
    pub provider_record: Envelope,
    #[schema(value_type = EnvelopeSchema)]
    pub customer_record: Envelope,
}

/// A verified match: what was proposed and who the parties are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    pub id: StatementId,
    pub terms: listing::Match,
    pub provider: NodeRecord,
    pub customer: NodeRecord,
}

/// Why an introduction is not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntroductionError {
    #[error("a statement of the introduction does not verify")]
    Statement(#[from] envelope::Error),
    #[error("the introduction's {0} is not the one of the signed match")]
    Mismatch(&'static str),
}

impl Match {
    /// Checks the marketplace's signature and both records' signatures, and that the resource says what was signed.
    ///
    /// # Errors
    /// [`IntroductionError`] names what does not fit.
    pub fn introduction(&self, marketplace: NodeId) -> Result<Introduction, IntroductionError> {
        let verified = self.statement.verify_signed_by::<listing::Match>(&[Key::from(marketplace)])?;
        let terms = verified.statement;
        let provider = NodeRecord::verify(&self.provider_record)?.statement;
        let customer = NodeRecord::verify(&self.customer_record)?.statement;
        let checks = [
            (terms.marketplace == marketplace, "marketplace"),
            (verified.id == self.id, "id"),
            (terms.offer == self.offer, "offer"),
            (terms.demand == self.demand, "demand"),
            (terms.provider == self.provider && provider.node == terms.provider, "provider"),
            (terms.customer == self.customer && customer.node == terms.customer, "customer"),
        ];
        match checks.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(IntroductionError::Mismatch(what)),
            None => Ok(Introduction { id: verified.id, terms, provider, customer }),
        }
    }
}

/// Something that happened, numbered without end; the number is the SSE id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    pub seq: u64,
    pub kind: EventKind,
    pub subject: Subject,
    #[schema(value_type = String)]
    pub id: StatementId,
    /// Whose listing it is; of a match the provider.
    #[schema(value_type = String)]
    pub node: NodeId,
    /// Of a match the customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub peer: Option<NodeId>,
    #[schema(value_type = u64)]
    pub at: WallTime,
}

/// A sum of amounts in micro-units, in JSON a decimal string: it may be larger than any single amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sum(pub u128);

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| serde::de::Error::custom("a sum is a decimal string of micro-units"))
    }
}

/// What one clearing round did in one currency. Rounds that matched nothing leave no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Round {
    pub round: u64,
    #[schema(value_type = String)]
    pub currency: Currency,
    #[schema(value_type = u64)]
    pub at: WallTime,
    /// Offers and demands that had a feasible partner, and the feasible pairs.
    pub offers: u64,
    pub demands: u64,
    pub edges: u64,
    pub matched: u64,
    /// Sum of the prices per day.
    #[schema(value_type = String)]
    pub volume: Sum,
    /// Sum of (bid - ask).
    #[schema(value_type = String)]
    pub surplus: Sum,
    /// No assignment has a greater surplus than this.
    #[schema(value_type = String)]
    pub bound: Sum,
    /// The surplus is proven to be the greatest possible.
    pub exact: bool,
}

/// What stands in the book now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    pub nodes: u64,
    pub offers_open: u64,
    pub demands_open: u64,
    pub matches_held: u64,
    pub matches_confirmed: u64,
}

/// The export: totals now and a page of rounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    pub totals: Totals,
    pub rounds: Vec<Round>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A page of a list; `next` is the cursor of the next one, absent on the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
