//! Parties that sign, and a market in process.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use contracts::contract::{Contract, Money, Party as Side, Terms};
use contracts::envelope::{Envelope, Keypair};
use contracts::geo::Position;
use contracts::ids::{NodeId, OwnerId, StatementId};
use contracts::listing::{Demand, Offer, Withdrawal};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role, SealingKey};
use contracts::resources::{Interface, Resources};
use contracts::time::{Millis, WallTime};
use kit::clock::Clock;
use kit::problem::Problem;
use marketplace::config::Limits;
use marketplace::http::{App, router};
use marketplace::service::{Parts, Service};
use marketplace::store::{Memory, Store};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const HOUR: Millis = Millis::from_secs(3_600);

/// Rio and its coast.
pub const RIO: Position = Position { latitude_e7: 383_100_000, longitude_e7: 217_800_000 };
pub const ANTIRIO: Position = Position { latitude_e7: 383_300_000, longitude_e7: 217_670_000 };

pub fn witness() -> NodeId {
    NodeId::from_bytes([0x77; 32])
}

/// A node and its owner, made from one number.
#[derive(Debug, Clone)]
pub struct Party {
    pub node: Keypair,
    pub owner: Keypair,
}

impl Party {
    pub fn new(number: u8) -> Self {
        Self { node: Keypair::from_secret(&[number; 32]), owner: Keypair::from_secret(&[number ^ 0x80; 32]) }
    }

    pub fn id(&self) -> NodeId {
        self.node.node_id()
    }

    pub fn record(&self, record_epoch: u64) -> NodeRecord {
        NodeRecord {
            node: self.id(),
            owner: self.owner.owner_id(),
            name: "rio".into(),
            role: Role::Edge,
            addresses: vec!["127.0.0.1:4433".parse().unwrap()],
            sealing_key: SealingKey([9; 32]),
            position: Some(RIO),
            record_epoch,
        }
    }

    pub fn signed_record(&self, record_epoch: u64) -> Envelope {
        let mut envelope = Envelope::sign(&self.record(record_epoch), &self.node);
        envelope.cosign(&self.owner);
        envelope
    }

    /// Serves 200 devices within 5 km of Antirio, asks 2 a day.
    pub fn offer(&self, nonce: u64, now: WallTime) -> Offer {
        offer(self.id(), self.owner.owner_id(), nonce, now)
    }

    /// Needs 150 devices served at Rio, bids 3 a day.
    pub fn demand(&self, nonce: u64, now: WallTime) -> Demand {
        demand(self.id(), self.owner.owner_id(), nonce, now)
    }

    pub fn withdrawal(&self, listing: StatementId) -> Envelope {
        Envelope::sign(&Withdrawal { node: self.id(), listing }, &self.node)
    }
}

fn resources(share: u64) -> Resources {
    let interfaces = vec![Interface { kind: "lora".into(), region: "EU868".into(), slots: 2 * share }];
    Resources {
        cpu_millis: 10 * share,
        memory_bytes: share << 20,
        storage_bytes: share << 20,
        uptime_s: 3_600,
        interfaces,
        ..Resources::default()
    }
}

pub fn offer(node: NodeId, owner: OwnerId, nonce: u64, now: WallTime) -> Offer {
    Offer {
        node,
        owner,
        nonce,
        free: resources(100),
        capabilities: BTreeSet::from(["lora:EU868".to_owned()]),
        position: ANTIRIO,
        radio_range_m: 5_000,
        currency: Currency::new("EUR").unwrap(),
        ask_per_day: Amount::from_units(2),
        served_hour_cost: Amount::from_units(1),
        deadline: Millis(1_500),
        stake_max: Amount::from_units(100),
        witnesses: BTreeSet::from([witness()]),
        valid_from: now,
        valid_until: now + HOUR,
    }
}

pub fn demand(node: NodeId, owner: OwnerId, nonce: u64, now: WallTime) -> Demand {
    Demand {
        node,
        owner,
        nonce,
        needs: resources(75),
        capabilities: BTreeSet::from(["lora:EU868".to_owned()]),
        devices: vec![RIO],
        currency: Currency::new("EUR").unwrap(),
        bid_per_day: Amount::from_units(3),
        served_hour_cost_max: Amount::from_units(1),
        deadline_max: Millis(2_000),
        stake_min: Amount::from_units(50),
        reputation_min_permille: 500,
        witnesses: BTreeSet::from([witness()]),
        days: 30,
        valid_from: now,
        valid_until: now + HOUR,
    }
}

