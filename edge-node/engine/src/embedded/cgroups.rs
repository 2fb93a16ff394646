//! Control groups by their files: `<hierarchy>/<prefix>/<name>`. `libcontainer` makes and fills them; listing, killing, counting and
//! removing is done here, because that must also work for a container whose creation was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

use crate::spec::{ContainerName, NodePrefix};
use crate::{LimitSupport, Stats};

/// Where `libcontainer` looks for control groups.
const ROOT: &str = "/sys/fs/cgroup";

/// Which interface the kernel offers below [`ROOT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// One hierarchy per controller, or a mix with an empty unified one.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The control groups of one node.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    version: Version,
    /// Controller to hierarchy; the controllers of version 2 share one.
    hierarchies: BTreeMap<String, PathBuf>,
    prefix: NodePrefix,
}

impl Cgroups {
    /// Looks at what is mounted; `None` without control groups.
    pub(super) fn find(prefix: &NodePrefix) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        parse(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default(), prefix)
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The path to put into a runtime specification.
    pub(super) fn path(&self, name: &ContainerName) -> String {
        format!("/{}/{name}", self.prefix)
    }

    /// Which limits the kernel can enforce.
    pub(super) fn support(&self) -> LimitSupport {
        let has = |controller: &str| self.hierarchies.contains_key(controller);
        LimitSupport { memory: has("memory"), cpu: has("cpu"), pids: has("pids") }
    }

    /// Swap can be limited too (version 1 counts it only where the kernel was told to).
    pub(super) fn limits_swap(&self) -> bool {
        match (self.version, self.hierarchies.get("memory")) {
            (Version::V1, Some(root)) => root.join("memory.memsw.limit_in_bytes").exists(),
            (Version::V2, Some(_)) => true,
            (_, None) => false,
        }
    }

    fn roots(&self) -> BTreeSet<&Path> {
        self.hierarchies.values().map(PathBuf::as_path).collect()
    }

    fn directories(&self, name: &ContainerName) -> Vec<PathBuf> {
        self.roots().into_iter().map(|root| root.join(self.prefix.as_str()).join(name.as_str())).collect()
    }

    /// Names that have a group in any hierarchy.
    pub(super) fn names(&self) -> BTreeSet<ContainerName> {
        let groups = self.roots().into_iter().filter_map(|root| fs::read_dir(root.join(self.prefix.as_str())).ok()).flatten();
        let directories = groups.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
        directories.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect()
    }

    /// All processes in the groups of a container.
    pub(super) fn pids(&self, name: &ContainerName) -> BTreeSet<i32> {
        let lists = self.directories(name).into_iter().filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok());
        lists.flat_map(|list| list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect()
    }

    /// Sends SIGKILL to all processes in the groups of a container and says which.
    pub(super) fn kill(&self, name: &ContainerName) -> BTreeSet<i32> {
        let pids = self.pids(name);
        for pid in &pids {
            if let Some(pid) = Pid::from_raw(*pid) {
                // gone meanwhile is what we want
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        pids
    }

    /// Removes the groups of a container, and the node's own when it was the last.
    ///
    /// # Errors
    /// `ResourceBusy` while a process is still in one of them.
    pub(super) fn remove(&self, name: &ContainerName) -> io::Result<()> {
        for directory in self.directories(name) {
            match fs::remove_dir(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for root in self.roots() {
            // fails while another container is there
            let _ = fs::remove_dir(root.join(self.prefix.as_str()));
        }
        Ok(())
    }

    /// What the processes of a container use.
    pub(super) fn stats(&self, name: &ContainerName) -> Stats {
        let read = |controller: &str, file: &str| {
            let path = self.hierarchies.get(controller)?.join(self.prefix.as_str()).join(name.as_str()).join(file);
            fs::read_to_string(path).ok()
        };
        let number = |controller: &str, file: &str| read(controller, file)?.trim().parse().ok();
        let pids = number("pids", "pids.current");
        match self.version {
            Version::V1 => Stats {
                memory_bytes: number("memory", "memory.usage_in_bytes"),
                cpu_ns: number("cpuacct", "cpuacct.usage"),
                pids,
            },
            Version::V2 => {
                let usage =
                    |text: String| text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<u64>().ok());
                let cpu_ns = read("cpu", "cpu.stat").and_then(usage).map(|us| us.saturating_mul(1000));
                Stats { memory_bytes: number("memory", "memory.current"), cpu_ns, pids }
            }
        }
    }
}

fn parse(mounts: &str, controllers: impl Fn(&Path) -> String, prefix: &NodePrefix) -> Option<Cgroups> {
    let mut hierarchies = BTreeMap::new();
    for line in mounts.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let path = PathBuf::from(path);
        match kind {
            // the whole of it at the root: version 2 (a `unified` one beside others has no controllers)
            "cgroup2" if path == Path::new(ROOT) => {
                let names = controllers(&path);
                let hierarchies = names.split_ascii_whitespace().map(|name| (name.to_owned(), path.clone())).collect();
                return Some(Cgroups { version: Version::V2, hierarchies, prefix: prefix.clone() });
            }
            "cgroup" if path.starts_with(ROOT) => {
                let known = options.split(',').filter(|option| CONTROLLERS.contains(option));
                hierarchies.extend(known.map(|name| (name.to_owned(), path.clone())));
            }
            _ => {}
        }
    }
    // libcontainer lists a version 1 container's processes by this controller
    hierarchies.contains_key("devices").then(|| Cgroups { version: Version::V1, hierarchies, prefix: prefix.clone() })
}

/// The version 1 controllers in which `libcontainer` makes groups.
const CONTROLLERS: [&str; 12] =
    ["cpu", "cpuacct", "cpuset", "devices", "hugetlb", "memory", "pids", "perf_event", "blkio", "net_prio", "net_cls", "freezer"];

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix() -> NodePrefix {
        "antirio-t".parse().expect("prefix")
    }

    #[test]
    fn version_1_with_an_empty_unified_hierarchy() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/devices cgroup rw,devices 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = parse(mounts, |_| panic!("nothing to ask"), &prefix()).expect("found");
        assert_eq!(found.version(), Version::V1);
        assert_eq!(found.support(), LimitSupport { memory: true, cpu: true, pids: false });
        assert_eq!(found.roots().len(), 3, "{found:?}");
    }

    #[test]
    fn version_2() {
        let found =
            parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", |_| "cpuset cpu io memory pids\n".into(), &prefix()).expect("found");
        assert_eq!(found.version(), Version::V2);
        assert_eq!(found.support(), LimitSupport { memory: true, cpu: true, pids: true });
        assert_eq!(found.directories(&"a".parse().expect("name")), [PathBuf::from("/sys/fs/cgroup/antirio-t/a")]);
    }

    #[test]
    fn none() {
        assert!(parse("proc /proc proc rw 0 0\n", |_| String::new(), &prefix()).is_none());
    }
}
