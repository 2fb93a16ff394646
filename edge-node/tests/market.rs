//! From "has something to spare" and "wants insurance" to a contract in standby with the money reserved, over real servers and endpoints.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "market_common/mod.rs"]
mod common;

use common::*;
use contracts::contract::{Contract, Outcome, State};
use contracts::envelope::Envelope;
use contracts::evidence::{Cancellation, DeliveryReport};
use contracts::ids::{Epoch, StatementId};
use contracts::listing::Match;
use contracts::money::Amount;
use contracts::time::Millis;
use edge_node::dmu::negotiation::{Answer, Proposal};
use edge_node::edge2edge::client::Error as PeerError;
use edge_node::edge2edge::negotiation::{self, Opening, Text};
use edge_node::timeline::Event;
use marketplace::resource::MatchState;

const STANDBY: State = State::Standby { activations: 0 };

/// All the parts of a market with one customer and one provider.
struct World {
    marketplace: Server,
    arbitrator: Server,
    directory: tempfile::TempDir,
}

impl World {
    async fn with_arbitrator() -> Self {
        let (marketplace, mut arbitrator) = (Server::absent().await, Server::absent().await);
        let directory = tempfile::tempdir().unwrap();
        arbitrator.start_arbitrator(directory.path()).await;
        let now = kit::clock::Clock::system().wall();
        for who in [CUSTOMER, PROVIDER] {
            deposit(&arbitrator.arbitrator(), who.owner_id(), 1_000, now).await;
        }
        Self { marketplace, arbitrator, directory }
    }

    async fn open() -> Self {
        let mut world = Self::with_arbitrator().await;
        world.marketplace.start_marketplace().await;
        world
    }

    async fn customer(&self) -> Node {
        Node::start(CUSTOMER, Setup { policy: Some(buying()), insures_itself: true }, &self.marketplace, &self.arbitrator).await
    }

    async fn provider(&self) -> Node {
        Node::start(PROVIDER, Setup { policy: Some(selling()), insures_itself: false }, &self.marketplace, &self.arbitrator).await
    }

    async fn plain(&self, who: Who) -> Node {
        Node::start(who, Setup::default(), &self.marketplace, &self.arbitrator).await
    }

    async fn account(&self, who: Who) -> (Amount, Amount) {
        let accounts = self.arbitrator.arbitrator().list_accounts(who.owner_id()).await.unwrap();
        (accounts[0].available, accounts[0].reserved)
    }
}

