//! A node without an engine, in one process: real database, content store, bridge socket and custody, peers over routers in memory.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod uplinks;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use contracts::blueprint::{Activation, Blueprint, Service};
use contracts::contract::{Contract, Money, Party, State, Terms};
use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{ContractId, DevEui, GroupId, NodeId};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role};
use contracts::resources::Resources;
use contracts::time::Millis;
use edge_node::agreements::Agreements;
use edge_node::api::{self, Context};
use edge_node::config::Config;
use edge_node::core::{Core, OwnService};
use edge_node::directory::Directory;
use edge_node::dmu::policy::Policy;
use edge_node::edge2edge::{self, client::Client};
use edge_node::identity::{self, Identity};
use edge_node::insurance::{self, Parts, reserved::ReservedByGroup};
use edge_node::lora::{self, leases::Leases, links::Links, standby::Standby};
use edge_node::readings::inbox::Inbox;
use edge_node::readings::log::Log;
use edge_node::readings::north::Destinations;
use edge_node::store::Store;
use edge_node::timeline::Timeline;
use engine::image::{FileSource, PackConfig, PackFile, pack};
use kit::clock::Clock;
use kit::problem::Problem;
use lora_bridge::bridge::{self, Bridge};
use peering::custody::{CustodyHandle, FileVotes, Setup};
use peering::in_process::Network;
use peering::{AddressBook, Transport};
use serde::de::DeserializeOwned;
use serde_json::Value;
use storage::BlockStore;
use tower::ServiceExt as _;

pub const GROUP: GroupId = GroupId::from_bytes([7; 16]);
pub const TTL: Millis = Millis(500);
const CONTENT_BYTES_MAX: u64 = 64 << 20;

