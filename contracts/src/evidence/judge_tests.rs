use super::*;
use crate::envelope::{Envelope, Keypair, Statement};
use crate::evidence::{Cancellation, DeliveryReport, Dispute, HandbackReport, ReleaseReport};
use crate::test_contract::{DAY_MS, contract, key};

const START: WallTime = WallTime(100 * DAY_MS);
const ID: ContractId = ContractId::from_bytes([3; 32]);

fn at(ms: u64) -> WallTime {
    START + Millis(ms)
}

/// Signs and reads back, as an arbitrator would receive it.
fn signed<T: Statement>(statement: &T, signers: &[&Keypair]) -> Evidence {
    let mut envelope = Envelope::sign(statement, signers[0]);
    signers[1..].iter().for_each(|signer| envelope.cosign(signer));
    Evidence::read(&envelope).expect("good evidence")
}

fn takeover(epoch: u64, certified: u64, serving: u64) -> Evidence {
    let report = TakeoverReport {
        contract: ID,
        group: contract().group,
        node: key(2).node_id(),
        epoch: Epoch(epoch),
        certificate: vec![1],
        last_promise_at: at(certified - 1_200),
        asked_at: at(certified - 100),
        certified_at: at(certified),
        serving_at: at(serving),
    };
    signed(&report, &[&key(2)])
}

fn release(epoch: u64, released: u64) -> Evidence {
    let report = ReleaseReport {
        contract: ID,
        group: contract().group,
        node: key(2).node_id(),
        epoch: Epoch(epoch),
        released_at: at(released),
    };
    signed(&report, &[&key(2)])
}

fn handback(epoch: u64, held: u64) -> Evidence {
    let report = HandbackReport {
        contract: ID,
        group: contract().group,
        node: key(1).node_id(),
        epoch: Epoch(epoch),
        certificate: vec![1],
        held_at: at(held),
    };
    signed(&report, &[&key(1)])
}

fn answer(hash: u8, signers: &[&Keypair]) -> Evidence {
    let hex = |n: u8| format!("{n:02x}").repeat(32);
    signed(&ReadinessAnswer { contract: ID, challenge: hex(5), blocks: 10, keyed_hash: hex(hash) }, signers)
}

fn challenge(n: u8, issued: u64) -> Evidence {
    let challenge = format!("{n:02x}").repeat(32);
    let it = ReadinessChallenge {
        contract: ID,
        node: key(1).node_id(),
        challenge,
        issued_at: at(issued),
        answer_by: at(issued + 10_000),
    };
    signed(&it, &[&key(1)])
}

fn witness(epoch: u64, to: u8, granted: u64) -> Evidence {
    let report = WitnessReport {
        contract: ID,
        group: contract().group,
        node: key(3).node_id(),
        epoch: Epoch(epoch),
        granted_to: key(to).node_id(),
        granted_at: at(granted),
    };
    signed(&report, &[&key(3)])
}

fn dispute(by: u8) -> Evidence {
    signed(&Dispute { contract: ID, node: key(by).node_id(), reason: "it did not serve".to_owned() }, &[&key(by)])
}

fn ready() -> (Evidence, u64) {
    (answer(7, &[&key(2), &key(1)]), 10)
}

type Line = (Evidence, u64);

/// The verdict on lines received at milliseconds after the start; and the same again step by step with ticks in between.
fn verdict_on(lines: &[Line], now: u64) -> Option<(Outcome, Rule)> {
    let contract = contract();
    let received: Vec<Received> = lines.iter().map(|(evidence, ms)| (evidence.clone(), at(*ms))).collect();
    let standing = replay(ID, &contract, START, &received, at(now)).expect("all lines count");
    let (mut stepped, _) = Standing::enter(START);
    for (evidence, when) in &received {
        for tick in [Millis(2), Millis(1), Millis(0)] {
            (stepped, _) = advance(&contract, &stepped, (*when - tick).max(START));
        }
        (stepped, _) = take(ID, &contract, &stepped, evidence, *when).expect("counts");
    }
    (stepped, _) = advance(&contract, &stepped, at(now));
    assert_eq!(standing, stepped, "folding and stepping agree");
    let verdict = judge(ID, &contract, START, &received, at(now)).expect("all lines count");
    assert_eq!(verdict.is_some(), !standing.state.is_in_force());
    if let Some(verdict) = &verdict {
        assert_eq!(verdict.inputs.len(), lines.len());
        let again = judge(ID, &contract, START, &received, verdict.judged_at).expect("counts").expect("a verdict");
        assert_eq!(&again, verdict, "anybody computes it from its own inputs and time");
    }
    verdict.map(|v| (v.outcome, v.rule))
}

