//! Reports of custody: the certificates that they carry.

use contracts::contract::Contract;
use contracts::evidence::Item;
use contracts::ids::{Epoch, NodeId};
use peering::custody::{Certificate, certificate};

/// A certificate that proves who was elected, and who reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proven {
    pub certificate: Certificate,
    /// Whom the members elected.
    pub holder: NodeId,
    /// Who says so.
    pub reporter: NodeId,
}

/// The certificate that a report carries, verified against the contract's members; none if this kind of evidence has none. Pure.
///
/// # Errors
/// Why the certificate proves nothing.
pub(crate) fn certificate_of(item: &Item, contract: &Contract) -> Result<Option<Proven>, certificate::Error> {
    let (bytes, epoch, reporter): (&[u8], Epoch, NodeId) = match item {
        Item::Takeover(report) => (&report.certificate, report.epoch, report.node),
        Item::Handback(report) => (&report.certificate, report.epoch, report.node),
        Item::Release(_)
        | Item::Challenge(_)
        | Item::Answer(_)
        | Item::Delivery(_)
        | Item::Witness(_)
        | Item::Cancellation(_)
        | Item::Dispute(_) => return Ok(None),
    };
    let certificate = Certificate::from_bytes(bytes)?;
    let holder = certificate::verify(&certificate, &contract.members(), contract.group, epoch)?;
    Ok(Some(Proven { certificate, holder, reporter }))
}
