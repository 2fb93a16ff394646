//! What is to run: validated values that both engines understand in the same way.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ImageId;

/// Longest container name, in bytes.
pub const NAME_BYTES_MAX: usize = 48;
/// Longest node prefix, in bytes.
pub const PREFIX_BYTES_MAX: usize = 40;
/// Most environment variables of one container.
pub const ENV_ENTRIES_MAX: usize = 128;
/// All environment variables of one container together, in bytes.
pub const ENV_BYTES_MAX: usize = 64 * 1024;
/// Most mounts of one container.
pub const MOUNTS_MAX: usize = 16;
/// Most labels of one container.
pub const LABELS_MAX: usize = 32;
/// Longest label key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 512;
/// Most words of a command.
pub const COMMAND_WORDS_MAX: usize = 128;
/// All words of a command together, in bytes.
pub const COMMAND_BYTES_MAX: usize = 16 * 1024;
/// Longest mount path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// Smallest memory limit: the container's own set-up must fit in before the tenant does.
pub const MEMORY_BYTES_MIN: u64 = 12 * 1024 * 1024;
/// Smallest CPU limit, in thousandths of one CPU (the kernel's shortest quota is 1 ms in 100 ms).
pub const CPU_MILLIS_MIN: u32 = 10;
/// Largest CPU limit, in thousandths of one CPU.
pub const CPU_MILLIS_MAX: u32 = 1_024_000;
/// Smallest limit of processes and threads.
pub const PIDS_MIN: u32 = 4;
/// Largest limit of processes and threads.
pub const PIDS_MAX: u32 = 32_768;
/// User and group that every container runs as, whatever its image says.
pub const TENANT_ID: u32 = 65_534;
/// Where the tenant's socket directory is mounted.
pub const SOCKET_DIRECTORY: &str = "/run/antirio";

/// Why a specification is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A container name or node prefix has a character outside `a-z 0-9 - _ .`, or starts or ends with punctuation.
    #[error("the name {name:?} may hold only a-z, 0-9, '-', '_' and '.', and starts and ends with a letter or digit")]
    NameCharacter { name: String },
    /// A container name or node prefix is empty or too long.
    #[error("a name has 1 to {max} bytes, this one {bytes}")]
    NameLength { bytes: usize, max: usize },
    /// A value is outside its limits.
    #[error("{what} is {value}, allowed are {min} to {max}")]
    OutOfRange { what: &'static str, value: u64, min: u64, max: u64 },
    /// A list or text is too long.
    #[error("{what}: {count} exceeds the limit of {max}")]
    TooMany { what: &'static str, count: usize, max: usize },
    /// A mount path is not absolute, has `..` or a control character, or hides something that the engine itself mounts.
    #[error("the mount path {path:?} cannot be used: {why}")]
    MountPath { path: PathBuf, why: &'static str },
    /// An environment variable, label or command word cannot be passed to a program.
    #[error("{what} {name:?} cannot be used: {why}")]
    Text { what: &'static str, name: String, why: &'static str },
}

fn check_name(name: &str, max: usize) -> Result<(), Error> {
    if name.is_empty() || name.len() > max {
        return Err(Error::NameLength { bytes: name.len(), max });
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let inner = bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'-' | b'_' | b'.'));
    let ends = bytes.first().is_some_and(|byte| plain(*byte)) && bytes.last().is_some_and(|byte| plain(*byte));
    if inner && ends { Ok(()) } else { Err(Error::NameCharacter { name: name.to_owned() }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                check_name(text, $max)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                check_name(&text, $max)?;
                Ok(Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A container's name within its node: `a-z 0-9 - _ .`, 1 to [`NAME_BYTES_MAX`] bytes.
    ContainerName,
    NAME_BYTES_MAX
);
name_type!(
    /// Begins the outside name (engine, cgroup) of every container of one node, so that foreign containers are never touched.
    NodePrefix,
    PREFIX_BYTES_MAX
);

/// Everything that an engine needs to prepare one container.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name within this node.
    pub name: ContainerName,
    /// A loaded image.
    pub image: ImageId,
    /// Replaces the image's `Cmd` (its `Entrypoint` stays), as `command` does in a compose file.
    pub command: Option<Vec<String>>,
    /// Added to the image's variables; wins where both name one.
    pub env: BTreeMap<String, String>,
    /// Host directories inside the container.
    pub mounts: Vec<Mount>,
    /// What the container may use.
    pub limits: Limits,
    /// Kept with the container and given back by [`crate::Engine::list`]: contract, blueprint, epoch.
    pub labels: BTreeMap<String, String>,
    /// Tenants have no network unless the blueprint asks for one.
    pub network: Network,
}

/// Values of variables may be secrets: only their names are shown.
impl fmt::Debug for ContainerSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ContainerSpec")
            .field("name", &self.name)
            .field("image", &self.image)
            .field("command", &self.command)
            .field("env", &self.env.keys())
            .field("mounts", &self.mounts)
            .field("limits", &self.limits)
            .field("labels", &self.labels)
            .field("network", &self.network)
            .finish()
    }
}

/// A host directory that is bind-mounted. The tenant's socket *directory* is mounted, never the socket: a re-bound socket file would
/// stay dead inside for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Existing directory on the host, absolute.
    pub source: PathBuf,
    /// Absolute path inside; created when missing.
    pub target: PathBuf,
    /// A Unix socket in a read-only mount can still be connected to.
    pub read_only: bool,
}

