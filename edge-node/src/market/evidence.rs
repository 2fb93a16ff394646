//! Evidence on its way to the arbitrator: on disk until the arbitrator took or refused it, sent in the order in which it was posted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::arbitrator::Client;
use contracts::envelope::Envelope;
use contracts::evidence::Evidence;
use tokio::sync::Notify;

use crate::core::Core;

/// Below the state directory.
const DIRECTORY: &str = "evidence";
/// Statements that wait at most; more are dropped, logged and counted.
pub const WAITING_MAX: usize = 1_024;
/// A full disk gets so long before a statement is given up: one of a handover is worth a stake.
const WRITES_MAX: u32 = 120;
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// First and longest pause while the arbitrator is away.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Without a signal the directory is looked at so often: a statement of an earlier process may lie there.
const INTERVAL: Duration = Duration::from_secs(5);

/// What a node knows of its evidence beyond its disk.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Wakes the sender; a wake-up for nothing costs one look into a directory.
    posted: Notify,
    /// Orders statements of one millisecond.
    number: AtomicU64,
    dropped: AtomicU64,
}

impl Outbox {
    /// Statements that were dropped because too many waited or the disk refused them, since the start of the process.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Sends a signed statement to the arbitrator as soon as possible and until it is taken or refused, over restarts of this node too.
/// Must be called within a Tokio runtime.
pub fn post(core: &Arc<Core>, envelope: Envelope) {
    let (core, directory) = (Arc::clone(core), core.config.state_directory.join(DIRECTORY));
    let number = core.outbox.number.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("{:016}-{number:08}-{}.json", core.clock.wall().0, envelope.id()));
    kit::task::spawn(async move {
        for tries_left in (0..WRITES_MAX).rev() {
            let (directory, path, envelope) = (directory.clone(), path.clone(), envelope.clone());
            let written = kit::task::blocking(move || write(&directory, &path, &envelope)).await;
            match written.unwrap_or_else(|broken| Err(std::io::Error::other(broken))) {
                Ok(()) => return core.outbox.posted.notify_waiters(),
                Err(error) if tries_left > 0 => tracing::warn!(%error, "evidence cannot be stored yet"),
                Err(error) => {
                    core.outbox.dropped.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "evidence is lost");
                }
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
    });
}

fn write(directory: &Path, path: &Path, envelope: &Envelope) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    if waiting(directory)?.len() >= WAITING_MAX {
        return Err(std::io::Error::other("too many statements wait for the arbitrator"));
    }
    kit::file::replace(path, &serde_json::to_vec(envelope)?, 0o600)
}

/// The statements that wait, oldest first.
fn waiting(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// How many statements wait.
#[must_use]
pub fn count_waiting(core: &Core) -> usize {
    waiting(&core.config.state_directory.join(DIRECTORY)).map_or(0, |paths| paths.len())
}

/// Sends for ever.
pub(super) async fn send_all(core: &Core, client: Client) {
    let directory = core.config.state_directory.join(DIRECTORY);
    let mut pause = PAUSE.0;
    loop {
        let posted = core.outbox.posted.notified();
        match send_waiting(&directory, &client).await {
            Ok(()) => {
                pause = PAUSE.0;
                let _signal_or_interval = tokio::time::timeout(INTERVAL, posted).await;
            }
            Err(error) => {
                tracing::warn!(error = error.chain(), pause_ms = pause.as_millis(), "evidence waits for the arbitrator");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    kit::task::blocking(work).await.map_err(std::io::Error::other)?
}

async fn send_waiting(directory: &Path, client: &Client) -> Result<(), super::Error> {
    for path in waiting(directory)? {
        let json = on_disk({
            let path = path.clone();
            move || std::fs::read(path)
        })
        .await?;
        let read =
            serde_json::from_slice::<Envelope>(&json).ok().and_then(|envelope| Some((Evidence::read(&envelope).ok()?, envelope)));
        match read {
            Some((evidence, envelope)) => {
                match client.add_evidence(evidence.item.contract(), &envelope).await.map_err(super::Error::from) {
                    Ok(_) => {}
                    Err(error) if error.is_transient() => return Err(error),
                    Err(error) => {
                        tracing::warn!(statement = %evidence.id, error = error.chain(), "the arbitrator does not take this evidence")
                    }
                }
            }
            None => tracing::error!(path = %path.display(), "this is no evidence; it is removed"),
        }
        on_disk(move || std::fs::remove_file(path)).await?;
    }
    Ok(())
}
