//! Taking in the blocks of one DAG from somebody who is not trusted: nothing is stored that the root does not reach.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use cid::Cid;

use crate::{
    Error,
    content::{normalise, verify_block},
    dag::Walk,
    disk::{Batch, Disk},
    unixfs,
};

/// How much one transfer may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of blocks, repeated ones counted again.
    pub bytes_max: u64,
    /// Different blocks of the DAG.
    pub blocks_max: u64,
}

impl Default for Limits {
    /// 4 GiB in 65,536 blocks.
    fn default() -> Self {
        Limits { bytes_max: 4 * 1024 * 1024 * 1024, blocks_max: 65_536 }
    }
}

/// What a finished transfer brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Blocks that were not stored before.
    pub new_blocks: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// Bytes of blocks that came over the wire, needed or not.
    pub wire_bytes: u64,
}

/// State of a transfer. Blocks the thread; moved in and out of worker threads by its callers.
#[derive(Debug)]
pub(crate) struct Receiver {
    disk: Arc<Disk>,
    batch: Batch,
    root: Cid,
    limits: Limits,
    /// Blocks of the DAG that are stored, and their bytes.
    known: BTreeSet<Cid>,
    pub(crate) known_bytes: u64,
    /// Blocks of the DAG whose ids are known and that are not stored.
    wanted: BTreeSet<Cid>,
    /// The same in the order they were met; may still name blocks that came meanwhile.
    queue: VecDeque<Cid>,
    wire_bytes: u64,
    /// Size of all blocks as the root announces it.
    pub(crate) announced_bytes: Option<u64>,
}

impl Receiver {
    /// Finds out what of the DAG is stored already.
    pub(crate) fn new(disk: Arc<Disk>, root: Cid, limits: Limits) -> Result<Self, Error> {
        let mut receiver = Receiver {
            batch: Batch::new(Arc::clone(&disk)),
            disk,
            root,
            limits,
            known: BTreeSet::new(),
            known_bytes: 0,
            wanted: BTreeSet::new(),
            queue: VecDeque::new(),
            wire_bytes: 0,
            announced_bytes: None,
        };
        receiver.survey(root)?;
        if receiver.known.contains(&root) {
            let block = receiver.disk.load(&root)?;
            receiver.announced_bytes = Some(announced_bytes(&root, &block)?);
        }
        Ok(receiver)
    }

    pub(crate) fn known_blocks(&self) -> u64 {
        self.known.len() as u64
    }

    pub(crate) fn wanted_blocks(&self) -> u64 {
        self.wanted.len() as u64
    }

    /// A block that is still wanted and was not given out by this function before.
    pub(crate) fn next_wanted(&mut self) -> Option<Cid> {
        while let Some(cid) = self.queue.pop_front() {
            if self.wanted.contains(&cid) {
                return Some(cid);
            }
        }
        None
    }

    /// Takes a block that came in: verified, part of the DAG, within the limits, or refused.
    pub(crate) fn accept(&mut self, cid: &Cid, block: &Bytes) -> Result<(), Error> {
        let cid = normalise(cid);
        self.wire_bytes = self.wire_bytes.saturating_add(block.len() as u64);
        if self.wire_bytes > self.limits.bytes_max {
            return Err(Error::TooLarge { limit: self.limits.bytes_max, unit: "bytes" });
        }
        if self.known.contains(&cid) {
            // Repeated or held before: checked all the same, so that a forger is noticed, but not needed.
            return verify_block(&cid, block);
        }
        if !self.wanted.contains(&cid) {
            return Err(Error::Unexpected(cid));
        }
        verify_block(&cid, block)?;
        let node = unixfs::decode(&cid, block)?;
        if cid == self.root {
            self.check_announcement(announced_bytes(&cid, block)?)?;
        }
        self.batch.stage(&cid, block)?;
        self.wanted.remove(&cid);
        self.known.insert(cid);
        self.known_bytes += block.len() as u64;
        node.links.iter().try_for_each(|link| self.survey(link.cid))
    }

    /// Makes everything accepted durable.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        self.batch.commit()
    }

    /// Makes everything durable and says whether the DAG is complete.
    pub(crate) fn finish(mut self) -> Result<Received, Error> {
        self.commit()?;
        // Not by the bookkeeping above but anew from the root: this is what callers rely on.
        let mut missing = 0;
        let mut walk = Walk::new(self.root);
        while let Some(cid) = walk.next() {
            missing += u64::from(walk.step(&self.disk, &cid)?.is_none());
        }
        if missing > 0 {
            return Err(Error::Truncated { missing });
        }
        Ok(Received { new_blocks: self.batch.added_blocks, new_bytes: self.batch.added_bytes, wire_bytes: self.wire_bytes })
    }

    /// Sorts a sub-DAG into what is stored and what is wanted.
    fn survey(&mut self, below: Cid) -> Result<(), Error> {
        let mut walk = Walk::new(below);
        while let Some(cid) = walk.next() {
            if self.known.contains(&cid) || self.wanted.contains(&cid) {
                continue;
            }
            if (self.known.len() + self.wanted.len()) as u64 >= self.limits.blocks_max {
                return Err(Error::TooLarge { limit: self.limits.blocks_max, unit: "blocks" });
            }
            match walk.step(&self.disk, &cid)? {
                Some(bytes) => {
                    self.known.insert(cid);
                    self.known_bytes += bytes;
                }
                None => {
                    self.wanted.insert(cid);
                    self.queue.push_back(cid);
                }
            }
        }
        Ok(())
    }

    /// Refuses at the first block what could never fit, instead of after its download.
    fn check_announcement(&mut self, bytes: u64) -> Result<(), Error> {
        if bytes > self.limits.bytes_max {
            return Err(Error::TooLarge { limit: self.limits.bytes_max, unit: "bytes" });
        }
        self.announced_bytes = Some(bytes);
        Ok(())
    }
}

/// Bytes of a DAG by its root's own account: its block and the sub-DAGs it links to (repeated ones counted again).
fn announced_bytes(root: &Cid, block: &Bytes) -> Result<u64, Error> {
    let links = unixfs::decode(root, block)?.links;
    Ok(links.iter().fold(block.len() as u64, |sum, link| sum.saturating_add(link.total_bytes)))
}
