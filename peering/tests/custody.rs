//! Three members over routers in one process, with faults on demand: who holds, who is fenced, what travels along.

mod common;

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use common::cluster::{GROUP, Judge, Member, TTL, all_follow, bytes, ends, group, members, setup};
use common::{id, soon, until};
use contracts::custody::{Durable, Readiness};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::Millis;
use kit::clock::Clock;
use peering::Transport;
use peering::custody::{self, Alarm, Error, Role, VoteStore, certificate};
use peering::in_process::{Network, Passage};
use tempfile::TempDir;

/// Takeover after the holder's last promise: one ttl, plus what a busy machine adds.
const TAKEOVER_MS_MAX: u128 = TTL.0 as u128 + 400;

struct World {
    network: Network,
    cut: Arc<Mutex<BTreeSet<(NodeId, NodeId)>>>,
    disk: TempDir,
}

impl World {
    fn new() -> Self {
        let network = Network::new(Clock::system());
        let cut: Arc<Mutex<BTreeSet<(NodeId, NodeId)>>> = Arc::default();
        let seen = Arc::clone(&cut);
        network.set_faults(Arc::new(move |message| {
            if seen.lock().expect("cut").contains(&(message.from, message.to)) { Passage::Lost } else { Passage::Delivered }
        }));
        Self { network, cut, disk: tempfile::tempdir().expect("a directory") }
    }

    fn setup(&self, number: u8) -> custody::Setup {
        setup(number, Arc::new(self.network.join(id(number))), self.disk.path())
    }

    async fn member(&self, number: u8) -> Member {
        Member::start(number, self.setup(number), group(number)).await
    }

    /// The customer starts first, so that it is the first holder for sure.
    async fn trio(&self) -> (Member, Member, Member) {
        let w = self.member(3).await;
        let a = self.member(1).await;
        assert_eq!(a.holds().await, Epoch(1));
        let b = self.member(2).await;
        all_follow(&[&b, &w], a.id(), Epoch(1)).await;
        (a, b, w)
    }

    fn isolate(&self, number: u8) {
        for other in (1..=3).filter(|other| *other != number) {
            self.cut_one_way(number, other);
            self.cut_one_way(other, number);
        }
    }

    fn cut_one_way(&self, from: u8, to: u8) {
        self.cut.lock().expect("cut").insert((id(from), id(to)));
    }

