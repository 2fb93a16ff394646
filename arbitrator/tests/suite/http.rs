//! Over the router: the way of a contract, bad input, replays, money.

use std::sync::Arc;

use arbitrator::resource::{EvidenceView, Page, TransferView, VerdictView};
use arbitrator::store::Memory;
use axum::http::StatusCode;
use contracts::envelope::{Envelope, Key};
use contracts::evidence::judge::{self, Received};
use contracts::evidence::{Cancellation, Deposit, Dispute, Evidence, Rule, Verdict, Withdraw};
use contracts::ids::{ContractId, DevEui, GroupId};
use contracts::money::Amount;
use contracts::time::{Millis, WallTime};
use serde_json::{Value, json};

use super::common::*;

async fn memory() -> Bench {
    bench(Arc::new(Memory::default())).await
}

fn refused(problem: &(u16, String), status: u16, name: &str) {
    assert_eq!((problem.0, problem.1.as_str()), (status, name));
}

#[tokio::test]
async fn the_whole_way_of_a_contract_that_is_honoured() {
    let bench = memory().await;
    let (id, contract) = bench.in_force().await;
    assert_eq!((bench.balance(CUSTOMER_OWNER).await, bench.balance(PROVIDER_OWNER).await), ((30, 70), (60, 40)));
    let view: Value = bench.get(&format!("/v1/contracts/{id}")).await;
    assert_eq!(
        (view["state"]["state"].as_str(), view["envelope"]["signatures"].as_array().unwrap().len()),
        (Some("preparing"), 3)
    );
    let envelope: Envelope = serde_json::from_value(view["envelope"].clone()).unwrap();
    let all = [CUSTOMER, PROVIDER, ARBITRATOR].map(|n| Key::from(node(n)));
    assert_eq!(envelope.verify_signed_by::<contracts::contract::Contract>(&all).unwrap().id, id.into());

    bench.evidence(id, &ready(id)).await.unwrap();
    let at = bench.now();
    bench.clock.advance(Millis(1_000));
    bench.evidence(id, &takeover(id, &contract, 2, at, Millis(100))).await.unwrap();
    let listed: Value = bench.get(&format!("/v1/contracts?in_force=true&node={}", node(PROVIDER))).await;
    assert_eq!(listed["items"][0]["state"], json!({ "state": "taken_over", "epoch": 2, "activations": 1 }));
    bench.clock.advance(Millis(4 * 3_600_000));
    bench.evidence(id, &release(id, &contract, 2, bench.now())).await.unwrap();
    bench.evidence(id, &handback(id, &contract, 3, bench.now())).await.unwrap();
    assert_eq!(bench.state(id).await, json!({ "state": "ended", "outcome": "honoured" }));
    // 30 of premium, 4 h 0 min 0.9 s served, 2 h included, 1 each: 2 whole hours beyond.
    assert_eq!((bench.balance(CUSTOMER_OWNER).await, bench.balance(PROVIDER_OWNER).await), ((68, 0), (132, 0)));
    bench.assert_balanced().await;

    let shown: VerdictView = bench.get(&format!("/v1/contracts/{id}/verdict")).await;
    let verdict = shown.envelope.verify_signed_by::<Verdict>(&[node(ARBITRATOR).into()]).unwrap().statement;
    assert_eq!((verdict.rule, verdict.inputs.len(), verdict == shown.verdict), (Rule::ActivationsServed, 4, true));
    let evidence: Page<EvidenceView> = bench.get(&format!("/v1/contracts/{id}/evidence")).await;
    let received: Vec<Received> =
        evidence.items.iter().map(|view| (Evidence::read(&view.envelope).unwrap(), view.received_at)).collect();
    let again = judge::judge(id, &contract, verdict.in_force_since, &received, verdict.judged_at).unwrap();
    assert_eq!(again, Some(verdict), "anybody recomputes it from what is public");

    let reputation: Value = bench.get(&format!("/v1/reputation/{}", node(PROVIDER))).await;
    assert!(reputation["score_permille"].as_u64().unwrap() > 500 && reputation["verdicts"] == 1);
    assert_eq!(bench.get::<Value>(&format!("/v1/reputation/{}", owner(99))).await["score_permille"], 500);
    let transfers: Page<TransferView> = bench.get(&format!("/v1/transfers?owner={}&limit=3", owner(CUSTOMER_OWNER))).await;
    assert_eq!((transfers.items.len(), transfers.next.is_some()), (3, true));
}

