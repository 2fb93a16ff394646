//! Votes on disk: synced before the messages that follow from them leave.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    votes: BTreeMap<GroupId, Durable>,
    /// A group without a vote may have had one.
    is_restored: bool,
    /// A write failed: the file is what it was, or what it should have become.
    is_uncertain: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContent {
    version: u32,
    votes: BTreeMap<GroupId, Durable>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    restored: bool,
}

const FILE_VERSION: u32 = 1;

impl FileVotes {
    /// Opens `path`; a file that is not there yet holds no votes.
    ///
    /// # Errors
    /// The file cannot be read, or is not a file of votes.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let known = read(&path)?;
        Ok(Self { path, known: Mutex::new(known) })
    }

    /// The file was lost, or put back from a copy of unknown age: from now on each group first hears the other members, until it votes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn mark_restored(&self) -> io::Result<()> {
        let mut known = self.current().await?;
        known.votes.values_mut().for_each(|vote| *vote = vote.into_restored());
        self.write(Known { is_restored: true, ..known }).await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known counts only once it is on disk.
    async fn write(&self, known: Known) -> io::Result<()> {
        let content = FileContent { version: FILE_VERSION, votes: known.votes.clone(), restored: known.is_restored };
        let content = serde_json::to_vec(&content)?;
        let path = self.path.clone();
        let written = kit::task::blocking(move || kit::file::replace(&path, &content, 0o600)).await;
        match written.map_err(io::Error::other).and_then(|written| written) {
            Ok(()) => {
                *self.known() = Known { is_uncertain: false, ..known };
                Ok(())
            }
            Err(error) => {
                self.known().is_uncertain = true;
                Err(error)
            }
        }
    }

    /// After a failed write the file is read anew.
    async fn current(&self) -> io::Result<Known> {
        let known = self.known().clone();
        if !known.is_uncertain {
            return Ok(known);
        }
        let path = self.path.clone();
        let read = kit::task::blocking(move || read(&path)).await.map_err(io::Error::other)??;
        Ok(Known { is_uncertain: true, ..read })
    }
}

fn read(path: &Path) -> io::Result<Known> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let content: FileContent = serde_json::from_slice(&bytes)?;
            if content.version != FILE_VERSION {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a file of votes of another version"));
            }
            Ok(Known { votes: content.votes, is_restored: content.restored, is_uncertain: false })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl VoteStore for FileVotes {
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        let mut known = self.current().await?;
        known.votes.extend(batch.iter().copied());
        self.write(known).await
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        let known = self.current().await?;
        let unknown = known.is_restored.then(|| Durable::default().into_restored());
        let vote = known.votes.get(&group).copied().or(unknown);
        if known.is_uncertain {
            // What was read may not have been synced.
            self.write(known).await?;
        }
        Ok(vote)
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
    async fn a_file_put_back_from_a_copy_is_one_until_each_group_votes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("votes");
        let store = FileVotes::open(&path).expect("new");
        store.persist(&[vote(1, 3), vote(2, 5)]).await.expect("written");
        store.mark_restored().await.expect("written");
        let again = FileVotes::open(&path).expect("there");
        again.persist(&[vote(1, 4)]).await.expect("written");
        let kept = |number: u32, epoch: u64| Some(vote(number, epoch).1);
        for votes in [again, FileVotes::open(&path).expect("there")] {
            assert_eq!(votes.load(group(1)).await.expect("read"), kept(1, 4), "its own again");
            assert_eq!(votes.load(group(2)).await.expect("read"), kept(2, 5).map(Durable::into_restored));
            assert_eq!(votes.load(group(3)).await.expect("read"), Some(Durable::default().into_restored()), "was it there?");
        }
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

    #[tokio::test]
    async fn a_vote_that_was_not_written_is_not_known_either() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("votes.json");
        let votes = FileVotes::open(&path).expect("none yet");
        votes.persist(&[vote(0, 1)]).await.expect("written");
        // A directory in the way of the file beside: the replacement cannot be written.
        std::fs::rename(directory.path(), directory.path().with_extension("away")).expect("moved");
        votes.persist(&[vote(0, 2)]).await.expect_err("nowhere to write");
        assert_eq!(votes.load(group(0)).await.ok().flatten(), None, "nothing is known while the disk is away");
        std::fs::rename(directory.path().with_extension("away"), directory.path()).expect("moved back");
        assert_eq!(votes.load(group(0)).await.expect("readable"), Some(vote(0, 1).1));
        assert_eq!(FileVotes::open(&path).expect("whole").load(group(0)).await.expect("readable"), Some(vote(0, 1).1));
    }
}
