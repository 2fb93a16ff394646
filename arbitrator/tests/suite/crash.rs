//! Fail points: one story that touches every durable write, run once for each write and each way to fail there. After each fault: restart,
//! invariants hold, nothing that was acknowledged is lost, what was interrupted is repeated, and the story ends as if nothing had happened.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use arbitrator::service::Service;
use arbitrator::store::faulty::FaultyStore;
use arbitrator::store::{Memory, Sqlite, Store};
use contracts::contract::Contract;
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::{Envelope, Key};
use contracts::evidence::judge::{self, Received};
use contracts::evidence::{Dispute, Evidence, ReadinessChallenge, Withdraw};
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, SessionId};
use contracts::ledger::Phase;
use contracts::money::Amount;
use contracts::settlement;
use contracts::time::{Millis, WallTime};
use contracts::write_ahead::{Bound, Reservation};
use kit::clock::Clock;
use kit::fault::{FailPoints, Fault};
use serde_json::{Value, json};

use super::common::*;

/// One thing that somebody does; doing it again changes nothing.
enum Step {
    Request { method: &'static str, path: String, body: Value },
    Vote { epoch: u64, member: u8 },
    Write { epoch: u64, seq: u64, member: u8, upto: u32 },
    Wait(Millis),
    Tick,
}

struct Story {
    steps: Vec<Step>,
    contracts: Vec<(ContractId, Contract)>,
    group: GroupId,
}

fn put(path: String, body: impl serde::Serialize) -> Step {
    Step::Request { method: "PUT", path, body: serde_json::to_value(body).unwrap() }
}

fn post(path: impl Into<String>, body: impl serde::Serialize) -> Step {
    Step::Request { method: "POST", path: path.into(), body: serde_json::to_value(body).unwrap() }
}

fn evidence(id: ContractId, envelope: &Envelope) -> Step {
    post(format!("/v1/contracts/{id}/evidence"), envelope)
}

/// Three contracts over one group: one is honoured, one ends in a dispute, one waits for its term. `now` is when the story begins.
fn story(now: WallTime) -> Story {
    let text = |nonce: u64, days: u64| {
        let mut contract = contract(now);
        contract.nonce = nonce;
        contract.valid_until = now + Millis(DAY.0 * days);
        (ContractId::from(signed(&contract).id()), contract)
    };
    let contracts = vec![text(1, 30), text(2, 30), text(3, 2)];
    let (first, second, third) = (contracts[0].0, contracts[1].0, contracts[2].0);
    let terms = &contracts[0].1;
    let challenge = ReadinessChallenge {
        contract: second,
        node: node(CUSTOMER),
        challenge: "0a".repeat(32),
        issued_at: now,
        answer_by: now + Millis(2_000),
    };
    let withdraw = Withdraw {
        arbitrator: node(ARBITRATOR),
        operator: key(OPERATOR).key(),
        owner: owner(PROVIDER_OWNER),
        currency: euro(),
        amount: Amount::from_units(10),
        nonce: 9,
        valid_until: now + DAY,
    };
    let serving = now + Millis(6_100);
    let steps = vec![
        put(format!("/v1/nodes/{}", node(CUSTOMER)), record(CUSTOMER, CUSTOMER_OWNER, 2, loopback())),
        post("/v1/orders", deposit(CUSTOMER_OWNER, 300, 1, now + DAY)),
        post("/v1/orders", deposit(PROVIDER_OWNER, 300, 2, now + DAY)),
        post("/v1/contracts", submission(&contracts[0].1)),
        post("/v1/contracts", submission(&contracts[1].1)),
        Step::Vote { epoch: 1, member: 0 },
        Step::Write { epoch: 1, seq: 1, member: 0, upto: 16 },
        Step::Tick, // both contracts of the group learn of the vote
        evidence(first, &ready(first)),
        evidence(second, &ready(second)),
        evidence(second, &statement(&challenge, CUSTOMER)),
        Step::Wait(Millis(3_000)),
        Step::Tick, // the challenge stayed without an answer
        Step::Write { epoch: 1, seq: 2, member: 0, upto: 32 },
        Step::Wait(Millis(3_000)),
        Step::Vote { epoch: 2, member: 1 },
        Step::Wait(Millis(500)),
        // The report of the witness's own vote comes first, then this.
        evidence(first, &takeover(first, terms, 2, serving, Millis(100))),
        evidence(second, &takeover(second, terms, 2, serving, Millis(100))),
        Step::Write { epoch: 2, seq: 1, member: 1, upto: 48 },
        post("/v1/contracts", submission(&contracts[2].1)),
        Step::Wait(Millis(5 * 3_600_000)),
        Step::Vote { epoch: 3, member: 0 },
        evidence(first, &release(first, terms, 2, now + Millis(5 * 3_600_000))),
        evidence(first, &handback(first, terms, 3, now + Millis(5 * 3_600_000))),
        evidence(second, &statement(&Dispute { contract: second, node: node(CUSTOMER), reason: "silence".to_owned() }, CUSTOMER)),
        evidence(third, &ready(third)),
        post("/v1/orders", statement(&withdraw, OPERATOR)),
        Step::Wait(DAY),
        Step::Tick, // the dispute's window is over
        Step::Wait(DAY),
        Step::Tick, // the third contract's term is over
    ];
    let group = contracts[0].1.group;
    Story { steps, contracts, group }
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
        Self::File { path: directory.path().join("arbitrator.sqlite"), _directory: directory }
    }