/// A contract of two parties that came of a match, signed by both.
pub fn contract(customer: &Party, provider: &Party, matched_by: Option<StatementId>, now: WallTime) -> Envelope {
    let side = |party: &Party| Side { node: party.id(), owner: party.owner.owner_id() };
    let template: serde_json::Value = serde_json::json!({
        "customer": side(customer), "provider": side(provider), "witnesses": [witness()], "arbitrator": witness(), "readings_to": customer.id(),
        "group": format!("group_{}", "ab".repeat(16)), "devices": ["0000000000000001"],
        "blueprint": {
            "services": [{ "name": "lora", "image": format!("bafkrei{}", "a".repeat(52)), "image_id": format!("sha256:{}", "0".repeat(64)),
                "memory_bytes_max": 1, "cpu_millis_max": 1, "pids_max": 1 }],
            "needs": resources(75), "capabilities": ["lora:EU868"], "activation": "offline",
        },
        "network_configuration": format!("bafkrei{}", "b".repeat(52)), "application_configuration": format!("bafkrei{}", "c".repeat(52)),
        "terms": Terms {
            ttl: Millis(1_000), deadline: Millis(1_500), handback_quiet: Millis(500), handback_deadline: Millis(5_000), grace: Millis(60_000),
            counter_block: 16, buffer_frames_max: 1_000, buffer_bytes_max: 1_000_000, buffer_hours_max: 24, mirror: false, activations_max: 10,
        },
        "money": Money {
            currency: Currency::new("EUR").unwrap(), premium_per_day: Amount::from_units(2), days: 30, included_hours: 10, served_hour_cost: Amount::from_units(1),
            served_hours_max: 10, customer_stake: Amount::from_units(50), provider_stake: Amount::from_units(50),
        },
        "matched_by": matched_by, "nonce": 1, "valid_from": now, "valid_until": now + Millis::from_secs(86_400),
    });
    let contract: Contract = serde_json::from_value(template).unwrap();
    let mut envelope = Envelope::sign(&contract, &customer.node);
    envelope.cosign(&provider.node);
    envelope
}

/// A market in process: manual clock, memory or another store, HTTP through the router.
pub struct Market {
    pub clock: Clock,
    pub service: Arc<Service>,
    pub router: Router,
    pub stop: watch::Sender<bool>,
    pub keypair: Keypair,
}

pub async fn market() -> Market {
    market_with(Limits::default(), Arc::new(Memory::default())).await
}

pub async fn market_with(limits: Limits, store: Arc<dyn Store>) -> Market {
    market_at(limits, store, Clock::manual()).await
}

pub async fn market_at(limits: Limits, store: Arc<dyn Store>, clock: Clock) -> Market {
    let keypair = Keypair::from_secret(&[0x42; 32]);
    let reputation = Arc::new(BTreeMap::<NodeId, u16>::new());
    let parts = Parts { store, keypair: keypair.clone(), clock: clock.clone(), reputation, limits, hold: Millis::from_secs(60) };
    let service = Arc::new(Service::new(parts).await.unwrap());
    let (stop, stopping) = watch::channel(false);
    let router = router(App::new(Arc::clone(&service), stopping));
    Market { clock, service, router, stop, keypair }
}

impl Market {
    pub fn now(&self) -> WallTime {
        self.clock.wall()
    }

    pub async fn call(&self, request: Request<Body>) -> (StatusCode, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 10_000_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn send_raw(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.call(request.body(body.into()).unwrap()).await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.call(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"))
    }

    /// Sends an envelope; the status and what came back.
    pub async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, envelope: &Envelope) -> (StatusCode, T) {
        let (status, body) = self.send_raw(method, path, serde_json::to_vec(envelope).unwrap()).await;
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{path}: {status} {e}: {body}")))
    }

    /// The status and the name of the problem that a statement meets.
    pub async fn refusal(&self, method: Method, path: &str, envelope: &Envelope) -> (u16, String) {
        let (status, problem) = self.send::<Problem>(method, path, envelope).await;
        assert_eq!(status.as_u16(), problem.status);
        (problem.status, problem.name().to_owned())
    }

    pub async fn register(&self, party: &Party) {
        let (status, _) =
            self.send::<serde_json::Value>(Method::PUT, &format!("/v1/nodes/{}", party.id()), &party.signed_record(1)).await;
        assert_eq!(status, StatusCode::CREATED);
    }

    /// Lists an offer and a demand that fit, of two registered parties, and clears.
    pub async fn list_pair(&self, provider: &Party, customer: &Party) -> (StatementId, StatementId) {
        let offer = Envelope::sign(&provider.offer(1, self.now()), &provider.node);
        let demand = Envelope::sign(&customer.demand(1, self.now()), &customer.node);
        for (path, envelope) in [("/v1/offers", &offer), ("/v1/demands", &demand)] {
            let (status, _) = self.send::<serde_json::Value>(Method::POST, path, envelope).await;
            assert_eq!(status, StatusCode::CREATED, "{path}");
        }
        (offer.id(), demand.id())
    }
}
