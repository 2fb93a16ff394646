//! What the tests of the store share.
#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use storage::{BlockStore, Cid};
use tokio::io::AsyncReadExt as _;

pub const GIB: u64 = 1024 * 1024 * 1024;

/// Test content that any language can make: SHA-256(seed | counter as u64 big-endian) for counter 0, 1, 2, ..., cut to `length`.
pub fn content(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut counter = 0_u64;
    while bytes.len() < length {
        bytes.extend_from_slice(&Sha256::new().chain_update(seed).chain_update(counter.to_be_bytes()).finalize());
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}

pub struct TestStore {
    pub store: BlockStore,
    pub directory: tempfile::TempDir,
}

impl TestStore {
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = BlockStore::open(directory.path(), GIB).await.expect("an empty store opens");
        TestStore { store, directory }
    }

    /// Path of the file of a block.
    pub fn block_path(&self, cid: &Cid) -> PathBuf {
        block_path(self.directory.path(), cid)
    }
}

pub fn block_path(root: &Path, cid: &Cid) -> PathBuf {
    let name = hex::encode(cid.hash().digest());
    root.join("blocks").join(&name[..2]).join(name)
}

pub async fn read_all(store: &BlockStore, cid: &Cid) -> Result<Vec<u8>, std::io::Error> {
    let mut bytes = Vec::new();
    store.read(cid).await.map_err(std::io::Error::from)?.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

pub async fn car_of(store: &BlockStore, cid: &Cid) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = store.export_car(cid).await.expect("complete content exports");
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.expect("a sound store gives every block"));
    }
    bytes
}

/// A CARv1 stream made by other code than the store's.
pub async fn write_car(root: Cid, blocks: &[(Cid, Bytes)]) -> Vec<u8> {
    let mut writer = iroh_car::CarWriter::new(iroh_car::CarHeader::new_v1(vec![root]), Vec::new());
    writer.write_header().await.expect("a header");
    for (cid, block) in blocks {
        writer.write(*cid, block).await.expect("a frame");
    }
    writer.finish().await.expect("a stream")
}

pub fn raw_cid(bytes: &[u8]) -> Cid {
    use multihash_codetable::MultihashDigest as _;
    Cid::new_v1(0x55, multihash_codetable::Code::Sha2_256.digest(bytes))
}
