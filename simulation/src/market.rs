//! Marketplace and arbitrator behind the clients that nodes use, the owners' policies, and what must hold of contracts and money.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arbitrator::store::{ContractFilter, ContractRow, Store as _};
use axum::body::Body;
use axum::http::{Request, Response};
use contracts::contract::State;
use contracts::geo::Position;
use contracts::ids::NodeId;
use contracts::money::{Amount, Currency};
use contracts::resources::{Interface, Resources};
use contracts::time::Millis;
use edge_node::dmu::negotiation::Concession;
use edge_node::dmu::policy::{Customer, Policy, Provider};
use edge_node::market::{Services, evidence};
use edge_node::service::CAPABILITY_LORA;
use futures_util::StreamExt as _;
use kit::task::Process;
use kit::wire::{Lost, Sending, Wire};
use peering::Transport;
use peering::in_process::{Kind, Network};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::machine::Machine;
use crate::parties;
use crate::script::Script;
use crate::world::{POLL, SETTLE, World};

/// Numbers from which the keys of the marketplace, and the address of the arbitrator's HTTP side, are made.
const MARKETPLACE: u8 = 30;
const ARBITRATOR_HTTP: u8 = 31;
/// Between two clearing rounds.
const ROUND: Duration = Duration::from_secs(1);
/// How long a match is held.
const HOLD: Millis = Millis::from_secs(120);
/// Contracts of one scenario beyond one for each fault.
const CONTRACTS_SPARE: usize = 2;
/// Rows read of the arbitrator's contracts.
const CONTRACTS_READ_MAX: u32 = 10_000;

pub(crate) fn marketplace_id() -> NodeId {
    parties::keypair(MARKETPLACE).node_id()
}

pub(crate) fn arbitrator_http_id() -> NodeId {
    parties::keypair(ARBITRATOR_HTTP).node_id()
}

/// A node's way to a central service: each request, answer and chunk of an answer passes the simulated network.
#[derive(Debug)]
struct Line {
    transport: Arc<dyn Transport>,
    network: Network,
    server: NodeId,
}

impl Wire for Line {
    fn send(&self, request: Request<Body>) -> Sending<'_> {
        Box::pin(async move {
            let response = self.transport.request(self.server, request).await.map_err(|error| Lost(error.to_string()))?;
            let (network, server, me) = (self.network.clone(), self.server, self.transport.me());
            let (parts, body) = response.into_parts();
            let chunks = body.into_data_stream().then(move |chunk| {
                let network = network.clone();
                async move {
                    let chunk = chunk.map_err(|error| Lost(error.to_string()))?;
                    let passed = network.pass(server, me, Kind::Stream).await;
                    if passed { Ok(chunk) } else { Err(Lost("the connection broke".to_owned())) }
                }
            });
            Ok(Response::from_parts(parts, Body::from_stream(chunks)))
        })
    }
}

/// The clients of a node over the simulated network.
pub(crate) fn services(transport: &Arc<dyn Transport>, network: &Network) -> Services {
    let line = |server| Arc::new(Line { transport: Arc::clone(transport), network: network.clone(), server }) as Arc<dyn Wire>;
    Services {
        marketplace: marketplace::client::Client::over(line(marketplace_id())).ok(),
        arbitrator: Some(arbitrator::Client::over(line(arbitrator_http_id()))),
    }
}

/// Both machines stand at the same place.
pub(crate) const POSITION: Position = Position { latitude_e7: 382_900_000, longitude_e7: 217_800_000 };

