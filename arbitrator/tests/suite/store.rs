//! One suite for every store.

use std::sync::Arc;

use arbitrator::store::{
    Changes, ContractChange, ContractFilter, Error, EventBody, EvidenceRow, LedgerChange, Memory, NodeRow, RecordsError, Sqlite,
    Store,
};
use contracts::custody::{Durable, MemberIndex};
use contracts::envelope::Envelope;
use contracts::evidence::judge::{self, Standing};
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, SessionId, StatementId};
use contracts::ledger::{self, Holder, Movement, Operation, Transfer, TransferId};
use contracts::money::Amount;
use contracts::node_record::NodeRecord;
use contracts::settlement;
use contracts::time::WallTime;
use contracts::write_ahead::{Bound, Reservation};

use super::common::*;

const NOW: WallTime = WallTime(1_000_000);

async fn stores() -> Vec<(Arc<dyn Store>, Option<tempfile::TempDir>)> {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(&directory.path().join("arbitrator.sqlite")).await.unwrap();
    vec![(Arc::new(Memory::default()), None), (Arc::new(sqlite), Some(directory))]
}

fn deposit_transfer(n: u64, to: u8, units: u32) -> Transfer {
    let because = StatementId::from_bytes([9; 32]);
    let movement = Movement {
        debit: Holder::External,
        credit: Holder::Owner(owner(to)),
        currency: euro(),
        amount: Amount::from_units(units),
    };
    Transfer { id: TransferId::derive(because, &n.to_string()), operation: Operation::Immediate { movement }, because }
}

async fn pay(store: &dyn Store, transfers: &[Transfer]) -> Result<(), Error> {
    let (mut ledger, version) = store.ledger(transfers).await?;
    let applied = ledger::apply_all(&mut ledger, transfers, NOW).unwrap();
    let ledger = Some(LedgerChange::of(&ledger, version, transfers, &applied));
    store.commit(Changes { at: NOW, ledger, ..Changes::default() }).await
}

fn enter() -> (ContractId, Changes) {
    let contract = contract(NOW);
    let envelope = signed(&contract);
    let id = ContractId::from(envelope.id());
    let (standing, _) = Standing::enter(NOW);
    let events = vec![EventBody::ContractInForce { contract: id }];
    (
        id,
        Changes {
            at: NOW,
            contract: Some(ContractChange::Enter { id, contract: contract.into(), envelope, standing: standing.into() }),
            events,
            ..Changes::default()
        },
    )
}

#[tokio::test]
async fn contracts_are_found_by_every_way_and_change_by_version() {
    for (store, _directory) in stores().await {
        let (id, changes) = enter();
        store.commit(changes.clone()).await.unwrap();
        assert!(matches!(store.commit(changes).await, Err(Error::Changed)), "once");
        let row = store.contract(id).await.unwrap().unwrap();
        assert_eq!((row.seq, row.version, row.contract.clone()), (1, 1, contract(NOW)));
        let found = |filter: ContractFilter| {
            let store = Arc::clone(&store);
            async move { store.contracts(ContractFilter { limit: 10, ..filter }).await.unwrap().len() }
        };
        for n in [CUSTOMER, PROVIDER, ARBITRATOR] {
            assert_eq!(
                found(ContractFilter { member: Some(node(n)), in_force: Some(true), ..ContractFilter::default() }).await,
                1
            );
        }
        assert_eq!(found(ContractFilter { member: Some(node(9)), ..ContractFilter::default() }).await, 0);
        assert_eq!(found(ContractFilter { group: Some(row.contract.group), ..ContractFilter::default() }).await, 1);
        assert_eq!(found(ContractFilter { due: Some(NOW), ..ContractFilter::default() }).await, 0);
        assert_eq!(found(ContractFilter { due: Some(row.contract.valid_until), ..ContractFilter::default() }).await, 1);
        assert_eq!(found(ContractFilter { after: 1, ..ContractFilter::default() }).await, 0);
        assert_eq!(store.covering(&[DevEui::from_u64(2), DevEui::from_u64(1)]).await.unwrap().len(), 1);

        let (standing, _) = judge::advance(&row.contract, &row.standing, row.contract.valid_until);
        let stand = |version| ContractChange::Stand { id, version, standing: standing.clone().into(), due_at: None };
        let old =
            Changes { contract: Some(stand(7)), events: vec![EventBody::ContractInForce { contract: id }], ..Changes::default() };
        assert!(matches!(store.commit(old).await, Err(Error::Changed)));
        assert_eq!(store.last_event().await.unwrap(), 1, "nothing of it was written");
        store.commit(Changes { contract: Some(stand(1)), ..Changes::default() }).await.unwrap();
        assert_eq!(store.contract(id).await.unwrap().unwrap().standing, standing);
        assert_eq!(found(ContractFilter { in_force: Some(true), ..ContractFilter::default() }).await, 0);
        assert!(store.covering(&[DevEui::from_u64(1)]).await.unwrap().is_empty(), "an ended contract covers nothing");
    }
}

