//! One suite for every store.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{HOUR, Party, contract};
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, StatementId};
use contracts::time::{Millis, WallTime};
use marketplace::resource::{
    EventKind, Listing, ListingKind, ListingState, Match, MatchState, Node, Round, Subject, Sum, Totals,
};
use marketplace::store::{ListingFilter, MatchFilter, Memory, NodeFilter, Sqlite, Store, Window};

const NOW: WallTime = WallTime(1_800_000_000_000);
const ALL: Window = Window { after: 0, limit: 100 };

fn node(party: &Party, record_epoch: u64) -> Node {
    let record = party.record(record_epoch);
    Node {
        id: record.node,
        owner: record.owner,
        name: record.name,
        role: record.role,
        record_epoch,
        registered_at: NOW,
        record: party.signed_record(record_epoch),
    }
}

fn listing(party: &Party, kind: ListingKind, nonce: u64, valid_from: WallTime) -> Listing {
    let statement = match kind {
        ListingKind::Offer => Envelope::sign(&party.offer(nonce, valid_from), &party.node),
        ListingKind::Demand => Envelope::sign(&party.demand(nonce, valid_from), &party.node),
    };
    let (id, state, owner) = (statement.id(), ListingState::Open, party.owner.owner_id());
    Listing {
        id,
        kind,
        node: party.id(),
        owner,
        state,
        listed_at: NOW,
        valid_from,
        valid_until: valid_from + HOUR,
        statement,
        withdrawal: None,
    }
}

fn proposal(provider: &Party, customer: &Party, offer: StatementId, demand: StatementId, round: u64) -> Match {
    let statement = provider.withdrawal(StatementId::from_bytes([u8::try_from(round).unwrap(); 32])); // any envelope with an id of its own
    Match {
        id: statement.id(),
        round,
        offer,
        demand,
        provider: provider.id(),
        customer: customer.id(),
        state: MatchState::Held,
        matched_at: NOW,
        until: NOW + Millis(1_000 * round),
        contract: None,
        statement,
        provider_record: provider.signed_record(1),
        customer_record: customer.signed_record(1),
    }
}

fn round(number: u64) -> Round {
    let (currency, huge) = (contracts::money::Currency::new("EUR").unwrap(), Sum(u128::from(u64::MAX) * 3));
    Round {
        round: number,
        currency,
        at: NOW,
        offers: 1,
        demands: 1,
        edges: 1,
        matched: 1,
        volume: huge,
        surplus: Sum(0),
        bound: huge,
        exact: number % 2 == 1,
    }
}

async fn kinds(store: &dyn Store) -> Vec<(EventKind, Subject)> {
    store.list_events(None, ALL).await.unwrap().into_iter().map(|e| (e.kind, e.subject)).collect()
}

async fn suite(store: &dyn Store) {
    nodes(store).await;
    listings_and_matches(store).await;
    ends(store).await;
    history(store).await;
}

async fn nodes(store: &dyn Store) {
    let (rio, patras) = (Party::new(1), Party::new(2));
    store.ping().await.unwrap();
    for party in [&rio, &patras] {
        assert_eq!(store.get_node(party.id()).await.unwrap(), None);
        store.register_node(&node(party, 1)).await.unwrap();
    }
    store.register_node(&node(&rio, 2)).await.unwrap();
    assert_eq!(store.get_node(rio.id()).await.unwrap(), Some(node(&rio, 2)));
    let rows = store.list_nodes(NodeFilter::default(), Window { after: 0, limit: 1 }).await.unwrap();
    assert_eq!(rows[0].1.id, rio.id(), "a new record does not move a node in the list");
    let rest = store.list_nodes(NodeFilter::default(), Window { after: rows[0].0, limit: 9 }).await.unwrap();
    assert_eq!(rest.iter().map(|(_, n)| n.id).collect::<Vec<_>>(), [patras.id()]);
    let of_owner = NodeFilter { owner: Some(patras.owner.owner_id()), role: None };
    assert_eq!(store.list_nodes(of_owner, ALL).await.unwrap().len(), 1);
    let cloud = NodeFilter { owner: None, role: Some(contracts::node_record::Role::Cloud) };
    assert!(store.list_nodes(cloud, ALL).await.unwrap().is_empty());
    let counts = store.count_nodes(rio.owner.owner_id()).await.unwrap();
    assert_eq!((counts.of_owner, counts.all), (1, 2));
}