    fn heal(&self) {
        self.cut.lock().expect("cut").clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_holder_cut_off_is_fenced_before_the_other_holds() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    let judge = Judge::watch(vec![a.hold.clone(), b.hold.clone()]);
    world.isolate(1);
    let cut_at = Instant::now();
    let fenced = a.sees("its fence", |view| view.role == Role::Fenced { epoch: Epoch(1) }).await;
    assert!(a.hold.epoch().is_none());
    let epoch = b.holds().await;
    let took = cut_at.elapsed().as_millis();
    let gained = b.view.borrow().gained.expect("just gained");
    let (promised, asked) = (gained.last_promise_at.expect("to the customer"), gained.asked_at.expect("of the witness"));
    assert_eq!(gained.epoch, epoch);
    assert!(promised + TTL <= asked && asked <= gained.certified_at, "it kept its promise: {gained:?}");
    assert!(epoch > Epoch(1) && took <= TAKEOVER_MS_MAX, "took over {epoch} after {took} ms");
    assert!(fenced.certificate.is_some(), "it still proves that it was elected");
    a.sees("missing members", |view| view.missing == [id(2), id(3)]).await;
    w.sees("the missing customer", |view| view.missing == [id(1)]).await;
    world.heal();
    all_follow(&[&a, &w], b.id(), epoch).await;
    // It stays with the provider: the customer's return alone changes nothing.
    a.sees("nobody missing", |view| view.missing.is_empty()).await;
    assert!(b.hold.holds(epoch));
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_hands_over_at_once_with_its_counters() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    let judge = Judge::watch(vec![a.hold.clone(), b.hold.clone()]);
    for round in 0..4_u8 {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let handover = bytes(if round < 2 { 40 } else { 50_000 }, round);
        let released_at = Instant::now();
        let released = soon("release", from.handle.release(GROUP, Some(to.id()), handover.clone())).await.expect("held");
        assert!(!from.hold.holds(released) && from.hold.epoch().is_none(), "it stops before it says so");
        let epoch = to.holds().await;
        let took = released_at.elapsed();
        assert_eq!(epoch, released.next());
        assert!(took < Duration::from_millis(TTL.0 / 2), "without waiting for the lease, not after {took:?}");
        let received = to.sees("the handover", |view| view.released.is_some()).await.released.expect("seen");
        assert_eq!((received.from, received.epoch, received.handover.clone()), (from.id(), released, handover));
        let signed = received.statement.verify::<custody::statement::Release>().expect("signed");
        assert_eq!(signed.signers, [from.id().into()]);
        all_follow(&[from, &w], to.id(), epoch).await;
    }
    judge.verdict();
    assert!(matches!(b.handle.release(GROUP, None, Bytes::new()).await, Err(Error::NotHolding(_))));
    assert!(matches!(a.handle.release(GROUP, Some(id(9)), Bytes::new()).await, Err(Error::NotAMember { .. })));
    let long = bytes(custody::wire::ATTACHMENT_BYTES_MAX + 1, 0);
    assert!(matches!(a.handle.release(GROUP, None, long).await, Err(Error::TooLong { .. })));
    assert!(a.hold.epoch().is_some(), "a bad command changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nobody_holds() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    b.handle.stop().await;
    assert!(a.hold.holds(Epoch(1)), "two of three are enough");
    a.sees("all well", |view| matches!(view.role, Role::Holder { .. })).await;
    w.handle.stop().await;
    let stopped_at = Instant::now();
    ends(&a.hold).await;
    assert!(stopped_at.elapsed() <= Duration::from_millis(TTL.0), "the hold outlived the ttl");
    a.sees("its fence", |view| view.role == Role::Fenced { epoch: Epoch(1) }).await;
    // It asks and asks; alone it never gets anywhere.
    let sent = a.handle.counts().datagrams_sent;
    until("it keeps asking", || a.handle.counts().datagrams_sent > sent + 20).await;
    assert!(a.hold.epoch().is_none() && b.hold.epoch().is_none());
    assert!(matches!(b.handle.set_ready(GROUP, true).await, Err(Error::Stopped)));
    assert_eq!(b.view.borrow().role, Role::Stopped);
}

/// The customer hears nothing but is heard: its renewals keep the witness bound, until it is fenced and stops renewing.
#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_holder_ends_too() {
    let world = World::new();
    let (a, b, _w) = world.trio().await;
    let judge = Judge::watch(vec![a.hold.clone(), b.hold.clone()]);
    world.cut_one_way(2, 1);
    world.cut_one_way(3, 1);
    let deaf_at = Instant::now();
    let epoch = b.holds().await;
    assert!(epoch > Epoch(1));
    assert!(deaf_at.elapsed().as_millis() <= 2 * u128::from(TTL.0) + 400, "after {:?}", deaf_at.elapsed());
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_bring_the_newest_records_of_any_length() {
    for length in [0, 100, 300_000] {
        let world = World::new();
        let mut witness = world.setup(3);
        witness.records = Arc::new(move |group| {
            assert_eq!(group, GROUP);
            bytes(length, 3)
        });
        let w = Member::start(3, witness, group(3)).await;
        let a = world.member(1).await;
        a.holds().await;
        a.sees("the witness' records", |view| view.records == [(id(3), bytes(length, 3))]).await;
        let long = w.handle.counts().streams_sent;
        assert_eq!(long > 0, length > 1_100, "{length} bytes, {long} streams");
        assert_eq!(w.transport.counts().datagrams_dropped_too_long, 0);
    }
}

/// What a witness needs for evidence: its own votes and what the others signed, each once verifiable by anybody.
#[tokio::test(flavor = "multi_thread")]
async fn signed_statements_can_be_kept() {
    use custody::statement::{Ask, Grant, Release};
    let world = World::new();
    let kept: Arc<Mutex<Vec<custody::Stated>>> = Arc::default();
    let keeper = Arc::clone(&kept);
    let mut witness = world.setup(3);
    witness.statements = Some(Arc::new(move |stated| keeper.lock().expect("kept").push(stated)));
    let w = Member::start(3, witness, group(3)).await;
    let (a, b) = (world.member(1).await, world.member(2).await);
    all_follow(&[&b, &w], a.id(), a.holds().await).await;
    a.handle.release(GROUP, Some(id(2)), Bytes::from_static(b"counters")).await.expect("held");
    all_follow(&[&w], b.id(), b.holds().await).await;
    let kept = kept.lock().expect("kept");
    let by = |node, kind: &str| kept.iter().filter(|stated| stated.by == node && stated.envelope.payload_type == kind).count();
    use contracts::envelope::Statement as _;
    assert!(by(id(1), Ask::TYPE) > 0 && by(id(1), Release::TYPE) > 0);
    assert!(by(id(3), Grant::TYPE) > 0, "its own votes too");
    for stated in kept.iter().filter(|stated| stated.envelope.payload_type == Grant::TYPE) {
        let grant = stated.envelope.verify::<Grant>().expect("verifies");
        assert_eq!((grant.signers, grant.statement.group), (vec![stated.by.into()], stated.group));
    }
}

/// The process of the holder dies; the next one finds the votes and claims the next epoch, the old one is never resumed.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_holder_claims_the_next_epoch() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    a.handle.stop().await;
    assert!(a.hold.epoch().is_none());
    let a = world.member(1).await;
    let epoch = soon("somebody holds", async {
        tokio::select! {
            epoch = a.holds() => epoch,
            epoch = b.holds() => epoch,
        }
    })
    .await;
    assert!(epoch > Epoch(1));
    assert!(w.sees("it too", |view| view.voted_epoch >= epoch).await.voted_for.is_some());
}

/// A member whose disk was lost asks the others before it takes part.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_relearned() {
    let world = World::new();
    let (a, _b, w) = world.trio().await;
    a.handle.release(GROUP, Some(id(2)), Bytes::new()).await.expect("held");
    w.sees("epoch 2", |view| view.voted_epoch == Epoch(2)).await;
    w.handle.stop().await;
    std::fs::remove_file(world.disk.path().join("votes-3")).expect("the witness' disk");
    custody::FileVotes::open(world.disk.path().join("votes-3")).expect("none yet").mark_restored().await.expect("written");
    let w = Member::start(3, world.setup(3), group(3)).await;
    assert_eq!(w.view.borrow().role, Role::Recovering);
    w.sees("what the others voted", |view| view.voted_epoch >= Epoch(2) && view.role != Role::Recovering).await;
}