#[tokio::test]
async fn late_service_and_terms_that_end_pay_as_agreed() {
    let bench = memory().await;
    let (id, contract) = bench.in_force().await;
    bench.evidence(id, &ready(id)).await.unwrap();
    let at = bench.now();
    bench.clock.advance(Millis(10_000));
    bench.evidence(id, &takeover(id, &contract, 2, at, Millis(3_001))).await.unwrap();
    assert_eq!(bench.state(id).await["outcome"], "breached");
    assert_eq!((bench.balance(CUSTOMER_OWNER).await, bench.balance(PROVIDER_OWNER).await), ((140, 0), (60, 0)));

    let mut next = super::common::contract(bench.now());
    next.nonce = 2;
    next.money.provider_stake = Amount::from_units(10);
    bench.post("/v1/contracts", &submission(&next)).await.unwrap();
    let id = ContractId::from(signed(&next).id());
    bench.evidence(id, &ready(id)).await.unwrap();
    bench.clock.advance(DAY * 30);
    bench.service.tick().await.unwrap();
    assert_eq!(bench.state(id).await["outcome"], "expired");
    assert_eq!((bench.balance(CUSTOMER_OWNER).await, bench.balance(PROVIDER_OWNER).await), ((110, 0), (90, 0)));
    bench.assert_balanced().await;
}

#[tokio::test]
async fn everything_happens_once_however_often_it_is_sent() {
    let bench = memory().await;
    let (id, contract) = bench.in_force().await;
    for _ in 0..3 {
        bench.fund(100).await;
        assert_eq!(
            bench.put::<Value>("POST", "/v1/contracts", &submission(&contract)).await.unwrap()["id"],
            json!(id.to_string())
        );
        bench.evidence(id, &ready(id)).await.unwrap();
    }
    assert_eq!(bench.balance(CUSTOMER_OWNER).await, (30, 70));
    let evidence: Page<EvidenceView> = bench.get(&format!("/v1/contracts/{id}/evidence")).await;
    assert_eq!(evidence.items.len(), 1);
    let events = bench.store.events(0, 100).await.unwrap().len();
    let cancellation = Cancellation { contract: id, reason: "moved house".to_owned() };
    let mut envelope = statement(&cancellation, CUSTOMER);
    refused(&bench.evidence(id, &envelope).await.unwrap_err(), 403, "wrong-signer");
    envelope.cosign(&key(PROVIDER));
    bench.evidence(id, &envelope).await.unwrap();
    bench.evidence(id, &envelope).await.unwrap();
    assert_eq!(bench.store.events(0, 100).await.unwrap().len(), events + 3, "received, changed, verdict");
    assert_eq!(bench.balance(PROVIDER_OWNER).await, (101, 0), "one day was started");
    let again: Value = bench.post("/v1/contracts", &submission(&contract)).await.unwrap();
    assert_eq!(again["state"]["state"], "ended", "a contract that ended does not come into force by a replay");
}

