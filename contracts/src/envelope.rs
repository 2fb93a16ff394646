//! The signed envelope: DSSE (Dead Simple Signing Envelope, v1.0.2) over exact JSON bytes with ed25519 signatures.
//!
//! The signature covers the *pre-authentication encoding* of payload type and payload bytes, so a statement of one kind can never
//! pass for another, and nobody has to canonicalise anything: what was received is what is verified. The id of a statement is the
//! SHA-256 of that encoding; signatures stay outside of it, so co-signing keeps the id.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::ids::{NodeId, OwnerId, StatementId};

/// A statement's payload is at most this long.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// At most this many signatures on one envelope.
pub const SIGNATURES_MAX: usize = 16;

/// A kind of statement.
pub trait Statement: Serialize + DeserializeOwned {
    /// The DSSE payload type: `application/vnd.antirio.<kind>.v1+json`.
    const TYPE: &'static str;

    /// Checks what serde cannot: limits, order of times, sums.
    ///
    /// # Errors
    /// The field that is wrong and why.
    fn validate(&self) -> Result<(), Invalid>;
}

/// What is wrong with a statement's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    pub field: &'static str,
    pub reason: &'static str,
}

impl Invalid {
    /// `Ok` if `holds`, else the complaint.
    ///
    /// # Errors
    /// [`Invalid`] if `holds` is false.
    pub const fn unless(holds: bool, field: &'static str, reason: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { field, reason }) }
    }
}

/// Why an envelope is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("payload type is `{found}`, wanted `{wanted}`")]
    Type { found: String, wanted: &'static str },
    #[error("payload is {bytes} bytes long, at most {PAYLOAD_BYTES_MAX} are taken")]
    TooLong { bytes: usize },
    #[error("{count} signatures, at most {SIGNATURES_MAX} are taken and at least one is needed")]
    SignatureCount { count: usize },
    #[error("key {key} is not a valid ed25519 key")]
    Key { key: Key },
    #[error("the signature by {key} does not verify")]
    Signature { key: Key },
    #[error("key {key} signed twice")]
    SignedTwice { key: Key },
    #[error("the signature of {key} is missing")]
    Missing { key: Key },
    #[error("payload is not a statement of its type: {reason}")]
    Payload { reason: String },
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// An ed25519 verifying key, of a node or of an owner; 64 hexadecimal digits in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<NodeId> for Key {
    fn from(id: NodeId) -> Self {
        Self(*id.as_bytes())
    }
}

impl From<OwnerId> for Key {
    fn from(id: OwnerId) -> Self {
        Self(*id.as_bytes())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digits::text(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(&digits, &mut bytes).map_err(|_| serde::de::Error::custom("a key has 64 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

/// A key pair that signs; made from 32 secret bytes. Its debug form shows only the public half.
#[derive(Clone)]
pub struct Keypair(SigningKey);

impl Keypair {
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    #[must_use]
    pub fn secret(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    #[must_use]
    pub fn key(&self) -> Key {
        Key(self.0.verifying_key().to_bytes())
    }

    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId::from_bytes(self.0.verifying_key().to_bytes())
    }

    #[must_use]
    pub fn owner_id(&self) -> OwnerId {
        OwnerId::from_bytes(self.0.verifying_key().to_bytes())
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({})", self.key())
    }
}

/// One signature, with the key that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySignature {
    #[serde(rename = "keyid")]
    pub key: Key,
    #[serde(with = "base64_bytes")]
    pub sig: Vec<u8>,
}

/// A statement with its signatures, as it is sent and stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    #[serde(with = "base64_bytes")]
    pub payload: Vec<u8>,
    pub signatures: Vec<KeySignature>,
}

/// A statement whose signatures were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    pub id: StatementId,
    pub statement: T,
    /// Who signed, in the order of the envelope; each once.
    pub signers: Vec<Key>,
}

impl Envelope {
    /// Wraps and signs a statement.
    ///
    /// # Panics
    /// If the statement cannot be written as JSON, which no type of this crate can cause.
    #[must_use]
    pub fn sign<T: Statement>(statement: &T, keypair: &Keypair) -> Self {
        let payload = serde_json::to_vec(statement).expect("statements hold only what JSON can say");
        let mut envelope = Self { payload_type: T::TYPE.to_owned(), payload, signatures: Vec::new() };
        envelope.cosign(keypair);
        envelope
    }

    /// Adds the signature of another party; the id stays. Signing twice with one key changes nothing.
    pub fn cosign(&mut self, keypair: &Keypair) {
        if self.signatures.iter().all(|s| s.key != keypair.key()) {
            let sig = keypair.sign(&self.pre_authentication_encoding()).to_vec();
            self.signatures.push(KeySignature { key: keypair.key(), sig });
        }
    }

    /// SHA-256 of the pre-authentication encoding.
    #[must_use]
    pub fn id(&self) -> StatementId {
        StatementId::from_bytes(Sha256::digest(self.pre_authentication_encoding()).into())
    }

    /// Checks type, limits, every signature (strictly) and the content; all signatures present must verify.
    ///
    /// # Errors
    /// [`Error`] says what is wrong first.
    pub fn verify<T: Statement>(&self) -> Result<Verified<T>, Error> {
        if self.payload_type != T::TYPE {
            return Err(Error::Type { found: self.payload_type.chars().take(100).collect(), wanted: T::TYPE });
        }
        if self.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLong { bytes: self.payload.len() });
        }
        let signers = self.verify_signatures()?;
        let statement: T = serde_json::from_slice(&self.payload).map_err(|e| Error::Payload { reason: e.to_string() })?;
        statement.validate()?;
        Ok(Verified { id: self.id(), statement, signers })
    }

    /// Like [`Self::verify`], and each of `keys` must have signed.
    ///
    /// # Errors
    /// [`Error::Missing`] names the first key that did not sign; else as for [`Self::verify`].
    pub fn verify_signed_by<T: Statement>(&self, keys: &[Key]) -> Result<Verified<T>, Error> {
        let verified = self.verify()?;
        match keys.iter().find(|key| !verified.signers.contains(key)) {
            Some(key) => Err(Error::Missing { key: *key }),
            None => Ok(verified),
        }
    }

    fn verify_signatures(&self) -> Result<Vec<Key>, Error> {
        let count = self.signatures.len();
        if !(1..=SIGNATURES_MAX).contains(&count) {
            return Err(Error::SignatureCount { count });
        }
        let message = self.pre_authentication_encoding();
        let mut signers = Vec::with_capacity(count);
        for KeySignature { key, sig } in &self.signatures {
            let key = *key;
            if signers.contains(&key) {
                return Err(Error::SignedTwice { key });
            }
            let verifier = VerifyingKey::from_bytes(&key.0).map_err(|_| Error::Key { key })?;
            let signature = Signature::from_slice(sig).map_err(|_| Error::Signature { key })?;
            verifier.verify_strict(&message, &signature).map_err(|_| Error::Signature { key })?;
            signers.push(key);
        }
        Ok(signers)
    }

    /// `DSSEv1 SP LEN(type) SP type SP LEN(payload) SP payload`, lengths in decimal.
    fn pre_authentication_encoding(&self) -> Vec<u8> {
        let mut encoding =
            format!("DSSEv1 {} {} {} ", self.payload_type.len(), self.payload_type, self.payload.len()).into_bytes();
        encoding.extend_from_slice(&self.payload);
        encoding
    }
}

/// Bytes as standard base64 with padding.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map_err(|_| serde::de::Error::custom("not standard base64"))
    }
}
