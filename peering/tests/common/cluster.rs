//! Three members of a group: customer (1), provider (2), witness (3), each with votes on its own disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use contracts::custody::Readiness;
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::Millis;
use kit::clock::Clock;
use peering::Transport;
use peering::custody::{self, CustodyHandle, CustodyView, FileVotes, GroupConfig, Hold, Role, Setup, certificate};
use tokio::sync::watch;

use super::{id, keypair, soon};

pub const GROUP: GroupId = GroupId::from_bytes([7; 16]);
/// Long enough that a busy machine's hiccups are no outages.
pub const TTL: Millis = Millis(500);

pub fn members() -> Vec<NodeId> {
    vec![id(1), id(2), id(3)]
}

pub fn group(number: u8) -> GroupConfig {
    GroupConfig {
        group: GROUP,
        members: members(),
        candidates: vec![id(1), id(2)],
        eligible: vec![id(1), id(2)],
        first_holder: id(1),
        ttl: TTL,
        readiness: if number == 3 { Readiness::Unready } else { Readiness::Ready },
    }
}

pub struct Member {
    pub number: u8,
    pub transport: Arc<dyn Transport>,
    pub handle: CustodyHandle,
    pub hold: Hold,
    pub view: watch::Receiver<CustodyView>,
}

pub fn setup(number: u8, transport: Arc<dyn Transport>, disk: &std::path::Path) -> Setup {
    let votes = FileVotes::open(disk.join(format!("votes-{number}"))).expect("votes");
    Setup::new(transport, keypair(number), Clock::system(), Arc::new(votes))
}

impl Member {
    pub async fn start(number: u8, setup: Setup, config: GroupConfig) -> Self {
        let transport = Arc::clone(&setup.transport);
        let (handle, routes) = custody::start(setup).expect("datagrams are free");
        transport.serve(routes);
        let group = config.group;
        let hold = handle.add_group(config).await.expect("a valid group");
        let view = handle.subscribe(group).expect("added");
        Self { number, transport, handle, hold, view }
    }

    pub fn id(&self) -> NodeId {
        id(self.number)
    }

    /// Waits for the view to be so; gives it.
    pub async fn sees(&self, what: &str, mut condition: impl FnMut(&CustodyView) -> bool) -> CustodyView {
        let mut view = self.view.clone();
        let waited = tokio::time::timeout(super::PATIENCE, view.wait_for(|view| condition(view))).await;
        match waited {
            Ok(seen) => seen.expect("the group is driven").clone(),
            Err(_) => {
                panic!("member {} never saw: {what}; it sees {:?}; {:?}", self.number, self.view.borrow(), self.handle.counts())
            }
        }
    }

    /// Waits until this member holds, and checks its certificate.
    pub async fn holds(&self) -> Epoch {
        let view = self.sees("its own custody", |view| matches!(view.role, Role::Holder { .. })).await;
        let Role::Holder { epoch } = view.role else { unreachable!("just seen") };
        assert!(self.hold.holds(epoch) && self.handle.holds(GROUP, epoch));
        assert!(!self.hold.holds(epoch.next()));
        let certificate = view.certificate.expect("a holder has a certificate");
        assert_eq!(certificate::verify(&certificate, &members(), GROUP, epoch), Ok(self.id()));
        epoch
    }
}

/// Looks all the time whether two members hold at once.
pub struct Judge {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Judge {
    pub fn watch(holds: Vec<Hold>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::SeqCst) {
                for (place, one) in holds.iter().enumerate() {
                    let Some(epoch) = one.epoch() else { continue };
                    for other in &holds[place + 1..] {
                        let too = other.epoch();
                        // Held before and after the look at the other: held at the same instant.
                        assert!(too.is_none() || !one.holds(epoch), "{epoch} and {too:?} are held at once");
                    }
                }
                looks += 1;
                std::thread::park_timeout(Duration::from_micros(200));
            }
            looks
        });
        Self { stop, thread: Some(thread) }
    }

    pub fn verdict(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let looks = self.thread.take().expect("once").join().expect("never two holders");
        assert!(looks > 10, "the judge slept");
    }
}

/// Waits until every member in `others` follows `holder`.
pub async fn all_follow(others: &[&Member], holder: NodeId, epoch: Epoch) {
    for other in others {
        other.sees("the holder", |view| view.role == Role::Follower { epoch, holder: Some(holder) }).await;
    }
}

pub fn bytes(length: usize, fill: u8) -> Bytes {
    Bytes::from(vec![fill; length])
}

/// Waits for the moment a hold ends by itself.
pub async fn ends(hold: &Hold) {
    soon("the end of a hold", async {
        while hold.epoch().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
