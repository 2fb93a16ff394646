//! Votes on disk: synced before the messages that follow from them leave.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use contracts::custody::Durable;
use contracts::ids::GroupId;
use serde::{Deserialize, Serialize};

/// Where a member's votes survive the process. One live process per store (the owner locks it).
///
#[async_trait]
pub trait VoteStore: fmt::Debug + Send + Sync + 'static {
    /// Stores the newest record of each group; returns only when all are synced to disk.
    ///
    /// # Errors
    /// Any error stops all groups of the batch for good: what is on disk is then unknown.
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()>;

    /// The record of `group`, none if it never voted here.
    ///
    /// # Errors
    /// The store cannot be read; then the group must not be added.
    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>>;
}

/// All votes of a node in one small file, replaced as a whole (written beside, synced, renamed, directory synced).
#[derive(Debug)]
pub struct FileVotes {
    path: PathBuf,
    votes: Mutex<BTreeMap<GroupId, Durable>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContent {
    version: u32,
    votes: BTreeMap<GroupId, Durable>,
}

const FILE_VERSION: u32 = 1;

impl FileVotes {
    /// Opens `path`; a file that is not there yet holds no votes.
    ///
    /// # Errors
    /// The file cannot be read, or is not a file of votes.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let votes = match std::fs::read(&path) {
            Ok(bytes) => {
                let content: FileContent = serde_json::from_slice(&bytes)?;
                if content.version != FILE_VERSION {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of votes of another version"));
                }
                content.votes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, votes: Mutex::new(votes) })
    }
}

#[async_trait]
impl VoteStore for FileVotes {
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        let content = {
            let mut votes = self.votes.lock().unwrap_or_else(PoisonError::into_inner);
            votes.extend(batch.iter().cloned());
            serde_json::to_vec(&FileContent { version: FILE_VERSION, votes: votes.clone() })?
        };
        let path = self.path.clone();
        kit::task::blocking(move || kit::file::replace(&path, &content, 0o600)).await?
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        Ok(self.votes.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned())
    }
}
