//! The running containers of a node with the embedded engine, found by what the kernel says: a container outlives its node and is taken on by the
//! next one, so it need not be below it.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// SIGKILL for every process that [`find`] finds; how many.
///
/// # Errors
/// `/proc` cannot be listed.
pub fn kill(state: &Path, program: &str) -> std::io::Result<usize> {
    Ok(find(state, program)?.into_iter().filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count())
}

/// Every process that runs `program` (the kernel keeps its first 15 bytes, proc_pid_stat(5)) in a container of the node with this state
/// directory.
///
/// # Errors
/// `/proc` cannot be listed.
pub fn find(state: &Path, program: &str) -> std::io::Result<Vec<Pid>> {
    let name = &program[..program.len().min(15)];
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may be gone by now.
        let read = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let is_it = read("comm").trim_end() == name && is_container_of(&read("mountinfo"), state);
        found.extend(Pid::from_raw(pid).filter(|_| is_it));
    }
    Ok(found)
}

/// Whether the root that these mounts begin with is an overlay written below `state`.
fn is_container_of(mountinfo: &str, state: &Path) -> bool {
    let upper = format!("upperdir={}/", state.display());
    let is_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    mountinfo.lines().filter(is_root).any(|line| line.split([' ', ',']).any(|option| option.starts_with(&upper)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_where_its_root_is_written() {
        let root = "812 790 0:61 / / rw,nosuid - overlay overlay rw,lowerdir=/s/rio/images/3b/rootfs,upperdir=/s/rio/run/bundles/3f/upper,workdir=/s/rio/w";
        let mountinfo = format!("{root}\n813 812 0:5 /null /dev/null rw - devtmpfs udev rw\n");
        assert!(is_container_of(&mountinfo, Path::new("/s/rio")));
        assert!(!is_container_of(&mountinfo, Path::new("/s/ri")), "another node's directory");
        assert!(!is_container_of(&mountinfo, Path::new("/s/patras")));
        let elsewhere = root.replace(" / / ", " / /mnt ");
        assert!(!is_container_of(&elsewhere, Path::new("/s/rio")), "somebody who only sees that mount");
        assert!(!is_container_of("", Path::new("/s/rio")));
    }
}
