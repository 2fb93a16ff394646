//! The custody certificate: grants of a majority. It proves who was elected in an epoch, not who holds now.

use contracts::custody::MEMBERS_MAX;
use contracts::envelope::{self, Envelope};
use contracts::evidence::CERTIFICATE_BYTES_MAX;
use contracts::ids::{Epoch, GroupId, NodeId};
use serde::{Deserialize, Serialize};

use super::statement::Grant;

/// Signed grants for one holder in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub group: GroupId,
    pub epoch: Epoch,
    pub holder: NodeId,
    /// One envelope of a [`Grant`] per member that voted, the holder's own vote among them.
    pub grants: Vec<Envelope>,
}

impl Certificate {
    /// As it is put into reports: JSON.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Envelopes and ids hold only what JSON can say; were it otherwise, nothing would verify it.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`Certificate::to_bytes`] wrote; it still has to be [verified](verify).
    ///
    /// # Errors
    /// [`Error::Unreadable`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let found = bytes.len();
        if found > CERTIFICATE_BYTES_MAX {
            return Err(Error::Unreadable { reason: format!("{found} bytes, at most {CERTIFICATE_BYTES_MAX} are taken") });
        }
        serde_json::from_slice(bytes).map_err(|error| Error::Unreadable { reason: error.to_string() })
    }
}

/// Why a certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("this is no certificate: {reason}")]
    Unreadable { reason: String },
    #[error("the certificate is for {found}, wanted {wanted}")]
    Group { found: GroupId, wanted: GroupId },
    #[error("the certificate is for epoch {found}, wanted {wanted}")]
    Epoch { found: Epoch, wanted: Epoch },
    #[error("{0} is not a member of the group")]
    Holder(NodeId),
    #[error("{0} grants, more than a group has members")]
    TooMany(usize),
    #[error("grant {index} is not valid")]
    Grant { index: usize, source: envelope::Error },
    #[error("grant {index} is for another group, epoch or candidate")]
    Other { index: usize },
    #[error("grant {index} is not signed by exactly one member that did not sign before")]
    Signer { index: usize },
    #[error("{found} grants, {needed} are a majority")]
    NoMajority { found: usize, needed: usize },
}

/// Checks that a majority of `members` elected the certificate's holder in `epoch` of `group`; gives the holder. Pure.
///
/// # Errors
/// What is wrong first. Every grant present must be valid: a certificate with anything odd in it proves nothing.
pub fn verify(certificate: &Certificate, members: &[NodeId], group: GroupId, epoch: Epoch) -> Result<NodeId, Error> {
    if certificate.group != group {
        return Err(Error::Group { found: certificate.group, wanted: group });
    }
    if certificate.epoch != epoch {
        return Err(Error::Epoch { found: certificate.epoch, wanted: epoch });
    }
    let holder = certificate.holder;
    if !members.contains(&holder) {
        return Err(Error::Holder(holder));
    }
    if certificate.grants.len() > usize::from(MEMBERS_MAX) {
        return Err(Error::TooMany(certificate.grants.len()));
    }
    let needed = members.len() / 2 + 1;
    if certificate.grants.len() < needed {
        return Err(Error::NoMajority { found: certificate.grants.len(), needed });
    }
    let mut voters = Vec::with_capacity(certificate.grants.len());
    for (index, envelope) in certificate.grants.iter().enumerate() {
        let verified = envelope.verify::<Grant>().map_err(|source| Error::Grant { index, source })?;
        let grant = &verified.statement;
        if grant.group != group || grant.epoch != epoch || grant.candidate != holder {
            return Err(Error::Other { index });
        }
        let [signer] = verified.signers[..] else { return Err(Error::Signer { index }) };
        let is_member = members.iter().any(|member| signer == (*member).into());
        if !is_member || voters.contains(&signer) {
            return Err(Error::Signer { index });
        }
        voters.push(signer);
    }
    Ok(holder)
}

#[cfg(test)]
mod tests {
    use contracts::envelope::Keypair;

    use super::super::statement::{BootId, Digest, MemberClock};
    use super::*;

    const GROUP: GroupId = GroupId::from_bytes([7; 16]);
    const EPOCH: Epoch = Epoch(5);

    fn key(number: u8) -> Keypair {
        Keypair::from_secret(&[number; 32])
    }

