//! What this machine's kernel offers to the embedded engine.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::PidfdFlags;

use super::cgroups::{Cgroups, Version};
use crate::{Capabilities, Kind, LimitSupport};

/// `CAP_SYS_ADMIN` (capabilities(7)): root inside another container often lacks it.
const SYS_ADMIN_BIT: u32 = 21;
const NAMESPACES: [&str; 6] = ["pid", "net", "ipc", "uts", "mnt", "cgroup"];

/// Looks at the machine; nothing is changed.
pub(super) fn probe(cgroups: Option<&Cgroups>) -> Capabilities {
    let mut missing = Vec::new();
    let mut need = |holds: bool, sentence: &str| {
        if !holds {
            missing.push(sentence.to_owned());
        }
    };
    need(rustix::process::geteuid().is_root(), "the process is not root");
    need(has_sys_admin(), "the process lacks CAP_SYS_ADMIN (it may be inside a container itself)");
    for namespace in NAMESPACES {
        let path = format!("/proc/self/ns/{namespace}");
        need(Path::new(&path).exists(), &format!("the kernel has no {namespace} namespaces"));
    }
    need(cgroups.is_some(), "no control groups are mounted at /sys/fs/cgroup");
    need(has_overlay(), "the kernel has no overlay file system");
    need(Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(), "the kernel has no seccomp filters");
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    need(pidfd.is_ok(), "the kernel has no process descriptors (pidfd_open, Linux 5.3)");
    let openat2 = rustix::fs::openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT);
    need(openat2.is_ok(), "the kernel has no openat2 (Linux 5.6)");

    let limits = cgroups.map_or_else(LimitSupport::default, Cgroups::support);
    let lacking = [("memory", limits.memory), ("cpu", limits.cpu), ("pids", limits.pids)];
    let warnings =
        lacking.iter().filter(|(_, has)| !has).map(|(name, _)| format!("the kernel does not limit {name} of containers"));
    let version = match cgroups.map(Cgroups::version) {
        Some(Version::V1) => "libcontainer 0.7, cgroup v1",
        Some(Version::V2) => "libcontainer 0.7, cgroup v2",
        None => "libcontainer 0.7, no cgroups",
    };
    Capabilities {
        kind: Kind::Embedded,
        version: version.to_owned(),
        missing,
        warnings: warnings.collect(),
        limits,
        bridge: false,
        fast_start: true,
    }
}

fn has_sys_admin() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    bits & (1 << SYS_ADMIN_BIT) != 0
}

fn has_overlay() -> bool {
    if fs::read_to_string("/proc/filesystems").unwrap_or_default().lines().any(|line| line.trim().ends_with("overlay")) {
        return true;
    }
    // a module that is loaded by the first mount
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    fs::read_to_string(modules).is_ok_and(|list| list.contains("/overlay.ko"))
}
