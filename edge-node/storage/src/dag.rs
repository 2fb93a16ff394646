//! Walking a DAG in the store.

use std::collections::BTreeSet;

use bytes::Bytes;
use cid::Cid;

use crate::{
    DAG_DEPTH_MAX, Error,
    content::{RAW, digest_of, normalise},
    disk::Disk,
    store::BlockStore,
    unixfs,
};

/// What [`BlockStore::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Blocks read and found to match their ids.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that are linked to but not stored; what lies below an absent inner node is not known.
    pub missing: Vec<Cid>,
    /// Blocks that did not match their ids; they were removed, a fetch brings them back.
    pub corrupt: Vec<Cid>,
}

impl Verification {
    /// Whether all of the content is there and right.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.corrupt.is_empty()
    }
}

impl BlockStore {
    /// Known blocks of the DAG that are not stored, in depth-first order. Empty means complete. An absent inner node stands for all below it.
    /// Leaves are looked up, not read; inner nodes are read and checked.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::TooDeep`], [`Error::Unsupported`], [`Error::Io`].
    pub async fn missing(&self, root: &Cid) -> Result<Vec<Cid>, Error> {
        let root = normalise(root);
        self.run(move |inner| {
            let mut missing = Vec::new();
            let mut walk = Walk::new(root);
            while let Some(cid) = walk.next() {
                if walk.step(&inner.disk, &cid)?.is_none() {
                    missing.push(cid);
                }
            }
            Ok(missing)
        })
        .await
    }

    /// Reads every block of the DAG and checks it against its id and the shape of the file against its announced sizes.
    ///
    /// # Errors
    /// As [`BlockStore::missing`]; absent and damaged blocks are results, not errors.
    pub async fn verify(&self, root: &Cid) -> Result<Verification, Error> {
        let root = normalise(root);
        self.run(move |inner| {
            let mut found = Verification::default();
            let mut walk = Walk::new(root);
            while let Some(cid) = walk.next() {
                match inner.disk.load(&cid) {
                    Ok(block) => {
                        found.blocks += 1;
                        found.bytes += block.len() as u64;
                        walk.descend(&cid, &block)?;
                    }
                    Err(Error::Missing(cid)) => found.missing.push(cid),
                    Err(Error::Corrupt(cid)) => found.corrupt.push(cid),
                    Err(other) => return Err(other),
                }
            }
            Ok(found)
        })
        .await
    }

    /// Bytes of all blocks of the DAG, each counted once.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is not complete; else as [`BlockStore::missing`].
    pub async fn total_bytes(&self, root: &Cid) -> Result<u64, Error> {
        let root = normalise(root);
        self.run(move |inner| {
            let mut total = 0;
            let mut walk = Walk::new(root);
            while let Some(cid) = walk.next() {
                total += walk.step(&inner.disk, &cid)?.ok_or(Error::Missing(cid))?;
            }
            Ok(total)
        })
        .await
    }
}

/// Every block of a complete DAG once, parents first, in depth-first order.
pub(crate) fn blocks_of(disk: &Disk, root: &Cid) -> Result<Vec<Cid>, Error> {
    let mut blocks = Vec::new();
    let mut walk = Walk::new(*root);
    while let Some(cid) = walk.next() {
        walk.step(disk, &cid)?.ok_or(Error::Missing(cid))?;
        blocks.push(cid);
    }
    Ok(blocks)
}

/// A depth-first walk that meets every block once. The caller says for each block whether it descends.
#[derive(Debug)]
pub(crate) struct Walk {
    root: Cid,
    ahead: Vec<(Cid, usize)>,
    seen: BTreeSet<Cid>,
    depth: usize,
}

impl Walk {
    pub(crate) fn new(root: Cid) -> Self {
        Walk { root, ahead: vec![(root, 0)], seen: BTreeSet::new(), depth: 0 }
    }

    pub(crate) fn next(&mut self) -> Option<Cid> {
        while let Some((cid, depth)) = self.ahead.pop() {
            if self.seen.insert(cid) {
                self.depth = depth;
                return Some(cid);
            }
        }
        None
    }

    /// Looks a block up and descends into it if it is an inner node. Gives its size; `None` if it is absent or damaged.
    pub(crate) fn step(&mut self, disk: &Disk, cid: &Cid) -> Result<Option<u64>, Error> {
        if cid.codec() == RAW {
            return disk.size(&digest_of(cid)?);
        }
        match disk.load(cid) {
            Ok(block) => {
                self.descend(cid, &block)?;
                Ok(Some(block.len() as u64))
            }
            Err(Error::Missing(_) | Error::Corrupt(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Puts the children of the block that [`Walk::next`] gave last before everything else that lies ahead.
    pub(crate) fn descend(&mut self, cid: &Cid, block: &Bytes) -> Result<(), Error> {
        let node = unixfs::decode(cid, block)?;
        if !node.links.is_empty() && self.depth >= DAG_DEPTH_MAX {
            return Err(Error::TooDeep(self.root));
        }
        self.ahead.extend(node.links.iter().rev().map(|link| (link.cid, self.depth + 1)));
        Ok(())
    }
}