#[tokio::test]
async fn contracts_that_are_not_right_are_refused_and_hold_no_money() {
    let bench = memory().await;
    let good = contract(bench.now());
    let problem = bench.post("/v1/contracts", &json!({ "contract": signed(&good) })).await.unwrap_err();
    refused(&problem, 422, "node-not-registered");
    refused(&bench.post("/v1/contracts", &submission(&good)).await.unwrap_err(), 402, "insufficient-funds");
    bench.fund(69).await; // the customer needs 70
    refused(&bench.post("/v1/contracts", &submission(&good)).await.unwrap_err(), 402, "insufficient-funds");
    bench.post("/v1/orders", &deposit(CUSTOMER_OWNER, 1, 9, bench.now() + DAY)).await.unwrap();

    let changed = |change: &dyn Fn(&mut contracts::contract::Contract)| {
        let mut contract = good.clone();
        change(&mut contract);
        submission(&contract)
    };
    let one_signature =
        json!({ "contract": Envelope::sign(&good, &key(CUSTOMER)), "node_records": submission(&good)["node_records"] });
    let mut extra = signed(&good);
    extra.cosign(&key(9));
    let mut forged = signed(&good);
    forged.payload[40] ^= 1;
    let with = |envelope: &Envelope| json!({ "contract": envelope, "node_records": submission(&good)["node_records"] });
    let table = [
        (one_signature, 400, "bad-signature"),
        (with(&extra), 403, "wrong-signer"),
        (with(&forged), 400, "bad-signature"),
        (with(&ready(ContractId::from_bytes([0; 32]))), 400, "unknown-statement-type"),
        (changed(&|c| c.arbitrator = node(9)), 422, "other-arbitrator"),
        (changed(&|c| c.witnesses = vec![node(9)]), 422, "node-not-registered"),
        (changed(&|c| c.customer.owner = owner(9)), 403, "owner-mismatch"),
        (changed(&|c| c.valid_from = bench.now() + DAY), 422, "not-yet-valid"),
        (changed(&|c| (c.valid_from, c.valid_until) = (WallTime(1), bench.now())), 400, "invalid-input"),
        (changed(&|c| (c.valid_from, c.valid_until) = (bench.now() - DAY, bench.now())), 422, "expired-statement"),
        (changed(&|c| c.devices.clear()), 400, "invalid-input"),
    ];
    for (submission, status, name) in table {
        refused(&bench.post("/v1/contracts", &submission).await.unwrap_err(), status, name);
    }
    assert_eq!(bench.balance(CUSTOMER_OWNER).await, (70, 0));
    assert_eq!(bench.balance(PROVIDER_OWNER).await, (69, 0));
    bench.post("/v1/contracts", &submission(&good)).await.unwrap();
    let mut friend = good.clone();
    friend.witnesses = vec![node(ARBITRATOR), node(PROVIDER), node(7)];
    friend.provider.node = node(8);
    friend.devices = [DevEui::from_u64(77)].into();
    friend.group = GroupId::from_bytes([77; 16]);
    let mut envelope = Envelope::sign(&friend, &key(CUSTOMER));
    envelope.cosign(&key(8));
    let records = [record(7, PROVIDER_OWNER, 1, loopback()), record(8, PROVIDER_OWNER, 1, loopback())];
    let problem = bench.post("/v1/contracts", &json!({ "contract": envelope, "node_records": records })).await.unwrap_err();
    refused(&problem, 422, "one-owner-majority");
}

#[tokio::test]
async fn a_device_is_in_one_group_with_one_member_list() {
    let bench = memory().await;
    let (_, first) = bench.in_force().await;
    bench.post("/v1/orders", &deposit(CUSTOMER_OWNER, 500, 9, bench.now() + DAY)).await.unwrap();
    bench.post("/v1/orders", &deposit(PROVIDER_OWNER, 500, 9, bench.now() + DAY)).await.unwrap();
    let mut other_provider = first.clone();
    other_provider.provider.node = node(5);
    let mut envelope = Envelope::sign(&other_provider, &key(CUSTOMER));
    envelope.cosign(&key(5));
    let with = |envelope: &Envelope| json!({ "contract": envelope, "node_records": [record(5, PROVIDER_OWNER, 1, loopback())] });
    refused(&bench.post("/v1/contracts", &with(&envelope)).await.unwrap_err(), 409, "group-taken");
    let mut other_group = first.clone();
    other_group.group = GroupId::from_bytes([5; 16]);
    refused(&bench.post("/v1/contracts", &submission(&other_group)).await.unwrap_err(), 409, "group-taken");
    let mut same_group = other_provider.clone();
    same_group.devices = [DevEui::from_u64(9)].into();
    let mut envelope = Envelope::sign(&same_group, &key(CUSTOMER));
    envelope.cosign(&key(5));
    refused(&bench.post("/v1/contracts", &with(&envelope)).await.unwrap_err(), 409, "group-taken");
    let mut same_members = first.clone();
    same_members.nonce = 2;
    bench.post("/v1/contracts", &submission(&same_members)).await.unwrap();
}

