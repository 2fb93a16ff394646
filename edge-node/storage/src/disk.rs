//! Blocks on disk: one file per block, named by its hash, in 256 directories. Everything here blocks the thread.
//!
//! A block is written to `tmp/`, synced, renamed into place; directories are synced once per operation. A crash leaves at
//! most files in `tmp/` (removed at the next start) and whole blocks that nothing refers to yet.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cid::Cid;

use crate::{
    Error, Usage,
    content::{Digest, digest_of, verify_block},
};

/// Blocks that may wait for their sync at the same time; each holds a file descriptor.
const UNSYNCED_BLOCKS_MAX: usize = 64;
/// Bytes that may wait for their sync at the same time.
const UNSYNCED_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Disk {
    blocks: PathBuf,
    temporary: PathBuf,
    limit_bytes: u64,
    occupancy: Mutex<Occupancy>,
    next_temporary: AtomicU64,
    _lock: File,
}

#[derive(Debug, Default)]
struct Occupancy {
    blocks: u64,
    bytes: u64,
    /// Written to `tmp/` but not in place yet; counts against the limit.
    staged_bytes: u64,
}

impl Disk {
    /// Opens or creates the store below `root`, removes what a crash left, counts what is there.
    pub(crate) fn open(root: &Path, limit_bytes: u64) -> Result<Self, Error> {
        let (blocks, temporary) = (root.join("blocks"), root.join("tmp"));
        fs::create_dir_all(&blocks).map_err(Error::io("create the block store"))?;
        fs::create_dir_all(&temporary).map_err(Error::io("create the block store"))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"));
        let lock = lock.map_err(Error::io("open the lock of the block store"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked),
            Err(TryLockError::Error(source)) => return Err(Error::Io { action: "lock the block store", source }),
        }
        for entry in fs::read_dir(&temporary).map_err(Error::io("list temporary files"))? {
            let path = entry.map_err(Error::io("list temporary files"))?.path();
            fs::remove_file(path).map_err(Error::io("remove a temporary file"))?;
        }
        sync_directory(root)?;
        let disk =
            Disk { blocks, temporary, limit_bytes, occupancy: Mutex::default(), next_temporary: AtomicU64::new(0), _lock: lock };
        let mut occupancy = Occupancy::default();
        disk.for_each(|_, bytes| {
            occupancy.blocks += 1;
            occupancy.bytes += bytes;
            Ok(())
        })?;
        *disk.occupancy() = occupancy;
        Ok(disk)
    }

    pub(crate) fn usage(&self) -> Usage {
        let occupancy = self.occupancy();
        Usage { blocks: occupancy.blocks, bytes: occupancy.bytes, limit_bytes: self.limit_bytes }
    }

