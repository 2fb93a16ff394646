//! What lies on disk for one container, and the runtime specification it is made from.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cgroups::Cgroups;
use crate::image::{self, ImageConfig};
use crate::spec::{ContainerName, ContainerSpec, TENANT_ID};
use crate::{Error, Network};

/// Most that a container's log file holds; a write beyond it fails inside the container (`RLIMIT_FSIZE`).
pub const LOG_BYTES_MAX: u64 = 4 << 20;
/// Open files of one container.
const OPEN_FILES_MAX: u64 = 1024;
/// Period in which the CPU limit is spent.
const CPU_PERIOD_US: u64 = 100_000;
/// A tenant goes before its node when memory ends.
const OOM_SCORE_ADJUSTMENT: i32 = 500;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The directories of one node's containers.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub state: PathBuf,
}

impl Paths {
    /// Bundles, one directory per container.
    pub(super) fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    /// `libcontainer`'s own state, one directory per container.
    pub(super) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub(super) fn bundle(&self, name: &ContainerName) -> Bundle {
        Bundle { directory: self.bundles().join(name.as_str()) }
    }

    pub(super) fn container(&self, name: &ContainerName) -> PathBuf {
        self.containers().join(name.as_str())
    }

    /// Removes everything that one container has on disk.
    pub(super) fn remove(&self, name: &ContainerName) -> Result<(), Error> {
        for directory in [self.container(name), self.bundle(name).directory] {
            match fs::remove_dir_all(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", directory)(error)),
            }
        }
        Ok(())
    }

    /// Process id that `libcontainer` recorded; `None` if it never came so far.
    pub(super) fn recorded_pid(&self, name: &ContainerName) -> Option<i32> {
        #[derive(Deserialize)]
        struct State {
            pid: Option<i32>,
        }
        read_json::<State>(&self.container(name).join("state.json"))?.pid
    }
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub(super) struct Bundle {
    pub directory: PathBuf,
}

/// Written last: a bundle with a record is whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub spec: ContainerSpec,
}

/// What the helper process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub name: ContainerName,
    /// Where `libcontainer` keeps its state.
    pub containers: PathBuf,
    /// The image's root, never written to.
    pub lower: PathBuf,
}

impl Bundle {
    pub(super) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    pub(super) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    pub(super) fn merged(&self) -> PathBuf {
        self.directory.join("merged")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The log's older part.
    pub(super) fn older_log(&self) -> PathBuf {
        self.directory.join("log.1")
    }

    /// What the helper process complains about.
    pub(super) fn helper_log(&self) -> PathBuf {
        self.directory.join("helper.log")
    }

    pub(super) fn request(&self) -> Option<Request> {
        read_json(&self.directory.join("request.json"))
    }

    pub(super) fn record(&self) -> Option<Record> {
        read_json(&self.directory.join("record.json"))
    }

    /// Writes everything that the helper process needs.
    pub(super) fn write(&self, request: &Request, runtime: &Value) -> Result<(), Error> {
        for directory in [self.directory.clone(), self.upper(), self.work(), self.merged()] {
            // the root of the container is the merged directory: others pass through it, and only it
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&directory);
            made.map_err(Error::io("make", directory))?;
        }
        self.write_json("config.json", runtime)?;
        self.write_json("request.json", request)
    }