async fn listings_and_matches(store: &dyn Store) {
    let (rio, patras) = (Party::new(1), Party::new(2));
    let (offer, demand) = (listing(&patras, ListingKind::Offer, 1, NOW), listing(&rio, ListingKind::Demand, 1, NOW));
    let later = listing(&rio, ListingKind::Demand, 2, NOW + Millis(500));
    for row in [&offer, &demand, &later] {
        store.create_listing(row).await.unwrap();
        assert_eq!(store.get_listing(row.id).await.unwrap().as_ref(), Some(row));
        assert!(store.create_listing(row).await.is_err(), "an id is listed once");
    }
    assert!(
        store.create_listing(&listing(&Party::new(9), ListingKind::Offer, 1, NOW)).await.is_err(),
        "its node is not registered"
    );
    let demands = ListingFilter { kind: ListingKind::Demand, node: Some(rio.id()), owner: None, state: Some(ListingState::Open) };
    assert_eq!(store.list_listings(demands, ALL).await.unwrap().len(), 2);
    let counts = store.count_listings(rio.id(), patras.owner.owner_id()).await.unwrap();
    assert_eq!((counts.of_node, counts.of_owner, counts.all), (2, 1, 3));

    let book = store.read_book(NOW).await.unwrap();
    assert_eq!((book.offers.len(), book.demands.len(), book.claims.len(), book.opens_at), (1, 1, 0, Some(NOW + Millis(500))));
    assert_eq!(book.demands[&demand.id], rio.demand(1, NOW));

    let (first, second) = (proposal(&patras, &rio, offer.id, demand.id, 1), proposal(&patras, &rio, offer.id, demand.id, 2));
    assert_eq!(
        store.create_matches(&[first.clone(), second], &[round(1)], NOW).await.unwrap(),
        [first.id],
        "a demand has one match at a time"
    );
    let found = store.get_match(first.id).await.unwrap().unwrap();
    assert_eq!(found.provider_record, patras.signed_record(1));
    assert_eq!(found.customer_record, rio.signed_record(2), "records are as they are now");
    let book = store.read_book(NOW).await.unwrap();
    assert!(book.demands.is_empty());
    assert_eq!(
        (book.claims.len(), book.claims[0].needs.clone(), book.proposals[&(offer.id, demand.id)]),
        (1, rio.demand(1, NOW).needs, 1)
    );
    for (filter, count) in [
        (MatchFilter { node: Some(rio.id()), ..MatchFilter::default() }, 1),
        (MatchFilter { node: Some(patras.id()), listing: Some(demand.id), state: Some(MatchState::Held) }, 1),
        (MatchFilter { listing: Some(later.id), ..MatchFilter::default() }, 0),
        (MatchFilter { state: Some(MatchState::Confirmed), ..MatchFilter::default() }, 0),
    ] {
        assert_eq!(store.list_matches(filter, ALL).await.unwrap().len(), count, "{filter:?}");
    }

    let withdrawal = rio.withdrawal(demand.id);
    store.withdraw_listing(demand.id, &withdrawal, NOW).await.unwrap();
    store.withdraw_listing(demand.id, &rio.withdrawal(later.id), NOW).await.unwrap(); // changes nothing
    let withdrawn = store.get_listing(demand.id).await.unwrap().unwrap();
    assert_eq!((withdrawn.state, withdrawn.withdrawal), (ListingState::Withdrawn, Some(withdrawal)));
    assert_eq!(store.get_match(first.id).await.unwrap().unwrap().state, MatchState::Released);
    assert!(store.read_book(NOW).await.unwrap().claims.is_empty());
    assert!(
        store.create_matches(&[proposal(&patras, &rio, offer.id, demand.id, 3)], &[], NOW).await.unwrap().is_empty(),
        "withdrawn meanwhile"
    );
    let told = [
        (EventKind::Listed, Subject::Offer),
        (EventKind::Listed, Subject::Demand),
        (EventKind::Listed, Subject::Demand),
        (EventKind::Matched, Subject::Match),
        (EventKind::Withdrawn, Subject::Demand),
        (EventKind::Released, Subject::Match),
    ];
    assert_eq!(kinds(store).await, told);
}

