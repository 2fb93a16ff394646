//! Secrets for given nodes: HPKE (RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305).
//!
//! The secret is encrypted once per recipient, so a sealed configuration is one content block for customer and provider alike.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::envelope::base64_bytes;
use crate::node_record::SealingKey;

/// A secret is at most this long.
pub const SECRET_BYTES_MAX: usize = 16 << 20;
/// At most this many recipients.
pub const RECIPIENTS_MAX: usize = 8;

type Kem = X25519HkdfSha256;

/// A secret, encrypted to each of its recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    pub recipients: Vec<Recipient>,
}

/// One recipient's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipient {
    pub key: SealingKey,
    /// The KEM's encapsulated key.
    #[serde(with = "base64_bytes")]
    pub encapsulated: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub ciphertext: Vec<u8>,
}

/// Why something cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the secret is not sealed to this node")]
    NotForUs,
    #[error("the sealed secret does not open: wrong key, wrong purpose or changed bytes")]
    Open,
    #[error("the recipient's sealing key is no X25519 key")]
    Key,
    #[error("a secret has at most {SECRET_BYTES_MAX} bytes and 1 to {RECIPIENTS_MAX} recipients")]
    Size,
}

/// The private half of a [`SealingKey`]; its debug form shows only the public half.
#[derive(Clone)]
pub struct UnsealingKey(<Kem as hpke::Kem>::PrivateKey, SealingKey);

impl std::fmt::Debug for UnsealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UnsealingKey({:?})", self.1)
    }
}

impl UnsealingKey {
    /// Derived from a node's secret under a label of its own, so that one secret file is enough.
    #[must_use]
    pub fn derive(node_secret: &[u8; 32]) -> Self {
        let seed = Sha256::new().chain_update(b"antirio sealing key v1\0").chain_update(node_secret).finalize();
        let (private, public) = Kem::derive_keypair(&seed);
        let public = SealingKey(public.to_bytes().into());
        Self(private, public)
    }

    #[must_use]
    pub const fn public(&self) -> SealingKey {
        self.1
    }

    /// Opens the copy that is meant for this key. `purpose` must be what it was sealed for.
    ///
    /// # Errors
    /// [`Error::NotForUs`] or [`Error::Open`].
    pub fn open(&self, sealed: &Sealed, purpose: &str) -> Result<Vec<u8>, Error> {
        let copy = sealed.recipients.iter().find(|r| r.key == self.1).ok_or(Error::NotForUs)?;
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&copy.encapsulated).map_err(|_| Error::Open)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.0,
            &encapsulated,
            purpose.as_bytes(),
            &copy.ciphertext,
            b"",
        )
        .map_err(|_| Error::Open)
    }
}

impl Sealed {
    /// Encrypts `secret` to every recipient for one purpose (which binds it: a network configuration never opens as something else).
    ///
    /// # Errors
    /// [`Error::Size`] or [`Error::Key`].
    pub fn seal(secret: &[u8], recipients: &[SealingKey], purpose: &str) -> Result<Self, Error> {
        if secret.len() > SECRET_BYTES_MAX || !(1..=RECIPIENTS_MAX).contains(&recipients.len()) {
            return Err(Error::Size);
        }
        let recipients = recipients.iter().map(|key| Self::seal_to(secret, *key, purpose)).collect::<Result<_, _>>()?;
        Ok(Self { recipients })
    }

    fn seal_to(secret: &[u8], key: SealingKey, purpose: &str) -> Result<Recipient, Error> {
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&key.0).map_err(|_| Error::Key)?;
        let (encapsulated, ciphertext) =
            hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(&OpModeS::Base, &public, purpose.as_bytes(), secret, b"")
                .map_err(|_| Error::Key)?;
        Ok(Recipient { key, encapsulated: encapsulated.to_bytes().to_vec(), ciphertext })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recipients_open_and_only_for_the_purpose() {
        let [a, b, c] = [1, 2, 3].map(|n| UnsealingKey::derive(&[n; 32]));
        let sealed = Sealed::seal(b"app keys", &[a.public(), b.public()], "application").expect("small");
        assert_eq!(a.open(&sealed, "application").as_deref(), Ok(b"app keys".as_slice()));
        assert_eq!(b.open(&sealed, "application").as_deref(), Ok(b"app keys".as_slice()));
        assert_eq!(c.open(&sealed, "application"), Err(Error::NotForUs));
        assert_eq!(a.open(&sealed, "network"), Err(Error::Open));
        let mut changed = sealed.clone();
        changed.recipients[0].ciphertext[3] ^= 1;
        assert_eq!(a.open(&changed, "application"), Err(Error::Open));
        assert!(!serde_json::to_string(&sealed).expect("json").contains("app keys"));
    }
}
