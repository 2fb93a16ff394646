//! The handle that callers hold: opens the directory and moves blocking work off the async threads.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use cid::Cid;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::{
    Error,
    content::{digest_of, normalise},
    disk::{Batch, Disk},
    pins::Pins,
};

/// A node's own block store. Cheap to clone; clones are the same store.
#[derive(Debug, Clone)]
pub struct BlockStore {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) disk: Arc<Disk>,
    pub(crate) pins: Mutex<Pins>,
    /// Writers share it, the garbage collector needs it alone: a block that an operation found present cannot vanish under it.
    pub(crate) writers: Arc<RwLock<()>>,
}

/// How full the store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Stored blocks.
    pub blocks: u64,
    /// Their bytes (file system overhead not counted).
    pub bytes: u64,
    /// Bytes that may be stored.
    pub limit_bytes: u64,
}

impl BlockStore {
    /// Opens the store in directory `root`, creating it if need be, and recovers from a crash: half-written files are removed.
    ///
    /// # Errors
    /// [`Error::Locked`] if somebody has it open, [`Error::Pins`] if the list of pins is damaged, [`Error::Io`].
    pub async fn open(root: impl AsRef<Path>, limit_bytes: u64) -> Result<Self, Error> {
        let root = root.as_ref().to_path_buf();
        blocking(move || {
            let disk = Arc::new(Disk::open(&root, limit_bytes)?);
            let pins = Mutex::new(Pins::load(&root)?);
            let inner = Arc::new(Inner { root, disk, pins, writers: Arc::default() });
            Ok(BlockStore { inner })
        })
        .await
    }

    /// Blocks and bytes in use. Takes no I/O.
    pub fn usage(&self) -> Usage {
        self.inner.disk.usage()
    }

    /// Whether the block itself is stored; says nothing about what it links to.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Io`].
    pub async fn has(&self, cid: &Cid) -> Result<bool, Error> {
        let digest = digest_of(cid)?;
        self.run(move |inner| Ok(inner.disk.size(&digest)?.is_some())).await
    }

    /// One block, checked against its id.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`] (the damaged block is gone afterwards), [`Error::Unsupported`], [`Error::Io`].
    pub async fn get_block(&self, cid: &Cid) -> Result<Bytes, Error> {
        let cid = normalise(cid);
        self.run(move |inner| inner.disk.load(&cid)).await
    }

    /// Stores one block durably after checking it. It is garbage until a pin reaches it.
    ///
    /// # Errors
    /// [`Error::HashMismatch`], [`Error::BlockTooLarge`], [`Error::Full`], [`Error::Unsupported`], [`Error::Io`].
    pub async fn put_block(&self, cid: &Cid, bytes: Bytes) -> Result<(), Error> {
        let cid = normalise(cid);
        let _writing = self.begin_writing().await;
        self.run(move |inner| {
            let mut batch = Batch::new(Arc::clone(&inner.disk));
            batch.stage(&cid, &bytes)?;
            batch.commit()
        })
        .await
    }

    pub(crate) async fn begin_writing(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.inner.writers).read_owned().await
    }

    /// Runs blocking work on the store.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    kit::task::blocking(work).await.map_err(Error::Worker)?
}