/// What the owner of a machine allows; nothing without a market, and on machines that neither buy nor sell.
pub(crate) fn policy(script: &Script, machine: Machine) -> Option<Policy> {
    let arbitrator = parties::keypair(Machine::Arbitrator.number()).node_id();
    let (provider, customer) = match machine {
        Machine::Rio => (None, Some(buyer(script))),
        Machine::Patras => (Some(seller(script)), None),
        Machine::Arbitrator | Machine::Cloud => return None,
    };
    let policy = Policy {
        currency: Currency::new("EUR")?,
        witnesses: BTreeSet::from([arbitrator]),
        arbitrator,
        link: edge_node::dmu::profile::Link::default(),
        rounds_max: 10,
        concession: Concession::Linear,
        provider,
        customer,
    };
    script.market.then_some(policy)
}

fn seller(script: &Script) -> Provider {
    Provider {
        capacity: Resources {
            cpu_millis: 4_000,
            memory_bytes: 1 << 30,
            storage_bytes: 8 << 30,
            bandwidth_bps: 100_000_000,
            uptime_s: 365 * 86_400,
            battery_wh: None,
            interfaces: vec![Interface { kind: "lora".to_owned(), region: "EU868".to_owned(), slots: 10_000 }],
        },
        reserve_permille: 100,
        radio_range_m: 15_000,
        capabilities: BTreeSet::from([CAPABILITY_LORA.to_owned()]),
        ask_per_day: Amount::from_units(6),
        ask_per_day_min: Amount::from_units(3),
        served_hour_cost: Amount::from_units(1),
        stake_max: Amount::from_units(50),
        deadline_min: Millis(script.ttl_ms),
        days_max: 30,
        ttl_min: Millis::default(),
        handback_quiet_max: Millis(3_600_000),
        included_hours_max: 100,
        buffer_bytes_max: 256 << 20,
    }
}

fn buyer(script: &Script) -> Customer {
    Customer {
        bid_per_day: Amount::from_units(4),
        bid_per_day_max: Amount::from_units(8),
        served_hour_cost_max: Amount::from_units(2),
        included_hours: 2,
        served_hours_max: 10,
        stake_max: Amount::from_units(500),
        provider_stake_min: Amount::from_units(10),
        reputation_min_permille: 0,
        days: 5,
        margin_permille: 500,
        profile: None,
        ttl_max: None,
        terms: parties::terms(script),
    }
}

impl World {
    /// Starts the marketplace's process if this scenario has a market and none runs.
    pub(crate) fn open_marketplace(&mut self) {
        if !self.script.market || self.marketplace.is_some() {
            return;
        }
        let process = Process::default();
        let parts = marketplace::service::Parts {
            store: Arc::clone(&self.marketplace_store) as Arc<dyn marketplace::store::Store>,
            keypair: parties::keypair(MARKETPLACE),
            clock: self.machines[&Machine::Arbitrator].clock.clock(),
            reputation: Arc::new(marketplace::reputation::Unknown),
            limits: marketplace::config::Limits::default(),
            hold: HOLD,
        };
        let (network, checker) = (self.network.clone(), self.checker.clone());
        process.run(async move {
            match marketplace::service::Service::new(parts).await {
                Ok(service) => {
                    let service = Arc::new(service);
                    let (_stop, stopping) = watch::channel(false);
                    let transport = network.join(marketplace_id());
                    transport
                        .serve(marketplace::http::router(marketplace::http::App::new(Arc::clone(&service), stopping.clone())));
                    service.run_rounds(ROUND, stopping).await;
                }
                Err(error) => checker.violate(format!("the marketplace does not start: {error}")),
            }
        });
        self.marketplace = Some(process);
    }

    pub(crate) fn close_marketplace(&mut self) {
        if let Some(process) = self.marketplace.take() {
            process.kill();
            self.network.leave(marketplace_id());
        }
    }

    /// Both parties know the same contract, and it is in force and in standby.
    pub(crate) fn is_insured(&self) -> bool {
        let standing = |machine: Machine| {
            let running = self.machines[&machine].node_running()?;
            let agreement = running.core.agreements.in_force(self.group())?;
            matches!(agreement.state, State::Standby { .. }).then_some(agreement.id)
        };
        let customers = standing(Machine::Rio);
        customers.is_some() && customers == standing(Machine::Patras)
    }

