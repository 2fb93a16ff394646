//! Fail points: one story that touches every durable write, run once for each write and each way to fail there. After each fault: restart,
//! invariants hold, nothing that was acknowledged is lost, what was interrupted is repeated, and the story ends as if nothing had happened.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::http::Method;
use common::{HOUR, Market, Party, contract, market_at};
use contracts::envelope::Envelope;
use contracts::ids::StatementId;
use contracts::listing::{Demand, Offer};
use contracts::resources::Resources;
use contracts::time::{Millis, WallTime};
use kit::clock::Clock;
use kit::fault::{FailPoints, Fault};
use marketplace::config::Limits;
use marketplace::resource::{EventKind, Listing, ListingKind, ListingState, Match, MatchState};
use marketplace::service::Service;
use marketplace::store::faulty::FaultyStore;
use marketplace::store::{ListingFilter, MatchFilter, Memory, NodeFilter, Sqlite, Store, Window};
use serde_json::{Value, json};
use tokio::sync::watch;

const WITHDRAWALS: &str = "/v1/withdrawals";
const ALL: Window = Window { after: 0, limit: 1_000 };

/// One thing that somebody does; doing it again changes nothing.
enum Step {
    Request {
        method: Method,
        path: String,
        envelope: Box<Envelope>,
    },
    /// Both parties of the demand's match sign and show their contract.
    Confirm {
        demand: StatementId,
        customer: Box<Party>,
        provider: Box<Party>,
    },
    /// One clearing round.
    Clear,
    /// What is over ends.
    Expire,
    /// What is long over is forgotten.
    Purge,
    Wait(Millis),
}

fn request(method: Method, path: impl Into<String>, envelope: Envelope) -> Step {
    Step::Request { method, path: path.into(), envelope: Box::new(envelope) }
}

fn register(party: &Party, record_epoch: u64) -> Step {
    request(Method::PUT, format!("/v1/nodes/{}", party.id()), party.signed_record(record_epoch))
}

fn withdraw(party: &Party, listing: StatementId) -> Step {
    request(Method::POST, WITHDRAWALS, party.withdrawal(listing))
}

/// Three demands: one comes to a contract that ends, one is not confirmed in time and is matched again, one is withdrawn while it is held.
fn story(now: WallTime) -> Vec<Step> {
    let [rio, patras, delphi, itea] = [1, 2, 3, 4].map(Party::new);
    let sign = |party: &Party, statement: Offer| Envelope::sign(&statement, &party.node);
    let want = |party: &Party, statement: Demand| Envelope::sign(&statement, &party.node);
    let long = |mut offer: Offer| {
        offer.valid_until = now + Millis::from_secs(20 * 86_400);
        offer
    };
    let offers =
        [sign(&patras, patras.offer(1, now)), sign(&patras, long(patras.offer(2, now))), sign(&itea, itea.offer(1, now))];
    let demands = [want(&rio, rio.demand(1, now)), want(&delphi, delphi.demand(1, now)), want(&delphi, delphi.demand(2, now))];
    let ids: Vec<StatementId> = demands.iter().map(Envelope::id).collect();
    let [first_offer, second_offer, third_offer] = offers;
    let (withdrawn_offer, [first, second, third]) = (third_offer.id(), demands);
    vec![
        register(&rio, 1),
        register(&patras, 1),
        register(&patras, 2),
        register(&delphi, 1),
        register(&itea, 1),
        request(Method::POST, "/v1/offers", first_offer),
        request(Method::POST, "/v1/demands", first),
        Step::Clear,
        Step::Confirm { demand: ids[0], customer: Box::new(rio), provider: Box::new(patras.clone()) },
        request(Method::POST, "/v1/demands", second),
        request(Method::POST, "/v1/offers", second_offer),
        Step::Clear,
        Step::Wait(Millis(61_000)),
        Step::Expire, // nobody confirmed
        Step::Clear,  // proposed again
        Step::Confirm { demand: ids[1], customer: Box::new(delphi.clone()), provider: Box::new(patras) },
        request(Method::POST, "/v1/offers", third_offer),
        request(Method::POST, "/v1/demands", third),
        Step::Clear,
        withdraw(&itea, withdrawn_offer),
        withdraw(&delphi, ids[2]),
        Step::Wait(HOUR),
        Step::Expire, // listings
        Step::Wait(Millis::from_secs(86_400)),
        Step::Expire, // contracts
        Step::Wait(Millis::from_secs(30 * 86_400)),
        Step::Expire, // the long offer
        Step::Wait(Millis::from_secs(30 * 86_400)),
        Step::Purge,
    ]
}

