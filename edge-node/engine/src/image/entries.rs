//! Walks through a tar without trusting it: long names, PAX headers and sizes are bounded before they are read.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::{Error, PAX_BYTES_MAX, TAR_PATH_BYTES_MAX};

/// One member of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative, without `.` and `..`; empty for the root itself.
    pub path: PathBuf,
    pub kind: Kind,
    /// Bytes of content.
    pub size: u64,
    /// Where the content begins in the tar.
    pub offset: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// The target as written; it is only ever resolved inside the root.
    Symlink(PathBuf),
    /// The target as a path from the root, cleaned like [`Entry::path`].
    Hardlink(PathBuf),
    /// Device, FIFO or unknown: the type byte.
    Special(char),
}

/// Cleans a path of a tar: relative to the root whatever it says, and never above it.
pub(super) fn clean(path: &Path) -> Result<PathBuf, Error> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(Error::UnsafePath(path.to_owned())),
        }
    }
    if clean.as_os_str().as_bytes().contains(&0) {
        return Err(Error::UnsafePath(path.to_owned()));
    }
    Ok(clean)
}

fn as_path(bytes: &[u8]) -> PathBuf {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    PathBuf::from(OsStr::from_bytes(bytes.get(..end).unwrap_or_default()))
}

/// What extension headers said about the next member.
#[derive(Default)]
struct Pending {
    path: Option<PathBuf>,
    link: Option<PathBuf>,
}

impl Pending {
    fn read_pax(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for extension in tar::PaxExtensions::new(bytes) {
            let extension = extension.map_err(Error::Tar)?;
            match extension.key_bytes() {
                b"path" => self.path = Some(as_path(extension.value_bytes())),
                b"linkpath" => self.link = Some(as_path(extension.value_bytes())),
                // another size than the header's would let two readers see two different tars
                b"size" => return Err(Error::Unsupported("a PAX size".to_owned())),
                key if key.starts_with(b"GNU.sparse") => return Err(Error::Unsupported("a sparse file".to_owned())),
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_bounded(reader: &mut dyn Read, size: u64, what: &'static str, max: u64) -> Result<Vec<u8>, Error> {
    if size > max {
        return Err(Error::TooLarge { what, max });
    }
    let mut bytes = Vec::new();
    reader.take(size).read_to_end(&mut bytes).map_err(Error::Tar)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(Error::Tar(io::ErrorKind::UnexpectedEof.into())) }
}

/// Calls `visit` for each member in order; its content is what the reader gives, exactly [`Entry::size`] bytes of it.
pub(super) fn for_each<R: Read>(
    reader: R,
    entries_max: u64,
    mut visit: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut archive = tar::Archive::new(reader);
    let mut pending = Pending::default();
    let mut count: u64 = 0;
    for member in archive.entries().map_err(Error::Tar)?.raw(true) {
        let mut member = member.map_err(Error::Tar)?;
        count += 1;
        // extension headers count too: an endless row of them is no better
        if count > entries_max.saturating_mul(3) {
            return Err(Error::TooLarge { what: "members", max: entries_max });
        }
        let size = member.header().entry_size().map_err(Error::Tar)?;
        match member.header().entry_type() {
            EntryType::GNULongName => {
                pending.path = Some(as_path(&read_bounded(&mut member, size, "path bytes", TAR_PATH_BYTES_MAX)?));
            }
            EntryType::GNULongLink => {
                pending.link = Some(as_path(&read_bounded(&mut member, size, "path bytes", TAR_PATH_BYTES_MAX)?));
            }
            EntryType::XHeader => {
                let bytes = read_bounded(&mut member, size, "PAX header bytes", PAX_BYTES_MAX)?;
                pending.read_pax(&bytes)?;
            }
            EntryType::XGlobalHeader => {
                let bytes = read_bounded(&mut member, size, "PAX header bytes", PAX_BYTES_MAX)?;
                Pending::default().read_pax(&bytes)?;
            }
            EntryType::GNUSparse => return Err(Error::Unsupported("a sparse file".to_owned())),
            _ => {
                let entry = read_entry(&member, size, std::mem::take(&mut pending))?;
                visit(&entry, &mut member)?;
            }
        }
    }
    Ok(())
}

fn read_entry<R: Read>(member: &tar::Entry<'_, R>, size: u64, pending: Pending) -> Result<Entry, Error> {
    let header = member.header();
    let written = pending.path.unwrap_or_else(|| as_path(&header.path_bytes()));
    let link = || pending.link.clone().or_else(|| header.link_name_bytes().map(|name| as_path(&name)));
    let bounded = |path: PathBuf| {
        let fits = path.as_os_str().len() as u64 <= TAR_PATH_BYTES_MAX;
        if fits { Ok(path) } else { Err(Error::TooLarge { what: "path bytes", max: TAR_PATH_BYTES_MAX }) }
    };
    let path = clean(&bounded(written.clone())?)?;
    let missing = || Error::UnsafePath(written.clone());
    let kind = match header.entry_type() {
        // before POSIX, a directory was a file whose name ends in a slash
        EntryType::Regular | EntryType::Continuous if written.as_os_str().as_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(bounded(link().ok_or_else(missing)?)?),
        EntryType::Link => Kind::Hardlink(clean(&bounded(link().ok_or_else(missing)?)?)?),
        other => Kind::Special(char::from(other.as_byte())),
    };
    // fields that a writer left empty mean 0 (POSIX pax: mode at 100, uid at 108, gid at 116)
    let filled = |at: usize| header.as_bytes().iter().skip(at).take(8).any(|byte| !matches!(byte, 0 | b' '));
    let id = |at: usize, value: io::Result<u64>| {
        let value = if filled(at) { value.map_err(Error::Tar)? } else { 0 };
        u32::try_from(value).map_err(|_| Error::Unsupported(format!("the user or group id {value}")))
    };
    Ok(Entry {
        path,
        kind,
        size,
        offset: member.raw_file_position(),
        mode: if filled(100) { header.mode().map_err(Error::Tar)? } else { 0 },
        uid: id(108, header.uid())?,
        gid: id(116, header.gid())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, expected) in [("a/b", "a/b"), ("./a/./b/", "a/b"), ("/a", "a"), ("//a//b", "a/b"), (".", ""), ("/", "")] {
            assert_eq!(clean(Path::new(path)).expect(path), Path::new(expected), "{path}");
        }
        for path in ["..", "../a", "a/../../b", "a/..", "/.."] {
            assert!(matches!(clean(Path::new(path)), Err(Error::UnsafePath(_))), "{path}");
        }
    }
}
