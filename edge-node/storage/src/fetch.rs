//! Pulling content from a peer, and going on where an earlier attempt stopped.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::io::StreamReader;

use crate::{
    CarStream, Error, FETCH_PARALLEL,
    car::receive_car,
    content::{DAG_PB, digest_of, normalise},
    pins::check_label,
    receive::{Limits, Received, Receiver},
    store::{BlockStore, blocking},
};

/// Why a source did not give something.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It answered that it does not have it.
    #[error("the source does not have it")]
    NotFound,
    /// It does not answer, or refused.
    #[error("the source failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Somebody who may have blocks. Nothing that it gives is trusted.
#[async_trait]
pub trait BlockSource: Send + Sync {
    /// One block. Implementations should stop reading after [`crate::BLOCK_BYTES_MAX`].
    async fn block(&self, cid: &Cid) -> Result<Bytes, SourceError>;

    /// The DAG below `root` as a CARv1 stream in depth-first order.
    async fn car(&self, root: &Cid) -> Result<CarStream, SourceError>;
}

/// Another store of the same process.
#[async_trait]
impl BlockSource for BlockStore {
    async fn block(&self, cid: &Cid) -> Result<Bytes, SourceError> {
        self.get_block(cid).await.map_err(SourceError::from)
    }

    async fn car(&self, root: &Cid) -> Result<CarStream, SourceError> {
        self.export_car(root).await.map_err(SourceError::from)
    }
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        match error {
            Error::Missing(_) => SourceError::NotFound,
            other => SourceError::Failed(Box::new(other)),
        }
    }
}

/// What a fetch may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchLimits {
    /// Size of the content.
    pub content: Limits,
    /// Longest silence of the source before the fetch gives up on it.
    pub silence_max: Duration,
}

impl Default for FetchLimits {
    /// The default [`Limits`], 10 s of silence.
    fn default() -> Self {
        FetchLimits { content: Limits::default(), silence_max: Duration::from_secs(10) }
    }
}

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// Blocks of the content that are here.
    pub blocks: u64,
    /// Blocks of the content known so far; grows while inner nodes arrive.
    pub blocks_known: u64,
    /// Bytes that are here.
    pub bytes: u64,
    /// Bytes in all by the root's own account, once the root is here; more than will come if chunks repeat.
    pub bytes_total: Option<u64>,
}

impl Progress {
    fn of(receiver: &Receiver) -> Self {
        Progress {
            blocks: receiver.known_blocks(),
            blocks_known: receiver.known_blocks() + receiver.wanted_blocks(),
            bytes: receiver.known_bytes,
            bytes_total: receiver.announced_bytes,
        }
    }
}

impl BlockStore {
    /// Makes the DAG below `root` complete from `source`, every block checked before it is stored, and pins it under `label` from the
    /// start: what an attempt brought survives its failure, a restart and the garbage collector, and the next attempt asks only for
    /// the rest. Content of which nothing is here comes as one CAR, a rest block by block.
    ///
    /// # Errors
    /// Those for which [`Error::is_transient`] holds are worth a further attempt. Others are about the content or the source's honesty:
    /// [`Error::HashMismatch`], [`Error::Unexpected`], [`Error::Malformed`], [`Error::TooLarge`], [`Error::Full`], ...
    pub async fn fetch(
        &self,
        source: &dyn BlockSource,
        root: &Cid,
        label: &str,
        limits: FetchLimits,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Received, Error> {
        digest_of(root)?;
        let (root, label) = (normalise(root), check_label(label)?);
        let _writing = self.begin_writing().await;
        let receiver = self
            .run(move |inner| {
                inner.pin(root, label)?;
                Receiver::new(Arc::clone(&inner.disk), root, limits.content)
            })
            .await?;
        progress(Progress::of(&receiver));
        let whole = receiver.known_blocks() == 0;
        let (mut receiver, mut outcome) = (receiver, Ok(()));
        if whole && root.codec() == DAG_PB {
            (receiver, outcome) = fetch_car(source, &root, receiver, limits, progress).await?;
        }
        if outcome.is_ok() {
            (receiver, outcome) = fetch_blocks(source, receiver, limits, progress).await?;
        }
        blocking(move || {
            if let Err(error) = outcome {
                receiver.commit()?;
                return Err(error);
            }
            receiver.finish()
        })
        .await
    }
}

type Step = Result<(Receiver, Result<(), Error>), Error>;

/// Everything in one stream. If it breaks off, what is left is for [`fetch_blocks`]; a source that cannot make CARs is no error.
async fn fetch_car(
    source: &dyn BlockSource,
    root: &Cid,
    receiver: Receiver,
    limits: FetchLimits,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Step {
    let stream = match tokio::time::timeout(limits.silence_max, source.car(root)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(content.cid = %root, error = %error, "no CAR from the source, asking for blocks");
            return Ok((receiver, Ok(())));
        }
        Err(_) => return Ok((receiver, Err(Error::Stalled(*root)))),
    };
    let watched = futures_util::stream::unfold(Some(stream), move |stream| async move {
        let mut stream = stream?;
        match tokio::time::timeout(limits.silence_max, stream.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(stream))),
            Ok(Some(Err(error))) => Some((Err(std::io::Error::from(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(std::io::ErrorKind::TimedOut.into()), None)),
        }
    });
    let reader = StreamReader::new(watched.boxed());
    let (receiver, outcome) = receive_car(reader, root, receiver, &|receiver| progress(Progress::of(receiver))).await?;
    match outcome {
        // The connection, not the content: the blocks that are left are asked for one by one.
        Err(Error::Truncated { .. } | Error::Stream(_)) => Ok((receiver, Ok(()))),
        other => Ok((receiver, other)),
    }
}

/// What is still wanted, a few blocks at a time.
async fn fetch_blocks(
    source: &dyn BlockSource,
    mut receiver: Receiver,
    limits: FetchLimits,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Step {
    let mut asked = FuturesUnordered::new();
    loop {
        while asked.len() < FETCH_PARALLEL {
            let Some(cid) = receiver.next_wanted() else { break };
            asked.push(async move { (cid, tokio::time::timeout(limits.silence_max, source.block(&cid)).await) });
        }
        let block = match asked.next().await {
            None => return Ok((receiver, Ok(()))),
            Some((cid, Ok(Ok(block)))) => (cid, block),
            Some((cid, Ok(Err(error)))) => return Ok((receiver, Err(Error::Source { cid, source: error }))),
            Some((cid, Err(_))) => return Ok((receiver, Err(Error::Stalled(cid)))),
        };
        let (back, result) = blocking(move || {
            let result = receiver.accept(&block.0, &block.1);
            Ok((receiver, result))
        })
        .await?;
        receiver = back;
        if let Err(error) = result {
            return Ok((receiver, Err(error)));
        }
        progress(Progress::of(&receiver));
    }
}
