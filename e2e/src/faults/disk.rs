//! A disk of its own for a node: a file system in a file, whose power can be cut and which can be filled.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// Room for a node's databases, content and images.
const DISK_BYTES: u64 = 192 << 20;
/// `_IOR('X', 125, __u32)` of the kernel's ext4.h with `EXT4_GOING_FLAGS_NOLOGFLUSH`: what was not synced is gone, as in a power cut.
const SHUT_DOWN: &str =
    r#"open(my $d, "<", $ARGV[0]) or die $!; my $flags = pack("L", 2); ioctl($d, 0x8004587d, $flags) or die $!"#;

/// A mounted ext4; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted_at: PathBuf,
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

impl Disk {
    /// Makes a file system in `<at>.ext4` and mounts it at `at`.
    ///
    /// # Errors
    /// No loop devices, no mkfs.ext4, no room.
    pub fn create(at: &Path) -> anyhow::Result<Self> {
        let image = at.with_extension("ext4");
        std::fs::create_dir_all(at)?;
        File::create(&image)?.set_len(DISK_BYTES)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { image, mounted_at: at.to_owned() };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted_at))
    }

    /// From this moment on nothing more reaches the disk, and what was not synced never will.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        run(Command::new("perl").args(["-e", SHUT_DOWN]).arg(&self.mounted_at))
    }

    /// Ends what still lives on the dead disk, repairs it by its journal and mounts it again.
    pub fn restore_power(&self) -> anyhow::Result<()> {
        self.end_inhabitants()?;
        run(Command::new("umount").arg(&self.mounted_at))?;
        // 1: errors were corrected, which is what a journal is for.
        let checked = Command::new("fsck.ext4").arg("-p").arg(&self.image).output()?;
        let code = checked.status.code().unwrap_or(i32::MAX);
        anyhow::ensure!(code <= 1, "fsck.ext4 ended with {code}: {}", String::from_utf8_lossy(&checked.stdout));
        self.mount()
    }

    /// A machine without power runs no containers: those whose files lie on this disk are killed.
    fn end_inhabitants(&self) -> anyhow::Result<()> {
        let needle = format!("upperdir={}/", self.mounted_at.display());
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
                continue;
            };
            let mounts = std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            if mounts.contains(&needle) {
                // It may be gone by now.
                let _ended = kill_process(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.mounted_at.join("filler")
    }

    /// Takes every free block.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.filler())?;
        for chunk in [1 << 20, 4_096] {
            let zeros = vec![0; chunk];
            while file.write_all(&zeros).is_ok() {}
        }
        // Delayed allocation: only now the blocks are really taken.
        match file.sync_all() {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// For good: a power cut must not bring back what filled it.
    pub fn free(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(File::open(&self.mounted_at)?.sync_all()?),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.end_inhabitants().and_then(|()| run(Command::new("umount").arg(&self.mounted_at))) {
            eprintln!("{} stays mounted: {error:#}", self.mounted_at.display());
        }
    }
}