/// The names of the events, each once, in the order in which they came first.
fn names(events: &[Event]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for event in events {
        let json = serde_json::to_value(event).unwrap();
        let name = json["event"].as_str().unwrap().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The stakes and the premium are set aside, and the provider has every block and can open what is sealed to it.
async fn assert_money_is_held_and_content_is_there(world: &World, customer: &Node, provider: &Node, contract: &Contract) {
    let total = Amount::from_units(1_000);
    let held = contract.money.payment_max().unwrap().checked_add(contract.money.customer_stake).unwrap();
    assert_eq!(world.account(CUSTOMER).await, (total.checked_sub(held).unwrap(), held));
    assert_eq!(world.account(PROVIDER).await.1, contract.money.provider_stake);

    for cid in edge_node::readiness::content_of(contract).unwrap() {
        assert!(provider.core.content.verify(&cid).await.unwrap().is_complete(), "{cid}");
    }
    let cid = storage::parse_cid(&contract.application_configuration).unwrap();
    let unsealing = &provider.core.identity.unsealing;
    let opened =
        edge_node::migration::open_sealed(&provider.core.content, &cid, unsealing, edge_node::migration::PURPOSE_APPLICATION)
            .await
            .unwrap();
    assert_eq!(opened, customer.core.own_service.as_ref().unwrap().configuration);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_never_met_insure_one_another() {
    let world = World::open().await;
    let cloud = world.plain(CLOUD).await;
    let provider = world.provider().await;
    let mut customer = world.customer().await;
    for node in [&customer, &provider, &cloud] {
        node.until_state(STANDBY).await;
    }
    let deal = customer.deal().unwrap();
    assert_eq!([&provider, &cloud].map(|node| node.deal().unwrap().id), [deal.id; 2]);
    assert_eq!(provider.deal().unwrap().envelope.signatures.len(), 3);
    let contract = &deal.contract;
    let (bid, ask) = (buying().customer.unwrap(), selling().provider.unwrap());
    assert!(
        (ask.ask_per_day_min..=bid.bid_per_day_max).contains(&contract.money.premium_per_day),
        "{}",
        contract.money.premium_per_day
    );
    assert_eq!((contract.group, contract.devices.len(), contract.witnesses.as_slice()), (GROUP, 2, [arbitrator_id()].as_slice()));
    assert_eq!(contract.readings_to, CLOUD.id());

    assert_money_is_held_and_content_is_there(&world, &customer, &provider, contract).await;

    let market = world.marketplace.marketplace();
    until("the match is confirmed and the demand is gone", || async {
        let confirmed = market.matches_of(PROVIDER.id(), Some(MatchState::Confirmed)).await.unwrap();
        confirmed.len() == 1 && confirmed[0].contract == Some(deal.id) && customer.agent.status().demands.is_empty()
    })
    .await;
    until("one offer is listed", || async { provider.agent.status().offers.len() == 1 }).await;
    let offers = provider.events().iter().filter(|e| matches!(e, Event::Listed { .. })).count();
    assert_eq!(offers, 1, "the market takes what is promised off the same offer");
    // An event may be told a moment after the state that it is about.
    until("everything is told", || async {
        names(&customer.events()) == ["listed", "matched", "negotiated", "content_stored", "signed", "in_force"]
            && names(&provider.events()).len() == 6
    })
    .await;
    let told: std::collections::BTreeSet<String> = names(&provider.events()).into_iter().collect();
    let expected = ["listed", "matched", "negotiated", "signed", "in_force", "content_fetched"];
    assert_eq!(told, expected.map(str::to_owned).into(), "{:?}", names(&provider.events()));

    customer.restart_agent().await;
    until("the new agent has seen everything", || async {
        !customer.agent.status().matches.is_empty() && !customer.agent.status().accounts.is_empty()
    })
    .await;
    assert_eq!((customer.state(), customer.core.agreements.list().len()), (Some(STANDBY), 1));
    until("nothing is tried again", || async { customer.agent.status().failing.is_empty() }).await;

    // Taken back by both: the money of the days that began is paid, the rest is free, and insurance is looked for anew.
    let mut cancellation =
        Envelope::sign(&Cancellation { contract: deal.id, reason: "both agree".to_owned() }, &CUSTOMER.keypair());
    cancellation.cosign(&PROVIDER.keypair());
    edge_node::market::evidence::post(&provider.core, cancellation);
    for node in [&customer, &provider] {
        until("the contract is settled", || async {
            node.events().iter().any(|e| matches!(e, Event::Settled { contract, outcome, verdict: Some(_) } if *contract == deal.id && outcome == "cancelled"))
        })
        .await;
        assert_eq!(node.core.agreements.get(deal.id).unwrap().state, State::Ended { outcome: Outcome::Cancelled });
    }
    // Not before custody is back here (these nodes have no bridge, so nobody winds up but this test).
    let looks = customer.agent.status().looks;
    // One may have begun before; what it listed would be seen by the last.
    until("the planner has looked again and again", || async { customer.agent.status().looks >= looks + 3 }).await;
    assert!(customer.deal().is_none() && customer.agent.status().demands.is_empty());
    customer.core.agreements.set_wiped(deal.id).await.unwrap();
    let second = loses_again(&customer, &provider, deal.id).await;
    until("a third contract", || async { customer.deal().is_some_and(|new| new.id != second.id && new.state == STANDBY) }).await;
    let pause = customer.deal().unwrap().contract.valid_from.since(second.ended_at);
    assert!(pause >= Millis(2_000), "the second in a row is followed by a longer pause than {pause}");
    let paused = |e: &Event| matches!(e, Event::Alarm { what } if what.starts_with("2 contracts in a row went wrong"));
    assert!(customer.events().iter().any(paused), "{:?}", customer.events());
    let paid = contract.money.premium_per_day.checked_add(second.premium).unwrap();
    let sums = [world.account(CUSTOMER).await, world.account(PROVIDER).await]
        .map(|(available, reserved)| available.checked_add(reserved).unwrap());
    let total = Amount::from_units(1_000);
    assert_eq!(sums, [total.checked_sub(paid).unwrap(), total.checked_add(paid).unwrap()]);
}

struct Lost {
    id: contracts::ids::ContractId,
    /// No later than it was settled.
    ended_at: contracts::time::WallTime,
    premium: Amount,
}

/// The contract that follows `first` comes into force, and both take it back too.
async fn loses_again(customer: &Node, provider: &Node, first: contracts::ids::ContractId) -> Lost {
    let is_next = || async { customer.deal().is_some_and(|new| new.id != first && new.state == STANDBY) };
    until("a second contract", is_next).await;
    let second = customer.deal().unwrap();
    let cancellation = Cancellation { contract: second.id, reason: "again".to_owned() };
    let mut cancellation = Envelope::sign(&cancellation, &CUSTOMER.keypair());
    cancellation.cosign(&PROVIDER.keypair());
    let ended_at = customer.core.clock.wall();
    edge_node::market::evidence::post(&customer.core, cancellation);
    for node in [customer, provider] {
        let is_settled = |e: &Event| matches!(e, Event::Settled { contract, .. } if *contract == second.id);
        until("the second is settled", || async { node.events().iter().any(is_settled) }).await;
    }
    customer.core.agreements.set_wiped(second.id).await.unwrap();
    Lost { id: second.id, ended_at, premium: second.contract.money.premium_per_day }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_arbitrator_that_is_away_delays_and_loses_nothing() {
    let mut world = World::with_arbitrator().await;
    let cloud = world.plain(CLOUD).await;
    let (provider, customer) = (world.provider().await, world.customer().await);
    for node in [&provider, &customer] {
        until("the arbitrator's record is known", || async { node.core.directory.admits(arbitrator_id()) }).await;
    }
    world.arbitrator.stop().await;
    world.marketplace.start_marketplace().await;
    for node in [&customer, &provider] {
        node.until_state(State::Agreed).await;
    }
    let id = customer.deal().unwrap().id;
    world.arbitrator.start_arbitrator(world.directory.path()).await;
    for node in [&customer, &provider, &cloud] {
        node.until_state(STANDBY).await;
        assert_eq!(node.deal().unwrap().id, id);
    }
    world.arbitrator.stop().await;
    let now = customer.core.clock.wall();
    let report = DeliveryReport {
        contract: id,
        group: GROUP,
        node: CUSTOMER.id(),
        epoch: Epoch(1),
        from: now - Millis(1_000),
        until: now,
        frames_heard: 1,
        readings_delivered: 1,
        readings_settled: 1,
        roots: vec![],
    };
    let envelope = Envelope::sign(&report, &CUSTOMER.keypair());
    edge_node::market::evidence::post(&customer.core, envelope.clone());
    until("it waits on disk", || async { customer.agent.status().evidence_waiting == 1 }).await;
    world.arbitrator.start_arbitrator(world.directory.path()).await;
    until("it is sent", || async { customer.agent.status().evidence_waiting == 0 }).await;
    let evidence = world.arbitrator.arbitrator().list_evidence(id, 0).await.unwrap();
    assert_eq!(evidence.items.last().unwrap().id, envelope.id());
}

/// A provider with its agent, and the customer's demand listed by hand, so that the test can misbehave in its place.
struct Misbehaving {
    world: World,
    provider: Node,
    customer: Node,
    cloud: Node,
    matched: marketplace::resource::Match,
}

impl Misbehaving {
    async fn open() -> Self {
        let world = World::open().await;
        let cloud = world.plain(CLOUD).await;
        let provider = world.provider().await;
        // No policy: its agent registers it and does nothing else.
        let customer = world.plain(CUSTOMER).await;
        let market = world.marketplace.marketplace();
        until("everybody is registered and the offer listed", || async {
            customer.agent.status().registered && cloud.agent.status().registered && !provider.agent.status().offers.is_empty()
        })
        .await;
        // An agent without a policy takes back what its node lists; this node lists by itself.
        customer.agent.stop().await;
        let now = customer.core.clock.wall();
        let rules = buying().customer.unwrap();
        let demand = contracts::listing::Demand {
            node: CUSTOMER.id(),
            owner: CUSTOMER.owner_id(),
            nonce: 7,
            needs: contracts::resources::Resources {
                cpu_millis: 10,
                memory_bytes: 8 << 20,
                uptime_s: 30 * 86_400,
                interfaces: needs_lora(),
                ..Default::default()
            },
            capabilities: std::collections::BTreeSet::from(["lora:EU868".to_owned()]),
            devices: vec![customer.core.config.position.unwrap()],
            currency: currency(),
            bid_per_day: rules.bid_per_day_max,
            served_hour_cost_max: rules.served_hour_cost_max,
            deadline_max: rules.terms.deadline,
            stake_min: rules.provider_stake_min,
            reputation_min_permille: 0,
            witnesses: std::collections::BTreeSet::from([arbitrator_id()]),
            days: 30,
            valid_from: now,
            valid_until: now + Millis(600_000),
        };
        let listed = market.demand(&Envelope::sign(&demand, &CUSTOMER.keypair())).await.unwrap();
        let matched = market.wait_for_match(CUSTOMER.id(), listed.id, std::time::Duration::from_secs(10)).await.unwrap();
        customer.core.directory.put(&matched.provider_record).await.unwrap();
        until("the provider lets the customer in", || async { provider.core.directory.admits(CUSTOMER.id()) }).await;
        Self { world, provider, customer, cloud, matched }
    }

    fn generous(&self) -> Proposal {
        Proposal {
            price_per_day: Amount::from_units(5),
            provider_stake: Amount::from_units(100),
            deadline: Millis(3_000),
            ttl: Millis(1_000),
            days: 30,
        }
    }

    async fn propose(&self, from: &Node, matched: Envelope, round: u32, proposal: Proposal) -> Result<Answer, PeerError> {
        negotiation::propose(&from.core.client, PROVIDER.id(), &Opening { matched, round, proposal }).await
    }

    /// A text that is right in everything.
    fn contract(&self) -> Contract {
        let agreed = self.generous();
        let cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".to_owned();
        let service = serde_json::json!({ "name": "lora", "image": cid, "image_id": format!("sha256:{}", "0".repeat(64)),
            "memory_bytes_max": 1 << 20, "cpu_millis_max": 100, "pids_max": 4 });
        let now = self.customer.core.clock.wall();
        let party = |who: Who| contracts::contract::Party { node: who.id(), owner: who.owner_id() };
        Contract {
            customer: party(CUSTOMER),
            provider: party(PROVIDER),
            witnesses: vec![arbitrator_id()],
            arbitrator: arbitrator_id(),
            readings_to: CLOUD.id(),
            group: GROUP,
            devices: [contracts::ids::DevEui::from_u64(1)].into(),
            blueprint: contracts::blueprint::Blueprint {
                services: vec![serde_json::from_value(service).unwrap()],
                needs: contracts::resources::Resources { cpu_millis: 10, interfaces: needs_lora(), ..Default::default() },
                capabilities: ["lora:EU868".to_owned()].into(),
                activation: contracts::blueprint::Activation::Offline,
            },
            network_configuration: cid.clone(),
            application_configuration: cid,
            terms: terms(),
            money: contracts::contract::Money {
                currency: currency(),
                premium_per_day: agreed.price_per_day,
                days: 30,
                included_hours: 10,
                served_hour_cost: Amount::from_units(1),
                served_hours_max: 10,
                customer_stake: Amount::from_units(150),
                provider_stake: agreed.provider_stake,
            },
            matched_by: Some(self.matched.id),
            nonce: 1,
            valid_from: now,
            valid_until: now + Millis::from_secs(30 * 86_400),
        }
    }

    async fn ask_signature(&self, from: &Node, envelope: Envelope) -> Result<Envelope, PeerError> {
        let text = Text { contract: envelope, node_records: vec![self.cloud.core.record.clone()] };
        negotiation::ask_signature(&from.core.client, PROVIDER.id(), &text).await
    }

    async fn refusal_of(&self, contract: &Contract) -> String {
        refusal(self.ask_signature(&self.customer, Envelope::sign(contract, &CUSTOMER.keypair())).await)
    }
}

fn needs_lora() -> Vec<contracts::resources::Interface> {
    vec![contracts::resources::Interface { kind: "lora".into(), region: "EU868".into(), slots: 2 }]
}

/// Name, field and detail of the problem with which a peer refused.
fn refusal<T: std::fmt::Debug>(result: Result<T, PeerError>) -> String {
    match result {
        Err(PeerError::Refused(problem)) => {
            format!("{} {} {}", problem.name(), problem.field.as_deref().unwrap_or("-"), problem.detail.as_deref().unwrap_or("-"))
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_signs_only_what_was_matched_negotiated_and_allowed() {
    let bad = Misbehaving::open().await;
    let statement = bad.matched.statement.clone();
    let refused = |answer| refusal::<Answer>(answer);

    // Matches that are none.
    let terms: Match = statement.verify::<Match>().unwrap().statement;
    let forged = Envelope::sign(&terms, &CUSTOMER.keypair());
    assert!(refused(bad.propose(&bad.customer, forged, 0, bad.generous()).await).starts_with("bad-signature"));
    let mut changed = statement.clone();
    changed.payload[20] ^= 1;
    assert!(refused(bad.propose(&bad.customer, changed, 0, bad.generous()).await).starts_with("bad-signature"));

    // A stranger that the provider knows, with a match that it overheard.
    let stranger = bad.world.plain(STRANGER).await;
    bad.provider.core.directory.put(&stranger.core.record).await.unwrap();
    stranger.core.directory.put(&bad.provider.core.record).await.unwrap();
    assert!(refused(bad.propose(&stranger, statement.clone(), 0, bad.generous()).await).starts_with("forbidden"));

    // Nothing was agreed yet.
    assert!(bad.refusal_of(&bad.contract()).await.contains("nothing was agreed"));

    // Outside the provider's limits, and a jump to the last round.
    let low = Proposal { price_per_day: Amount::from_units(1), ..bad.generous() };
    let risky = Proposal { provider_stake: Amount::from_units(201), ..bad.generous() };
    assert!(matches!(bad.propose(&bad.customer, statement.clone(), 0, risky).await, Ok(Answer::Refuse { .. })));
    assert!(refused(bad.propose(&bad.customer, statement.clone(), 5, low).await).starts_with("conflict"));
    assert!(matches!(bad.propose(&bad.customer, statement.clone(), 0, low).await, Ok(Answer::Counter { .. })));
    let accepted = bad.propose(&bad.customer, statement, 1, bad.generous()).await.unwrap();
    assert_eq!(accepted, Answer::Accept { proposal: bad.generous() });

    // Texts that differ from what was agreed, or that the owner does not allow.
    type Change = fn(&mut Contract);
    let table: [(&str, Change); 11] = [
        ("not what was negotiated: price", |c| c.money.premium_per_day = Amount::from_units(4)),
        ("not what was negotiated: provider_stake", |c| c.money.provider_stake = Amount::from_units(101)),
        ("included_hours above", |c| c.money.included_hours = 25),
        ("handback_quiet above", |c| c.terms.handback_quiet = Millis(60_001)),
        ("served_hour_cost below", |c| c.money.served_hour_cost = Amount::ZERO),
        ("witnesses", |c| c.witnesses = vec![CLOUD.id()]),
        ("more than is free now", |c| c.blueprint.needs.cpu_millis = 3_900),
        ("more devices than radio slots", |c| c.devices = (1..=3).map(contracts::ids::DevEui::from_u64).collect()),
        ("not the owners", |c| c.customer.owner = STRANGER.owner_id()),
        ("the term begins now", |c| c.valid_from += Millis(3_600_000)),
        ("content", |c| c.network_configuration = "b".repeat(59)),
    ];
    for (expected, change) in table {
        let mut contract = bad.contract();
        change(&mut contract);
        let found = bad.refusal_of(&contract).await;
        assert!(found.contains(expected), "wanted `{expected}`, found `{found}`");
    }
    let other_match = Contract { matched_by: Some(StatementId::from_bytes([1; 32])), ..bad.contract() };
    assert!(bad.refusal_of(&other_match).await.contains("nothing was agreed"));
    let by_stranger = bad.ask_signature(&stranger, Envelope::sign(&bad.contract(), &CUSTOMER.keypair())).await;
    assert!(refusal(by_stranger).starts_with("bad-signature"));
    assert!(bad.provider.core.agreements.list().is_empty(), "nothing was signed");

    // The right text is signed once, and again the same; never a second one under the same match.
    let right = Envelope::sign(&bad.contract(), &CUSTOMER.keypair());
    let signed = bad.ask_signature(&bad.customer, right.clone()).await.unwrap();
    assert_eq!((signed.id(), signed.signatures.len()), (right.id(), 2));
    assert_eq!(bad.ask_signature(&bad.customer, right).await.unwrap(), signed);
    let second = Contract { nonce: 2, ..bad.contract() };
    assert!(bad.refusal_of(&second).await.contains("another text was signed"));

    // A contract without the arbitrator's signature is not in force for anybody.
    let text = Text { contract: signed, node_records: vec![] };
    let unsigned = negotiation::announce(&bad.customer.core.client, PROVIDER.id(), &text).await;
    assert!(refusal(unsigned).starts_with("bad-signature"));
    assert_eq!(bad.provider.state(), Some(State::Agreed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_that_nobody_can_pay_ends_without_a_trace() {
    let (mut marketplace, mut arbitrator) = (Server::absent().await, Server::absent().await);
    let directory = tempfile::tempdir().unwrap();
    arbitrator.start_arbitrator(directory.path()).await;
    marketplace.start_marketplace().await;
    let now = kit::clock::Clock::system().wall();
    deposit(&arbitrator.arbitrator(), PROVIDER.owner_id(), 1_000, now).await;
    let world = World { marketplace, arbitrator, directory };
    let _cloud = world.plain(CLOUD).await;
    let (provider, customer) = (world.provider().await, world.customer().await);
    until("the arbitrator refused", || async {
        customer.events().iter().any(|e| matches!(e, Event::Alarm { what } if what.contains("insufficient-funds")))
    })
    .await;
    // The customer tries again under the same match, and the provider signs no second text: only the contract that the arbitrator refused
    // is one that both signed.
    let refused_by_arbitrator = |a: &edge_node::agreements::Agreement| {
        let named = |e: &Event| matches!(e, Event::Alarm { what } if what.contains("insufficient-funds") && what.contains(&a.id.to_string()));
        customer.events().iter().any(named)
    };
    let refused = customer.core.agreements.list().into_iter().find(refused_by_arbitrator).unwrap();
    assert!(matches!(refused.state, State::Ended { .. }), "{:?}", refused.state);
    assert!(refused.wiped, "nothing was prepared, so nothing is to be wound up");
    assert_eq!(world.account(PROVIDER).await, (Amount::from_units(1_000), Amount::ZERO));
    // The provider asks the arbitrator itself before it gives up; on a slow machine it has by now.
    let seen_by_provider = provider.core.agreements.get(refused.id).unwrap();
    assert!(!seen_by_provider.state.is_in_force(), "{:?}", seen_by_provider.state);
}