/// Upper bounds of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, swap included.
    pub memory_bytes: u64,
    /// Thousandths of one CPU.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// What the container sees of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A namespace of its own that holds nothing but an unconfigured loopback device.
    #[default]
    None,
    /// The engine's default bridge. Docker only.
    Bridge,
}

/// Mount points of the engine itself; a mount there would replace what isolates the tenant.
const RESERVED: [&str; 4] = ["/", "/proc", "/dev", "/sys"];

impl ContainerSpec {
    /// Checks every limit of this module. Engines call it before they touch anything.
    ///
    /// # Errors
    /// The first violated limit.
    pub fn validate(&self) -> Result<(), Error> {
        self.limits.validate()?;
        at_most("environment variables", self.env.len(), ENV_ENTRIES_MAX)?;
        at_most("environment bytes", self.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum(), ENV_BYTES_MAX)?;
        for (key, value) in &self.env {
            let why = "a variable's name is not empty and has no '='; neither name nor value has a NUL";
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return Err(Error::Text { what: "variable", name: key.clone(), why });
            }
        }
        at_most("labels", self.labels.len(), LABELS_MAX)?;
        for (key, value) in &self.labels {
            at_most("label bytes", key.len().max(value.len()), LABEL_BYTES_MAX)?;
        }
        if let Some(words) = &self.command {
            at_most("command words", words.len(), COMMAND_WORDS_MAX)?;
            at_most("command bytes", words.iter().map(|word| word.len() + 1).sum(), COMMAND_BYTES_MAX)?;
            if let Some(word) = words.iter().find(|word| word.contains('\0')) {
                return Err(Error::Text { what: "command word", name: word.clone(), why: "it has a NUL" });
            }
        }
        at_most("mounts", self.mounts.len(), MOUNTS_MAX)?;
        for (index, mount) in self.mounts.iter().enumerate() {
            check_mount_path(&mount.source)?;
            check_mount_path(&mount.target)?;
            if RESERVED.iter().any(|reserved| mount.target == Path::new(reserved))
                || RESERVED.iter().skip(1).any(|reserved| mount.target.starts_with(reserved))
            {
                return Err(Error::MountPath { path: mount.target.clone(), why: "the engine mounts this place itself" });
            }
            if self.mounts.iter().skip(index + 1).any(|other| other.target == mount.target) {
                return Err(Error::MountPath { path: mount.target.clone(), why: "two mounts have the same target" });
            }
        }
        Ok(())
    }
}

impl Limits {
    /// Checks the bounds of every limit.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn validate(&self) -> Result<(), Error> {
        let within = |what, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(Error::OutOfRange { what, value, min, max }) }
        };
        // the Docker API carries bytes as a signed number
        within("memory_bytes", self.memory_bytes, MEMORY_BYTES_MIN, i64::MAX.unsigned_abs())?;
        within("cpu_millis", self.cpu_millis.into(), CPU_MILLIS_MIN.into(), CPU_MILLIS_MAX.into())?;
        within("pids", self.pids.into(), PIDS_MIN.into(), PIDS_MAX.into())
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), Error> {
    if count <= max { Ok(()) } else { Err(Error::TooMany { what, count, max }) }
}

