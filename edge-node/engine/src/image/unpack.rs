//! Applies layers to a directory. The kernel keeps every path inside it: parents are opened with `openat2(RESOLVE_IN_ROOT)`, last
//! components are never followed.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::entries::{self, Entry, Kind};
use super::{Error, ImageLimits};

/// Prefix of a whiteout (OCI image-spec, `layer.md`).
const WHITEOUT: &[u8] = b".wh.";
/// Name of an opaque whiteout.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A root directory that layers are applied to, bottom first.
pub(super) struct Unpacker {
    root: OwnedFd,
    limits: ImageLimits,
    files: u64,
    bytes: u64,
    /// Only root can give files away; elsewhere they stay the caller's.
    keep_owner: bool,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| match errno {
        Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::EXIST | Errno::NAMETOOLONG => Error::UnsafePath(path.to_owned()),
        errno => Error::Io { operation, path: path.to_owned(), source: errno.into() },
    }
}

impl Unpacker {
    pub(super) fn new(root: &Path, limits: ImageLimits) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(failed("open", root))?;
        Ok(Self { root, limits, files: 0, bytes: 0, keep_owner: rustix::process::geteuid().is_root() })
    }

    /// Bytes that further layers may still unpack to.
    pub(super) fn bytes_left(&self) -> u64 {
        self.limits.unpacked_bytes_max.saturating_sub(self.bytes)
    }

    /// Applies one uncompressed layer.
    pub(super) fn apply(&mut self, layer: &mut dyn Read) -> Result<(), Error> {
        // what this layer itself brings: an opaque whiteout hides only what lies below
        let mut brought = BTreeSet::new();
        entries::for_each(layer, self.limits.files_max, |entry, content| {
            self.files += 1;
            if self.files > self.limits.files_max {
                return Err(Error::TooLarge { what: "files", max: self.limits.files_max });
            }
            if entry.path.as_os_str().is_empty() {
                return Ok(());
            }
            self.apply_entry(entry, content, &brought)?;
            brought.insert(entry.path.clone());
            Ok(())
        })
    }

    fn apply_entry(&mut self, entry: &Entry, content: &mut dyn Read, brought: &BTreeSet<PathBuf>) -> Result<(), Error> {
        let (parent, name) = self.parent(&entry.path)?;
        if name.as_bytes() == OPAQUE {
            return self.hide_all(&parent, entry.path.parent().unwrap_or(Path::new("")), brought);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Err(Error::UnsafePath(entry.path.clone()));
            }
            return remove_all(&parent, hidden, &entry.path);
        }
        match &entry.kind {
            Kind::Directory => self.make_directory(&parent, &name, entry)?,
            Kind::File => self.make_file(&parent, &name, entry, content)?,
            Kind::Symlink(target) => {
                remove_all(&parent, &name, &entry.path)?;
                rustix::fs::symlinkat(target, &parent, &name).map_err(failed("link", &entry.path))?;
                self.give(&parent, &name, entry)?;
            }
            Kind::Hardlink(target) => self.make_hardlink(&parent, &name, entry, target)?,
            Kind::Special(kind) => return Err(Error::SpecialFile { path: entry.path.clone(), kind: *kind }),
        }
        Ok(())
    }

    /// Opens a directory below the root; symbolic links on the way are resolved as if the root were `/`.
    fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        if path.as_os_str().is_empty() {
            return rustix::io::dup(&self.root);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// The parent of `path`, created where a layer leaves it out, and the last component.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Error> {
        let name = path.file_name().ok_or_else(|| Error::UnsafePath(path.to_owned()))?.to_owned();
        let above = path.parent().unwrap_or(Path::new(""));
        match self.open_directory(above) {
            Ok(parent) => return Ok((parent, name)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("open", path)(errno)),
        }
        let mut so_far = PathBuf::new();
        for part in above {
            let directory = self.open_directory(&so_far).map_err(failed("open", path))?;
            match rustix::fs::mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed("make a directory for", path)(errno)),
            }
            so_far.push(part);
        }
        // a dangling symbolic link on the way still ends here
        let parent = self.open_directory(above).map_err(|errno| match errno {
            Errno::NOENT => Error::UnsafePath(path.to_owned()),
            errno => failed("open", path)(errno),
        })?;
        Ok((parent, name))
    }

    fn make_directory(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), Error> {
        if file_type(parent, name, &entry.path)? != Some(FileType::Directory) {
            remove_all(parent, name, &entry.path)?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(failed("make", &entry.path))?;
        }
        self.give(parent, name, entry)?;
        // the set-id bits of a directory only matter for files that somebody writes there; the root is read-only
        set_mode(parent, name, entry.mode & 0o1777, &entry.path)
    }

    fn make_file(&mut self, parent: &OwnedFd, name: &OsStr, entry: &Entry, content: &mut dyn Read) -> Result<(), Error> {
        if entry.size > self.bytes_left() {
            return Err(Error::TooLarge { what: "unpacked bytes", max: self.limits.unpacked_bytes_max });
        }
        remove_all(parent, name, &entry.path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("create", &entry.path))?;
        let mut file = File::from(file);
        let copied = io::copy(content, &mut file).map_err(|source| match source.kind() {
            // disk full and the like are ours; the rest is the tar's
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => Error::Tar(source),
            _ => Error::Io { operation: "write", path: entry.path.clone(), source },
        })?;
        self.bytes += copied;
        if copied != entry.size {
            return Err(Error::Tar(io::ErrorKind::UnexpectedEof.into()));
        }
        self.give(parent, name, entry)?;
        // set-user-id and set-group-id are dropped: nothing in a container may gain privileges
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(failed("set the mode of", &entry.path))
    }

    fn make_hardlink(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry, target: &Path) -> Result<(), Error> {
        let (target_parent, target_name) = self.parent(target)?;
        if file_type(&target_parent, &target_name, target)? != Some(FileType::RegularFile) {
            return Err(Error::UnsafePath(target.to_owned()));
        }
        if target == entry.path {
            return Ok(());
        }
        remove_all(parent, name, &entry.path)?;
        rustix::fs::linkat(&target_parent, &target_name, parent, name, AtFlags::empty()).map_err(failed("link", &entry.path))
    }

    fn give(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), Error> {
        if !self.keep_owner {
            return Ok(());
        }
        let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else {
            return Err(Error::Unsupported("the user id -1".to_owned()));
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("give away", &entry.path))
    }

    fn hide_all(&self, directory: &OwnedFd, path: &Path, brought: &BTreeSet<PathBuf>) -> Result<(), Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(failed("list", path))?;
        let names: Vec<OsString> = Dir::new(listed)
            .map_err(failed("list", path))?
            .map(|entry| entry.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned()))
            .collect::<Result<_, _>>()
            .map_err(failed("list", path))?;
        for name in names {
            let full = path.join(&name);
            if name == "." || name == ".." || brought.range(full.clone()..).next().is_some_and(|next| next.starts_with(&full)) {
                continue;
            }
            remove_all(directory, &name, &full)?;
        }
        Ok(())
    }
}

/// `chown` reads -1 as "leave it".
fn id(value: u32) -> Option<u32> {
    (value != u32::MAX).then_some(value)
}

fn file_type(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<Option<FileType>, Error> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("look at", path)(errno)),
    }
}

fn set_mode(parent: &OwnedFd, name: &OsStr, mode: u32, path: &Path) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed("open", path))?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(failed("set the mode of", path))
}

/// Removes whatever `name` is; no error when it is nothing.
fn remove_all(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), Error> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed("remove", path)(errno)),
    }
    let mut through = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    through.push(name);
    std::fs::remove_dir_all(through).map_err(Error::io("remove", path))
}
