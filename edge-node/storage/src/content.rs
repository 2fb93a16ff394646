//! Content ids: which ones the store keeps, and whether bytes match them.

use cid::{Cid, Version};
use multihash_codetable::{Code, MultihashDigest};

use crate::Error;

/// Multicodec of a leaf: bytes as they are.
pub(crate) const RAW: u64 = 0x55;
/// Multicodec of an inner node: dag-pb.
pub(crate) const DAG_PB: u64 = 0x70;
/// Multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// SHA-256 of a block: its key in the store, whatever codec its id names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest(pub [u8; 32]);

/// Reads a CID in any of its text forms and checks that the store can keep what it names.
///
/// # Errors
/// [`Error::InvalidCid`], [`Error::Unsupported`].
pub fn parse_cid(text: &str) -> Result<Cid, Error> {
    let cid = Cid::try_from(text).map_err(|error| Error::InvalidCid(error.to_string()))?;
    digest_of(&cid)?;
    Ok(normalise(&cid))
}

/// Checks that `bytes` are the block that `cid` names.
///
/// # Errors
/// [`Error::BlockTooLarge`], [`Error::Unsupported`], [`Error::HashMismatch`].
pub fn verify_block(cid: &Cid, bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() > crate::BLOCK_BYTES_MAX {
        return Err(Error::BlockTooLarge { bytes: bytes.len() as u64 });
    }
    let expected = digest_of(cid)?;
    if Code::Sha2_256.digest(bytes).digest() == expected.0 { Ok(()) } else { Err(Error::HashMismatch(*cid)) }
}

/// The key under which the block of `cid` is stored.
pub(crate) fn digest_of(cid: &Cid) -> Result<Digest, Error> {
    if cid.codec() != RAW && cid.codec() != DAG_PB {
        return Err(Error::Unsupported { cid: *cid, reason: "codec is neither raw nor dag-pb" });
    }
    if cid.hash().code() != SHA2_256 {
        return Err(Error::Unsupported { cid: *cid, reason: "hash is not sha2-256" });
    }
    let digest = cid.hash().digest().try_into();
    digest.map(Digest).map_err(|_| Error::Unsupported { cid: *cid, reason: "hash is not 32 bytes long" })
}

/// The same block under the one form that is used for comparing: version 1.
pub(crate) fn normalise(cid: &Cid) -> Cid {
    match cid.version() {
        Version::V0 => Cid::new_v1(DAG_PB, *cid.hash()),
        Version::V1 => *cid,
    }
}