async fn ends(store: &dyn Store) {
    let (rio, patras) = (Party::new(1), Party::new(2));
    let demands = ListingFilter { kind: ListingKind::Demand, node: None, owner: None, state: Some(ListingState::Open) };
    let offers = ListingFilter { kind: ListingKind::Offer, ..demands };
    let (demand, offer) =
        (store.list_listings(demands, ALL).await.unwrap()[0].1.id, store.list_listings(offers, ALL).await.unwrap()[0].1.id);
    let at = NOW + Millis(600);
    let held = proposal(&patras, &rio, offer, demand, 4);
    assert_eq!(store.create_matches(std::slice::from_ref(&held), &[round(4)], at).await.unwrap(), [held.id]);
    assert_eq!(store.expire(held.until - Millis(1)).await.unwrap(), 0);
    assert_eq!(store.expire(held.until).await.unwrap(), 1);
    assert_eq!(store.get_match(held.id).await.unwrap().unwrap().state, MatchState::Expired);
    store.confirm_match(held.id, ContractId::from_bytes([1; 32]), at + HOUR, at).await.unwrap();
    assert_eq!(store.get_match(held.id).await.unwrap().unwrap().state, MatchState::Expired, "too late");
    assert!(store.read_book(at).await.unwrap().demands.contains_key(&demand), "free again");

    let again = proposal(&patras, &rio, offer, demand, 5);
    store.create_matches(std::slice::from_ref(&again), &[round(5)], at).await.unwrap();
    let contract = ContractId::from(contract(&rio, &patras, Some(again.id), at).id());
    store.confirm_match(again.id, contract, at + HOUR * 2, at).await.unwrap();
    let confirmed = store.get_match(again.id).await.unwrap().unwrap();
    assert_eq!((confirmed.state, confirmed.contract, confirmed.until), (MatchState::Confirmed, Some(contract), at + HOUR * 2));
    let totals = Totals { nodes: 2, offers_open: 1, demands_open: 1, matches_held: 0, matches_confirmed: 1 };
    assert_eq!(store.read_totals().await.unwrap(), totals);
    assert_eq!(store.expire(NOW + HOUR + Millis(500)).await.unwrap(), 2, "both listings; the contract goes on");
    let book = store.read_book(NOW + HOUR + Millis(500)).await.unwrap();
    assert_eq!((book.offers.len(), book.demands.len(), book.claims.len()), (0, 0, 1));
    assert_eq!(store.expire(at + HOUR * 2).await.unwrap(), 1);
    assert_eq!(store.get_match(again.id).await.unwrap().unwrap().state, MatchState::Ended);
}

