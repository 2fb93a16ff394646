//! What members signed about custody, kept on disk: evidence for `antirio verdict --statements`, should one of them lie.
//!
//! One file, one JSON envelope a line, the newest last; when it is full it becomes the older one, and that is dropped. It is written without a
//! sync and loses what the disk refuses: evidence is worth a stake, but not the custody that it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use contracts::envelope::{Envelope, Statement as _};
use contracts::ids::{GroupId, NodeId, StatementId};
use contracts::time::BootTime;
use kit::clock::Clock;
use peering::custody::statement::{Ask, RefusalStatement};
use peering::custody::{Stated, StatementSink};
use tokio::sync::mpsc;

/// The file, below the state directory, and the one before it.
pub const FILE: &str = "custody-statements.jsonl";
pub const OLDER_FILE: &str = "custody-statements.older.jsonl";
/// Length of either file.
pub const FILE_BYTES_MAX: u64 = 8 << 20;
/// Statements that wait for the disk; more are dropped.
const WAITING_MAX: usize = 1_024;
/// Kept of one member and group within a second: a member that signs much must not drive out what it signed before. Of refusals, which are
/// repeated until the answer is another, one.
const PER_SECOND_MAX: usize = 8;
const SECOND_MS: u64 = 1_000;
/// Members and groups that are counted apart before those of past seconds are forgotten.
const COUNTED_MAX: usize = 65_536;

/// Takes statements and writes them; within a Tokio runtime.
#[must_use]
pub fn keep(state_directory: &Path, clock: Clock) -> StatementSink {
    let (wanted, waiting) = mpsc::channel(WAITING_MAX);
    kit::task::spawn(write_all(state_directory.to_owned(), waiting));
    let budget = Mutex::new(Budget::default());
    Arc::new(move |stated: Stated| {
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        if budget.allows(&stated, clock.boot()) && wanted.try_send(stated.envelope).is_err() {
            tracing::warn!(group = %stated.group, by = %stated.by.short(), "a statement about custody was not kept");
        }
    })
}

/// What was kept of each member in the current second.
#[derive(Default)]
struct Budget(BTreeMap<(GroupId, NodeId), Spent>);

struct Spent {
    since: BootTime,
    refusals: u32,
    /// Votes and releases: these differ from one another.
    others: BTreeSet<StatementId>,
}

impl Budget {
    fn allows(&mut self, stated: &Stated, now: BootTime) -> bool {
        let kind = stated.envelope.payload_type.as_str();
        // A question binds nobody.
        if kind == Ask::TYPE {
            return false;
        }
        if self.0.len() >= COUNTED_MAX {
            self.0.retain(|_, spent| now.since(spent.since).0 < SECOND_MS);
        }
        let fresh = || Spent { since: now, refusals: 0, others: BTreeSet::new() };
        let spent = self.0.entry((stated.group, stated.by)).or_insert_with(fresh);
        if now.since(spent.since).0 >= SECOND_MS {
            *spent = fresh();
        }
        if kind == RefusalStatement::TYPE {
            spent.refusals += 1;
            return spent.refusals == 1;
        }
        spent.others.len() < PER_SECOND_MAX && spent.others.insert(stated.envelope.id())
    }
}

async fn write_all(directory: PathBuf, mut waiting: mpsc::Receiver<Envelope>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, WAITING_MAX).await > 0 {
        let (directory, statements) = (directory.clone(), std::mem::take(&mut batch));
        let written = kit::task::blocking(move || append(&directory, &statements, FILE_BYTES_MAX)).await;
        if let Err(error) = written.unwrap_or_else(|broken| Err(std::io::Error::other(broken))) {
            tracing::warn!(%error, "statements about custody were not kept");
        }
    }
}

fn append(directory: &Path, statements: &[Envelope], bytes_max: u64) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(FILE);
    let mut lines = Vec::new();
    for statement in statements {
        serde_json::to_writer(&mut lines, statement)?;
        lines.push(b'\n');
    }
    let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    if length > 0 && length + lines.len() as u64 > bytes_max {
        std::fs::rename(&path, directory.join(OLDER_FILE))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?.write_all(&lines)
}

#[cfg(test)]
mod tests {
    use contracts::envelope::Keypair;
    use contracts::ids::Epoch;
    use contracts::time::Millis;
    use peering::custody::statement::{BootId, Digest, Grant, MemberClock, Refused};

    use super::*;

    const GROUP: GroupId = GroupId::from_bytes([7; 16]);

    fn key() -> Keypair {
        Keypair::from_secret(&[4; 32])
    }

    fn stated(envelope: Envelope) -> Stated {
        Stated { group: GROUP, by: key().node_id(), envelope }
    }

    fn clock(ms: u64) -> MemberClock {
        MemberClock { boot: BootId([1; 16]), ms }
    }

    fn grant(epoch: u64) -> Envelope {
        let (candidate, records) = (key().node_id(), Digest::of(b""));
        Envelope::sign(&Grant { group: GROUP, epoch: Epoch(epoch), candidate, seq: 1, records, clock: clock(5) }, &key())
    }

    fn refusal(seq: u64) -> Envelope {
        let statement = RefusalStatement {
            group: GROUP,
            to: Refused::Ask,
            candidate: key().node_id(),
            epoch: Epoch(0),
            seq,
            voted_epoch: Epoch(1),
            retry_after: Millis(1),
            promised: None,
            clock: clock(seq),
        };
        Envelope::sign(&statement, &key())
    }

    #[test]
    fn two_votes_of_one_instant_are_kept_and_repetitions_are_not() {
        let ask = Envelope::sign(&Ask { group: GROUP, epoch: Epoch(1), seq: 1, clock: clock(1) }, &key());
        let mut budget = Budget::default();
        let mut kept = |envelope: Envelope, now| budget.allows(&stated(envelope), BootTime(now));
        assert!(!kept(ask, 0));
        assert!(kept(grant(1), 0) && kept(grant(2), 0));
        assert!(kept(refusal(1), 10));
        assert!(!kept(refusal(2), 500));
        assert!(!kept(grant(2), 600), "the same again");
        assert_eq!((3..40).filter(|epoch| kept(grant(*epoch), 600)).count(), 6, "a flood drives nothing out");
        assert!(kept(refusal(3), 1_000) && kept(grant(3), 1_000));
    }

    #[test]
    fn a_full_file_becomes_the_older_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let read = |file: &str| -> Vec<Envelope> {
            let text = std::fs::read_to_string(directory.path().join(file)).unwrap_or_default();
            text.lines().map(|line| serde_json::from_str(line).expect("an envelope")).collect()
        };
        let length = serde_json::to_vec(&grant(1)).expect("JSON").len() as u64 + 1;
        for epoch in 1..=5 {
            append(directory.path(), &[grant(epoch)], 2 * length).expect("written");
        }
        assert_eq!(read(OLDER_FILE), [grant(3), grant(4)]);
        assert_eq!(read(FILE), [grant(5)]);
    }
}