#[tokio::test]
async fn evidence_that_does_not_count_is_refused() {
    let bench = memory().await;
    let (id, contract) = bench.in_force().await;
    let at = bench.now();
    bench.clock.advance(Millis(10_000));
    refused(&bench.evidence(id, &takeover(id, &contract, 2, at, Millis(1))).await.unwrap_err(), 409, "wrong-state");
    bench.evidence(id, &ready(id)).await.unwrap();
    let mut report: contracts::evidence::TakeoverReport =
        serde_json::from_slice(&takeover(id, &contract, 2, at, Millis(1)).payload).unwrap();
    for voters in [&[PROVIDER][..], &[PROVIDER, 9]] {
        report.certificate = certificate(contract.group, 2, PROVIDER, voters);
        refused(&bench.evidence(id, &statement(&report, PROVIDER)).await.unwrap_err(), 422, "bad-certificate");
    }
    report.certificate = certificate(contract.group, 2, CUSTOMER, &[CUSTOMER, ARBITRATOR]);
    refused(&bench.evidence(id, &statement(&report, PROVIDER)).await.unwrap_err(), 422, "bad-certificate");
    refused(&bench.evidence(id, &statement(&report, CUSTOMER)).await.unwrap_err(), 400, "bad-signature");
    let ahead = takeover(id, &contract, 2, bench.now() + DAY, Millis(1));
    refused(&bench.evidence(id, &ahead).await.unwrap_err(), 422, "bad-time");
    let stranger = Dispute { contract: id, node: node(9), reason: String::new() };
    refused(&bench.evidence(id, &statement(&stranger, 9)).await.unwrap_err(), 403, "wrong-signer");
    let elsewhere = ContractId::from_bytes([9; 32]);
    refused(&bench.evidence(elsewhere, &ready(id)).await.unwrap_err(), 400, "invalid-input");
    refused(&bench.evidence(elsewhere, &ready(elsewhere)).await.unwrap_err(), 404, "not-found");
    refused(&bench.evidence(id, &signed(&contract)).await.unwrap_err(), 400, "unknown-statement-type");
    assert_eq!(bench.state(id).await["state"], "standby");
}

#[tokio::test]
async fn orders_come_from_operators_only() {
    let bench = memory().await;
    let order = |operator: u8, amount, until| Deposit {
        arbitrator: node(ARBITRATOR),
        operator: key(operator).key(),
        owner: owner(CUSTOMER_OWNER),
        currency: euro(),
        amount,
        nonce: 1,
        valid_until: until,
    };
    let (unit, later) = (Amount::from_units(1), bench.now() + DAY);
    let mut elsewhere = order(OPERATOR, unit, later);
    elsewhere.arbitrator = node(9);
    let huge = Amount::from_micros(contracts::money::AMOUNT_MICROS_MAX).unwrap();
    bench.post("/v1/orders", &statement(&order(OPERATOR, unit, later), OPERATOR)).await.unwrap();
    let table = [
        (statement(&order(9, unit, later), 9), 403, "not-an-operator"),
        (statement(&order(OPERATOR, unit, later), 9), 400, "bad-signature"),
        (statement(&order(OPERATOR, unit, bench.now()), OPERATOR), 422, "expired-statement"),
        (statement(&order(OPERATOR, Amount::ZERO, later), OPERATOR), 400, "invalid-input"),
        (statement(&order(OPERATOR, huge, later), OPERATOR), 400, "invalid-input"),
        (statement(&elsewhere, OPERATOR), 422, "other-arbitrator"),
    ];
    for (envelope, status, name) in table {
        refused(&bench.post("/v1/orders", &envelope).await.unwrap_err(), status, name);
    }
    let withdraw = |amount, nonce| {
        let it = order(OPERATOR, amount, later);
        let (arbitrator, operator, owner, currency) = (it.arbitrator, it.operator, it.owner, it.currency);
        statement(&Withdraw { arbitrator, operator, owner, currency, amount, nonce, valid_until: later }, OPERATOR)
    };
    refused(&bench.post("/v1/orders", &withdraw(Amount::from_units(2), 1)).await.unwrap_err(), 402, "insufficient-funds");
    bench.post("/v1/orders", &withdraw(unit, 1)).await.unwrap();
    bench.post("/v1/orders", &withdraw(unit, 1)).await.unwrap();
    assert_eq!(bench.balance(CUSTOMER_OWNER).await, (0, 0));
    bench.assert_balanced().await;
}

