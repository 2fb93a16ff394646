//! Proof that content is held now: a hash over all of it in an order that only the challenge decides.

use cid::Cid;
use sha2::{Digest as _, Sha256};

use crate::{Error, content::normalise, dag::blocks_of, store::BlockStore};

/// Separates this hash from every other use of SHA-256 over the same bytes.
const DOMAIN: &[u8] = b"antirio readiness v1\0";

impl BlockStore {
    /// Answer to a readiness challenge: SHA-256 over the nonce and *all* blocks of the DAGs below `cids`, in the order of
    /// SHA-256(nonce | id). Without the nonce neither the order nor any part of the hash can be prepared, so all bytes are read from
    /// disk after the challenge came. Who asks computes the same over its own copy. Memory in use: one block and the list of ids.
    ///
    /// Hashed are: domain, nonce, number of blocks, then for each block its id (binary CIDv1), its length and its bytes; numbers are 64 bits,
    /// big-endian. Blocks that several DAGs share count once; the order of `cids` does not matter.
    ///
    /// # Errors
    /// [`Error::Missing`] if a DAG is not complete, [`Error::Corrupt`] for a damaged block, and as [`BlockStore::missing`].
    pub async fn keyed_hash(&self, nonce: &[u8; 32], cids: &[Cid]) -> Result<[u8; 32], Error> {
        let (nonce, roots) = (*nonce, cids.iter().map(normalise).collect::<Vec<_>>());
        self.run(move |inner| {
            let mut blocks = Vec::new();
            for root in &roots {
                for cid in blocks_of(&inner.disk, root)? {
                    let rank: [u8; 32] = Sha256::new().chain_update(nonce).chain_update(cid.to_bytes()).finalize().into();
                    blocks.push((rank, cid));
                }
            }
            blocks.sort_unstable();
            blocks.dedup();
            let mut hash = Sha256::new().chain_update(DOMAIN).chain_update(nonce);
            hash.update((blocks.len() as u64).to_be_bytes());
            for (_, cid) in &blocks {
                let block = inner.disk.load(cid)?;
                hash.update(cid.to_bytes());
                hash.update((block.len() as u64).to_be_bytes());
                hash.update(&block);
            }
            Ok(hash.finalize().into())
        })
        .await
    }
}
