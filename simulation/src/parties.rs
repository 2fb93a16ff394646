//! Who takes part: keys, records, the contract in force and the money behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrator::service::{Parts, Service};
use arbitrator::store::Memory;
use contracts::blueprint::{Activation, Blueprint, Service as Image};
use contracts::contract::{Contract, Money, Party, State, Terms};
use contracts::envelope::{Envelope, Keypair};
use contracts::evidence::{Deposit, ReadinessAnswer};
use contracts::ids::{ContractId, DevEui, OwnerId};
use contracts::money::{Amount, Currency};
use contracts::node_record::{NodeRecord, Role};
use contracts::resources::Resources;
use contracts::sealed::UnsealingKey;
use contracts::time::Millis;
use edge_node::agreements::Agreements;
use edge_node::core::OwnService;
use edge_node::directory::Directory;
use edge_node::migration;
use edge_node::service::{CAPABILITY_LORA, group_of};
use edge_node::store::Store;
use motes::fleet::{Fleet, JoinRules};
use peering::AddressBook;
use storage::BlockStore;

use crate::arbitrator_store::ArbitratorStore;
use crate::machine::{Machine, Machines};
use crate::script::Script;
use crate::world::ttl;

/// Numbers from which the owners' keys are made.
const CUSTOMER_OWNER: u8 = 11;
const PROVIDER_OWNER: u8 = 12;
const OPERATOR: u8 = 20;
const DAY: Millis = Millis::from_secs(86_400);
/// Content that a simulated node stores at most.
const CONTENT_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn keypair(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

pub(crate) fn unsealing(machine: Machine) -> UnsealingKey {
    UnsealingKey::derive(&keypair(machine.number()).secret())
}

fn owner(machine: Machine) -> Keypair {
    match machine {
        Machine::Rio | Machine::Cloud => keypair(CUSTOMER_OWNER),
        Machine::Patras => keypair(PROVIDER_OWNER),
        Machine::Arbitrator => keypair(machine.number()),
    }
}

pub(crate) const fn role(machine: Machine) -> Role {
    match machine {
        Machine::Rio | Machine::Patras => Role::Edge,
        Machine::Cloud => Role::Cloud,
        Machine::Arbitrator => Role::Arbitrator,
    }
}

/// A node's record, signed by owner and node.
pub(crate) fn record(machine: Machine) -> Envelope {
    let (node, owner) = (keypair(machine.number()), owner(machine));
    let record = NodeRecord {
        node: node.node_id(),
        owner: owner.owner_id(),
        name: machine.name().to_owned(),
        role: role(machine),
        addresses: vec![machine.gateway_address()],
        sealing_key: unsealing(machine).public(),
        position: None,
        record_epoch: 1,
    };
    let mut envelope = Envelope::sign(&record, &owner);
    if owner.key() != node.key() {
        envelope.cosign(&node);
    }
    envelope
}

/// What the parties agreed on, and what the customer runs.
#[derive(Debug, Clone)]
pub(crate) struct Deal {
    pub(crate) contract: Contract,
    pub(crate) envelope: Envelope,
    pub(crate) service: OwnService,
}

impl Deal {
    /// Seals the configuration to the insurer, stores it with it, and signs the contract.
    pub(crate) async fn make(script: &Script, machines: &Machines, fleet: &Fleet) -> Self {
        let configuration = configuration(fleet);
        let insurer = &machines[&Machine::Patras];
        let content = BlockStore::open(insurer.content.path(), CONTENT_BYTES_MAX).await.expect("a directory in memory");
        let recipients = [unsealing(Machine::Patras).public()];
        let sealed = migration::store_configuration(&content, &configuration, &recipients, "contract").await;
        let sealed = sealed.expect("the fleet's configuration is of its form");
        drop(content);
        let registration = migration::network_part(&configuration).expect("the fleet's configuration is of its form");
        let group = group_of(machines[&Machine::Rio].node, "lora");
        let devices: BTreeSet<DevEui> = fleet.devices().iter().map(|device| DevEui::from_u64(device.dev_eui.0)).collect();
        let contract = Contract {
            customer: party(machines, Machine::Rio),
            provider: party(machines, Machine::Patras),
            witnesses: vec![machines[&Machine::Arbitrator].node],
            arbitrator: machines[&Machine::Arbitrator].node,
            readings_to: machines[&Machine::Cloud].node,
            group,
            devices,
            blueprint: blueprint(&sealed.network.to_string()),
            network_configuration: sealed.network.to_string(),
            application_configuration: sealed.application.to_string(),
            terms: terms(script),
            money: money(),
            matched_by: None,
            nonce: 1,
            valid_from: crate::clock::WALL_START,
            valid_until: crate::clock::WALL_START + DAY * 30,
        };
        let mut envelope = Envelope::sign(&contract, &keypair(Machine::Rio.number()));
        envelope.cosign(&keypair(Machine::Patras.number()));
        let service = OwnService {
            group,
            blueprint: contract.blueprint.clone(),
            configuration: configuration.into(),
            registration,
            joining: Vec::new(),
        };
        Self { contract, envelope, service }
    }
}

fn party(machines: &Machines, machine: Machine) -> Party {
    Party { node: machines[&machine].node, owner: owner(machine).owner_id() }
}

/// The devices as the customer's service wants them.
fn configuration(fleet: &Fleet) -> Vec<u8> {
    let device = |device: &motes::fleet::Device| {
        serde_json::json!({
            "dev_eui": device.dev_eui, "dev_addr": device.dev_addr, "nwk_s_key": device.nwk_s_key,
            "app_s_key": device.app_s_key, "codec": "cayenne-lpp",
        })
    };
    let joining = |device: &motes::fleet::Device| {
        let otaa = device.otaa.as_ref()?;
        let dev_nonces = match otaa.rules {
            JoinRules::V1_0_3 => "random",
            JoinRules::V1_0_4 => "rising",
        };
        Some(serde_json::json!({
            "dev_eui": device.dev_eui, "dev_addr": device.dev_addr, "join_eui": otaa.join_eui, "app_key": otaa.app_key,
            "dev_nonces": dev_nonces, "codec": "cayenne-lpp",
        }))
    };
    let devices: Vec<_> = fleet.devices().iter().filter(|device| device.otaa.is_none()).map(device).collect();
    let joining: Vec<_> = fleet.devices().iter().filter_map(joining).collect();
    serde_json::json!({ "devices": devices, "joining": joining }).to_string().into_bytes()
}

fn blueprint(any_cid: &str) -> Blueprint {
    let service = Image {
        name: "lora".to_owned(),
        image: any_cid.to_owned(),
        image_id: format!("sha256:{}", "0".repeat(64)),
        command: vec![],
        environment: BTreeMap::new(),
        depends_on: vec![],
        memory_bytes_max: 16 << 20,
        cpu_millis_max: 100,
        pids_max: 8,
    };
    Blueprint {
        services: vec![service],
        needs: Resources { cpu_millis: 100, memory_bytes: 1 << 20, ..Resources::default() },
        capabilities: [CAPABILITY_LORA.to_owned()].into(),
        activation: Activation::Offline,
    }
}

pub(crate) fn terms(script: &Script) -> Terms {
    Terms {
        ttl: ttl(script),
        deadline: ttl(script) * 3,
        handback_quiet: Millis(script.quiet_ms),
        handback_deadline: Millis(60_000),
        grace: Millis(1_000),
        counter_block: 16,
        buffer_frames_max: 100_000,
        buffer_bytes_max: 100_000_000,
        buffer_hours_max: 24,
        mirror: script.mirror,
        activations_max: 1_000_000,
    }
}

fn money() -> Money {
    Money {
        currency: Currency::new("EUR").expect("three letters"),
        premium_per_day: Amount::from_units(1),
        days: 30,
        included_hours: 2,
        served_hour_cost: Amount::from_units(1),
        served_hours_max: 10,
        customer_stake: Amount::from_units(30),
        provider_stake: Amount::from_units(40),
    }
}

/// What the arbitrator's process is made of.
pub(crate) fn arbitrator_parts(content: &Arc<Memory>, machines: &Machines) -> Parts {
    Parts {
        store: Arc::new(ArbitratorStore::open(content, &machines[&Machine::Arbitrator])),
        keypair: keypair(Machine::Arbitrator.number()),
        record: record(Machine::Arbitrator),
        operators: BTreeSet::from([keypair(OPERATOR).key()]),
        clock: machines[&Machine::Arbitrator].clock.clock(),
        nodes_max: 100,
    }
}

/// The owners with money: the customer's and the provider's.
pub(crate) fn paying_owners() -> [OwnerId; 2] {
    [CUSTOMER_OWNER, PROVIDER_OWNER].map(|number| keypair(number).owner_id())
}

/// What the customer's service runs on, as the market moves it: the image is content of the customer's machine.
pub(crate) async fn store_image(deal: &mut Deal, machines: &Machines) {
    let content =
        BlockStore::open(machines[&Machine::Rio].content.path(), CONTENT_BYTES_MAX).await.expect("a directory in memory");
    let image = content.add(b"an image".as_slice(), "own service lora").await.expect("room for an image");
    for service in &mut deal.service.blueprint.services {
        service.image = image.to_string();
    }
    deal.service.blueprint.needs = Resources::default();
    for machine in Machine::ALL {
        std::fs::create_dir_all(machines[&machine].content.path().join("state")).expect("a directory in memory");
    }
}

/// Money on both accounts; without a market also the contract, in force and armed, at the arbitrator and on the disks of all that it concerns.
pub(crate) async fn sign_and_fund(deal: &Deal, machines: &Machines, store: &Arc<Memory>, has_market: bool) {
    let service = Service::new(arbitrator_parts(store, machines)).await.expect("an empty store");
    let arbitrator = machines[&Machine::Arbitrator].node;
    for (number, nonce) in [(CUSTOMER_OWNER, 1), (PROVIDER_OWNER, 2)] {
        let order = Deposit {
            arbitrator,
            operator: keypair(OPERATOR).key(),
            owner: keypair(number).owner_id(),
            currency: deal.contract.money.currency.clone(),
            amount: Amount::from_units(1_000),
            nonce,
            valid_until: crate::clock::WALL_START + DAY,
        };
        service.take_order(Envelope::sign(&order, &keypair(OPERATOR))).await.expect("a deposit by the operator");
    }
    if has_market {
        return;
    }
    let records = Machine::ALL.map(record).to_vec();
    let of_parties = vec![record(Machine::Rio), record(Machine::Patras)];
    let (row, _) = service.create_contract(deal.envelope.clone(), of_parties).await.expect("a contract in order");
    let answer = ReadinessAnswer {
        contract: ContractId::from(deal.envelope.id()),
        challenge: "05".repeat(32),
        blocks: 2,
        keyed_hash: "07".repeat(32),
    };
    let mut ready = Envelope::sign(&answer, &keypair(Machine::Patras.number()));
    ready.cosign(&keypair(Machine::Rio.number()));
    service.add_evidence(row.id, ready).await.expect("both say that the insurer is ready");
    for machine in [Machine::Rio, Machine::Patras, Machine::Cloud] {
        let store = Store::memory(machines[&machine].disk.database());
        let directory = Directory::open(store.clone(), AddressBook::new()).await.expect("a disk without faults");
        for record in &records {
            directory.put(record).await.expect("a record in order");
        }
        let agreements = Agreements::open(store).await.expect("a disk without faults");
        agreements.insert(&deal.envelope, State::Standby { activations: 0 }).await.expect("a contract in order");
    }
}
