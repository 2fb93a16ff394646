//! Content out: the bytes of a file, block by block, each checked as it is read.

use std::{
    io::{Read, Result as IoResult},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use cid::Cid;
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::{
    DAG_DEPTH_MAX, Error,
    content::normalise,
    disk::Disk,
    store::{BlockStore, blocking},
    unixfs,
};

/// The bytes of a file as an [`AsyncRead`]. A missing or damaged block ends it with an error that says which.
pub struct Content {
    bytes: u64,
    reader: StreamReader<BoxStream<'static, IoResult<Bytes>>, Bytes>,
}

/// The same for threads that may block, as a reader of image layers does.
#[derive(Debug)]
pub struct BlockingContent {
    disk: Arc<Disk>,
    /// Blocks ahead, the next one last: id, file bytes that its parent announced, depth.
    ahead: Vec<(Cid, u64, usize)>,
    current: Bytes,
    bytes: u64,
}

impl BlockStore {
    /// Opens content for reading.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Corrupt`] for the root, [`Error::NotAFile`], [`Error::Malformed`], [`Error::Io`].
    pub async fn read(&self, cid: &Cid) -> Result<Content, Error> {
        let content = self.read_blocking(cid).await?;
        let bytes = content.bytes;
        let chunks = futures_util::stream::unfold(Some(content), |content| async move {
            let mut content = content?;
            let step = blocking(move || Ok((content.next_chunk()?, content))).await;
            match step {
                Ok((Some(chunk), content)) => Some((Ok(chunk), Some(content))),
                Ok((None, _)) => None,
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(Content { bytes, reader: StreamReader::new(chunks.boxed()) })
    }

    /// Opens content for a thread that may block.
    ///
    /// # Errors
    /// As [`BlockStore::read`].
    pub async fn read_blocking(&self, cid: &Cid) -> Result<BlockingContent, Error> {
        let root = normalise(cid);
        self.run(move |inner| {
            let block = inner.disk.load(&root)?;
            let file = unixfs::decode(&root, &block)?.file.ok_or(Error::NotAFile(root))?;
            let (disk, bytes) = (Arc::clone(&inner.disk), file.file_bytes);
            Ok(BlockingContent { disk, ahead: vec![(root, bytes, 0)], current: Bytes::new(), bytes })
        })
        .await
    }
}

impl Content {
    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl AsyncRead for Content {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<IoResult<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Content").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl BlockingContent {
    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next piece of the file, `None` at its end. Blocks the thread.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], [`Error::Malformed`] if sizes do not add up, [`Error::TooDeep`], [`Error::Io`].
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some((cid, announced, depth)) = self.ahead.pop() {
            let block = self.disk.load(&cid)?;
            let node = unixfs::decode(&cid, &block)?;
            let file = node.file.ok_or(Error::NotAFile(cid))?;
            if file.file_bytes != announced {
                return Err(Error::Malformed { cid, reason: "its size is not what its parent announced" });
            }
            if !node.links.is_empty() && depth >= DAG_DEPTH_MAX {
                return Err(Error::TooDeep(cid));
            }
            let children = node.links.iter().zip(&file.below).rev();
            self.ahead.extend(children.map(|(link, bytes)| (link.cid, *bytes, depth + 1)));
            if !file.data.is_empty() {
                return Ok(Some(file.data));
            }
        }
        Ok(None)
    }
}

impl Read for BlockingContent {
    fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        if self.current.is_empty() {
            match self.next_chunk()? {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}
