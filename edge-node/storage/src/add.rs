//! Bytes in, content out: streamed, a chunk at a time.

use std::sync::Arc;

use cid::{Cid, Version};
use rust_unixfs::file::adder::{BalancedCollector, Chunker, FileAdder};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{
    CHUNK_BYTES, Error, LINKS_PER_NODE,
    disk::Batch,
    pins::check_label,
    store::{BlockStore, blocking},
};

impl BlockStore {
    /// Stores the bytes of `reader` as content, pins its root under `label` and gives the id that Kubo computes for
    /// `--cid-version=1 --chunker=size-262144`. Memory in use: one chunk. Everything is on disk before it returns.
    ///
    /// # Errors
    /// [`Error::Io`] from the reader or the disk, [`Error::Full`], [`Error::PinRefused`]. Chunks stored until then are garbage.
    pub async fn add<R: AsyncRead + Send + Unpin>(&self, mut reader: R, label: &str) -> Result<Cid, Error> {
        let label = check_label(label)?;
        let _writing = self.begin_writing().await;
        let mut tree = Tree::new(Batch::new(Arc::clone(&self.inner.disk)));
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = read_full(&mut reader, &mut chunk).await.map_err(Error::io("read the content to add"))?;
            (tree, chunk) = blocking(move || {
                tree.push(&chunk[..length])?;
                Ok((tree, chunk))
            })
            .await?;
            if length < CHUNK_BYTES {
                break;
            }
        }
        self.run(move |inner| {
            let root = tree.finish()?;
            inner.pin(root, label)?;
            Ok(root)
        })
        .await
    }
}

/// The tree under construction and its blocks on their way to disk.
struct Tree {
    adder: FileAdder,
    batch: Batch,
    /// The last block made; after the end of input it is the root.
    last: Option<Cid>,
}

impl Tree {
    fn new(batch: Batch) -> Self {
        let adder = FileAdder::builder()
            .with_chunker(Chunker::Size(CHUNK_BYTES))
            .with_collector(BalancedCollector::with_branching_factor(LINKS_PER_NODE))
            .with_cid_version(Version::V1)
            .with_raw_leaves(true)
            .build();
        Tree { adder, batch, last: None }
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (blocks, consumed) = self.adder.push(bytes);
            for (cid, block) in blocks {
                self.batch.stage(&cid, &block)?;
                self.last = Some(cid);
            }
            bytes = &bytes[consumed..];
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Cid, Error> {
        for (cid, block) in self.adder.finish() {
            self.batch.stage(&cid, &block)?;
            self.last = Some(cid);
        }
        self.batch.commit()?;
        Ok(self.last.expect("even empty input makes one block"))
    }
}

async fn read_full<R: AsyncRead + Send + Unpin>(reader: &mut R, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]).await? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}