    async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(memory) => Arc::clone(memory) as Arc<dyn Store>,
            Self::File { path, .. } => Arc::new(Sqlite::open(path).await.unwrap()),
        }
    }
}

/// One life of the arbitrator.
struct Life {
    bench: Bench,
    points: Arc<FailPoints>,
}

impl Life {
    async fn begin(disk: &Disk, clock: &Clock) -> Self {
        let store = FaultyStore::new(disk.open().await);
        let points = Arc::clone(&store.points);
        Self { bench: bench_at(Arc::new(store), clock.clone()).await, points }
    }

    /// Ends at once; whatever hangs in the middle of something is let go without having done more.
    async fn end(self) {
        let service: Weak<Service> = Arc::downgrade(&self.bench.service);
        let store: Weak<dyn Store> = Arc::downgrade(&self.bench.store);
        self.points.crash();
        drop(self.bench);
        self.points.bury();
        while service.strong_count() > 0 || store.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Does it; an error is an answer too, "died" is none.
    async fn dare(&self, story: &Story, step: &Step) -> Result<Value, String> {
        tokio::select! {
            biased;
            () = self.points.crashed() => Err("died".to_owned()),
            answer = self.perform(story, step) => answer,
        }
    }

    async fn perform(&self, story: &Story, step: &Step) -> Result<Value, String> {
        let store = &self.bench.store;
        match step {
            Step::Request { method, path, body } => {
                self.bench.put(method, path, body).await.map_err(|problem| format!("{problem:?}"))
            }
            Step::Vote { epoch, member } => {
                let vote = Durable { voted_epoch: Epoch(*epoch), voted_for: Some(MemberIndex(*member)), ..Durable::default() };
                let written = store.persist_votes(&[(story.group, vote)], self.bench.now()).await;
                written.map(|()| Value::Null).map_err(|error| error.to_string())
            }
            Step::Write { epoch, seq, member, upto } => {
                let (device, session) = (DevEui::from_u64(1), SessionId::from_bytes([1; 8]));
                let reservation =
                    Reservation { epoch: Epoch(*epoch), seq: *seq, bounds: vec![Bound { device, session, upto: *upto }] };
                let blob = vec![(device, format!("{epoch} {seq}").into_bytes())];
                let written = store.put_records(story.group, MemberIndex(*member), &reservation, &blob).await;
                written.map(|()| Value::Null).map_err(|error| error.to_string())
            }
            Step::Wait(_) => Ok(Value::Null), // time passes outside of every process
            Step::Tick => {
                // What one tick could not do for one contract is in the log and done by the next.
                let first = self.bench.service.tick().await;
                let ticked = first.and(self.bench.service.tick().await);
                ticked.map(|()| Value::Null).map_err(|error| error.to_string())
            }
        }
    }

    /// What must be true at any time, whatever happened.
    async fn check_invariants(&self, story: &Story, done: &[Step], what: &str) {
        let store = &self.bench.store;
        self.bench.service.check_readiness().await.unwrap_or_else(|why| panic!("{what}: {why}"));
        let mut held = [Amount::ZERO; 2];
        for (id, contract) in &story.contracts {
            let Some(row) = store.contract(*id).await.unwrap() else { continue };
            let all = [CUSTOMER, PROVIDER, ARBITRATOR].map(|n| Key::from(node(n)));
            row.envelope.verify_signed_by::<Contract>(&all).unwrap_or_else(|error| panic!("{what}: {error}"));
            let holds = settlement::reserve(*id, contract);
            let (ledger, _) = store.ledger(&holds).await.unwrap();
            let open = holds.iter().filter(|hold| ledger.pendings[&hold.id].phase == Phase::Open).count();
            let verdict = store.verdict(*id).await.unwrap();
            if row.standing.state.is_in_force() {
                assert_eq!((open, verdict), (3, None), "{what}: {id} is in force");
                let money = &contract.money;
                let customer = money.payment_max().unwrap().checked_add(money.customer_stake).unwrap();
                held[0] = held[0].checked_add(customer).unwrap();
                held[1] = held[1].checked_add(money.provider_stake).unwrap();
                continue;
            }
            assert_eq!(open, 0, "{what}: {id} ended");
            let verdict = verdict.unwrap_or_else(|| panic!("{what}: {id} ended without a verdict")).verdict;
            let rows = store.evidence(*id, 0, 1_000).await.unwrap();
            let received: Vec<Received> =
                rows.iter().map(|row| (Evidence::read(&row.envelope).unwrap(), row.received_at)).collect();
            let again = judge::judge(*id, contract, verdict.in_force_since, &received, verdict.judged_at).unwrap();
            assert_eq!(again, Some(verdict), "{what}: anybody can recompute it");
        }
        for (of, held) in [CUSTOMER_OWNER, PROVIDER_OWNER].into_iter().zip(held) {
            let accounts = store.accounts(owner(of)).await.unwrap();
            let reserved = accounts.first().map_or(Amount::ZERO, |(_, account)| account.reserved());
            assert_eq!(reserved, held, "{what}: what is set aside is what the contracts in force hold");
        }
        self.check_witness(story, done, what).await;
    }

    /// Votes and records that were acknowledged are there, or newer ones.
    async fn check_witness(&self, story: &Story, done: &[Step], what: &str) {
        let store = &self.bench.store;
        let vote = store.votes(story.group).await.unwrap().unwrap_or_default();
        let records = store.records(story.group).await.unwrap();
        for step in done {
            match step {
                Step::Vote { epoch, member } => {
                    assert!(vote.voted_epoch >= Epoch(*epoch), "{what}: the vote of epoch {epoch} is lost");
                    let same = vote.voted_epoch == Epoch(*epoch);
                    assert!(!same || vote.voted_for == Some(MemberIndex(*member)), "{what}: two votes in epoch {epoch}");
                }
                Step::Write { epoch, seq, upto, .. } => {
                    assert!(records.bounds[0].upto >= *upto, "{what}: the reservation {upto} is lost");
                    assert!(
                        (records.sealed[0].epoch, records.sealed[0].seq) >= (Epoch(*epoch), *seq),
                        "{what}: a record is lost"
                    );
                }
                Step::Request { .. } | Step::Wait(_) | Step::Tick => {}
            }
        }
    }

    /// Every request that was acknowledged is acknowledged again, and nothing comes of it.
    async fn check_acknowledged(&self, story: &Story, done: &[Step], what: &str) {
        let before = self.footprint(story).await;
        for step in done.iter().filter(|step| matches!(step, Step::Request { .. })) {
            self.perform(story, step).await.unwrap_or_else(|error| panic!("{what}: acknowledged, and then: {error}"));
        }
        assert!(self.footprint(story).await == before, "{what}: a repetition changed something");
    }

    /// All that is stored, except when it came.
    async fn footprint(&self, story: &Story) -> Value {
        let store = &self.bench.store;
        let mut contracts = Vec::new();
        for (id, _) in &story.contracts {
            let rows = store.evidence(*id, 0, 1_000).await.unwrap();
            let evidence: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
            let row = store.contract(*id).await.unwrap();
            let verdict = store.verdict(*id).await.unwrap().map(|row| row.envelope);
            contracts.push(json!({ "standing": row.map(|row| row.standing), "evidence": evidence, "verdict": verdict }));
        }
        let mut accounts = Vec::new();
        for of in [CUSTOMER_OWNER, PROVIDER_OWNER] {
            let rows = store.accounts(owner(of)).await.unwrap();
            accounts.extend(rows.iter().map(|(_, account)| json!([account.available(), account.reserved()])));
        }
        let transfers: Vec<_> = store
            .transfers(None, 0, 1_000)
            .await
            .unwrap()
            .into_iter()
            .map(|row| json!([row.seq, row.transfer, row.movement]))
            .collect();
        let events: Vec<_> = store.events(0, 1_000).await.unwrap().into_iter().map(|row| json!([row.seq, row.body])).collect();
        let records = store.records(story.group).await.unwrap();
        json!({
            "contracts": contracts, "accounts": accounts, "transfers": transfers, "events": events,
            "votes": store.votes(story.group).await.unwrap(), "bounds": records.bounds, "unreported": store.unreported_grants(None, 100).await.unwrap().len(),
        })
    }
}

/// Runs the whole story with `fault` at write `n` (none: a life without faults). Gives the footprint at the end and the number of writes.
async fn run(disk: Disk, plan: Option<(u64, Fault)>) -> (Value, u64) {
    let what = format!("{plan:?}");
    let clock = Clock::manual();
    let story = story(clock.wall());
    let mut life = Life::begin(&disk, &clock).await;
    if let Some((n, fault)) = plan {
        life.points.plan(n, fault);
    }
    let mut faults = 0;
    for (at, step) in story.steps.iter().enumerate() {
        if let Step::Wait(time) = step {
            clock.advance(*time);
        }
        let Err(error) = life.dare(&story, step).await else { continue };
        faults += 1;
        assert!(plan.is_some() && faults == 1, "{what}: step {at} fails: {error}");
        if life.points.is_crashed() {
            life.end().await;
            life = Life::begin(&disk, &clock).await;
        }
        life.check_invariants(&story, &story.steps[..at], &what).await;
        life.check_acknowledged(&story, &story.steps[..at], &what).await;
        life.dare(&story, step).await.unwrap_or_else(|error| panic!("{what}: step {at} repeated: {error}"));
        life.check_invariants(&story, &story.steps[..=at], &what).await;
    }
    life.check_invariants(&story, &story.steps, &what).await;
    life.check_acknowledged(&story, &story.steps, &what).await;
    let (footprint, writes) = (life.footprint(&story).await, life.points.writes());
    let told = *life.bench.service.watch_events().borrow();
    assert_eq!(
        told,
        life.bench.store.last_event().await.unwrap(),
        "{what}: those who follow the events were told of the last one"
    );
    life.end().await;
    (footprint, writes)
}

async fn exhaust(disk: impl Fn() -> Disk) -> u64 {
    let (expected, writes) = run(disk(), None).await;
    assert_eq!(expected["unreported"], 0);
    for fault in Fault::ALL {
        for n in 1..=writes {
            let (footprint, _) = run(disk(), Some((n, fault))).await;
            for key in ["contracts", "accounts", "votes", "bounds", "unreported"] {
                assert!(
                    footprint[key] == expected[key],
                    "{fault:?} at write {n}: {key} other than without a fault:\n{}",
                    footprint[key]
                );
            }
            let count = |of: &Value, key: &str| of[key].as_array().unwrap().len();
            for key in ["transfers", "events"] {
                assert_eq!(count(&footprint, key), count(&expected, key), "{fault:?} at write {n}: {key}");
            }
        }
    }
    writes
}

#[tokio::test]
async fn every_write_fails_in_every_way_in_memory() {
    println!("{} writes, {} ways", exhaust(Disk::memory).await, Fault::ALL.len());
}

#[tokio::test]
async fn every_write_fails_in_every_way_on_a_file() {
    println!("{} writes, {} ways", exhaust(Disk::file).await, Fault::ALL.len());
}

/// The story is worth something only if it comes to all kinds of ends.
#[tokio::test]
async fn the_story_touches_what_it_should() {
    let clock = Clock::manual();
    let story = story(clock.wall());
    let (footprint, writes) = run(Disk::memory(), None).await;
    let outcomes: Vec<_> =
        footprint["contracts"].as_array().unwrap().iter().map(|c| c["standing"]["state"]["outcome"].clone()).collect();
    println!("{writes} writes, outcomes {outcomes:?}, accounts {}", footprint["accounts"]);
    assert_eq!(outcomes, ["honoured", "honoured", "expired"]);
    assert!(writes > 25 && story.steps.len() > 25);
}
