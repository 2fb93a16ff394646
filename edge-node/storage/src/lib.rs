//! Content-addressed storage of a node: images and sealed configuration as verified blocks on disk.
//!
//! Content is a file cut into chunks of [`CHUNK_BYTES`], stored as raw leaves below a balanced tree of dag-pb nodes with
//! [`LINKS_PER_NODE`] links each, and named by a CIDv1 over SHA-256. Kubo gives the same name for
//! `ipfs add --cid-version=1 --chunker=size-262144` (specs: IPFS UnixFS, CIDv1, CARv1).
//!
//! # Layout
//! * [`BlockStore`] owns a directory: blocks, pins, a size limit, one process at a time (`store`, `disk`, `pins`).
//! * [`BlockStore::add`] turns bytes into content; [`BlockStore::read`] turns content back into bytes (`add`, `read`).
//! * [`BlockStore::missing`], [`BlockStore::verify`], [`BlockStore::total_bytes`] walk a DAG (`dag`).
//! * [`BlockStore::export_car`], [`BlockStore::import_car`] speak CARv1 (`car`), [`BlockStore::fetch`] pulls from a peer behind
//!   [`BlockSource`] and goes on where it stopped (`receive`, `fetch`).
//! * [`BlockStore::keyed_hash`] is the answer to a readiness challenge (`proof`).
//!
//! # What always holds
//! * A block is hashed before its name appears in the store, and again when it is read.
//! * A block's bytes are synced before its name appears; names are synced before an operation reports success.
//! * Blocks that a DAG's root does not reach are never stored on behalf of that root.
//! * What no pin reaches is kept until [`BlockStore::collect_garbage`], so that an interrupted transfer can go on.

mod add;
mod car;
mod content;
mod dag;
mod disk;
mod error;
mod fetch;
mod pins;
mod proof;
mod read;
mod receive;
mod store;
mod unixfs;

pub use self::{
    car::CarStream,
    content::{parse_cid, verify_block},
    dag::Verification,
    error::Error,
    fetch::{BlockSource, FetchLimits, Progress, SourceError},
    pins::{Collected, Pin},
    read::{BlockingContent, Content},
    receive::{Limits, Received},
    store::{BlockStore, Usage},
};
pub use cid::Cid;

/// Size of a leaf in bytes: the default chunker of Kubo, `size-262144`.
pub const CHUNK_BYTES: usize = 262_144;
/// Links of a full inner node: the default width of Kubo's balanced layout.
pub const LINKS_PER_NODE: usize = 174;
/// Largest block that is stored or accepted from a peer, in bytes: what bitswap carries.
pub const BLOCK_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Deepest DAG that is walked. With [`LINKS_PER_NODE`] links four levels below the root already hold 240 TB.
pub const DAG_DEPTH_MAX: usize = 16;
/// Largest header of a CAR stream in bytes; one root needs 59.
pub const CAR_HEADER_BYTES_MAX: usize = 4096;
/// Longest label of a pin in bytes.
pub const LABEL_BYTES_MAX: usize = 128;
/// Most pins of a store.
pub const PINS_MAX: usize = 16_384;
/// Blocks asked of a peer at the same time when single blocks are fetched.
pub const FETCH_PARALLEL: usize = 8;