    /// Says that the container is whole.
    pub(super) fn write_record(&self, record: &Record) -> Result<(), Error> {
        self.write_json("record.json", record)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let (path, unfinished) = (self.directory.join(name), self.directory.join(format!("{name}.unfinished")));
        let failed = || Error::io("write", path.clone());
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished).map_err(failed())?;
        // variables may be secrets
        let mut writer = io::BufWriter::new(file);
        serde_json::to_writer(&mut writer, value).map_err(|error| failed()(io::Error::from(error)))?;
        io::Write::flush(&mut writer).map_err(failed())?;
        fs::rename(&unfinished, &path).map_err(failed())
    }

    /// Keeps the log below its limit: the newer half of a long one becomes the older log.
    pub(super) fn rotate_log(&self) -> io::Result<()> {
        if fs::metadata(self.log())?.len() > LOG_BYTES_MAX / 2 {
            fs::copy(self.log(), self.older_log())?;
            // the container appends: its next write begins the file anew. Lines written since the copy are lost
            fs::OpenOptions::new().write(true).open(self.log())?.set_len(0)?;
        }
        Ok(())
    }

    /// The last bytes of the log.
    pub(super) fn tail(&self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for path in [self.older_log(), self.log()] {
            match fs::read(&path) {
                Ok(part) => bytes.extend(part),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes.split_off(bytes.len().saturating_sub(bytes_max)))
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The OCI runtime specification (1.0) of a container.
pub(super) fn runtime(spec: &ContainerSpec, image: &ImageConfig, cgroups: &Cgroups, bundle: &Bundle) -> Result<Value, Error> {
    if spec.network != Network::None {
        return Err(Error::BridgeUnsupported(spec.name.clone()));
    }
    let mut words = image.entrypoint.clone().unwrap_or_default();
    words.extend(spec.command.clone().or_else(|| image.cmd.clone()).unwrap_or_default());
    if words.is_empty() {
        return Err(image::Error::NoCommand.into());
    }
    let working_dir = image.working_dir.as_deref().filter(|path| path.starts_with('/')).unwrap_or("/");
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    let no_capabilities = json!({"bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": []});
    let rlimit = |kind: &str, limit: u64| json!({"type": kind, "hard": limit, "soft": limit});
    Ok(json!({
        "ociVersion": "1.0.2",
        "hostname": spec.name,
        "root": {"path": bundle.merged(), "readonly": true},
        "process": {
            "terminal": false,
            "user": {"uid": TENANT_ID, "gid": TENANT_ID, "umask": 0o022},
            "args": words,
            "env": environment(spec, image),
            "cwd": working_dir,
            "capabilities": no_capabilities,
            "rlimits": [rlimit("RLIMIT_NOFILE", OPEN_FILES_MAX), rlimit("RLIMIT_CORE", 0), rlimit("RLIMIT_FSIZE", LOG_BYTES_MAX)],
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE_ADJUSTMENT,
        },
        "mounts": mounts(spec),
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroups.path(&spec.name),
            "resources": resources(spec, cgroups),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}

fn environment(spec: &ContainerSpec, image: &ImageConfig) -> Vec<String> {
    // without PATH nothing is started
    let mut variables = BTreeMap::from([("PATH", DEFAULT_PATH)]);
    variables.extend(image.env.iter().flatten().filter_map(|variable| variable.split_once('=')));
    variables.extend(spec.env.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    variables.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn mounts(spec: &ContainerSpec) -> Vec<Value> {
    let small = |target: &str| {
        let options = ["nosuid", "nodev", "noexec", "mode=1777", "size=16m"];
        json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]}),
        small("/dev/shm"),
        small("/tmp"),
    ];
    mounts.extend(spec.mounts.iter().map(|mount| {
        let access = if mount.read_only { "ro" } else { "rw" };
        json!({"destination": mount.target, "type": "bind", "source": mount.source, "options": ["bind", "nosuid", "nodev", access]})
    }));
    mounts
}

/// Only what the kernel can enforce: asking for more would refuse the container.
fn resources(spec: &ContainerSpec, cgroups: &Cgroups) -> Value {
    let (support, limits) = (cgroups.support(), spec.limits);
    let mut resources = serde_json::Map::new();
    if support.memory {
        let mut memory = json!({"limit": limits.memory_bytes});
        if cgroups.limits_swap() {
            // the limit of memory and swap together
            memory["swap"] = limits.memory_bytes.into();
        }
        resources.insert("memory".to_owned(), memory);
    }
    if support.cpu {
        let quota = CPU_PERIOD_US * u64::from(limits.cpu_millis) / 1000;
        resources.insert("cpu".to_owned(), json!({"quota": quota, "period": CPU_PERIOD_US}));
    }
    if support.pids {
        resources.insert("pids".to_owned(), json!({"limit": limits.pids}));
    }
    Value::Object(resources)
}