pub fn keypair(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

pub fn id(number: u8) -> NodeId {
    keypair(number).node_id()
}

/// What a test wants of its node.
#[derive(Debug, Default)]
pub struct Wishes {
    pub policy: Option<String>,
    pub service: bool,
    /// Lines of the configuration file.
    pub configuration: String,
}

pub struct Node {
    pub directory: tempfile::TempDir,
    pub core: Arc<Core>,
    pub custody: CustodyHandle,
    pub parts: Parts,
    pub context: Context,
    pub router: Router,
    /// The own service's image file and its name in the content store.
    pub image: (PathBuf, String, String),
}

/// A real image tar whose content differs by `text`.
pub fn write_image(path: &std::path::Path, text: &str) -> String {
    let files = [PackFile { path: "/service".into(), source: FileSource::Bytes(text.as_bytes().to_vec()), mode: 0o755 }];
    let config = PackConfig { entrypoint: vec!["/service".into()], ..PackConfig::default() };
    let mut file = std::fs::File::create(path).expect("image file");
    pack(&files, &config, &mut file).expect("packed").image.to_string()
}

fn service(name: &str, image: &str, image_id: &str) -> Service {
    Service {
        name: name.into(),
        image: image.into(),
        image_id: image_id.into(),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 16 << 20,
        cpu_millis_max: 100,
        pids_max: 8,
    }
}

pub fn blueprint(image: &str, image_id: &str) -> Blueprint {
    Blueprint {
        services: vec![service("lora", image, image_id)],
        needs: Resources { cpu_millis: 100, memory_bytes: 1 << 20, ..Resources::default() },
        capabilities: ["lora:EU868".to_owned()].into(),
        activation: Activation::Offline,
    }
}

impl Node {
    /// Node number 1 on a network.
    pub async fn start(network: &Network, wishes: Wishes) -> Self {
        Self::start_as(network, 1, wishes).await
    }

    /// A numbered node on a network.
    pub async fn start_as(network: &Network, number: u8, wishes: Wishes) -> Self {
        let directory = tempfile::tempdir().expect("temp dir");
        let state = directory.path().to_owned();
        let clock = Clock::system();
        std::fs::write(state.join(identity::KEY_FILE), hex::encode([number; 32])).expect("key");
        let identity = Identity::load_or_create(&state).expect("identity");
        let text = format!(
            "name = \"rio\"\nrole = \"edge\"\nstate_directory = {state:?}\n{}\n[peering]\nbind = \"127.0.0.1:0\"\n[api]\nbind = \"127.0.0.1:0\"\n",
            wishes.configuration
        );
        let config = Config::parse(&text).expect("configuration");
        let store = Store::open(&state.join("node.db")).await.expect("database");
        let content = BlockStore::open(state.join("content"), CONTENT_BYTES_MAX).await.expect("content store");
        let image_path = state.join("service.tar");
        let image_id = write_image(&image_path, "own service");
        let file = tokio::fs::File::open(&image_path).await.expect("image");
        let image = content.add(file, "own service lora").await.expect("stored").to_string();
        let owner = keypair(number + 100);
        let record = NodeRecord {
            node: id(number),
            owner: owner.owner_id(),
            name: "rio".into(),
            role: Role::Edge,
            addresses: vec!["127.0.0.1:4433".parse().expect("address")],
            sealing_key: identity.unsealing.public(),
            position: None,
            record_epoch: 1,
        };
        let record = identity::write_record(&state, &record, &owner, &identity.keypair).expect("record");
        let transport: Arc<dyn Transport> = Arc::new(network.join(id(number)));
        let core = Arc::new(Core {
            owner: owner.owner_id(),
            record,
            policy: wishes.policy.map(|text| Policy::parse(&text).expect("policy")),
            log: Log::start(store.clone()),
            destinations: Destinations::default(),
            content,
            orchestrator: None,
            directory: Directory::open(store.clone(), AddressBook::new()).await.expect("directory"),
            agreements: Agreements::open(store.clone()).await.expect("agreements"),
            client: Client::new(Arc::clone(&transport)),
            timeline: Timeline::new(clock.clone()),
            outbox: edge_node::market::evidence::Outbox::default(),
            own_service: wishes.service.then(|| OwnService {
                group: GROUP,
                blueprint: blueprint(&image, &image_id),
                configuration: Bytes::from_static(b"{}"),
                registration: tenant::Registration::default(),
                joining: Vec::new(),
            }),
            store,
            clock,
            identity,
            config,
        });
        Self::assemble(core, transport, directory, (image_path, image, image_id)).await
    }

    async fn assemble(
        core: Arc<Core>,
        transport: Arc<dyn Transport>,
        directory: tempfile::TempDir,
        image: (PathBuf, String, String),
    ) -> Self {
        let votes = Arc::new(FileVotes::open(directory.path().join("votes.json")).expect("votes"));
        let setup =
            Setup::new(Arc::clone(&transport), core.identity.keypair.clone(), core.clock.clone(), Arc::clone(&votes) as _);
        let (custody, routes) = peering::custody::start(setup).expect("custody");
        let socket = lora_bridge::server::bind("127.0.0.1:0".parse().expect("address")).await.expect("socket");
        let (leases, links, standby) = (Leases::default(), Links::default(), Standby::default());
        let asked = leases.clone();
        let lease: lora_bridge::server::Lease = Arc::new(move |group, epoch| asked.holds(group, epoch));
        let bridge = Bridge::new(bridge::Config::default());
        let (bridge, outputs) = lora_bridge::server::spawn(socket, bridge, core.clock.clone(), lease);
        tokio::spawn(standby.clone().run(core.log.clone()));
        let (log, timeline) = (core.log.clone(), core.timeline.clone());
        tokio::spawn(lora::consume(outputs, bridge.clone(), log, links.clone(), standby.clone(), timeline));
        let parts = Parts {
            core: Arc::clone(&core),
            custody: custody.clone(),
            votes,
            bridge,
            leases,
            links,
            standby,
            reserved: ReservedByGroup::default(),
            doors: Arc::new(edge_node::tenants::doors::UnixDoors::new(directory.path().join("tenants"))),
            visits: insurance::provider::Visits::default(),
        };
        let inbox = Inbox::start(core.store.clone(), core.clock.clone());
        let peers = edge2edge::http::Context { parts: Some(parts.clone()), core: Arc::clone(&core), inbox: Some(inbox.clone()) };
        transport.serve(edge2edge::http::router(peers).merge(routes));
        let context =
            Context { core: Arc::clone(&core), parts: Some(parts.clone()), inbox: Some(inbox), custody: custody.clone() };
        let router = api::router(context.clone());
        Self { directory, core, custody, parts, context, router, image }
    }

    /// A contract between two numbered nodes with node 3 as witness, signed by both, known here in a state.
    pub async fn add_contract(
        &self,
        customer: u8,
        provider: u8,
        group: GroupId,
        image: (&str, &str),
        state: State,
    ) -> ContractId {
        let now = self.core.clock.wall();
        let party = |number: u8| Party { node: id(number), owner: keypair(number + 100).owner_id() };
        let cid = |letter: &str| format!("bafkrei{}", letter.repeat(52));
        let contract = Contract {
            customer: party(customer),
            provider: party(provider),
            witnesses: vec![id(3)],
            arbitrator: id(3),
            readings_to: id(4),
            group,
            devices: [DevEui::from_u64(1)].into(),
            blueprint: blueprint(image.0, image.1),
            network_configuration: cid("b"),
            application_configuration: cid("c"),
            terms: Terms {
                ttl: TTL,
                deadline: TTL * 2,
                handback_quiet: Millis(500),
                handback_deadline: Millis(5_000),
                grace: Millis(60_000),
                counter_block: 16,
                buffer_frames_max: 1_000,
                buffer_bytes_max: 1_000_000,
                buffer_hours_max: 24,
                mirror: false,
                activations_max: 10,
            },
            money: Money {
                currency: Currency::new("EUR").expect("currency"),
                premium_per_day: Amount::from_units(2),
                days: 30,
                included_hours: 10,
                served_hour_cost: Amount::from_units(1),
                served_hours_max: 10,
                customer_stake: Amount::from_units(50),
                provider_stake: Amount::from_units(50),
            },
            matched_by: None,
            nonce: u64::from(group.as_bytes()[0]),
            valid_from: now,
            valid_until: now + Millis::from_secs(86_400),
        };
        let mut envelope = Envelope::sign(&contract, &keypair(customer));
        envelope.cosign(&keypair(provider));
        self.core.agreements.insert(&envelope, state).await.expect("a valid contract").id
    }

    pub async fn call(&self, request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let response = self.router.clone().oneshot(request).await.expect("answers always");
        let (status, headers) = (response.status(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), 64 << 20).await.expect("a body");
        (status, headers, body.to_vec())
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, _, body) = self.call(Request::get(path).body(Body::empty()).expect("request")).await;
        let text = String::from_utf8_lossy(&body);
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
    }

    pub async fn text(&self, path: &str) -> String {
        let (status, _, body) = self.call(Request::get(path).body(Body::empty()).expect("request")).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        String::from_utf8(body).expect("text")
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body.to_string()));
        let (status, _, body) = self.call(request.expect("request")).await;
        (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") })
    }

    /// The problem with which a request is refused: status, name, field.
    pub async fn refusal(&self, request: Request<Body>) -> (u16, String, Option<String>) {
        let uri = request.uri().clone();
        let (status, headers, body) = self.call(request).await;
        let text = String::from_utf8_lossy(&body);
        assert_eq!(
            headers.get("content-type").map(|v| v.as_bytes()),
            Some(&b"application/problem+json"[..]),
            "{uri}: {status} {text}"
        );
        let problem: Problem = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{uri}: {e}: {text}"));
        assert_eq!(problem.status, status.as_u16(), "{uri}");
        (problem.status, problem.name().to_owned(), problem.field)
    }

    pub async fn get_refusal(&self, path: &str) -> (u16, String, Option<String>) {
        self.refusal(Request::get(path).body(Body::empty()).expect("request")).await
    }

    pub async fn post_refusal(&self, path: &str, body: &Value) -> (u16, String, Option<String>) {
        let request = Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
        self.refusal(request.body(Body::from(body.to_string())).expect("request")).await
    }
}

/// `(status, name, field)` as [`Node::refusal`] gives it.
pub fn refused(status: u16, name: &str, field: Option<&str>) -> (u16, String, Option<String>) {
    (status, name.to_owned(), field.map(str::to_owned))
}