async fn history(store: &dyn Store) {
    let rio = Party::new(1);
    let (first, last) = store.event_range().await.unwrap();
    let events = store.list_events(None, ALL).await.unwrap();
    assert_eq!((first, last), (events[0].seq, events.last().unwrap().seq));
    let of_rio = store.list_events(Some(rio.id()), ALL).await.unwrap();
    assert_eq!(of_rio.len(), events.iter().filter(|e| e.node == rio.id() || e.peer == Some(rio.id())).count());
    let tail = store.list_events(None, Window { after: events[2].seq, limit: 2 }).await.unwrap();
    assert_eq!(tail, events[3..5]);
    let rounds = store.list_rounds(ALL).await.unwrap();
    assert_eq!(rounds.iter().map(|(_, r)| r.clone()).collect::<Vec<_>>(), [round(1), round(4), round(5)]);
    assert_eq!(store.last_round().await.unwrap(), 5);
    store.purge(NOW + HOUR * 2).await.unwrap();
    assert_eq!(store.read_totals().await.unwrap(), Totals { nodes: 2, ..Totals::default() });
    assert!(store.list_matches(MatchFilter::default(), ALL).await.unwrap().is_empty());
    assert_eq!(store.event_range().await.unwrap(), (first, last), "recent history stays");
}

#[tokio::test]
async fn memory() {
    suite(&Memory::default()).await;
}

#[tokio::test]
async fn sqlite() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("book.sqlite");
    let store = Sqlite::open(&path).await.unwrap();
    suite(&store).await;
    let (totals, range) = (store.read_totals().await.unwrap(), store.event_range().await.unwrap());
    store.close().await;
    let reopened: Arc<dyn Store> = Arc::new(Sqlite::open(&path).await.unwrap());
    assert_eq!((reopened.read_totals().await.unwrap(), reopened.event_range().await.unwrap()), (totals, range));
    reopened.close().await;
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("book.sqlite");
    std::fs::write(&path, [0x55; 8_192]).unwrap();
    assert!(Sqlite::open(&path).await.is_err());
    assert!(Sqlite::open(&directory.path().join("absent/book.sqlite")).await.is_err());
}

/// A disk that is really full: what was acknowledged stays, what was not is not there, and with room again everything goes on.
#[tokio::test]
async fn a_full_disk_is_survived() {
    let directory = tempfile::tempdir().unwrap();
    let disk = match kit::small_disk::SmallDisk::mount(directory.path(), 1 << 20) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no small disk can be mounted: {why}"),
    };
    let (path, ballast) = (disk.path().join("book.sqlite"), disk.path().join("ballast"));
    let store = Sqlite::open(&path).await.unwrap();
    let patras = Party::new(2);
    store.register_node(&node(&patras, 1)).await.unwrap();
    let (mut nonce, mut acknowledged) = (0, Vec::new());
    std::fs::write(&ballast, vec![0; 300_000]).unwrap();
    for round in 0..3 {
        loop {
            nonce += 1;
            let mut row = listing(&patras, ListingKind::Offer, nonce, NOW);
            row.statement.payload.resize(20_000, b' ');
            match store.create_listing(&row).await {
                Ok(()) => acknowledged.push(row.id),
                Err(error) => {
                    println!("round {round}, {} acknowledged: {error:?}", acknowledged.len());
                    break;
                }
            }
        }
        std::fs::File::options().write(true).open(&ballast).unwrap().set_len((2 - round) * 100_000).unwrap(); // room again
        for _ in 0..2 {
            nonce += 1;
            let row = listing(&patras, ListingKind::Offer, nonce, NOW);
            store.create_listing(&row).await.unwrap_or_else(|error| panic!("round {round}: room again: {error:?}"));
            acknowledged.push(row.id);
            // Withdrawn twice: the second time there is nothing to do, and nothing is done.
            for _ in 0..2 {
                store.withdraw_listing(row.id, &patras.withdrawal(row.id), NOW).await.unwrap();
            }
        }
        // Another process sees what this one says.
        let other = Sqlite::open(&path).await.unwrap();
        let filter = ListingFilter { kind: ListingKind::Offer, node: None, owner: None, state: None };
        let rows = other.list_listings(filter, Window { after: 0, limit: 1_000 }).await.unwrap();
        assert_eq!(rows.iter().map(|(_, row)| row.id).collect::<Vec<_>>(), acknowledged, "round {round}");
        other.close().await;
    }
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
}