/// Name, evidence, time, outcome and rule.
type Case = (&'static str, Vec<Line>, u64, Option<(Outcome, Rule)>);

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn each_rule_fires_on_its_evidence() {
    let term = 30 * DAY_MS;
    let window = DISPUTE_WINDOW.0;
    let cancel = Cancellation { contract: ID, reason: String::new() };
    let table: Vec<Case> = vec![
        ("nothing yet", vec![], 1_000, None),
        ("never ready", vec![], term, Some((Outcome::Breached, Rule::NeverReady))),
        ("waited", vec![ready()], term, Some((Outcome::Expired, Rule::TermWaited))),
        (
            "cancelled by one before it is armed",
            vec![(signed(&cancel, &[&key(1)]), 20)],
            30,
            Some((Outcome::Cancelled, Rule::CancelledByParties)),
        ),
        (
            "cancelled by both",
            vec![ready(), (signed(&cancel, &[&key(1), &key(2)]), 20)],
            30,
            Some((Outcome::Cancelled, Rule::CancelledByParties)),
        ),
        (
            "two takeovers served",
            vec![
                ready(),
                (takeover(2, 5_000, 5_100), 5_200),
                (release(2, 9_000), 9_010),
                (handback(3, 9_100), 9_200),
                (takeover(4, 20_000, 20_050), 20_100),
                (handback(5, 30_000), 30_100),
            ],
            40_000,
            Some((Outcome::Honoured, Rule::ActivationsServed)),
        ),
        (
            "one takeover, then the term ends",
            vec![ready(), (takeover(2, 5_000, 5_100), 5_200), (handback(3, 9_100), 9_200)],
            term,
            Some((Outcome::Honoured, Rule::TermServed)),
        ),
        (
            "hand-backs reported before their takeovers",
            vec![
                ready(),
                (handback(3, 9_100), 9_200),
                (takeover(2, 5_000, 5_100), 9_300),
                (handback(5, 30_000), 30_100),
                (takeover(4, 20_000, 20_050), 30_200),
            ],
            40_000,
            Some((Outcome::Honoured, Rule::ActivationsServed)),
        ),
        (
            "a hand-back reported before two takeovers, one activation that is over",
            vec![ready(), (handback(5, 9_100), 9_200), (takeover(2, 5_000, 5_100), 9_300), (takeover(4, 7_000, 7_050), 9_400)],
            term,
            Some((Outcome::Honoured, Rule::TermServed)),
        ),
        (
            "a takeover reported after the hand-back that ended it",
            vec![ready(), (takeover(2, 5_000, 5_100), 5_200), (handback(5, 9_100), 9_200), (takeover(4, 7_000, 7_050), 9_400)],
            term,
            Some((Outcome::Honoured, Rule::TermServed)),
        ),
        (
            "the term ends while it serves",
            vec![ready(), (takeover(2, 5_000, 5_100), 5_200)],
            term,
            Some((Outcome::Honoured, Rule::TermServed)),
        ),
        ("served late", vec![ready(), (takeover(2, 5_000, 8_001), 8_100)], 9_000, Some((Outcome::Breached, Rule::ServedLate))),
        (
            "custody lost and won again",
            vec![ready(), (takeover(2, 5_000, 5_100), 5_200), (takeover(3, 7_000, 7_100), 7_200)],
            9_000,
            None,
        ),
        (
            "three proofs missed",
            vec![ready(), (challenge(1, 1_000), 1_000), (challenge(2, 12_000), 12_000), (challenge(3, 24_000), 24_000)],
            40_000,
            Some((Outcome::Breached, Rule::MissedProofs)),
        ),
        (
            "an answer in between starts the count anew",
            vec![
                ready(),
                (challenge(1, 1_000), 1_000),
                (challenge(5, 12_000), 12_000),
                (answer(7, &[&key(2)]), 13_000),
                (challenge(3, 24_000), 24_000),
            ],
            40_000,
            None,
        ),
        (
            "granted, and no service shown in the dispute",
            vec![ready(), (witness(2, 2, 5_000), 5_000), (witness(3, 1, 60_000), 60_000), (dispute(1), 61_000)],
            61_000 + window,
            Some((Outcome::Breached, Rule::GrantedNotServed)),
        ),
        (
            "granted, but the customer came back before the deadline",
            vec![ready(), (witness(2, 2, 5_000), 5_000), (witness(3, 1, 6_000), 6_000), (dispute(1), 61_000)],
            61_000 + window,
            Some((Outcome::Expired, Rule::DisputeUnfounded)),
        ),
        (
            "service shown within the dispute",
            vec![ready(), (witness(2, 2, 5_000), 5_000), (dispute(1), 61_000), (takeover(2, 5_000, 5_200), 62_000)],
            61_000 + window,
            Some((Outcome::Expired, Rule::DisputeUnfounded)),
        ),
        (
            "late service shown within the dispute",
            vec![ready(), (dispute(1), 61_000), (takeover(2, 5_000, 9_200), 62_000)],
            61_000 + window,
            Some((Outcome::Breached, Rule::ServedLate)),
        ),
        (
            "a provider's dispute without ground earns no full premium",
            vec![ready(), (dispute(2), 61_000)],
            61_000 + window,
            Some((Outcome::Cancelled, Rule::DisputeUnfounded)),
        ),
    ];
    for (name, lines, now, wanted) in table {
        assert_eq!(verdict_on(&lines, now), wanted, "{name}");
    }
}

#[test]
fn asking_late_is_a_breach_even_if_service_was_quick() {
    let Item::Takeover(mut report) = takeover(2, 60_000, 60_100).item else { unreachable!() };
    report.last_promise_at = at(60_000 - 3_101);
    assert_eq!(verdict_on(&[ready(), (signed(&report, &[&key(2)]), 60_200)], 70_000), Some((Outcome::Breached, Rule::AskedLate)));
}

/// Custody from an earlier contract for the group: what was due before this one was armed is not due under it.
#[test]
fn a_provider_that_has_custody_already_owes_service_from_arming_on() {
    let held_before = |serving| {
        let Item::Takeover(mut report) = takeover(2, 5_000, 5_100).item else { unreachable!() };
        (report.last_promise_at, report.asked_at) = (START - Millis(120_000), START - Millis(100_000));
        (report.certified_at, report.serving_at) = (START - Millis(90_000), at(serving));
        (signed(&report, &[&key(2)]), serving + 100)
    };
    assert_eq!(verdict_on(&[ready(), held_before(1_000)], 9_000), None);
    assert_eq!(verdict_on(&[ready(), held_before(3_010)], 9_000), None);
    assert_eq!(verdict_on(&[ready(), held_before(3_011)], 9_000), Some((Outcome::Breached, Rule::ServedLate)));
}

#[test]
fn what_does_not_count_is_refused_and_changes_nothing() {
    let contract = contract();
    let (standing, _) = take(ID, &contract, &Standing::enter(START).0, &ready().0, at(10)).expect("ready");
    let mut other_group = contract.clone();
    other_group.group = crate::ids::GroupId::from_bytes([9; 16]);
    let delivery = DeliveryReport {
        contract: ID,
        group: contract.group,
        node: key(3).node_id(),
        epoch: Epoch(1),
        from: at(0),
        until: at(1),
        frames_heard: 0,
        readings_delivered: 0,
        readings_settled: 0,
        roots: vec![],
    };
    let one_sided = Cancellation { contract: ID, reason: String::new() };
    let refused = [
        (takeover(2, 5_000, 5_100), 50, "a time ahead of the clock"),
        (release(2, 5_000), 6_000, "nothing to release"),
        (handback(2, 7_000 + 5_000), 6_000, "a hand-back ahead of the clock"),
        (signed(&one_sided, &[&key(1)]), 6_000, "one signature in standby"),
        (signed(&one_sided, &[&key(1), &key(2), &key(9)]), 6_000, "a stranger's signature"),
        (signed(&delivery, &[&key(3)]), 6_000, "a witness delivers nothing"),
        (dispute(3), 6_000, "a witness is no party"),
        (answer(7, &[&key(3)]), 6_000, "a witness has no blocks"),
    ];
    for (evidence, now, why) in refused {
        assert!(take(ID, &contract, &standing, &evidence, at(now)).is_err(), "{why}");
    }
    let elsewhere = ContractId::from_bytes([9; 32]);
    assert_eq!(take(elsewhere, &contract, &standing, &dispute(1), at(10)), Err(Refused::OtherContract));
    assert_eq!(take(ID, &other_group, &standing, &takeover(2, 5_000, 5_100), at(6_000)), Err(Refused::OtherContract));
    let (contradicted, _) = take(ID, &contract, &standing, &witness(2, 1, 4_000), at(5_000)).expect("counts");
    assert!(matches!(
        take(ID, &contract, &contradicted, &takeover(2, 5_000, 5_100), at(6_000)),
        Err(Refused::Contradicted { .. })
    ));
}

#[test]
fn readiness_needs_both_to_agree() {
    let contract = contract();
    let start = Standing::enter(START).0;
    let run = |lines: &[Evidence]| {
        lines.iter().fold(start.clone(), |standing, line| take(ID, &contract, &standing, line, at(10)).expect("counts").0).state
    };
    let standby = State::Standby { activations: 0 };
    assert_eq!(run(&[answer(7, &[&key(2)]), answer(7, &[&key(1)])]), standby);
    assert_eq!(run(&[answer(7, &[&key(1)]), answer(7, &[&key(2)])]), standby);
    assert_eq!(run(&[answer(7, &[&key(2)]), answer(8, &[&key(1)])]), State::Preparing);
    assert_eq!(run(&[answer(7, &[&key(2)])]), State::Preparing);
    assert_eq!(run(&[answer(7, &[&key(2), &key(1)])]), standby);
}

#[test]
fn served_time_and_days_are_counted() {
    let contract = contract();
    let lines = [
        ready(),
        (takeover(2, 5_000, 5_100), 5_200),
        (release(2, 9_000), 9_010),
        (handback(3, 9_100), 9_200),
        (takeover(4, 20_000, 20_050), 20_100),
        (handback(5, 30_000), 30_100),
    ];
    let received: Vec<Received> = lines.iter().map(|(evidence, ms)| (evidence.clone(), at(*ms))).collect();
    let verdict = judge(ID, &contract, START, &received, at(40_000)).expect("counts").expect("ended");
    assert_eq!((verdict.served, verdict.activations, verdict.standby_days), (Millis(3_900 + 9_950), 2, 1));
    let late = [ready(), (handback(5, 9_100), 9_200), (takeover(2, 5_000, 5_100), 9_300), (takeover(4, 7_000, 7_050), 9_400)];
    let received: Vec<Received> = late.iter().map(|(evidence, ms)| (evidence.clone(), at(*ms))).collect();
    let verdict = judge(ID, &contract, START, &received, contract.valid_until).expect("counts").expect("ended");
    assert_eq!((verdict.served, verdict.activations), (Millis(4_000), 1), "nothing is paid twice, and nothing on and on");
    let standing = Standing { standby_since: Some(START), ..Standing::enter(START).0 };
    assert_eq!([0, DAY_MS - 1, DAY_MS, 2 * DAY_MS].map(|ms| standing.standby_days(at(ms))), [1, 1, 2, 3]);
}

#[test]
fn evidence_is_read_by_type_and_needs_its_author() {
    let delivery = Dispute { contract: ID, node: key(1).node_id(), reason: "x".repeat(1_001) };
    assert!(matches!(Evidence::read(&Envelope::sign(&delivery, &key(1))), Err(crate::envelope::Error::Invalid(_))));
    let forged = Dispute { contract: ID, node: key(1).node_id(), reason: String::new() };
    assert!(matches!(Evidence::read(&Envelope::sign(&forged, &key(2))), Err(crate::envelope::Error::Missing { .. })));
    let contract = Envelope::sign(&crate::test_contract::contract(), &key(1));
    assert!(matches!(Evidence::read(&contract), Err(crate::envelope::Error::Type { .. })));
}

/// A provider that does not have what it promised to run. Silence convicts it; a wrong answer proves nothing by itself, for the arbitrator
/// has no blocks, but does not make it ready either, and does not serve the devices when it is elected.
#[test]
fn missing_images_convict_by_silence_or_when_it_matters() {
    let window = DISPUTE_WINDOW.0;
    let wrong = |by: u8| (answer(9, &[&key(by)]), 2_000);
    let expected = (answer(7, &[&key(1)]), 1_500);
    let never_ready = vec![(challenge(5, 1_000), 1_000), expected.clone(), wrong(2)];
    assert_eq!(verdict_on(&never_ready, 30 * DAY_MS), Some((Outcome::Breached, Rule::NeverReady)));

    let silent: Vec<Line> =
        [0, 1, 2].map(|n| (challenge(n, 20_000 * u64::from(n) + 20_000), 20_000 * u64::from(n) + 20_000)).into();
    let silent = [vec![ready()], silent].concat();
    assert_eq!(verdict_on(&silent, 100_000), Some((Outcome::Breached, Rule::MissedProofs)));
    let answered = silent.iter().flat_map(|(line, at)| {
        let Item::Challenge(it) = &line.item else { return vec![(line.clone(), *at)] };
        let right = ReadinessAnswer { contract: ID, challenge: it.challenge.clone(), blocks: 10, keyed_hash: "07".repeat(32) };
        vec![(line.clone(), *at), (signed(&right, &[&key(2)]), at + 100)]
    });
    assert_eq!(verdict_on(&answered.collect::<Vec<_>>(), 100_000), None, "its honest twin");

    // In standby it answers nonsense, which clears the challenge; then it is elected and serves nobody.
    let nonsense = vec![ready(), (challenge(5, 1_000), 1_000), wrong(2)];
    assert_eq!(verdict_on(&nonsense, 20_000), None);
    let elected = [nonsense, vec![(witness(2, 2, 30_000), 30_100), (dispute(1), 40_000)]].concat();
    assert_eq!(verdict_on(&elected, 40_000 + window), Some((Outcome::Breached, Rule::GrantedNotServed)));
    let served = [&elected[..], &[(takeover(2, 30_000, 31_000), 40_100)]].concat();
    assert_eq!(verdict_on(&served, 40_000 + window), Some((Outcome::Expired, Rule::DisputeUnfounded)), "its honest twin");
}

/// Reports of deliveries are kept and change nothing: what they say of progress is only the word of who signed, and nobody else's
/// signature stands against it. Frames that a node heard and hides convict it elsewhere ([`crate::account::audit`]).
#[test]
fn forged_progress_alone_convicts_nobody() {
    let report = |delivered: u64| {
        let report = DeliveryReport {
            contract: ID,
            group: contract().group,
            node: key(2).node_id(),
            epoch: Epoch(2),
            from: at(31_000),
            until: at(32_000),
            frames_heard: delivered,
            readings_delivered: delivered,
            readings_settled: delivered,
            roots: vec!["ab".repeat(32)],
        };
        (signed(&report, &[&key(2)]), 33_000)
    };
    let lines = |delivered| vec![ready(), (takeover(2, 30_000, 31_000), 31_100), report(delivered)];
    let term = 30 * DAY_MS;
    assert_eq!(verdict_on(&lines(0), term), verdict_on(&lines(1_000_000), term));
    assert_eq!(verdict_on(&lines(7), term), Some((Outcome::Honoured, Rule::TermServed)));
}
