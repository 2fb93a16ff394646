//! Two owners with a node each, a witness that is the arbitrator, an operator; requests over the router in process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrator::config::Limits;
use arbitrator::http::{App, router};
use arbitrator::service::{Parts, Service};
use arbitrator::store::Store;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use contracts::blueprint::{Activation, Blueprint, Service as Image};
use contracts::contract::{Contract, Money, Party, Terms};
use contracts::envelope::{Envelope, Keypair, Statement};
use contracts::evidence::{Deposit, HandbackReport, ReadinessAnswer, ReleaseReport, TakeoverReport};
use contracts::ids::{ContractId, DevEui, Epoch, GroupId, NodeId, OwnerId};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role, SealingKey};
use contracts::resources::Resources;
use contracts::time::{Millis, WallTime};
use kit::clock::Clock;
use kit::problem::Problem;
use peering::custody::statement::{BootId, Digest, Grant, MemberClock};
use peering::custody::{Certificate, GroupConfig};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const DAY: Millis = Millis::from_secs(86_400);

pub fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n; 32])
}

/// The customer's node, its provider's, the arbitrator; their owners; the operator.
pub const CUSTOMER: u8 = 1;
pub const PROVIDER: u8 = 2;
pub const ARBITRATOR: u8 = 3;
pub const CUSTOMER_OWNER: u8 = 11;
pub const PROVIDER_OWNER: u8 = 12;
pub const OPERATOR: u8 = 20;

pub fn node(n: u8) -> NodeId {
    key(n).node_id()
}

pub fn owner(n: u8) -> OwnerId {
    key(n).owner_id()
}

pub fn euro() -> Currency {
    Currency::new("EUR").unwrap()
}

pub fn record(n: u8, owned_by: u8, epoch: u64, addresses: Vec<std::net::SocketAddr>) -> Envelope {
    let record = NodeRecord {
        node: node(n),
        owner: owner(owned_by),
        name: format!("node-{n}"),
        role: Role::Edge,
        addresses,
        sealing_key: SealingKey([n; 32]),
        position: None,
        record_epoch: epoch,
    };
    let mut envelope = Envelope::sign(&record, &key(owned_by));
    envelope.cosign(&key(n));
    envelope
}

pub fn loopback() -> Vec<std::net::SocketAddr> {
    vec!["127.0.0.1:9".parse().unwrap()]
}

