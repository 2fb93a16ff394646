//! A small disk of its own for tests of what happens when it is full.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory, unmounted at its end.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts `bytes` of space at the directory `path`, which must exist.
    ///
    /// # Errors
    /// This process may not mount (it is not root, most likely), or there is no `mount`.
    pub fn mount(path: &Path, bytes: u64) -> io::Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o"]).arg(format!("size={bytes}")).arg("tmpfs").arg(path);
        let output = mount.output()?;
        if output.status.success() {
            Ok(Self { path: path.to_owned() })
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a connection that is still closing must not keep the mount for ever.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