    fn members() -> [NodeId; 3] {
        [key(1).node_id(), key(2).node_id(), key(3).node_id()]
    }

    fn grant(candidate: NodeId) -> Grant {
        let clock = MemberClock { boot: BootId([1; 16]), ms: 4 };
        Grant { group: GROUP, epoch: EPOCH, candidate, seq: 9, records: Digest::of(b"records"), clock }
    }

    fn certificate(voters: &[u8]) -> Certificate {
        let holder = key(2).node_id();
        let grants = voters.iter().map(|voter| Envelope::sign(&grant(holder), &key(*voter))).collect();
        Certificate { group: GROUP, epoch: EPOCH, holder, grants }
    }

    fn check(certificate: &Certificate) -> Result<NodeId, Error> {
        verify(certificate, &members(), GROUP, EPOCH)
    }

    #[test]
    fn a_majority_elects_and_survives_json() {
        for voters in [&[2, 3][..], &[1, 2], &[1, 2, 3], &[1, 3]] {
            let certificate = certificate(voters);
            let read = Certificate::from_bytes(&certificate.to_bytes()).expect("reads back");
            assert_eq!(check(&read), Ok(key(2).node_id()), "{voters:?}");
        }
    }

    #[test]
    fn forged_certificates_prove_nothing() {
        let good = certificate(&[2, 3]);
        let changed = |change: fn(&mut Certificate)| {
            let mut forged = good.clone();
            change(&mut forged);
            check(&forged)
        };
        assert!(matches!(check(&certificate(&[2])), Err(Error::NoMajority { found: 1, needed: 2 })));
        assert!(matches!(check(&certificate(&[2, 2])), Err(Error::Signer { index: 1 })));
        assert!(matches!(check(&certificate(&[2, 9])), Err(Error::Signer { index: 1 })), "a stranger's vote");
        assert!(matches!(check(&certificate(&[2, 3, 9])), Err(Error::Signer { index: 2 })), "even on top");
        assert!(matches!(changed(|c| c.holder = key(1).node_id()), Err(Error::Other { index: 0 })));
        assert!(matches!(changed(|c| c.holder = key(9).node_id()), Err(Error::Holder(_))));
        assert!(matches!(changed(|c| c.epoch = Epoch(6)), Err(Error::Epoch { .. })));
        assert!(matches!(changed(|c| c.group = GroupId::from_bytes([8; 16])), Err(Error::Group { .. })));
        assert!(matches!(changed(|c| c.grants[1].payload[20] ^= 1), Err(Error::Grant { index: 1, .. })));
        assert!(matches!(changed(|c| c.grants[0].signatures[0].sig[5] ^= 1), Err(Error::Grant { index: 0, .. })));
        assert!(matches!(changed(|c| c.grants[0].signatures[0].key = key(1).key()), Err(Error::Grant { index: 0, .. })));
        assert!(matches!(changed(|c| c.grants[0].cosign(&key(1))), Err(Error::Signer { index: 0 })), "two votes on one paper");
        let many = std::array::from_fn::<u8, 8, _>(|_| 2);
        assert!(matches!(check(&certificate(&many)), Err(Error::TooMany(8))));
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        let mut bytes = certificate(&[2, 3]).to_bytes();
        bytes.extend(std::iter::repeat_n(b' ', CERTIFICATE_BYTES_MAX));
        for garbage in [&b""[..], b"{}", b"null", &bytes] {
            assert!(matches!(Certificate::from_bytes(garbage), Err(Error::Unreadable { .. })));
        }
    }

    #[test]
    fn grants_of_another_epoch_do_not_add_up() {
        let mut mixed = certificate(&[2, 3]);
        mixed.grants[1] = Envelope::sign(&Grant { epoch: Epoch(4), ..grant(key(2).node_id()) }, &key(3));
        assert_eq!(check(&mixed), Err(Error::Other { index: 1 }));
    }

    /// A grant of another kind of statement with the same content: the payload type is signed too.
    #[test]
    fn the_kind_of_statement_is_part_of_what_is_signed() {
        let mut forged = certificate(&[2, 3]);
        forged.grants[0].payload_type = "application/vnd.antirio.custody-ask.v1+json".to_owned();
        assert!(matches!(check(&forged), Err(Error::Grant { index: 0, .. })));
    }
}