pub fn contract(now: WallTime) -> Contract {
    let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".to_owned();
    let image = Image {
        name: "lora".to_owned(),
        image: cid.clone(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 1 << 20,
        cpu_millis_max: 100,
        pids_max: 4,
    };
    Contract {
        customer: Party { node: node(CUSTOMER), owner: owner(CUSTOMER_OWNER) },
        provider: Party { node: node(PROVIDER), owner: owner(PROVIDER_OWNER) },
        witnesses: vec![node(ARBITRATOR)],
        arbitrator: node(ARBITRATOR),
        readings_to: node(4),
        group: GroupId::from_bytes([4; 16]),
        devices: BTreeSet::from([DevEui::from_u64(1), DevEui::from_u64(2)]),
        blueprint: Blueprint {
            services: vec![image],
            needs: Resources::default(),
            capabilities: BTreeSet::new(),
            activation: Activation::Offline,
        },
        network_configuration: cid.clone(),
        application_configuration: cid,
        terms: Terms {
            ttl: Millis(1_000),
            deadline: Millis(3_000),
            handback_quiet: Millis(2_000),
            handback_deadline: Millis(60_000),
            grace: Millis(1_000),
            counter_block: 16,
            buffer_frames_max: 1_000,
            buffer_bytes_max: 1_000_000,
            buffer_hours_max: 24,
            mirror: false,
            activations_max: 1,
        },
        money: Money {
            currency: euro(),
            premium_per_day: Amount::from_units(1),
            days: 30,
            included_hours: 2,
            served_hour_cost: Amount::from_units(1),
            served_hours_max: 10,
            customer_stake: Amount::from_units(30),
            provider_stake: Amount::from_units(40),
        },
        matched_by: None,
        nonce: 1,
        valid_from: now,
        valid_until: now + DAY * 30,
    }
}

/// Signed by both nodes.
pub fn signed(contract: &Contract) -> Envelope {
    let mut envelope = Envelope::sign(contract, &key(CUSTOMER));
    envelope.cosign(&key(PROVIDER));
    envelope
}

pub fn submission(contract: &Contract) -> Value {
    json!({ "contract": signed(contract), "node_records": [record(CUSTOMER, CUSTOMER_OWNER, 1, loopback()), record(PROVIDER, PROVIDER_OWNER, 1, loopback())] })
}

pub fn deposit(to: u8, units: u32, nonce: u64, until: WallTime) -> Envelope {
    let order = Deposit {
        arbitrator: node(ARBITRATOR),
        operator: key(OPERATOR).key(),
        owner: owner(to),
        currency: euro(),
        amount: Amount::from_units(units),
        nonce,
        valid_until: until,
    };
    Envelope::sign(&order, &key(OPERATOR))
}

pub fn certificate(group: GroupId, epoch: u64, holder: u8, voters: &[u8]) -> Vec<u8> {
    let clock = MemberClock { boot: BootId([1; 16]), ms: 4 };
    let grant = Grant { group, epoch: Epoch(epoch), candidate: node(holder), seq: 9, records: Digest::of(b""), clock };
    let grants = voters.iter().map(|voter| Envelope::sign(&grant, &key(*voter))).collect();
    serde_json::to_vec(&Certificate { group, epoch: Epoch(epoch), holder: node(holder), grants }).unwrap()
}

pub fn ready(id: ContractId) -> Envelope {
    let answer = ReadinessAnswer { contract: id, challenge: "05".repeat(32), blocks: 10, keyed_hash: "07".repeat(32) };
    let mut envelope = Envelope::sign(&answer, &key(PROVIDER));
    envelope.cosign(&key(CUSTOMER));
    envelope
}

pub fn takeover(id: ContractId, contract: &Contract, epoch: u64, at: WallTime, took: Millis) -> Envelope {
    let report = TakeoverReport {
        contract: id,
        group: contract.group,
        node: node(PROVIDER),
        epoch: Epoch(epoch),
        certificate: certificate(contract.group, epoch, PROVIDER, &[PROVIDER, ARBITRATOR]),
        last_promise_at: at - Millis(1_000),
        asked_at: at,
        certified_at: at,
        serving_at: at + took,
    };
    Envelope::sign(&report, &key(PROVIDER))
}

pub fn release(id: ContractId, contract: &Contract, epoch: u64, at: WallTime) -> Envelope {
    let report =
        ReleaseReport { contract: id, group: contract.group, node: node(PROVIDER), epoch: Epoch(epoch), released_at: at };
    Envelope::sign(&report, &key(PROVIDER))
}

pub fn handback(id: ContractId, contract: &Contract, epoch: u64, at: WallTime) -> Envelope {
    let certificate = certificate(contract.group, epoch, CUSTOMER, &[CUSTOMER, ARBITRATOR]);
    let report = HandbackReport {
        contract: id,
        group: contract.group,
        node: node(CUSTOMER),
        epoch: Epoch(epoch),
        certificate,
        held_at: at,
    };
    Envelope::sign(&report, &key(CUSTOMER))
}

pub fn group_config(contract: &Contract, eligible: Vec<NodeId>) -> GroupConfig {
    GroupConfig {
        group: contract.group,
        members: contract.members(),
        candidates: vec![contract.customer.node, contract.provider.node],
        eligible,
        first_holder: contract.customer.node,
        ttl: contract.terms.ttl,
        readiness: contracts::custody::Readiness::Ready,
    }
}

/// The server without its connections, on a clock moved by hand.
pub struct Bench {
    pub router: Router,
    pub service: Arc<Service>,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    _stop: watch::Sender<bool>,
}

pub async fn bench(store: Arc<dyn Store>) -> Bench {
    bench_at(store, Clock::manual()).await
}

pub async fn bench_at(store: Arc<dyn Store>, clock: Clock) -> Bench {
    let parts = Parts {
        store: Arc::clone(&store),
        keypair: key(ARBITRATOR),
        record: record(ARBITRATOR, ARBITRATOR, 1, loopback()),
        operators: BTreeSet::from([key(OPERATOR).key()]),
        clock: clock.clone(),
        nodes_max: 100,
    };
    let service = Arc::new(Service::new(parts).await.unwrap());
    let (stop, stopping) = watch::channel(false);
    let router = router(App::new(Arc::clone(&service), Limits::default(), stopping));
    Bench { router, service, store, clock, _stop: stop }
}

impl Bench {
    pub fn now(&self) -> WallTime {
        self.clock.wall()
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<Vec<u8>>) -> (StatusCode, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(body.map(Body::from).unwrap_or_default()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), 8 << 20).await.unwrap().to_vec())
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, body) = self.send("GET", path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// An answer, or the problem's status and name.
    pub async fn put<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, (u16, String)> {
        let (status, body) = self.send(method, path, Some(serde_json::to_vec(body).unwrap())).await;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap());
        }
        let problem: Problem =
            serde_json::from_slice(&body).unwrap_or_else(|_| panic!("no problem: {}", String::from_utf8_lossy(&body)));
        assert_eq!(problem.status, status.as_u16());
        Err((problem.status, problem.name().to_owned()))
    }

    pub async fn post(&self, path: &str, body: &impl serde::Serialize) -> Result<Value, (u16, String)> {
        self.put("POST", path, body).await
    }

    pub async fn evidence(&self, id: ContractId, envelope: &Envelope) -> Result<Value, (u16, String)> {
        self.post(&format!("/v1/contracts/{id}/evidence"), envelope).await
    }

    /// Both owners with `units` each.
    pub async fn fund(&self, units: u32) {
        for (to, nonce) in [(CUSTOMER_OWNER, 1), (PROVIDER_OWNER, 2)] {
            self.post("/v1/orders", &deposit(to, units, nonce, self.now() + DAY)).await.unwrap();
        }
    }

    /// Funded, registered, in force.
    pub async fn in_force(&self) -> (ContractId, Contract) {
        self.fund(100).await;
        let contract = contract(self.now());
        self.post("/v1/contracts", &submission(&contract)).await.unwrap();
        (ContractId::from(signed(&contract).id()), contract)
    }

    /// Available and reserved whole units of an owner.
    pub async fn balance(&self, of: u8) -> (u64, u64) {
        let accounts: Vec<arbitrator::resource::AccountView> = self.get(&format!("/v1/accounts/{}", owner(of))).await;
        accounts.first().map_or((0, 0), |account| (account.available.micros() / 1_000_000, account.reserved.micros() / 1_000_000))
    }

    pub async fn state(&self, id: ContractId) -> Value {
        self.get::<Value>(&format!("/v1/contracts/{id}")).await["state"].clone()
    }

    pub async fn assert_balanced(&self) {
        self.service.check_readiness().await.unwrap();
    }
}

pub fn statement<T: Statement>(statement: &T, signer: u8) -> Envelope {
    Envelope::sign(statement, &key(signer))
}