/// The disk under the service; it outlives every life of it.
enum Disk {
    Memory(Arc<Memory>),
    File { path: PathBuf, _directory: tempfile::TempDir },
}

impl Disk {
    fn memory() -> Self {
        Self::Memory(Arc::default())
    }

    /// In memory where the machine has such a directory: a process that dies loses nothing of a page cache, so syncing proves nothing here.
    fn file() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self::File { path: directory.path().join("book.sqlite"), _directory: directory }
    }

    async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(memory) => Arc::clone(memory) as Arc<dyn Store>,
            Self::File { path, .. } => Arc::new(Sqlite::open(path).await.unwrap()),
        }
    }
}

/// One life of the marketplace.
struct Life {
    market: Market,
    store: Arc<dyn Store>,
    points: Arc<FailPoints>,
}

impl Life {
    async fn begin(disk: &Disk, clock: &Clock) -> Self {
        let store = FaultyStore::new(disk.open().await);
        let points = Arc::clone(&store.points);
        let store: Arc<dyn Store> = Arc::new(store);
        let limits = Limits { requests_burst_max: 100_000, ..Limits::default() };
        Self { market: market_at(limits, Arc::clone(&store), clock.clone()).await, store, points }
    }

    async fn end(self) {
        let service: Weak<Service> = Arc::downgrade(&self.market.service);
        let store: Weak<dyn Store> = Arc::downgrade(&self.store);
        self.points.crash();
        drop((self.market, self.store));
        self.points.bury();
        while service.strong_count() > 0 || store.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn dare(&self, step: &Step) -> Result<(), String> {
        tokio::select! {
            biased;
            () = self.points.crashed() => Err("died".to_owned()),
            answer = self.perform(step) => answer,
        }
    }

    async fn send(&self, method: &Method, path: &str, envelope: &Envelope) -> Result<(), String> {
        let (status, body) = self.market.send_raw(method.clone(), path, serde_json::to_vec(envelope).unwrap()).await;
        if status.is_success() { Ok(()) } else { Err(format!("{path}: {status} {body}")) }
    }

    async fn perform(&self, step: &Step) -> Result<(), String> {
        match step {
            Step::Request { method, path, envelope } => self.send(method, path, envelope).await,
            Step::Confirm { demand, customer, provider } => {
                let matches = self.matches(MatchFilter { listing: Some(*demand), ..MatchFilter::default() }).await;
                let of_demand = matches.iter().find(|row| row.state.is_active()).ok_or("no active match")?;
                let text = contract(customer, provider, Some(of_demand.id), of_demand.matched_at);
                self.send(&Method::PUT, &format!("/v1/matches/{}/contract", of_demand.id), &text).await
            }
            Step::Clear => self.market.service.clear().await.map(|_| ()).map_err(|error| error.to_string()),
            Step::Expire => self.market.service.expire().await.map(|_| ()).map_err(|error| error.to_string()),
            Step::Purge => {
                let before = self.market.now() - marketplace::service::RETENTION;
                self.store.purge(before).await.map_err(|error| error.to_string())
            }
            Step::Wait(_) => Ok(()), // time passes outside of every process
        }
    }

    async fn matches(&self, filter: MatchFilter) -> Vec<Match> {
        self.store.list_matches(filter, ALL).await.unwrap().into_iter().map(|(_, row)| row).collect()
    }

    async fn listings(&self) -> Vec<Listing> {
        let mut all = Vec::new();
        for kind in [ListingKind::Offer, ListingKind::Demand] {
            let filter = ListingFilter { kind, node: None, owner: None, state: None };
            all.extend(self.store.list_listings(filter, ALL).await.unwrap().into_iter().map(|(_, row)| row));
        }
        all
    }

    /// What must be true at any time, whatever happened.
    async fn check_invariants(&self, what: &str) {
        let matches = self.matches(MatchFilter::default()).await;
        let listings: BTreeMap<StatementId, Listing> = self.listings().await.into_iter().map(|row| (row.id, row)).collect();
        let mut wanted = BTreeSet::new();
        let mut used: BTreeMap<StatementId, Vec<Resources>> = BTreeMap::new();
        for row in matches.iter().filter(|row| row.state.is_active()) {
            assert!(wanted.insert(row.demand), "{what}: a demand has two providers");
            let demand: Demand = serde_json::from_slice(&listings[&row.demand].statement.payload).unwrap();
            used.entry(row.offer).or_default().push(demand.needs);
        }
        for (offer, needs) in used {
            let offer: Offer = serde_json::from_slice(&listings[&offer].statement.payload).unwrap();
            let left = needs.iter().try_fold(offer.free, |left, needs| left.minus(needs));
            assert!(left.is_some(), "{what}: an offer was promised more than it has");
        }
        for row in &matches {
            let open = [row.offer, row.demand].iter().all(|id| listings[id].state == ListingState::Open);
            assert!(
                open || row.state != MatchState::Held || row.until > self.market.now() - HOUR,
                "{what}: a hold outlives its listings"
            );
            assert_eq!(row.contract.is_some(), matches!(row.state, MatchState::Confirmed | MatchState::Ended), "{what}");
        }
        self.check_events(&listings, &matches, what).await;
    }

    /// Every state is told exactly once, in the order of the numbers, and the numbers have no gaps.
    async fn check_events(&self, listings: &BTreeMap<StatementId, Listing>, matches: &[Match], what: &str) {
        let events = self.store.list_events(None, ALL).await.unwrap();
        let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{what}");
        let told: BTreeSet<(StatementId, &str)> = events.iter().map(|event| (event.id, event.kind.as_str())).collect();
        assert_eq!(told.len(), events.len(), "{what}: something was told twice");
        for row in listings.values() {
            let state = match row.state {
                ListingState::Open => EventKind::Listed,
                ListingState::Withdrawn => EventKind::Withdrawn,
                ListingState::Expired => EventKind::Expired,
            };
            assert!(
                told.contains(&(row.id, "listed")) && told.contains(&(row.id, state.as_str())),
                "{what}: {} is not told",
                row.id
            );
        }
        for row in matches {
            let state = match row.state {
                MatchState::Held => EventKind::Matched,
                MatchState::Confirmed => EventKind::Confirmed,
                MatchState::Expired => EventKind::Expired,
                MatchState::Released => EventKind::Released,
                MatchState::Ended => EventKind::Ended,
            };
            assert!(
                told.contains(&(row.id, "matched")) && told.contains(&(row.id, state.as_str())),
                "{what}: {} is not told",
                row.id
            );
        }
    }

    /// Every answer that was given is still true: what was listed, withdrawn or confirmed is, and sending it again changes nothing.
    async fn check_acknowledged(&self, done: &[Step], what: &str) {
        let before = self.footprint().await;
        for step in done {
            let Step::Request { method, path, envelope } = step else { continue };
            if *method == Method::PUT {
                let known = self.store.list_nodes(NodeFilter::default(), ALL).await.unwrap();
                let sent: contracts::node_record::NodeRecord = serde_json::from_slice(&envelope.payload).unwrap();
                let kept = known.iter().find(|(_, node)| node.id == sent.node).map(|(_, node)| node.record_epoch);
                assert!(kept >= Some(sent.record_epoch), "{what}: a record is lost");
            } else if path != WITHDRAWALS {
                let kept = self.store.get_listing(envelope.id()).await.unwrap();
                assert!(kept.is_some_and(|row| row.statement == **envelope), "{what}: {path}: a listing is lost");
            } else {
                self.send(method, path, envelope).await.unwrap_or_else(|error| panic!("{what}: acknowledged, and then: {error}"));
            }
        }
        assert_eq!(self.footprint().await, before, "{what}: a repetition changed something");
    }

    async fn footprint(&self) -> Value {
        let listings: Vec<_> =
            self.listings().await.into_iter().map(|row| json!([row.id.to_string(), row.state, row.withdrawal])).collect();
        let matches: Vec<_> = self
            .matches(MatchFilter::default())
            .await
            .into_iter()
            .map(|row| json!([row.id.to_string(), row.state, row.contract.map(|id| id.to_string())]))
            .collect();
        let events: Vec<_> = self
            .store
            .list_events(None, ALL)
            .await
            .unwrap()
            .into_iter()
            .map(|event| json!([event.kind, event.id.to_string()]))
            .collect();
        let nodes: Vec<_> = self
            .store
            .list_nodes(NodeFilter::default(), ALL)
            .await
            .unwrap()
            .into_iter()
            .map(|(_, node)| json!([node.id.to_string(), node.record_epoch]))
            .collect();
        let rounds: Vec<_> = self
            .store
            .list_rounds(ALL)
            .await
            .unwrap()
            .into_iter()
            .map(|(_, round)| json!([round.round, round.matched]))
            .collect();
        json!({ "listings": listings, "matches": matches, "events": events, "nodes": nodes, "rounds": rounds })
    }
}

/// Runs the whole story with `fault` at write `n` (none: a life without faults). Gives the footprints before the purge and at the end, and
/// the number of writes.
async fn run(disk: Disk, plan: Option<(u64, Fault)>) -> (Value, u64) {
    let what = format!("{plan:?}");
    let clock = Clock::manual();
    let steps = story(clock.wall());
    let mut life = Life::begin(&disk, &clock).await;
    if let Some((n, fault)) = plan {
        life.points.plan(n, fault);
    }
    let (mut faults, mut footprints) = (0, Vec::new());
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Wait(time) => clock.advance(*time),
            Step::Purge => footprints.push(life.footprint().await),
            Step::Request { .. } | Step::Confirm { .. } | Step::Clear | Step::Expire => {}
        }
        let Err(error) = life.dare(step).await else { continue };
        faults += 1;
        assert!(plan.is_some() && faults == 1, "{what}: step {at} fails: {error}");
        if life.points.is_crashed() {
            life.end().await;
            life = Life::begin(&disk, &clock).await;
        }
        let done = if matches!(step, Step::Purge) { &[] } else { &steps[..at] };
        life.check_invariants(&what).await;
        life.check_acknowledged(done, &what).await;
        life.dare(step).await.unwrap_or_else(|error| panic!("{what}: step {at} repeated: {error}"));
        life.check_invariants(&what).await;
    }
    assert!(faults > 0 || plan.is_none(), "{what}: the fault was heard");
    footprints.push(life.footprint().await);
    let writes = life.points.writes();
    life.end().await;
    (json!(footprints), writes)
}

