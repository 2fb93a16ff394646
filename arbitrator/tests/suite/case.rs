//! The verdict recomputed by a stranger, from a file.

use std::sync::Arc;

use arbitrator::case::{Case, Error, Exhibit, SERVED_WITHIN, review};
use arbitrator::resource::{ContractView, EvidenceView, Page, VerdictView};
use arbitrator::store::Memory;
use contracts::account::{Account, FrameDigest, Heard, Receipt, audit};
use contracts::contract::Outcome;
use contracts::envelope::Envelope;
use contracts::ids::{ContractId, DevEui, Epoch, SessionId};
use contracts::time::Millis;
use peering::custody::audit::Offence;
use peering::custody::statement::{BootId, Digest, Grant, MemberClock};

use super::common::*;

/// A contract that was honoured, as its arbitrator shows it.
async fn honoured() -> (Bench, Case) {
    let bench = bench(Arc::new(Memory::default())).await;
    let (id, contract) = bench.in_force().await;
    bench.evidence(id, &ready(id)).await.unwrap();
    bench.clock.advance(Millis(1_000));
    bench.evidence(id, &takeover(id, &contract, 2, bench.now(), Millis(100))).await.unwrap();
    bench.clock.advance(Millis(60_000));
    bench.evidence(id, &release(id, &contract, 2, bench.now())).await.unwrap();
    bench.evidence(id, &handback(id, &contract, 3, bench.now())).await.unwrap();
    let case = fetch(&bench, id).await;
    (bench, case)
}

async fn fetch(bench: &Bench, id: ContractId) -> Case {
    let view: ContractView = bench.get(&format!("/v1/contracts/{id}")).await;
    let evidence: Page<EvidenceView> = bench.get(&format!("/v1/contracts/{id}/evidence")).await;
    let verdict: VerdictView = bench.get(&format!("/v1/contracts/{id}/verdict")).await;
    Case {
        contract: view.envelope,
        in_force_since: view.standing.in_force_since,
        evidence: evidence.items.into_iter().map(|it| Exhibit { received_at: it.received_at, envelope: it.envelope }).collect(),
        verdict: Some(verdict.envelope),
        statements: Vec::new(),
    }
}

/// What the witness, at `ms` of its own clock, signed for `holder`.
fn grant(case: &Case, epoch: u64, holder: u8, ms: u64) -> Envelope {
    let contract = case.contract.verify::<contracts::contract::Contract>().unwrap().statement;
    let clock = MemberClock { boot: BootId([1; 16]), ms };
    let group = contract.group;
    let grant = Grant { group, epoch: Epoch(epoch), candidate: node(holder), seq: 9, records: Digest::of(b""), clock };
    Envelope::sign(&grant, &key(ARBITRATOR))
}

#[tokio::test]
async fn a_stranger_recomputes_the_verdict_from_the_file() {
    let (bench, case) = honoured().await;
    let text = serde_json::to_vec(&case).unwrap();
    let found = review(&serde_json::from_slice(&text).unwrap(), bench.now()).unwrap();
    assert!(found.agrees());
    assert_eq!(found.recomputed.unwrap().outcome, Outcome::Honoured);
    assert!(found.convictions.is_empty(), "{:?}", found.convictions);
}

#[tokio::test]
async fn a_witness_that_voted_against_its_promise_is_convicted_unless_the_holder_released() {
    let (bench, mut case) = honoured().await;
    // By its own clock the witness voted for the customer at once after its vote for the provider; what excuses it is the provider's release.
    let is_release = |it: &Exhibit| it.envelope.payload_type.contains("release");
    let place = case.evidence.iter().position(is_release).unwrap();
    let release = case.evidence.remove(place);
    case.statements.extend([grant(&case, 2, PROVIDER, 4), grant(&case, 3, CUSTOMER, 4)]);
    case.verdict = None;
    case.evidence.truncate(place);
    let found = review(&case, bench.now()).unwrap();
    let offences: Vec<_> = found.convictions.iter().map(|(it, _)| (it.member, it.offence)).collect();
    assert_eq!(offences, [(node(ARBITRATOR), Offence::BrokenPromise)]);
    case.evidence.push(release);
    assert!(review(&case, bench.now()).unwrap().convictions.is_empty());
}

