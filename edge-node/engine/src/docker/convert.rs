//! Between this crate's values and those of the Docker Engine API. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerStatsResponse, EventMessage, HostConfig,
    HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
};

use crate::image::ImageId;
use crate::spec::{ContainerName, ContainerSpec, NodePrefix, TENANT_ID};
use crate::{ContainerState, ContainerStatus, Event, Network, Stats};

/// Marks a container as a node's.
pub(super) const NODE_LABEL: &str = "org.antirio.node";
/// Keeps the id that this crate knows the image by.
const IMAGE_LABEL: &str = "org.antirio.image";
const MEMORY_FILES_BYTES_MAX: i64 = 16 << 20;
const OPEN_FILES_MAX: i64 = 1024;
const OOM_SCORE_ADJUSTMENT: i64 = 500;

pub(super) fn full_name(prefix: &NodePrefix, name: &ContainerName) -> String {
    format!("{prefix}-{name}")
}

/// The name within the node, of a name as the engine tells it (with a slash in front).
pub(super) fn short_name(prefix: &NodePrefix, name: &str) -> Option<ContainerName> {
    name.trim_start_matches('/').strip_prefix(prefix.as_str())?.strip_prefix('-')?.parse().ok()
}

pub(super) fn tag(image: &ImageId) -> String {
    format!("{}:{}", crate::image::REPOSITORY, image.hex())
}

/// The reference in `Loaded image: NAME` or `Loaded image ID: sha256:...`.
pub(super) fn loaded_image(line: &str) -> Option<&str> {
    let line = line.trim();
    line.strip_prefix("Loaded image ID: ").or_else(|| line.strip_prefix("Loaded image: "))
}

pub(super) fn body(prefix: &NodePrefix, spec: &ContainerSpec, image: String) -> ContainerCreateBody {
    let labels = spec.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
    // ours win: they decide what this node may touch
    let own = [(NODE_LABEL.to_owned(), prefix.to_string()), (IMAGE_LABEL.to_owned(), spec.image.to_string())];
    ContainerCreateBody {
        image: Some(image),
        hostname: Some(spec.name.to_string()),
        user: Some(format!("{TENANT_ID}:{TENANT_ID}")),
        cmd: spec.command.clone(),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        labels: Some(labels.chain(own).collect()),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        host_config: Some(host_config(spec)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let network = match spec.network {
        Network::None => "none",
        Network::Bridge => "bridge",
    };
    let mounts = spec.mounts.iter().map(|mount| Mount {
        source: Some(mount.source.display().to_string()),
        target: Some(mount.target.display().to_string()),
        typ: Some(MountType::BIND),
        read_only: Some(mount.read_only),
        ..Mount::default()
    });
    let memory = i64::try_from(spec.limits.memory_bytes).unwrap_or(i64::MAX);
    let ulimit = |name: &str, limit| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) };
    let log = HashMap::from([("max-size".to_owned(), "2m".to_owned()), ("max-file".to_owned(), "2".to_owned())]);
    HostConfig {
        memory: Some(memory),
        // the limit of memory and swap together
        memory_swap: Some(memory),
        nano_cpus: Some(i64::from(spec.limits.cpu_millis) * 1_000_000),
        pids_limit: Some(spec.limits.pids.into()),
        network_mode: Some(network.to_owned()),
        mounts: Some(mounts.collect()),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "rw,nosuid,nodev,noexec,size=16m,mode=1777".to_owned())])),
        shm_size: Some(MEMORY_FILES_BYTES_MAX),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        ulimits: Some(vec![ulimit("nofile", OPEN_FILES_MAX), ulimit("core", 0)]),
        log_config: Some(HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(log) }),
        oom_score_adj: Some(OOM_SCORE_ADJUSTMENT),
        ..HostConfig::default()
    }
}

/// `None` for a container that is not this node's.
pub(super) fn status(prefix: &NodePrefix, found: &ContainerInspectResponse) -> Option<ContainerStatus> {
    let name = short_name(prefix, found.name.as_deref()?)?;
    let mut labels = found.config.as_ref()?.labels.clone()?;
    if labels.remove(NODE_LABEL)? != prefix.as_str() {
        return None;
    }
    let image = labels.remove(IMAGE_LABEL)?.parse().ok()?;
    let state = found.state.as_ref()?;
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok());
    let life = match state.status? {
        ContainerStateStatusEnum::EMPTY | ContainerStateStatusEnum::CREATED => ContainerState::Created,
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => ContainerState::Running,
        ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD | ContainerStateStatusEnum::REMOVING => {
            ContainerState::Exited { code }
        }
    };
    let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
    Some(ContainerStatus { name, state: life, pid, image, labels: labels.into_iter().collect() })
}

pub(super) fn event(prefix: &NodePrefix, message: &EventMessage) -> Option<Event> {
    let attributes = message.actor.as_ref()?.attributes.as_ref()?;
    let name = short_name(prefix, attributes.get("name")?)?;
    match message.action.as_deref()? {
        "create" => Some(Event::Created { name }),
        "start" => Some(Event::Started { name }),
        "die" => Some(Event::Exited { name, code: attributes.get("exitCode").and_then(|code| code.parse().ok()) }),
        "destroy" | "remove" => Some(Event::Removed { name }),
        _ => None,
    }
}

pub(super) fn stats(stats: &ContainerStatsResponse) -> Stats {
    Stats {
        memory_bytes: stats.memory_stats.as_ref().and_then(|memory| memory.usage),
        cpu_ns: stats.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()).and_then(|usage| usage.total_usage),
        pids: stats.pids_stats.as_ref().and_then(|pids| pids.current),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_not_ours() {
        let prefix: NodePrefix = "antirio-a".parse().expect("prefix");
        let name: ContainerName = "lora".parse().expect("name");
        assert_eq!(short_name(&prefix, &format!("/{}", full_name(&prefix, &name))), Some(name));
        for foreign in ["lora", "/antirio-b-lora", "/antirio-alora", "/antirio-a-", "/antirio-a-LORA", "antirio-a"] {
            assert_eq!(short_name(&prefix, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_reference_of_a_loaded_image() {
        assert_eq!(loaded_image("Loaded image: a:b\n"), Some("a:b"));
        assert_eq!(loaded_image("Loaded image ID: sha256:00\n"), Some("sha256:00"));
        assert_eq!(loaded_image("Loading layer"), None);
    }
}