#[tokio::test]
async fn requests_that_are_no_requests_get_problems() {
    let bench = memory().await;
    let (status, _) = bench.send("POST", "/v1/contracts", Some(b"{".to_vec())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let long = vec![b' '; arbitrator::http::BODY_BYTES_MAX + 1];
    let table: [(&str, &str, Option<Vec<u8>>, u16); 9] = [
        ("POST", "/v1/orders", Some(long), 413),
        ("POST", "/v1/contracts", Some(b"{\"contract\": 1}".to_vec()), 400),
        ("GET", "/v1/contracts?limit=0", None, 400),
        ("GET", "/v1/contracts?bogus=1", None, 400),
        ("GET", "/v1/contracts/contract_zz", None, 400),
        ("GET", "/v1/contracts/statement_00", None, 400),
        ("GET", "/v1/reputation/nobody", None, 400),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/contracts", None, 405),
    ];
    for (method, path, body, wanted) in table {
        let (status, body) = bench.send(method, path, body).await;
        let problem: kit::problem::Problem = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{method} {path}"));
        assert_eq!((status.as_u16(), problem.status), (wanted, wanted), "{method} {path}");
    }
    let stale = record(CUSTOMER, CUSTOMER_OWNER, 1, loopback());
    let path = format!("/v1/nodes/{}", node(CUSTOMER));
    bench.put::<Value>("PUT", &path, &record(CUSTOMER, CUSTOMER_OWNER, 2, loopback())).await.unwrap();
    refused(&bench.put::<Value>("PUT", &path, &stale).await.unwrap_err(), 409, "stale-record");
    refused(
        &bench.put::<Value>("PUT", &path, &record(CUSTOMER, PROVIDER_OWNER, 3, loopback())).await.unwrap_err(),
        409,
        "conflict",
    );
    refused(
        &bench.put::<Value>("PUT", &path, &record(PROVIDER, PROVIDER_OWNER, 1, loopback())).await.unwrap_err(),
        400,
        "invalid-input",
    );
}

#[tokio::test]
async fn operations_answer_and_the_document_is_golden() {
    let bench = memory().await;
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(bench.send("GET", path, None).await.0, StatusCode::OK, "{path}");
    }
    bench.fund(1).await;
    let (_, metrics) = bench.send("GET", "/metrics", None).await;
    assert!(String::from_utf8(metrics).unwrap().contains("antirio_arbitrator_statements_taken_total{name=\"order\"} 2"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi/arbitrator.json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi")).unwrap();
        std::fs::write(path, arbitrator::http::openapi()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), arbitrator::http::openapi(), "UPDATE_GOLDEN=1 writes it anew");
}

/// Many contracts, random events in random order, seeded: money is neither made nor lost, and every contract is settled once.
#[tokio::test]
async fn money_is_conserved_through_random_lives() {
    for seed in 1..=25_u64 {
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let bench = memory().await;
        bench.fund(1_000).await;
        let mut contracts: Vec<(ContractId, contracts::contract::Contract)> = Vec::new();
        for step in 0..60 {
            bench.clock.advance(Millis(random(86_400_000)));
            let (now, pick) = (bench.now(), random(1 + contracts.len() as u64));
            let Some((id, contract)) = contracts.get(usize::try_from(pick).unwrap()).cloned() else {
                let mut contract = contract(now);
                (contract.nonce, contract.group) = (step, GroupId::from_bytes([u8::try_from(step).unwrap(); 16]));
                contract.devices = [DevEui::from_u64(1_000 + step)].into();
                (contract.money.premium_per_day, contract.terms.activations_max) =
                    (Amount::from_micros(random(3_000_000)).unwrap(), u32::try_from(1 + random(2)).unwrap());
                if bench.post("/v1/contracts", &submission(&contract)).await.is_ok() {
                    contracts.push((ContractId::from(signed(&contract).id()), contract));
                }
                continue;
            };
            let epoch = 2 + random(4);
            let envelope = match random(7) {
                0 | 1 => ready(id),
                2 => takeover(id, &contract, epoch, now - Millis(5_000), Millis(random(4_000))),
                3 => release(id, &contract, epoch, now),
                4 => handback(id, &contract, epoch, now),
                5 => statement(&Dispute { contract: id, node: node(CUSTOMER), reason: step.to_string() }, CUSTOMER),
                _ => statement(&Cancellation { contract: id, reason: step.to_string() }, PROVIDER),
            };
            let _ = bench.evidence(id, &envelope).await; // most do not fit, and must change nothing
            if random(4) == 0 {
                bench.service.tick().await.unwrap();
            }
            bench.assert_balanced().await;
        }
        bench.clock.advance(DAY * 40);
        bench.service.tick().await.unwrap();
        bench.assert_balanced().await;
        let mut total = 0;
        for of in [CUSTOMER_OWNER, PROVIDER_OWNER] {
            let accounts = bench.store.accounts(owner(of)).await.unwrap();
            assert!(accounts.iter().all(|(_, account)| account.reserved().is_zero()), "seed {seed}: all is settled");
            total += accounts.iter().map(|(_, account)| account.available().micros()).sum::<u64>();
        }
        assert_eq!(total, 2_000_000_000, "seed {seed}");
        for (id, _) in &contracts {
            assert!(bench.store.verdict(*id).await.unwrap().is_some(), "seed {seed}: {id} has a verdict");
        }
        assert!(contracts.len() > 2, "seed {seed}: something must happen");
    }
}