#[tokio::test]
async fn a_provider_that_hides_what_it_heard_is_convicted_unless_the_customers_store_has_it() {
    let (bench, mut case) = honoured().await;
    let contract = case.contract.verify::<contracts::contract::Contract>().unwrap().statement;
    let heard = Heard {
        device: DevEui::from_u64(1),
        session: SessionId::from_bytes([1; 8]),
        f_cnt: 7,
        frame: FrameDigest::of(b"a frame"),
        heard_at: bench.now(),
        snr_tenth_db: 70,
    };
    let (group, at) = (contract.group, bench.now());
    let account = Account { group, node: node(PROVIDER), number: 1, previous: None, at, heard: vec![heard], dropped: Vec::new() };
    case.statements.push(Envelope::sign(&account, &key(PROVIDER)));
    assert!(review(&case, bench.now()).unwrap().books.is_empty(), "it may be on its way");
    let later = at + SERVED_WITHIN;
    let found = review(&case, later).unwrap();
    assert!(found.agrees() && found.convictions.is_empty());
    let offences: Vec<_> = found.books.iter().map(|it| (it.node, it.offence, it.missing.clone())).collect();
    assert_eq!(offences, [(node(PROVIDER), audit::Offence::HeardNotServed, vec![heard.event()])]);
    let receipt = Receipt { store: contract.readings_to, group, events: vec![heard.event()], at };
    case.statements.push(Envelope::sign(&receipt, &key(4)));
    let text = serde_json::to_vec(&case).unwrap();
    assert!(review(&serde_json::from_slice(&text).unwrap(), later).unwrap().books.is_empty());
}

#[tokio::test]
async fn a_verdict_that_does_not_follow_is_seen() {
    let (bench, mut case) = honoured().await;
    let mut verdict = review(&case, bench.now()).unwrap().signed.unwrap();
    verdict.outcome = Outcome::Breached;
    case.verdict = Some(Envelope::sign(&verdict, &key(ARBITRATOR)));
    assert!(!review(&case, bench.now()).unwrap().agrees());
    case.verdict = Some(Envelope::sign(&verdict, &key(CUSTOMER)));
    assert!(matches!(review(&case, bench.now()), Err(Error::Verdict(_))), "only the arbitrator's signature makes a verdict");
}

#[tokio::test]
async fn evidence_that_was_left_out_or_altered_is_seen() {
    let (bench, whole) = honoured().await;
    let mut case = whole.clone();
    case.evidence.remove(0);
    assert!(!review(&case, bench.now()).is_ok_and(|found| found.agrees()));
    let mut case = whole;
    case.evidence[0].envelope.payload.push(b' ');
    assert!(matches!(review(&case, bench.now()), Err(Error::Evidence { index: 0, .. })));
}

#[tokio::test]
async fn a_witness_that_voted_twice_is_convicted_by_what_a_member_kept() {
    let (bench, mut case) = honoured().await;
    // Its vote in epoch 2 is in the provider's report; the customer kept the other one.
    let other = grant(&case, 2, CUSTOMER, 4);
    case.statements.push(other.clone());
    let found = review(&case, bench.now()).unwrap();
    assert!(found.agrees(), "the verdict on the parties stands");
    let proven: Vec<_> = found.convictions.iter().filter(|(it, _)| it.offence == Offence::TwoVotes).collect();
    let [(conviction, proof)] = proven[..] else { panic!("one offence, found {proven:?}") };
    assert_eq!((conviction.member, conviction.epoch), (node(ARBITRATOR), Epoch(2)));
    assert!(proof.contains(&other.id()));
}