    /// Size of a stored block, `None` if it is not stored.
    pub(crate) fn size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match fs::metadata(self.path(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { action: "look up a block", source }),
        }
    }

    /// Reads a block and checks it. A damaged one is removed, so that it counts as missing from then on.
    pub(crate) fn load(&self, cid: &Cid) -> Result<Bytes, Error> {
        let bytes = self.load_unverified(cid)?;
        match verify_block(cid, &bytes) {
            Ok(()) => Ok(bytes),
            Err(Error::HashMismatch(_) | Error::BlockTooLarge { .. }) => {
                tracing::warn!(block.cid = %cid, "damaged block removed");
                self.remove(&digest_of(cid)?)?;
                Err(Error::Corrupt(*cid))
            }
            Err(other) => Err(other),
        }
    }

    /// Reads a block as it is, at most one byte more than a block may have.
    pub(crate) fn load_unverified(&self, cid: &Cid) -> Result<Bytes, Error> {
        let file = match File::open(self.path(&digest_of(cid)?)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Error::Missing(*cid)),
            Err(source) => return Err(Error::Io { action: "open a block", source }),
        };
        let length = file.metadata().map_err(Error::io("read a block"))?.len().min(crate::BLOCK_BYTES_MAX as u64);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
        file.take(crate::BLOCK_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(Error::io("read a block"))?;
        Ok(Bytes::from(bytes))
    }

    /// Removes a block if it is there; gives its size.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<u64, Error> {
        let mut occupancy = self.occupancy();
        let Some(bytes) = self.size(digest)? else { return Ok(0) };
        fs::remove_file(self.path(digest)).map_err(Error::io("remove a block"))?;
        occupancy.blocks = occupancy.blocks.saturating_sub(1);
        occupancy.bytes = occupancy.bytes.saturating_sub(bytes);
        Ok(bytes)
    }

    /// Calls `visit` with every block's hash and size, in no particular order.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(Digest, u64) -> Result<(), Error>) -> Result<(), Error> {
        for shard in fs::read_dir(&self.blocks).map_err(Error::io("list blocks"))? {
            let shard = shard.map_err(Error::io("list blocks"))?.path();
            if !shard.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&shard).map_err(Error::io("list blocks"))? {
                let entry = entry.map_err(Error::io("list blocks"))?;
                let mut digest = [0; 32];
                // What is not named like a block is not ours: left alone, not counted.
                if entry.file_name().to_str().is_some_and(|name| hex::decode_to_slice(name, &mut digest).is_ok()) {
                    visit(Digest(digest), entry.metadata().map_err(Error::io("list blocks"))?.len())?;
                }
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.shard(digest.0[0]).join(hex::encode(digest.0))
    }

    fn shard(&self, shard: u8) -> PathBuf {
        self.blocks.join(hex::encode([shard]))
    }

    fn occupancy(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks of one operation on their way to disk. Dropping it without [`Batch::commit`] removes what is not in place yet.
#[derive(Debug)]
pub(crate) struct Batch {
    disk: Arc<Disk>,
    staged: Vec<Staged>,
    staged_digests: BTreeSet<Digest>,
    staged_bytes: u64,
    shards: BTreeSet<u8>,
    new_shard: bool,
    /// Blocks and bytes that this operation added.
    pub(crate) added_blocks: u64,
    pub(crate) added_bytes: u64,
}

#[derive(Debug)]
struct Staged {
    digest: Digest,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Batch {
    pub(crate) fn new(disk: Arc<Disk>) -> Self {
        Batch {
            disk,
            staged: Vec::new(),
            staged_digests: BTreeSet::new(),
            staged_bytes: 0,
            shards: BTreeSet::new(),
            new_shard: false,
            added_blocks: 0,
            added_bytes: 0,
        }
    }

    /// Verifies a block and writes it, unless it is stored already. It is durable after [`Batch::commit`].
    pub(crate) fn stage(&mut self, cid: &Cid, bytes: &[u8]) -> Result<(), Error> {
        verify_block(cid, bytes)?;
        let digest = digest_of(cid)?;
        // Its directory is synced even if another operation wrote it: that one may not have done so yet.
        self.shards.insert(digest.0[0]);
        if self.staged_digests.contains(&digest) || self.disk.size(&digest)?.is_some() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        {
            let mut occupancy = self.disk.occupancy();
            let needed_bytes = occupancy.bytes.saturating_add(occupancy.staged_bytes).saturating_add(length);
            if needed_bytes > self.disk.limit_bytes {
                return Err(Error::Full { needed_bytes, limit_bytes: self.disk.limit_bytes });
            }
            occupancy.staged_bytes += length;
        }
        self.staged_bytes += length;
        let number = self.disk.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.disk.temporary.join(format!("{number}.tmp"));
        let written = OpenOptions::new().create_new(true).write(true).open(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(source) => {
                drop(fs::remove_file(&path));
                return Err(Error::Io { action: "write a block", source });
            }
        };
        self.staged.push(Staged { digest, path, file, bytes: length });
        self.staged_digests.insert(digest);
        if self.staged.len() >= UNSYNCED_BLOCKS_MAX || self.staged_bytes >= UNSYNCED_BYTES_MAX {
            self.place()?;
        }
        Ok(())
    }

    /// Makes everything staged durable. The batch may be used again afterwards.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        self.place()?;
        for shard in &self.shards {
            sync_directory(&self.disk.shard(*shard))?;
        }
        if self.new_shard {
            sync_directory(&self.disk.blocks)?;
        }
        self.shards.clear();
        self.new_shard = false;
        Ok(())
    }

    /// Syncs the bytes of what is staged, then gives them their names.
    fn place(&mut self) -> Result<(), Error> {
        for staged in &self.staged {
            staged.file.sync_data().map_err(Error::io("sync a block"))?;
        }
        let disk = Arc::clone(&self.disk);
        let mut occupancy = disk.occupancy();
        while let Some(staged) = self.staged.pop() {
            let result = self.rename(&staged);
            self.staged_digests.remove(&staged.digest);
            self.staged_bytes = self.staged_bytes.saturating_sub(staged.bytes);
            occupancy.staged_bytes = occupancy.staged_bytes.saturating_sub(staged.bytes);
            if matches!(result, Ok(true)) {
                occupancy.blocks += 1;
                occupancy.bytes += staged.bytes;
                self.added_blocks += 1;
                self.added_bytes += staged.bytes;
            } else {
                drop(fs::remove_file(&staged.path));
            }
            result?;
        }
        Ok(())
    }

    /// False if another operation placed the same block meanwhile.
    fn rename(&mut self, staged: &Staged) -> Result<bool, Error> {
        let shard = self.disk.shard(staged.digest.0[0]);
        match fs::create_dir(&shard) {
            Ok(()) => self.new_shard = true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Io { action: "create a directory of blocks", source }),
        }
        if self.disk.size(&staged.digest)?.is_some() {
            return Ok(false);
        }
        fs::rename(&staged.path, self.disk.path(&staged.digest)).map_err(Error::io("place a block"))?;
        Ok(true)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for staged in self.staged.drain(..) {
            drop(fs::remove_file(&staged.path));
        }
        let mut occupancy = self.disk.occupancy();
        occupancy.staged_bytes = occupancy.staged_bytes.saturating_sub(self.staged_bytes);
    }
}

/// Replaces a small file so that after a crash it is either the old or the new one.
pub(crate) fn replace_file(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let action = "write the list of pins";
    let temporary = directory.join("tmp").join(name);
    let mut file = File::create(&temporary).map_err(Error::io(action))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(Error::io(action))?;
    fs::rename(&temporary, directory.join(name)).map_err(Error::io(action))?;
    sync_directory(directory)
}

fn sync_directory(path: &Path) -> Result<(), Error> {
    match File::open(path) {
        Ok(directory) => directory.sync_all().map_err(Error::io("sync a directory")),
        // A shard of which every block was present under another operation's hand and collected since.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { action: "sync a directory", source }),
    }
}
