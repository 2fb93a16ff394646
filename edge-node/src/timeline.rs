//! What happened on this node, for people and programs that watch: the last thousand events and a live stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use contracts::ids::{ContractId, Epoch, GroupId, StatementId};
use contracts::time::WallTime;
use kit::clock::Clock;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Events kept for those who come late.
const EVENTS_MAX: usize = 1_000;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Rises by one; the id of the server-sent event.
    pub seq: u64,
    pub at: WallTime,
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen that somebody outside cares about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        node: String,
        engine: String,
    },
    ServiceStarted {
        group: GroupId,
        start_us: u64,
    },
    TenantConnected {
        group: GroupId,
        since_start_us: Option<u64>,
    },
    Listed {
        kind: String,
        id: StatementId,
    },
    Matched {
        id: StatementId,
    },
    Negotiated {
        round: u32,
        price_per_day_micros: String,
    },
    Signed {
        contract: ContractId,
    },
    InForce {
        contract: ContractId,
    },
    ContentStored {
        cid: String,
        bytes: u64,
    },
    ContentFetched {
        cid: String,
        bytes: u64,
        elapsed_ms: u64,
    },
    Prepared {
        contract: ContractId,
        create_ms: u64,
    },
    Armed {
        contract: ContractId,
        group: GroupId,
    },
    /// `asked_at`: when this node first asked for it; absent after a release, which is claimed without asking.
    CustodyGained {
        group: GroupId,
        epoch: Epoch,
        certificate: Option<StatementId>,
        asked_at: Option<WallTime>,
    },
    CustodyLost {
        group: GroupId,
        epoch: Epoch,
    },
    /// Containers and bridge serve; `start_us`: from the certificate to the tenant's first request.
    TakenOver {
        group: GroupId,
        epoch: Epoch,
        start_us: u64,
    },
    /// Every frame that was buffered at the takeover is with the customer's cloud.
    ReplaySettled {
        group: GroupId,
        epoch: Epoch,
        frames: u64,
        elapsed_ms: u64,
    },
    CustomerReturned {
        group: GroupId,
    },
    Level {
        group: GroupId,
        imported: u64,
    },
    Released {
        group: GroupId,
        epoch: Epoch,
    },
    HandedBack {
        group: GroupId,
        epoch: Epoch,
    },
    Settled {
        contract: ContractId,
        outcome: String,
        verdict: Option<StatementId>,
    },
    Wiped {
        contract: ContractId,
    },
    Alarm {
        what: String,
    },
}

/// A handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Timeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    kept: Mutex<(u64, VecDeque<Entry>)>,
    live: broadcast::Sender<Entry>,
}

impl Timeline {
    /// The clock of its entries.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, kept: Mutex::default(), live: broadcast::Sender::new(256) }))
    }

    /// Says that something happened, now.
    pub fn push(&self, event: Event) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        let entry = Entry { seq: kept.0, at: self.0.clock.wall(), event };
        tracing::info!(event = ?entry.event, "timeline");
        if kept.1.len() == EVENTS_MAX {
            kept.1.pop_front();
        }
        kept.1.push_back(entry.clone());
        let _nobody_watches = self.0.live.send(entry);
    }

    /// What is kept behind `after`, and everything from now on.
    #[must_use]
    pub fn follow(&self, after: u64) -> (Vec<Entry>, broadcast::Receiver<Entry>) {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.0.live.subscribe();
        (kept.1.iter().filter(|e| e.seq > after).cloned().collect(), live)
    }
}