fn check_mount_path(path: &Path) -> Result<(), Error> {
    let refuse = |why| Err(Error::MountPath { path: path.to_owned(), why });
    let Some(text) = path.to_str() else { return refuse("it is not UTF-8") };
    if text.len() > PATH_BYTES_MAX {
        return refuse("it is too long");
    }
    // ':' and ',' separate fields in the engines' own syntax
    if text.chars().any(|letter| letter.is_control() || matches!(letter, ':' | ',')) {
        return refuse("it has a control character, ':' or ','");
    }
    if !path.is_absolute() {
        return refuse("it is not absolute");
    }
    if path.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir)) {
        return refuse("it has '.' or '..'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "lora".parse().expect("name"),
            image: ImageId::from_bytes([7; 32]),
            command: None,
            env: BTreeMap::new(),
            mounts: vec![],
            limits: Limits { memory_bytes: 32 << 20, cpu_millis: 500, pids: 32 },
            labels: BTreeMap::new(),
            network: Network::None,
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["a", "lora-1", "a.b_c-9", "0", &"x".repeat(NAME_BYTES_MAX)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a-", "A", "a/b", "a b", "a\0", "é", "../x", "a\n", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<ContainerName>(serde_json::json!(bad)).is_err(), "{bad:?} by serde");
        }
    }

    #[test]
    fn limits_have_two_ends() {
        let good = spec().limits;
        assert_eq!(good.validate(), Ok(()));
        for bad in [
            Limits { memory_bytes: 0, ..good },
            Limits { memory_bytes: MEMORY_BYTES_MIN - 1, ..good },
            Limits { memory_bytes: u64::MAX, ..good },
            Limits { cpu_millis: 0, ..good },
            Limits { cpu_millis: CPU_MILLIS_MAX + 1, ..good },
            Limits { pids: 0, ..good },
            Limits { pids: PIDS_MAX + 1, ..good },
        ] {
            assert!(matches!(bad.validate(), Err(Error::OutOfRange { .. })), "{bad:?}");
        }
    }

    #[test]
    fn mounts_cannot_replace_the_isolation() {
        let with = |source: &str, target: &str| {
            let mut spec = spec();
            spec.mounts.push(Mount { source: source.into(), target: target.into(), read_only: true });
            spec.validate()
        };
        assert_eq!(with("/run/x", SOCKET_DIRECTORY), Ok(()));
        for (source, target) in [
            ("run/x", "/a"),
            ("/run/x", "a"),
            ("/run/../etc", "/a"),
            ("/run/x", "/a/../proc"),
            ("/run/x", "/"),
            ("/run/x", "/proc"),
            ("/run/x", "/proc/self"),
            ("/run/x", "/dev/null"),
            ("/run/x", "/sys/fs"),
            ("/run/x:y", "/a"),
            ("/run/x", "/a,b"),
            ("/run/x\n", "/a"),
        ] {
            assert!(matches!(with(source, target), Err(Error::MountPath { .. })), "{source} {target}");
        }
        let mut twice = spec();
        for _ in 0..2 {
            twice.mounts.push(Mount { source: "/run/x".into(), target: "/a".into(), read_only: true });
        }
        assert!(matches!(twice.validate(), Err(Error::MountPath { .. })));
    }

    #[test]
    fn variables_and_commands_are_checked() {
        for (key, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0")] {
            let mut spec = spec();
            spec.env.insert(key.into(), value.into());
            assert!(matches!(spec.validate(), Err(Error::Text { .. })), "{key:?}");
        }
        let mut long = spec();
        long.env.insert("A".into(), "x".repeat(ENV_BYTES_MAX));
        assert!(matches!(long.validate(), Err(Error::TooMany { .. })));
        let mut words = spec();
        words.command = Some(vec!["a\0".into()]);
        assert!(matches!(words.validate(), Err(Error::Text { .. })));
    }

    #[test]
    fn values_of_variables_are_not_shown() {
        let mut spec = spec();
        spec.env.insert("KEY".into(), "hunter2".into());
        let shown = format!("{spec:?}");
        assert!(shown.contains("KEY") && !shown.contains("hunter2"), "{shown}");
    }
}
