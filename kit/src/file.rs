//! Durable small files: written beside, synced, renamed, directory synced. After a crash there is the old content or the new.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces the content of `path`; `mode` is the permission of a new file (`0o600` for secrets).
///
/// # Errors
/// Whatever the file system says; the old content then still stands, unless only the last sync failed: then either may.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp"); // of this file alone, whatever else is named like it
    match fs::remove_file(&beside) {
        Ok(()) => {} // of a process that died on the way, perhaps with another mode
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_entry(path)
}

/// Syncs the directory in which `path` is: that it is there survives a crash.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_entry(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_and_secrets_stay_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("antirio-kit-file-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("temp dir");
        let path = directory.join("secret");
        replace(&path, b"one", 0o600).expect("first");
        replace(&path, b"two", 0o600).expect("second");
        assert_eq!(fs::read(&path).expect("content"), b"two");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&directory).expect("clean up");
    }
}