#[tokio::test]
async fn money_is_written_with_its_version_and_always_sums_to_zero() {
    for (store, _directory) in stores().await {
        pay(&*store, &[deposit_transfer(1, CUSTOMER_OWNER, 100), deposit_transfer(2, PROVIDER_OWNER, 100)]).await.unwrap();
        let (contract, id) = (contract(NOW), ContractId::from_bytes([5; 32]));
        let reserve = settlement::reserve(id, &contract);
        let (mut stale, version) = store.ledger(&reserve).await.unwrap();
        pay(&*store, &reserve).await.unwrap();
        let applied = ledger::apply_all(&mut stale, &reserve, NOW).unwrap();
        let change = LedgerChange::of(&stale, version, &reserve, &applied);
        assert!(matches!(store.commit(Changes { ledger: Some(change), ..Changes::default() }).await, Err(Error::Changed)));
        let account = store.accounts(owner(CUSTOMER_OWNER)).await.unwrap()[0].1;
        assert_eq!((account.available(), account.reserved()), (Amount::from_units(30), Amount::from_units(70)));
        pay(&*store, &reserve).await.unwrap(); // the same again moves nothing
        let settle = settlement::settle(id, &contract, contracts::contract::Outcome::Breached, contracts::time::Millis(0), 1);
        pay(&*store, &settle).await.unwrap();
        let account = store.accounts(owner(CUSTOMER_OWNER)).await.unwrap()[0].1;
        assert_eq!((account.available(), account.reserved()), (Amount::from_units(140), Amount::ZERO));
        assert_eq!(store.sums().await.unwrap(), [("EUR".to_owned(), 0)]);
        let rows = store.transfers(Some(owner(PROVIDER_OWNER)), 0, 100).await.unwrap();
        assert_eq!((rows.len(), store.transfers(None, 2, 100).await.unwrap().len()), (7, 6));
        assert_eq!(rows.last().unwrap().movement.amount, Amount::from_units(40), "the stake");
    }
}