    /// Waits until contracts are as they should be, and judges.
    pub(crate) async fn settle_market(&self) {
        let deadline = Instant::now() + SETTLE;
        while !self.is_market_settled().await {
            if Instant::now() >= deadline {
                self.checker.violate("contracts are not settled".to_owned());
                self.log_market();
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.check_market().await;
    }

    /// Nothing is on its way to the arbitrator, the parties see every contract as it does, none is half made, and one is in standby.
    async fn is_market_settled(&self) -> bool {
        let rows = self.contract_rows().await;
        let is_settled = |machine: Machine| {
            let Some(running) = self.machines[&machine].node_running() else { return false };
            let agreements = running.core.agreements.list();
            evidence::count_waiting(&running.core) == 0
                && agreements.iter().all(|agreement| match agreement.state {
                    State::Proposed | State::Agreed | State::Preparing => false,
                    State::Standby { .. }
                    | State::TakenOver { .. }
                    | State::HandingBack { .. }
                    | State::Disputed { .. }
                    | State::Ended { .. } => {
                        // One that was never brought to the arbitrator ended by the parties' own word.
                        rows.iter().find(|row| row.id == agreement.id).is_none_or(|row| row.standing.state == agreement.state)
                    }
                })
        };
        self.is_insured() && Machine::EDGES.into_iter().all(is_settled)
    }

    async fn contract_rows(&self) -> Vec<ContractRow> {
        let filter = ContractFilter { limit: CONTRACTS_READ_MAX, ..ContractFilter::default() };
        self.arbitrator_store.contracts(filter).await.unwrap_or_default()
    }

    /// What must hold of contracts and money when all is mended and settled.
    async fn check_market(&self) {
        let store = &self.arbitrator_store;
        match store.sums().await {
            Ok(sums) if sums.iter().all(|(_, sum)| *sum == 0) => {}
            sums => self.checker.violate(format!("the ledger is not balanced: {sums:?}")),
        }
        let rows = self.contract_rows().await;
        let in_force = rows.iter().filter(|row| row.standing.state.is_in_force()).count();
        self.checker.log(format!("{} contracts, {in_force} in force", rows.len()));
        if rows.len() > self.script.steps.len() + CONTRACTS_SPARE {
            self.checker.violate(format!("{} contracts after {} faults", rows.len(), self.script.steps.len()));
        }
        if let Some(expected) = self.script.expect.contracts.filter(|expected| *expected != rows.len()) {
            self.checker.violate(format!("{} contracts instead of {expected}", rows.len()));
        }
        if in_force > 1 {
            self.checker.violate(format!("{in_force} contracts in force for one group"));
        }
        if in_force == 0 {
            self.check_nothing_is_held().await;
        }
    }

    async fn check_nothing_is_held(&self) {
        for owner in parties::paying_owners() {
            let accounts = self.arbitrator_store.accounts(owner).await.unwrap_or_default();
            if accounts.iter().any(|(_, account)| account.reserved() > Amount::default()) {
                self.checker.violate(format!("money of {owner} is held though no contract is in force"));
            }
        }
    }

    /// Why there is no contract, for who looks for a fault.
    pub(crate) fn log_market(&self) {
        for machine in [Machine::Rio, Machine::Patras, Machine::Cloud] {
            let Some(running) = self.machines[&machine].node_running() else { continue };
            let status = running.agent.status();
            self.checker.log(format!(
                "{}: registered {}, {} offers, {} demands, {} matches, failing {:?}",
                machine.name(),
                status.registered,
                status.offers.len(),
                status.demands.len(),
                status.matches.len(),
                status.failing
            ));
            for agreement in running.core.agreements.list() {
                self.checker.log(format!("{}: {} {:?}", machine.name(), agreement.contract.nonce, agreement.state));
            }
        }
    }
}
