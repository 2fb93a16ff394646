//! What can go wrong in a block store, by name.

use cid::Cid;

/// Any failure of the store. Input of others (a peer's stream, a stored file that was changed) is a value here, never a panic.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; the store is unchanged except for whole, verified blocks.
    #[error("{action} failed")]
    Io {
        /// What was attempted, as "read block".
        action: &'static str,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Another process (or another `BlockStore` in this one) has the directory open.
    #[error("the block store is in use by another process")]
    Locked,
    /// The file of pins is not readable; refusing to start beats collecting everything as garbage.
    #[error("the list of pins is not readable")]
    Pins(#[source] serde_json::Error),
    /// More pins than [`crate::PINS_MAX`] or a label longer than [`crate::LABEL_BYTES_MAX`] or empty.
    #[error("pin refused: {0}")]
    PinRefused(&'static str),
    /// A text is no CID.
    #[error("not a content id: {0}")]
    InvalidCid(String),
    /// A CID names a codec or hash that the store does not keep (it keeps raw and dag-pb under SHA-256).
    #[error("content id {cid} is not supported: {reason}")]
    Unsupported {
        /// The id in question.
        cid: Cid,
        /// Which part of it.
        reason: &'static str,
    },
    /// The block is not in the store.
    #[error("block {0} is missing")]
    Missing(Cid),
    /// The block on disk was not what its name says; it was removed and can be fetched anew.
    #[error("block {0} was damaged on disk and has been removed")]
    Corrupt(Cid),
    /// Bytes that came in do not hash to the id they came under.
    #[error("the bytes received for block {0} do not match it")]
    HashMismatch(Cid),
    /// A block is larger than [`crate::BLOCK_BYTES_MAX`].
    #[error("a block of {bytes} bytes exceeds the limit of {} bytes", crate::BLOCK_BYTES_MAX)]
    BlockTooLarge {
        /// Its size as announced.
        bytes: u64,
    },
    /// The bytes match their id but are no valid dag-pb or UnixFS.
    #[error("block {cid} is malformed: {reason}")]
    Malformed {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The content is a directory or something else without bytes of its own.
    #[error("content {0} is not a file")]
    NotAFile(Cid),
    /// A DAG goes deeper than [`crate::DAG_DEPTH_MAX`].
    #[error("the DAG below {0} is too deep")]
    TooDeep(Cid),
    /// The store's own limit would be passed.
    #[error("the store is full: {needed_bytes} bytes needed, limit {limit_bytes} bytes")]
    Full {
        /// Size with the new block.
        needed_bytes: u64,
        /// Configured size.
        limit_bytes: u64,
    },
    /// The transfer is larger than the caller allows, by what was received or by what its root announces.
    #[error("the content exceeds the limit of {limit} {unit}")]
    TooLarge {
        /// The limit that was passed.
        limit: u64,
        /// "bytes" or "blocks".
        unit: &'static str,
    },
    /// The connection under a CAR stream failed.
    #[error("the CAR stream failed")]
    Stream(#[source] std::io::Error),
    /// A CAR stream does not begin with a CARv1 header.
    #[error("not a CAR stream: {0}")]
    CarHeader(String),
    /// A CAR stream is for other content than was asked for.
    #[error("the CAR stream is not for {0}")]
    CarRoot(Cid),
    /// A frame of a CAR stream is not a CID with a block.
    #[error("malformed CAR frame: {0}")]
    CarFrame(&'static str),
    /// A block came that the root does not reach by what came before it (CARs are read in depth-first order, parents first).
    #[error("block {0} does not belong to the content asked for")]
    Unexpected(Cid),
    /// The stream ended before the content was complete; what came is kept and a further attempt needs only the rest.
    #[error("the stream ended early, {missing} known blocks are missing")]
    Truncated {
        /// Blocks whose ids are known and that did not come.
        missing: u64,
    },
    /// The peer could not give a block.
    #[error("the source did not give {cid}")]
    Source {
        /// The block or DAG asked for.
        cid: Cid,
        /// Why.
        #[source]
        source: crate::SourceError,
    },
    /// Nothing arrived for longer than the limit of the fetch.
    #[error("the source stalled while giving {0}")]
    Stalled(Cid),
    /// Garbage is not collected while content is being written; try again later.
    #[error("content is being written, no garbage collected")]
    Busy,
    /// The runtime is shutting down or a worker died.
    #[error("the storage worker stopped")]
    Worker(#[source] tokio::task::JoinError),
}

impl Error {
    /// Adapter for `map_err`: an operating system error with what was attempted.
    pub(crate) fn io(action: &'static str) -> impl Fn(std::io::Error) -> Error {
        move |source| Error::Io { action, source }
    }

    /// Whether the same fetch may succeed when it is simply tried again (from the same or another source).
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Io { .. }
            | Error::Stream(_)
            | Error::Truncated { .. }
            | Error::Source { .. }
            | Error::Stalled(_)
            | Error::Busy
            | Error::Worker(_) => true,
            Error::Locked
            | Error::Pins(_)
            | Error::PinRefused(_)
            | Error::InvalidCid(_)
            | Error::Unsupported { .. }
            | Error::Missing(_)
            | Error::Corrupt(_)
            | Error::HashMismatch(_)
            | Error::BlockTooLarge { .. }
            | Error::Malformed { .. }
            | Error::NotAFile(_)
            | Error::TooDeep(_)
            | Error::Full { .. }
            | Error::TooLarge { .. }
            | Error::CarHeader(_)
            | Error::CarRoot(_)
            | Error::CarFrame(_)
            | Error::Unexpected(_) => false,
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { source, .. } | Error::Stream(source) => source,
            Error::Missing(_) => std::io::Error::new(std::io::ErrorKind::NotFound, error),
            other => std::io::Error::new(std::io::ErrorKind::InvalidData, other),
        }
    }
}
