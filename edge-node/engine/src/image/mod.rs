//! Image tars: OCI layouts and `docker save` files, packed by [`pack()`], read and kept by [`Store`].
//!
//! Sources: OCI image-spec 1.1 (`image-layout.md`, `manifest.md`, `config.md`, `layer.md`); Docker Image Specification v1.2
//! (`manifest.json` of `docker save`). Everything read here is hostile until proven otherwise: each blob against its digest, each
//! layer against its `diff_id`, each size against a named limit, each path against the root.

mod digest;
mod entries;
mod layout;
mod pack;
mod store;
mod unpack;

use std::path::{Path, PathBuf};

pub use digest::ImageId;
pub(crate) use digest::{Digest, Hashing};
pub use layout::ImageConfig;
pub(crate) use pack::REPOSITORY;
pub use pack::{FileSource, PackConfig, PackFile, Packed, pack};
pub use store::{Store, inspect};
pub(crate) use store::{scratch_file, spool};

/// Bounds of what is read. Counts and bytes are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// The image tar itself.
    pub tar_bytes_max: u64,
    /// Everything that its layers unpack to.
    pub unpacked_bytes_max: u64,
    /// Files, directories and links of all layers.
    pub files_max: u64,
    /// Members of the image tar.
    pub members_max: u64,
    /// Layers of one image.
    pub layers_max: usize,
    /// One JSON document.
    pub json_bytes_max: u64,
}

/// Longest path or link target inside a tar, in bytes (Linux `PATH_MAX`).
pub const TAR_PATH_BYTES_MAX: u64 = 4096;
/// Longest PAX extension header, in bytes.
pub const PAX_BYTES_MAX: u64 = 64 * 1024;

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            tar_bytes_max: 1 << 30,
            unpacked_bytes_max: 2 << 30,
            files_max: 200_000,
            members_max: 2048,
            layers_max: 128,
            json_bytes_max: 4 << 20,
        }
    }
}

/// Why an image is refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no tar, or is cut off.
    #[error("the tar is malformed or cut off")]
    Tar(#[source] std::io::Error),
    /// A tar without `index.json` and without `manifest.json`.
    #[error("the tar holds no image: neither index.json nor manifest.json")]
    NotAnImage,
    /// A JSON document of the image does not say what it should.
    #[error("{document} of the image is malformed")]
    Json { document: String, source: serde_json::Error },
    /// A document names a blob that the tar does not hold.
    #[error("the image names {0}, which the tar does not hold")]
    MissingBlob(String),
    /// A digest is not `sha256:` and 64 hexadecimal digits.
    #[error("{0:?} is not a sha256 digest")]
    BadDigest(String),
    /// A blob's content is not what its name or descriptor says.
    #[error("{blob} has the digest {actual}, not {expected}")]
    DigestMismatch { blob: String, expected: String, actual: String },
    /// A blob's size is not what its descriptor says.
    #[error("{blob} has {actual} bytes, not {expected}")]
    SizeMismatch { blob: String, expected: u64, actual: u64 },
    /// The image is intact but not the one that was asked for.
    #[error("the image is {actual}, expected was {expected}")]
    NotExpected { expected: ImageId, actual: ImageId },
    /// `index.json` and `manifest.json` of one tar describe different images.
    #[error("index.json describes {index}, manifest.json describes {manifest}")]
    TwoFaced { index: ImageId, manifest: ImageId },
    /// More than one image for this machine, or none.
    #[error("the tar holds {0} images for this machine, expected is one")]
    ImageCount(usize),
    /// Built for another operating system or processor.
    #[error("the image is for {actual}, this machine is {expected}")]
    WrongPlatform { actual: String, expected: String },
    /// A media type, compression or tar feature that is not read.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A named limit is exceeded.
    #[error("the image's {what} exceed the limit of {max}")]
    TooLarge { what: &'static str, max: u64 },
    /// A path leaves the root or passes through something that is no directory.
    #[error("the path {0:?} is unsafe")]
    UnsafePath(PathBuf),
    /// A device node, FIFO or socket.
    #[error("{path:?} is of type {kind:?}; images may hold files, directories and links only")]
    SpecialFile { path: PathBuf, kind: char },
    /// A configuration that cannot be run.
    #[error("the image has no command to run")]
    NoCommand,
    /// A file that is being packed changed meanwhile.
    #[error("{0} changed while it was packed")]
    SourceChanged(PathBuf),
    /// A file of the host failed.
    #[error("cannot {operation} {}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

impl Error {
    pub(crate) fn io<E: Into<std::io::Error>>(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, path: path.as_ref().to_owned(), source: source.into() }
    }
}

/// The processor of this machine in the words of the OCI image specification (`GOARCH`).
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
