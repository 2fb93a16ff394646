//! Images on disk, verified and unpacked: `<directory>/<hex>/{config.json,rootfs}`. An entry exists whole or not at all.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{ImageTar, Layout, parse_config};
use super::unpack::Unpacker;
use super::{Error, ImageConfig, ImageId, ImageLimits};

const CONFIG: &str = "config.json";
const ROOTFS: &str = "rootfs";
/// Unfinished entries; removed when a store is opened.
const UNFINISHED: &str = ".unfinished-";

/// A directory of unpacked images. All methods block.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    limits: ImageLimits,
}

/// The id and configuration of the one image of a tar, verified without unpacking: every document and every layer is read and checked.
///
/// # Errors
/// Everything that is wrong with the image.
pub fn inspect(tar: &Path, limits: ImageLimits) -> Result<(ImageId, ImageConfig), Error> {
    let archive = ImageTar::open(tar, limits)?;
    let layout = archive.layout()?;
    let mut left = limits.unpacked_bytes_max;
    for layer in &layout.layers {
        let read = archive.read_layer(layer, left, |reader| io::copy(reader, &mut io::sink()).map_err(Error::Tar))?;
        left = left.saturating_sub(read);
    }
    Ok((layout.id, layout.config))
}

impl Store {
    /// Opens or makes a store, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(directory: &Path, limits: ImageLimits) -> Result<Self, Error> {
        // tenants run as an ordinary user of the host: nobody but the owner passes here
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(Error::io("make", directory))?;
        for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
            let entry = entry.map_err(Error::io("list", directory))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io("remove", &path))?;
            }
        }
        Ok(Self { directory: directory.to_owned(), limits })
    }

    /// The bounds of what is loaded.
    #[must_use]
    pub fn limits(&self) -> ImageLimits {
        self.limits
    }

    /// A path in the store's file system that vanishes at the next [`Store::open`] if it is left.
    pub(crate) fn scratch(&self) -> PathBuf {
        scratch_file(&self.directory)
    }

    fn entry(&self, image: &ImageId) -> PathBuf {
        self.directory.join(image.hex())
    }

    /// The unpacked root of an image.
    #[must_use]
    pub fn rootfs(&self, image: &ImageId) -> PathBuf {
        self.entry(image).join(ROOTFS)
    }

    /// Is the image here?
    #[must_use]
    pub fn has(&self, image: &ImageId) -> bool {
        self.entry(image).join(CONFIG).is_file()
    }

    /// How the image wants to be run; `None` when it is not here.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::DigestMismatch`] when the stored document was changed.
    pub fn config(&self, image: &ImageId) -> Result<Option<ImageConfig>, Error> {
        let path = self.entry(image).join(CONFIG);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let actual = ImageId::of(&bytes);
        if actual != *image {
            let blob = path.display().to_string();
            return Err(Error::DigestMismatch { blob, expected: image.to_string(), actual: actual.to_string() });
        }
        parse_config(&bytes).map(Some)
    }

    /// Verifies and unpacks the image of a tar.
    ///
    /// # Errors
    /// Everything that is wrong with the image; [`Error::NotExpected`] if it is another one. Nothing is left behind.
    pub fn load(&self, tar: &Path, expected: Option<&ImageId>) -> Result<ImageId, Error> {
        let archive = ImageTar::open(tar, self.limits)?;
        let layout = archive.layout()?;
        if let Some(expected) = expected.filter(|expected| **expected != layout.id) {
            return Err(Error::NotExpected { expected: *expected, actual: layout.id });
        }
        if self.has(&layout.id) {
            return Ok(layout.id);
        }
        let scratch = self.scratch();
        let outcome = self.unpack(&archive, &layout, &scratch);
        if outcome.is_err() {
            // the first error is the one to tell; a rest is removed at the next start
            let _ = fs::remove_dir_all(&scratch);
        }
        outcome.map(|()| layout.id)
    }

    fn unpack(&self, archive: &ImageTar, layout: &Layout, scratch: &Path) -> Result<(), Error> {
        let rootfs = scratch.join(ROOTFS);
        fs::create_dir_all(&rootfs).map_err(Error::io("make", &rootfs))?;
        fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o755)).map_err(Error::io("set the mode of", &rootfs))?;
        let mut unpacker = Unpacker::new(&rootfs, self.limits)?;
        for layer in &layout.layers {
            archive.read_layer(layer, unpacker.bytes_left(), |reader| unpacker.apply(reader))?;
        }
        let config = scratch.join(CONFIG);
        fs::write(&config, &layout.config_bytes).map_err(Error::io("write", &config))?;
        // a power cut after the rename must not show empty files
        let handle = fs::File::open(scratch).map_err(Error::io("open", scratch))?;
        rustix::fs::syncfs(&handle).map_err(Error::io("sync", scratch))?;
        let entry = self.entry(&layout.id);
        match fs::rename(scratch, &entry) {
            Ok(()) => {}
            // another call loaded the same image meanwhile
            Err(_) if self.has(&layout.id) => return fs::remove_dir_all(scratch).map_err(Error::io("remove", scratch)),
            Err(error) => return Err(Error::io("rename", scratch)(error)),
        }
        let directory = fs::File::open(&self.directory).map_err(Error::io("open", &self.directory))?;
        directory.sync_all().map_err(Error::io("sync", &self.directory))
    }

    /// Removes an image; `false` when there was none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, image: &ImageId) -> Result<bool, Error> {
        let (entry, scratch) = (self.entry(image), self.scratch());
        // renamed first, so that it is never half there
        match fs::rename(&entry, &scratch) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("remove", &entry)(error)),
        }
        fs::remove_dir_all(&scratch).map_err(Error::io("remove", &scratch))?;
        Ok(true)
    }
}

/// A path in `directory` that nobody else uses.
pub(crate) fn scratch_file(directory: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{UNFINISHED}{}-{number}", std::process::id()))
}

/// Writes what an image tar's reader gives into a file, up to `bytes_max`. On error the file is removed.
pub(crate) async fn spool(
    reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    path: &Path,
    bytes_max: u64,
) -> Result<(), Error> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let copy = async {
        let mut file = tokio::fs::File::create(path).await.map_err(Error::io("create", path))?;
        let mut bounded = reader.take(bytes_max.saturating_add(1));
        let copied = tokio::io::copy(&mut bounded, &mut file).await.map_err(Error::io("write", path))?;
        if copied > bytes_max {
            return Err(Error::TooLarge { what: "tar bytes", max: bytes_max });
        }
        file.flush().await.map_err(Error::io("write", path))
    };
    let outcome = copy.await;
    if outcome.is_err() {
        // the first error is the one to tell
        let _ = tokio::fs::remove_file(path).await;
    }
    outcome
}
