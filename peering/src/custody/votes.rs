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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use contracts::custody::MemberIndex;
    use contracts::ids::Epoch;

    use super::*;

    fn group(number: u32) -> GroupId {
        let mut bytes = [7; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        GroupId::from_bytes(bytes)
    }

    fn vote(number: u32, epoch: u64) -> (GroupId, Durable) {
        (group(number), Durable::vote(Epoch(epoch), MemberIndex(1)))
    }

    #[tokio::test]
    async fn votes_of_many_groups_survive_the_process() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("votes");
        let store = FileVotes::open(&path).expect("new");
        store.persist(&(0..1_000).map(|number| vote(number, 1)).collect::<Vec<_>>()).await.expect("written");
        let stands_by = Durable { elected: Some(MemberIndex(0)), ..Durable::vote(Epoch(5), MemberIndex(1)) };
        store.persist(&[vote(3, 2), (group(4), stands_by)]).await.expect("written");
        let again = FileVotes::open(&path).expect("there");
        for (number, epoch) in [(2, 1), (3, 2), (4, 5)] {
            let vote = again.load(group(number)).await.expect("read").expect("voted");
            assert_eq!(vote.voted_epoch, Epoch(epoch));
        }
        assert_eq!(again.load(group(4)).await.expect("read"), Some(stands_by));
        assert_eq!(again.load(group(1_000)).await.expect("read"), None);
    }

    /// A file from before a vote could stand by another's winner.
    #[tokio::test]
    async fn votes_without_a_winner_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("votes");
        FileVotes::open(&path).expect("new").persist(&[vote(1, 3)]).await.expect("written");
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(!text.contains("elected"), "{text}");
        assert_eq!(FileVotes::open(&path).expect("there").load(group(1)).await.expect("read"), Some(vote(1, 3).1));
    }

    #[tokio::test]
    #[ignore = "by hand: what one vote costs among many groups"]
    async fn what_a_vote_costs() {
        for groups in [1, 100, 1_000, 10_000] {
            let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
            let path = directory.path().join("votes");
            let store = FileVotes::open(&path).expect("new");
            store.persist(&(0..groups).map(|number| vote(number, 1)).collect::<Vec<_>>()).await.expect("written");
            let mut took: Vec<Duration> = Vec::new();
            for epoch in 2..102 {
                let since = Instant::now();
                store.persist(&[vote(0, epoch)]).await.expect("written");
                took.push(since.elapsed());
            }
            took.sort_unstable();
            let bytes = std::fs::metadata(&path).expect("a file").len();
            println!("{groups} groups, {bytes} bytes: one vote p50 {:?}, p99 {:?}", took[50], took[98]);
        }
    }
}