#[derive(Debug, Default)]
struct Disk {
    votes: Mutex<std::collections::BTreeMap<GroupId, Durable>>,
    broken: AtomicBool,
    /// While set, nothing gets through to the disk.
    stuck: AtomicBool,
    writes: std::sync::atomic::AtomicU64,
}

#[async_trait::async_trait]
impl VoteStore for Disk {
    async fn persist(&self, batch: &[(GroupId, Durable)]) -> io::Result<()> {
        // Not for ever: a failed test must end.
        let since = Instant::now();
        while self.stuck.load(Ordering::SeqCst) && since.elapsed() < common::PATIENCE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.votes.lock().expect("votes").extend(batch.iter().copied());
        Ok(())
    }

    async fn load(&self, group: GroupId) -> io::Result<Option<Durable>> {
        Ok(self.votes.lock().expect("votes").get(&group).copied())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vote_that_cannot_be_synced_stops_the_group_and_nothing_leaves() {
    let world = World::new();
    let disk = Arc::new(Disk::default());
    let (a, w) = (world.member(1).await, world.member(3).await);
    a.holds().await;
    let mut provider = world.setup(2);
    provider.votes = Arc::clone(&disk) as Arc<dyn VoteStore>;
    let b = Member::start(2, provider, group(2)).await;
    all_follow(&[&w], a.id(), Epoch(1)).await;
    disk.broken.store(true, Ordering::SeqCst);
    let released = a.handle.release(GROUP, Some(id(2)), Bytes::new()).await.expect("held");
    let stopped = b.sees("the alarm", |view| view.alarm.is_some()).await;
    assert_eq!(stopped.alarm, Some(Alarm::VoteNotPersisted(io::ErrorKind::StorageFull)));
    assert_eq!(stopped.role, Role::Stopped);
    assert_eq!(b.handle.counts().persist_failed, 1);
    // Nothing followed from it: nobody heard a claim, and the customer gets custody back when the successor's time is up.
    let epoch = a.holds().await;
    assert_eq!(epoch, released.next());
    assert!(b.hold.epoch().is_none());
}

/// The actor hangs on a disk that does not answer: what is held ends by itself, and a release is obeyed before the disk has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_disk_never_prolongs_a_hold() {
    let world = World::new();
    let disk = Arc::new(Disk::default());
    let mut customer = world.setup(1);
    customer.votes = Arc::clone(&disk) as Arc<dyn VoteStore>;
    let w = world.member(3).await;
    let a = Member::start(1, customer, group(1)).await;
    let epoch = a.holds().await;
    let b = world.member(2).await;
    all_follow(&[&b, &w], a.id(), epoch).await;
    let judge = Judge::watch(vec![a.hold.clone(), b.hold.clone()]);

    // Another group's vote gets stuck, and with it the actor.
    disk.stuck.store(true, Ordering::SeqCst);
    let other = custody::GroupConfig { group: GroupId::from_bytes([1; 16]), ..group(1) };
    let stuck_since = Instant::now();
    for member in [&w, &a] {
        member.handle.add_group(other.clone()).await.expect("added");
    }
    ends(&a.hold).await;
    assert!(stuck_since.elapsed() <= Duration::from_millis(TTL.0), "the hold outlived its ttl");
    let after = b.holds().await;
    assert!(after > epoch && a.view.borrow().role == (Role::Holder { epoch }), "the actor itself has noticed nothing yet");
    disk.stuck.store(false, Ordering::SeqCst);
    all_follow(&[&a, &w], b.id(), after).await;

    b.handle.release(GROUP, Some(id(1)), Bytes::new()).await.expect("held");
    let back = a.holds().await;
    disk.stuck.store(true, Ordering::SeqCst);
    let releasing = tokio::spawn({
        let handle = a.handle.clone();
        async move { handle.release(GROUP, None, Bytes::new()).await }
    });
    let asked_at = Instant::now();
    ends(&a.hold).await;
    assert!(asked_at.elapsed() < Duration::from_millis(TTL.0 / 3), "stopped only after {:?}", asked_at.elapsed());
    assert!(!releasing.is_finished(), "not done before the disk has it");
    disk.stuck.store(false, Ordering::SeqCst);
    assert_eq!(soon("release", releasing).await.expect("joined").expect("held"), back);
    judge.verdict();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_groups_share_datagrams_and_disk_writes() {
    const GROUPS: u8 = 40;
    let world = World::new();
    let of = |number: u8, n: u8| custody::GroupConfig { group: GroupId::from_bytes([n + 1; 16]), ..group(number) };
    let mut started = Vec::new();
    let disks: Vec<_> = (0..3).map(|_| Arc::new(Disk::default())).collect();
    for number in [3, 2, 1] {
        let mut setup = world.setup(number);
        setup.votes = Arc::clone(&disks[usize::from(number) - 1]) as Arc<dyn VoteStore>;
        let member = Member::start(number, setup, of(number, 0)).await;
        for n in 1..GROUPS {
            member.handle.add_group(of(number, n)).await.expect("added");
        }
        started.push(member);
    }
    let a = started.pop().expect("the customer");
    for n in 0..GROUPS {
        let group = GroupId::from_bytes([n + 1; 16]);
        let mut view = a.handle.subscribe(group).expect("added");
        soon("custody", view.wait_for(|view| matches!(view.role, Role::Holder { .. }))).await.expect("driven");
        assert!(a.handle.holds(group, Epoch(1)));
    }
    world.isolate(1);
    let b = &started[1];
    assert_eq!(b.number, 2);
    let cut_at = Instant::now();
    for n in 0..GROUPS {
        let mut view = b.handle.subscribe(GroupId::from_bytes([n + 1; 16])).expect("added");
        soon("custody", view.wait_for(|view| matches!(view.role, Role::Holder { .. }))).await.expect("driven");
    }
    let took = cut_at.elapsed().as_millis();
    assert!(took <= TAKEOVER_MS_MAX + 400, "{GROUPS} groups took {took} ms");
    let rounds_later = started[0].handle.counts().received + 10 * u64::from(GROUPS);
    until("renewals have come together", || started[0].handle.counts().received >= rounds_later).await;
    let before = (b.handle.counts(), started[0].handle.counts());
    until("ten rounds of renewals", || started[0].handle.counts().received >= before.1.received + 10 * u64::from(GROUPS)).await;
    let (sent, heard) =
        (b.handle.counts().datagrams_sent - before.0.datagrams_sent, started[0].handle.counts().received - before.1.received);
    assert!(sent * 8 < 2 * heard, "{heard} renewals heard by one of two in {sent} datagrams to both");
    let writes = disks[1].writes.load(Ordering::SeqCst);
    assert!(writes <= 2 * u64::from(GROUPS), "{writes} disk writes");
}

/// Groups whose ids end alike cannot be told apart in blocks of renewals: they are renewed with their whole ids, and lose nothing.
#[tokio::test(flavor = "multi_thread")]
async fn groups_with_one_short_name_are_both_held() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    let mut bytes = *GROUP.as_bytes();
    bytes[0] ^= 1;
    let twin = GroupId::from_bytes(bytes);
    for member in [&w, &b, &a] {
        let config = custody::GroupConfig { group: twin, ..group(member.number) };
        member.handle.add_group(config).await.expect("added");
    }
    let mut view = a.handle.subscribe(twin).expect("added");
    soon("custody", view.wait_for(|view| matches!(view.role, Role::Holder { .. }))).await.expect("driven");
    let heard = w.handle.counts().received + 40;
    until("ten rounds of renewals of both", || {
        assert!(a.handle.holds(GROUP, Epoch(1)) && a.handle.holds(twin, Epoch(1)));
        w.handle.counts().received >= heard
    })
    .await;
    let unknown = [&a, &b, &w].map(|member| member.handle.counts().dropped_unknown_group);
    assert!(unknown.iter().all(|dropped| *dropped <= 4), "{unknown:?} before all members had both groups");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_messages_are_counted_dropped_alone_and_change_nothing() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    let stranger = world.network.join(id(9));
    let before = w.handle.counts();
    for garbage in [&b"\x00"[..], b"\x00\x00\x00\x02\xff\xff", b"\xff\xff\xff\xff", &[0; 9]] {
        stranger.datagram(w.id(), Bytes::from_static(garbage)).expect("sent");
    }
    until("malformed ones counted", || w.handle.counts().dropped_malformed >= before.dropped_malformed + 4).await;
    // A renewal in a stranger's datagram; in a member's one without a sign of life, and an answer for a group that is not driven here.
    let (renewal, answer) = ([0, 1, 1, 0].as_slice(), [3, 1, 1].as_slice());
    let message = |group: u8, said: &[u8]| {
        let mut item = vec![group; 16];
        item.extend(said);
        let mut bytes = u32::try_from(item.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend(item);
        Bytes::from(bytes)
    };
    stranger.datagram(w.id(), message(7, renewal)).expect("sent");
    until("strangers counted", || w.handle.counts().dropped_strangers > before.dropped_strangers).await;
    b.transport.datagram(w.id(), message(7, renewal)).expect("sent");
    until("unproven ones counted", || w.handle.counts().dropped_unproven > before.dropped_unproven).await;
    b.transport.datagram(w.id(), message(8, answer)).expect("sent");
    until("unknown groups counted", || w.handle.counts().dropped_unknown_group > before.dropped_unknown_group).await;

    let post = |bytes: usize| Request::post("/custody/messages").body(Body::from(vec![0; bytes])).expect("a request");
    let answer = stranger.request(w.id(), post(10)).await.expect("answer");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    let answer = b.transport.request(w.id(), post(custody::wire::MESSAGE_BYTES_MAX + 1)).await.expect("answer");
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(a.hold.holds(Epoch(1)), "all the time");
    all_follow(&[&b, &w], a.id(), Epoch(1)).await;
}

/// One member floods the others with readable messages; custody goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_flooding_member_is_held_to_its_rate() {
    let world = World::new();
    let (a, b, w) = world.trio().await;
    let mut item = vec![7; 16];
    item.extend([3, 1, 1]);
    let mut one = u32::try_from(item.len()).expect("short").to_be_bytes().to_vec();
    one.extend(item);
    let flood = Bytes::from(one.repeat(45));
    let until_then = Instant::now() + Duration::from_millis(2 * TTL.0);
    while Instant::now() < until_then {
        for _ in 0..50 {
            let _ = b.transport.datagram(w.id(), flood.clone());
            let _ = b.transport.datagram(a.id(), flood.clone());
        }
        tokio::task::yield_now().await;
    }
    for flooded in [&a, &w] {
        assert!(flooded.handle.counts().dropped_rate > 0, "{:?}", flooded.handle.counts());
        let taken = flooded.handle.counts().received - flooded.handle.counts().dropped_rate;
        assert!(taken < 30_000, "{taken} messages were looked at");
    }
    soon("custody of somebody", async {
        tokio::select! {
            epoch = a.holds() => epoch,
            epoch = b.holds() => epoch,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_cannot_be_are_refused() {
    let world = World::new();
    let a = world.member(1).await;
    let add = |change: fn(&mut custody::GroupConfig)| {
        let mut config = custody::GroupConfig { group: GroupId::from_bytes([1; 16]), ..group(1) };
        change(&mut config);
        a.handle.add_group(config)
    };
    assert!(matches!(add(|c| c.group = GROUP).await, Err(Error::AlreadyThere(_))));
    assert!(matches!(add(|c| c.members[0] = id(5)).await, Err(Error::NotAMember { .. })));
    assert!(matches!(add(|c| c.members[1] = id(1)).await, Err(Error::MemberTwice(_))));
    assert!(matches!(add(|c| c.members.truncate(2)).await, Err(Error::Config(_))));
    assert!(matches!(add(|c| c.ttl = Millis(1)).await, Err(Error::Config(_))));
    assert!(matches!(add(|c| c.eligible = vec![id(8)]).await, Err(Error::NotAMember { .. })));
    assert!(matches!(a.handle.set_ready(GroupId::from_bytes([1; 16]), true).await, Err(Error::UnknownGroup(_))));
    assert!(matches!(
        custody::start(custody::Setup { transport: Arc::clone(&a.transport), ..world.setup(2) }),
        Err(Error::DatagramsTaken)
    ));
    a.handle.remove_group(GROUP).await.expect("was there");
    assert!(a.handle.subscribe(GROUP).is_none() && a.hold.epoch().is_none());
    assert!(a.view.borrow().role == Role::Stopped);
}

/// The provider may not be voted for before it proved its readiness, and does not ask while it is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_eligible_or_not_ready_does_not_get_custody() {
    let world = World::new();
    let unproven = |number| custody::GroupConfig { eligible: vec![id(1)], ..group(number) };
    let w = Member::start(3, world.setup(3), unproven(3)).await;
    let a = Member::start(1, world.setup(1), unproven(1)).await;
    a.holds().await;
    let b = Member::start(2, world.setup(2), custody::GroupConfig { readiness: Readiness::Unready, ..unproven(2) }).await;
    a.handle.stop().await;
    let fallen_silent = Instant::now();
    until("two ttls", || fallen_silent.elapsed() > Duration::from_millis(2 * TTL.0)).await;
    assert_eq!(b.handle.counts().dropped_by_machine, 0, "it did not even ask");
    b.handle.set_ready(GROUP, true).await.expect("driven");
    until("it asks in vain", || w.handle.counts().received > 5).await;
    assert!(b.hold.epoch().is_none());
    for member in [&w, &b] {
        member.handle.set_eligible(GROUP, vec![id(1), id(2)]).await.expect("members");
    }
    let epoch = b.holds().await;
    let certificate = b.view.borrow().certificate.clone().expect("a certificate");
    assert_eq!(certificate::verify(&certificate, &members(), GROUP, epoch), Ok(id(2)));
}