async fn exhaust(disk: impl Fn() -> Disk) {
    let (expected, writes) = run(disk(), None).await;
    for fault in Fault::ALL {
        for n in 1..=writes {
            assert_eq!(run(disk(), Some((n, fault))).await.0, expected, "{fault:?} at write {n}");
        }
    }
    println!("{writes} writes, {} ways to fail at each", Fault::ALL.len());
}

#[tokio::test]
async fn every_write_fails_in_every_way_in_memory() {
    exhaust(Disk::memory).await;
}

#[tokio::test]
async fn every_write_fails_in_every_way_on_a_file() {
    exhaust(Disk::file).await;
}

/// The story is worth something only if it comes to all kinds of ends.
#[tokio::test]
async fn the_story_touches_what_it_should() {
    let (footprints, writes) = run(Disk::memory(), None).await;
    let states = |of: &Value, key: &str| {
        of[key].as_array().unwrap().iter().map(|row| row[1].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = &footprints[0];
    assert_eq!(states(before, "matches"), ["ended", "expired", "ended", "released"]);
    let listings: BTreeSet<String> = states(before, "listings").into_iter().collect();
    assert_eq!(listings, BTreeSet::from(["expired", "withdrawn"].map(str::to_owned)));
    assert!(states(&footprints[1], "matches").len() < 4 && writes >= 20, "{writes} writes");
}

/// A change whose answer was lost on the way is cleared and told all the same, not only when the next one comes.
#[tokio::test(start_paused = true)]
async fn a_change_that_nobody_heard_of_is_cleared_and_told() {
    for fault in [None, Some(Fault::Doubt)] {
        let (disk, clock) = (Disk::memory(), Clock::manual());
        let life = Life::begin(&disk, &clock).await;
        let (rio, patras) = (Party::new(1), Party::new(2));
        for step in [register(&rio, 1), register(&patras, 1)] {
            life.perform(&step).await.unwrap();
        }
        let (stop, stopping) = watch::channel(false);
        let rounds = tokio::spawn(Arc::clone(&life.market.service).run_rounds(Duration::from_secs(1), stopping));
        let offer = Envelope::sign(&patras.offer(1, clock.wall()), &patras.node);
        life.perform(&request(Method::POST, "/v1/offers", offer)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        if let Some(fault) = fault {
            life.points.plan(life.points.writes() + 1, fault);
        }
        let demand = Envelope::sign(&rio.demand(1, clock.wall()), &rio.node);
        let answer = life.perform(&request(Method::POST, "/v1/demands", demand)).await;
        assert_eq!(answer.is_err(), fault.is_some());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(life.matches(MatchFilter::default()).await.len(), 1, "{fault:?}: matched within some rounds");
        let (_, last) = life.store.event_range().await.unwrap();
        assert_eq!(*life.market.service.watch_events().borrow(), last, "{fault:?}");
        stop.send(true).unwrap();
        rounds.await.unwrap();
        life.end().await;
    }
}
