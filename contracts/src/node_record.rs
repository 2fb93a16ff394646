//! The signed record that turns a node's key into addresses and says who owns it. Signed by the owner **and** by the node.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Error, Invalid, Key, Statement, Verified};
use crate::geo::Position;
use crate::ids::{NodeId, OwnerId};

/// At most this many addresses in one record.
pub const ADDRESSES_MAX: usize = 16;
/// A node's name is at most this long.
pub const NAME_BYTES_MAX: usize = 63;

/// What a node does in its owner's fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Handles sensors; may insure and be insured.
    Edge,
    /// Parent of its owner's edges; receives their readings.
    Cloud,
    /// Votes on custody, holds stakes, judges.
    Arbitrator,
    /// Lists and matches.
    Marketplace,
}

/// Where and whose a node is. A record with a higher `record_epoch` replaces a lower one of the same node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRecord {
    pub node: NodeId,
    pub owner: OwnerId,
    /// Lower-case letters, digits and hyphens.
    pub name: String,
    pub role: Role,
    /// UDP addresses of its peering endpoint, best first.
    pub addresses: Vec<SocketAddr>,
    /// X25519 public key (hexadecimal) to which secrets for this node are sealed, see [`crate::sealed`].
    pub sealing_key: SealingKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Rises with every change of the record.
    pub record_epoch: u64,
}

/// An X25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealingKey(#[serde(with = "hex_32")] pub [u8; 32]);

impl Statement for NodeRecord {
    const TYPE: &'static str = "application/vnd.antirio.node-record.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        let name_ok = (1..=NAME_BYTES_MAX).contains(&self.name.len())
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        Invalid::unless(name_ok, "name", "1 to 63 lower-case letters, digits and hyphens")?;
        Invalid::unless((1..=ADDRESSES_MAX).contains(&self.addresses.len()), "addresses", "one to sixteen addresses")?;
        Invalid::unless(self.position.is_none_or(Position::is_valid), "position", "not a place on the earth")?;
        Invalid::unless(self.record_epoch <= crate::resources::INTEGER_MAX, "record_epoch", "too large")
    }
}

impl NodeRecord {
    /// Verifies a record with both its signatures.
    ///
    /// # Errors
    /// As [`Envelope::verify`], and if the node or the owner did not sign.
    pub fn verify(envelope: &Envelope) -> Result<Verified<Self>, Error> {
        let verified = envelope.verify::<Self>()?;
        for key in [Key::from(verified.statement.node), Key::from(verified.statement.owner)] {
            if !verified.signers.contains(&key) {
                return Err(Error::Missing { key });
            }
        }
        Ok(verified)
    }
}

mod hex_32 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let digits = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| serde::de::Error::custom("wanted 64 hexadecimal digits"))?;
        Ok(bytes)
    }
}