#[tokio::test]
async fn statements_are_stored_once_and_read_in_order() {
    for (store, _directory) in stores().await {
        let (id, changes) = enter();
        store.commit(changes).await.unwrap();
        let row = |envelope: Envelope| EvidenceRow {
            seq: 0,
            id: envelope.id(),
            contract: id,
            author: key(PROVIDER).key(),
            received_at: NOW,
            envelope,
        };
        let evidence = row(ready(id));
        let changes = Changes { at: NOW, evidence: Some(evidence.clone()), ..Changes::default() };
        store.commit(changes.clone()).await.unwrap();
        assert!(matches!(store.commit(changes).await, Err(Error::Changed)));
        let late = row(takeover(id, &contract(NOW), 2, NOW, contracts::time::Millis(1)));
        store.commit(Changes { evidence: Some(late.clone()), ..Changes::default() }).await.unwrap();
        let rows = store.evidence(id, 0, 10).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [evidence.id, late.id]);
        assert_eq!(store.evidence(id, rows[0].seq, 10).await.unwrap(), rows[1..]);
        assert_eq!(store.inputs(id).await.unwrap().len(), 2);
        assert_eq!(store.evidence_count(id, key(PROVIDER).key()).await.unwrap(), 2);
        assert_eq!(store.evidence_count(id, key(CUSTOMER).key()).await.unwrap(), 0);
        assert_eq!(store.statement(late.id).await.unwrap().unwrap().envelope, late.envelope);

        let envelope = record(CUSTOMER, CUSTOMER_OWNER, 1, loopback());
        let row = NodeRow { record: NodeRecord::verify(&envelope).unwrap().statement, envelope };
        store
            .commit(Changes { nodes: vec![row.clone()], order: Some((late.id, late.envelope.clone())), ..Changes::default() })
            .await
            .unwrap();
        assert_eq!((store.node(node(CUSTOMER)).await.unwrap(), store.node_count().await.unwrap()), (Some(row), 1));
        assert!(store.order(late.id).await.unwrap().is_some() && store.order(evidence.id).await.unwrap().is_none());
    }
}

fn reservation(epoch: u64, seq: u64, device: u64, upto: u32) -> Reservation {
    let bound = Bound { device: DevEui::from_u64(device), session: SessionId::from_bytes([1; 8]), upto };
    Reservation { epoch: Epoch(epoch), seq, bounds: vec![bound] }
}

#[tokio::test]
async fn votes_and_records_stand_together() {
    let group = GroupId::from_bytes([4; 16]);
    let vote = |epoch, member| (group, Durable::vote(Epoch(epoch), MemberIndex(member)));
    for (store, _directory) in stores().await {
        assert_eq!(store.votes(group).await.unwrap(), None);
        let blob = |n: u8| vec![(DevEui::from_u64(1), vec![n; 10])];
        let put = |epoch, seq, member, upto, n| {
            let store = Arc::clone(&store);
            async move { store.put_records(group, MemberIndex(member), &reservation(epoch, seq, 1, upto), &blob(n)).await }
        };
        assert!(matches!(put(1, 1, 0, 16, 1).await, Err(RecordsError::NotTheHolder { voted_epoch: Epoch(0) })));
        store.persist_votes(&[vote(1, 0)], NOW).await.unwrap();
        put(1, 2, 0, 32, 2).await.unwrap();
        put(1, 1, 0, 16, 1).await.unwrap(); // late: lowers nothing, is not newer
        assert!(matches!(put(1, 3, 1, 48, 3).await, Err(RecordsError::NotTheHolder { .. })), "somebody else");
        let kept = store.records(group).await.unwrap();
        assert_eq!((kept.bounds[0].upto, kept.sealed[0].seq, kept.sealed[0].blob.clone()), (32, 2, vec![2; 10]));
        store.persist_votes(&[vote(2, 1)], NOW).await.unwrap();
        assert!(
            matches!(put(1, 9, 0, 64, 9).await, Err(RecordsError::NotTheHolder { voted_epoch: Epoch(2) })),
            "an epoch that is over"
        );
        put(2, 1, 1, 64, 4).await.unwrap();
        assert_eq!(store.records(group).await.unwrap().sealed[0].blob, [4; 10]);
        let huge: Vec<_> = (0..65).map(|n| (DevEui::from_u64(n), vec![0; 64 << 10])).collect();
        let refused = store.put_records(group, MemberIndex(1), &reservation(2, 2, 1, 96), &huge).await;
        assert!(matches!(refused, Err(RecordsError::Full)));
        assert_eq!(store.records(group).await.unwrap().bounds[0].upto, 64, "nothing of it was kept");
        let grants = store.unreported_grants(Some(group), 10).await.unwrap();
        assert_eq!(
            grants.iter().map(|g| (g.epoch, g.voted_for)).collect::<Vec<_>>(),
            [(Epoch(1), MemberIndex(0)), (Epoch(2), MemberIndex(1))]
        );
        store.commit(Changes { reported: Some((group, Epoch(1))), ..Changes::default() }).await.unwrap();
        assert_eq!(store.unreported_grants(None, 10).await.unwrap().len(), 1);
        assert_eq!(store.votes(group).await.unwrap(), Some(vote(2, 1).1));
        // Its vote lost: the records are the certified winner's to write, and it granted to nobody else.
        let stands_by = Durable { elected: Some(MemberIndex(0)), ..vote(3, 1).1 };
        store.persist_votes(&[vote(3, 1)], NOW).await.unwrap();
        store.persist_votes(&[(group, stands_by)], NOW).await.unwrap();
        put(3, 1, 0, 112, 5).await.unwrap();
        assert!(matches!(put(3, 2, 1, 128, 6).await, Err(RecordsError::NotTheHolder { voted_epoch: Epoch(3) })));
        assert_eq!(store.votes(group).await.unwrap(), Some(stands_by));
        let grants = store.unreported_grants(Some(group), 100).await.unwrap();
        assert_eq!(grants.last().map(|g| (g.epoch, g.voted_for)), Some((Epoch(3), MemberIndex(1))));
    }
}

