//! What others reported over the resources of the source: files taken in, states of images, errors. One small file, replaced as a whole.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use contracts::time::WallTime;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

/// Name of the file in the state directory.
pub(super) const FILE: &str = "reports.json";
/// Files taken in at most; an image can be taken in again under its name.
pub(super) const IMPORTS_MAX: usize = 1_000;
/// Reported states at most; beyond it the oldest goes.
const STATES_MAX: usize = 1_000;
/// Errors kept; beyond it the oldest goes.
const ERRORS_MAX: usize = 100;

/// An image file that was taken into the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Import {
    /// `sha256:…`
    pub(super) image_id: String,
    pub(super) cid: String,
    pub(super) bytes: u64,
    pub(super) at: WallTime,
}

/// What somebody said of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reported {
    pub(super) status: String,
    pub(super) at: WallTime,
}

/// An error that somebody reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReportedError {
    pub(super) code: i64,
    pub(super) message: String,
    pub(super) object: Option<serde_json::Value>,
    pub(super) at: WallTime,
}

/// Everything that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// By the name under which it was taken in.
    pub(super) imports: BTreeMap<String, Import>,
    /// By image id.
    pub(super) states: BTreeMap<String, Reported>,
    pub(super) errors: VecDeque<ReportedError>,
}

/// A handle with the file behind it.
#[derive(Debug)]
pub(super) struct Reports {
    path: PathBuf,
    kept: Mutex<Kept>,
}

impl Reports {
    /// Reads the file; one that cannot be read is left aside under another name, since nothing else depends on it.
    pub(super) fn open(state_directory: &Path) -> Self {
        let path = state_directory.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let aside = path.with_extension("damaged");
                tracing::error!(%error, aside = %aside.display(), "the file of reports cannot be read; beginning anew");
                if let Err(error) = std::fs::rename(&path, &aside) {
                    tracing::error!(%error, "the damaged file stays where it is");
                }
                Kept::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, "the file of reports cannot be read; beginning anew");
                }
                Kept::default()
            }
        };
        Self { path, kept: Mutex::new(kept) }
    }

    pub(super) async fn kept(&self) -> Kept {
        self.kept.lock().await.clone()
    }

    /// Whether another image can be taken in under this name.
    pub(super) async fn has_room(&self, name: &str) -> bool {
        let kept = self.kept.lock().await;
        kept.imports.contains_key(name) || kept.imports.len() < IMPORTS_MAX
    }

    /// On disk when it returns. Gives what was there under the name before.
    pub(super) async fn add_import(&self, name: String, import: Import) -> io::Result<Option<Import>> {
        self.change(|kept| kept.imports.insert(name, import)).await
    }

    /// On disk when it returns.
    pub(super) async fn add_state(&self, image_id: String, reported: Reported) -> io::Result<()> {
        self.change(|kept| {
            kept.states.insert(image_id, reported);
            if kept.states.len() > STATES_MAX {
                let oldest =
                    kept.states.iter().min_by_key(|(id, reported)| (reported.at, (*id).clone())).map(|(id, _)| id.clone());
                oldest.map(|id| kept.states.remove(&id));
            }
        })
        .await
    }

    /// On disk when it returns.
    pub(super) async fn add_error(&self, error: ReportedError) -> io::Result<()> {
        self.change(|kept| {
            kept.errors.push_back(error);
            if kept.errors.len() > ERRORS_MAX {
                kept.errors.pop_front();
            }
        })
        .await
    }

    /// Nothing is changed that is not on disk.
    async fn change<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> io::Result<T> {
        let mut kept = self.kept.lock().await;
        let mut changed = kept.clone();
        let answer = act(&mut changed);
        let (path, bytes) = (self.path.clone(), serde_json::to_vec(&changed)?);
        kit::task::blocking(move || kit::file::replace(&path, &bytes, 0o600)).await.map_err(io::Error::other)??;
        *kept = changed;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_reported_is_there_after_a_restart_and_bounded() {
        let directory = tempfile::tempdir().expect("temp dir");
        let reports = Reports::open(directory.path());
        for code in 0..=ERRORS_MAX as i64 {
            let error = ReportedError { code, message: "no deal".into(), object: None, at: WallTime(1) };
            reports.add_error(error).await.expect("written");
        }
        reports.add_state("sha256:aa".into(), Reported { status: "STORED".into(), at: WallTime(2) }).await.expect("written");
        let again = Reports::open(directory.path()).kept().await;
        assert_eq!(again, reports.kept().await);
        assert_eq!((again.errors.len(), again.errors[0].code), (ERRORS_MAX, 1), "the oldest went");
    }

    #[tokio::test]
    async fn a_damaged_file_is_put_aside() {
        let directory = tempfile::tempdir().expect("temp dir");
        std::fs::write(directory.path().join(FILE), "{").expect("write");
        assert_eq!(Reports::open(directory.path()).kept().await, Kept::default());
        assert!(directory.path().join("reports.damaged").exists());
    }
}
