//! Proof of a batch of readings: a Merkle tree (RFC 9162, section 2.1: `0x00` before leaves, `0x01` before nodes), its root signed by the node.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::envelope::{Invalid, Statement};
use crate::ids::{GroupId, NodeId};
use crate::time::WallTime;

/// At most this many readings under one root.
pub const BATCH_READINGS_MAX: u32 = 4_096;

/// SHA-256.
pub type Hash = [u8; 32];

/// The signed root of a batch of readings. Signed by the node that made the readings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchProof {
    pub node: NodeId,
    pub group: GroupId,
    pub readings: u32,
    /// Merkle root over the readings' canonical bytes in the order of the batch, hexadecimal.
    pub root: String,
    pub made_at: WallTime,
}

impl Statement for BatchProof {
    const TYPE: &'static str = "application/vnd.antirio.batch-proof.v1+json";

    fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless((1..=BATCH_READINGS_MAX).contains(&self.readings), "readings", "1 to 4,096")?;
        Invalid::unless(
            self.root.len() == 64 && self.root.bytes().all(|b| b.is_ascii_hexdigit()),
            "root",
            "64 hexadecimal digits",
        )
    }
}

fn leaf(bytes: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The largest power of two below `n` (n >= 2): where RFC 9162 splits.
const fn split(n: usize) -> usize {
    1 << (usize::BITS - 1 - (n - 1).leading_zeros())
}

fn root_of(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split(many.len()));
            node(&root_of(left), &root_of(right))
        }
    }
}

/// The root over `items`; of nothing it is the hash of nothing.
#[must_use]
pub fn root<T: AsRef<[u8]>>(items: &[T]) -> Hash {
    root_of(&items.iter().map(|i| leaf(i.as_ref())).collect::<Vec<_>>())
}

/// Items one after the other, for the root over all of them.
#[derive(Debug, Default)]
pub struct Items(Vec<Hash>);

impl Items {
    pub fn push(&mut self, item: &[u8]) {
        self.0.push(leaf(item));
    }

    /// As [`root`] of the same items.
    #[must_use]
    pub fn root(&self) -> Hash {
        root_of(&self.0)
    }
}

/// The audit path of item `index`: siblings from the leaf upwards. `None` if there is no such item.
#[must_use]
pub fn path<T: AsRef<[u8]>>(items: &[T], index: usize) -> Option<Vec<Hash>> {
    fn walk(leaves: &[Hash], index: usize, path: &mut Vec<Hash>) {
        if leaves.len() < 2 {
            return;
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        if index < left.len() {
            walk(left, index, path);
            path.push(root_of(right));
        } else {
            walk(right, index - left.len(), path);
            path.push(root_of(left));
        }
    }
    let leaves: Vec<Hash> = items.iter().map(|i| leaf(i.as_ref())).collect();
    (index < leaves.len()).then(|| {
        let mut path = Vec::new();
        walk(&leaves, index, &mut path);
        path
    })
}

/// Whether `item` stands at `index` of a batch of `count` under `root`.
#[must_use]
pub fn verify(item: &[u8], index: usize, count: usize, path: &[Hash], root: &Hash) -> bool {
    fn climb(hash: Hash, index: usize, count: usize, path: &[Hash]) -> Option<Hash> {
        if count < 2 {
            return path.is_empty().then_some(hash);
        }
        let (sibling, below) = path.split_last()?;
        let left = split(count);
        if index < left {
            Some(node(&climb(hash, index, left, below)?, sibling))
        } else {
            Some(node(sibling, &climb(hash, index - left, count - left, below)?))
        }
    }
    index < count && climb(leaf(item), index, count, path) == Some(*root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_of_every_size_has_a_path_and_no_other() {
        for count in 1..=33_usize {
            let items: Vec<Vec<u8>> = (0..count).map(|n| format!("reading {n}").into_bytes()).collect();
            let root = root(&items);
            let mut pushed = Items::default();
            items.iter().for_each(|item| pushed.push(item));
            assert_eq!(pushed.root(), root);
            for index in 0..count {
                let path = path(&items, index).expect("in range");
                assert!(verify(&items[index], index, count, &path, &root), "{index} of {count}");
                assert!(!verify(b"another", index, count, &path, &root));
                assert!(!verify(&items[index], (index + 1) % count.max(2), count, &path, &root) || count == 1);
            }
        }
        assert_eq!(path(&[b"x"], 1), None);
    }

    #[test]
    fn a_leaf_is_no_node() {
        let pair = [b"a".to_vec(), b"b".to_vec()];
        let concatenated = [leaf(b"a").as_slice(), leaf(b"b").as_slice()].concat();
        assert_ne!(root(&pair), root(&[concatenated]));
    }
}