#[tokio::test]
async fn one_process_has_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arbitrator.sqlite");
    let first = Sqlite::open(&path).await.unwrap();
    assert!(matches!(Sqlite::open(&path).await, Err(Error::InUse)));
    drop(first);
    Sqlite::open(&path).await.unwrap();
}

/// A disk that is really full: what was acknowledged stays, what was not is not there, and with room again everything goes on.
#[tokio::test]
async fn a_full_disk_is_survived() {
    let directory = tempfile::tempdir().unwrap();
    let disk = match kit::small_disk::SmallDisk::mount(directory.path(), 1 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no small disk can be mounted: {why}"),
    };
    let path = disk.path().join("arbitrator.sqlite");
    let ballast = disk.path().join("ballast");
    let store = Sqlite::open(&path).await.unwrap();
    let (id, changes) = enter();
    store.commit(changes.clone()).await.unwrap();
    let (mut acknowledged, mut refusals) = (1, 0);
    std::fs::write(&ballast, vec![0; 300_000]).unwrap();
    for round in 0..3 {
        loop {
            let events = vec![EventBody::EvidenceReceived {
                contract: id,
                statement: StatementId::from_bytes([7; 32]),
                kind: "x".repeat(20_000),
            }];
            match store.commit(Changes { events, ..Changes::default() }).await {
                Ok(()) => acknowledged += 1,
                Err(error) => {
                    assert!(matches!(error, Error::Sql(_)), "round {round}: {error:?}");
                    refusals += 1;
                    break;
                }
            }
        }
        assert_eq!(store.last_event().await.unwrap(), acknowledged, "round {round}");
        std::fs::File::options().write(true).open(&ballast).unwrap().set_len((2 - round) * 100_000).unwrap(); // room again
        // One that is refused, and rolled back, between two that are not.
        for _ in 0..2 {
            let events = vec![EventBody::ContractInForce { contract: id }];
            store
                .commit(Changes { events, ..Changes::default() })
                .await
                .unwrap_or_else(|error| panic!("round {round}: room again: {error:?}"));
            acknowledged += 1;
            assert!(matches!(store.commit(changes.clone()).await, Err(Error::Changed)), "round {round}");
        }
        assert_eq!(store.last_event().await.unwrap(), acknowledged, "round {round}");
        // Another process sees what this one says.
        let seen = count_events(&path).await;
        assert_eq!(seen, acknowledged, "round {round}: what was acknowledged is committed");
    }
    assert!(refusals == 3 && acknowledged > 10, "{refusals} {acknowledged}");
    drop(store);
    assert_eq!(Sqlite::open(&path).await.unwrap().last_event().await.unwrap(), acknowledged);
}

/// Counts the events over a connection of its own.
async fn count_events(path: &std::path::Path) -> u64 {
    use sqlx::Connection as _;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events").fetch_one(&mut connection).await.unwrap();
    u64::try_from(count).unwrap()
}
