//! Book and clearing, pure: every obstacle, brute force, capacity, bounds, determinism.

mod common;

use std::collections::BTreeMap;

use common::{Party, demand, offer, witness};
use contracts::geo::Position;
use contracts::ids::{NodeId, OwnerId, StatementId};
use contracts::listing::{Demand, Offer};
use contracts::money::{AMOUNT_MICROS_MAX, Amount, Currency};
use contracts::resources::{Interface, Resources};
use contracts::time::{Millis, WallTime};
use marketplace::book::{Book, Claim, Obstacle, PROPOSALS_PER_PAIR_MAX, obstacle, price};
use marketplace::clearing::{EXACT_WANTS_MAX, Edge, Instance, Solution, solve};
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const NOW: WallTime = WallTime(1_800_000_000_000);

fn pair() -> (Offer, Demand) {
    (Party::new(1).offer(1, NOW), Party::new(2).demand(1, NOW))
}

#[test]
fn every_obstacle_is_found_and_none_invented() {
    type Change = fn(&mut Offer, &mut Demand);
    let far = Position { latitude_e7: 384_000_000, longitude_e7: 217_800_000 };
    assert!(common::ANTIRIO.distance_m(far) > 5_000);
    let table: [(Obstacle, Change); 14] = [
        (Obstacle::SameOwner, |o, d| d.owner = o.owner),
        (Obstacle::Currency, |o, _| o.currency = Currency::new("USD").unwrap()),
        (Obstacle::Price, |o, d| o.ask_per_day = d.bid_per_day.checked_add(Amount::from_micros(1).unwrap()).unwrap()),
        (Obstacle::ServedHourCost, |o, _| o.served_hour_cost = Amount::from_micros(1_000_001).unwrap()),
        (Obstacle::Deadline, |o, _| o.deadline = Millis(2_001)),
        (Obstacle::Stake, |o, _| o.stake_max = Amount::from_units(49)),
        (Obstacle::Reputation, |_, d| d.reputation_min_permille = 501),
        (Obstacle::Validity, |o, _| o.valid_from = NOW + Millis(1)),
        (Obstacle::Validity, |_, d| d.valid_until = NOW),
        (Obstacle::Capabilities, |_, d| d.capabilities = ["lora:US915".to_owned()].into()),
        (Obstacle::Witness, |o, _| o.witnesses = [NodeId::from_bytes([1; 32])].into()),
        (Obstacle::Witness, |o, d| {
            // A party is no witness of its own contract, even if both name it.
            o.witnesses = [d.node].into();
            d.witnesses = [d.node].into();
        }),
        (Obstacle::Resources, |o, _| o.free.interfaces[0].slots = 149),
        (Obstacle::Range, |_, d| d.devices.push(Position { latitude_e7: 384_000_000, longitude_e7: 217_800_000 })),
    ];
    for (expected, change) in table {
        let (mut offer, mut demand) = pair();
        assert_eq!(obstacle(&offer, &offer.free, &demand, 500, NOW), None);
        change(&mut offer, &mut demand);
        assert_eq!(obstacle(&offer, &offer.free, &demand, 500, NOW), Some(expected));
    }
    let (offer, demand) = pair();
    assert_eq!(
        obstacle(&offer, &Resources::default(), &demand, 500, NOW),
        Some(Obstacle::Resources),
        "what is left counts, not what was free"
    );
    assert_eq!(witness(), *offer.witnesses.first().unwrap());
}

#[test]
fn the_price_is_between_ask_and_bid_and_rounded_down() {
    let amount = |micros| Amount::from_micros(micros).unwrap();
    for (ask, bid, expected) in [
        (0, 0, 0),
        (0, 1, 0),
        (1, 2, 1),
        (2, 4, 3),
        (AMOUNT_MICROS_MAX - 1, AMOUNT_MICROS_MAX, AMOUNT_MICROS_MAX - 1),
        (AMOUNT_MICROS_MAX, AMOUNT_MICROS_MAX, AMOUNT_MICROS_MAX),
    ] {
        let price = price(amount(ask), amount(bid));
        assert_eq!(price, amount(expected));
        assert!(amount(ask) <= price && price <= amount(bid), "one price for both: what one pays the other gets");
    }
}

#[test]
fn the_graph_counts_claims_proposals_and_scores() {
    let (offer_id, demand_id) = (StatementId::from_bytes([1; 32]), StatementId::from_bytes([2; 32]));
    let (offer, demand) = pair();
    let needs = demand.needs.clone();
    let provider = offer.node;
    let mut book = Book { offers: [(offer_id, offer)].into(), demands: [(demand_id, demand)].into(), ..Book::default() };
    let edges = |book: &Book, score: u16| book.graph(&[(provider, score)].into(), NOW).instance.edges;
    assert_eq!(edges(&book, 500), [Edge { want: 0, supply: 0, gain: 1_000_000 }]);
    assert_eq!(book.graph(&BTreeMap::new(), NOW).instance.edges.len(), 1, "unknown is neutral");
    assert!(edges(&book, 499).is_empty());
    book.proposals.insert((offer_id, demand_id), PROPOSALS_PER_PAIR_MAX);
    assert!(edges(&book, 500).is_empty(), "this pair does not come together");
    book.proposals.insert((offer_id, demand_id), PROPOSALS_PER_PAIR_MAX - 1);
    assert_eq!(edges(&book, 500).len(), 1);
    book.claims.push(Claim { offer: offer_id, needs });
    assert!(edges(&book, 500).is_empty(), "150 of 200 slots are in use");
}

/// Distance decides, not the latitude window that only saves work.
#[test]
fn the_latitude_window_loses_no_edge() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut book = Book::default();
    let place = |random: &mut ChaCha8Rng| Position {
        latitude_e7: random.random_range(-900_000_000..=900_000_000),
        longitude_e7: random.random_range(-3_000_000..3_000_000),
    };
    for n in 0..150_u8 {
        let (node, owner) = (NodeId::from_bytes([n; 32]), OwnerId::from_bytes([n; 32]));
        let position = place(&mut random);
        let mut supply = offer(node, owner, 1, NOW);
        (supply.position, supply.radio_range_m) = (position, 100_000);
        book.offers.insert(StatementId::from_bytes([n; 32]), supply);
        for near in 0..2 {
            let mut want = demand(NodeId::from_bytes([n ^ 0xff; 32]), OwnerId::from_bytes([n ^ 0xff; 32]), near, NOW);
            let north =
                position.latitude_e7.saturating_add(random.random_range(-9_100_000..9_100_000)).clamp(-900_000_000, 900_000_000);
            want.devices = vec![Position { latitude_e7: north, ..position }];
            book.demands.insert(StatementId::from_bytes([n.wrapping_mul(2).wrapping_add(u8::try_from(near).unwrap()); 32]), want);
        }
    }
    let found = book.graph(&BTreeMap::new(), NOW).instance.edges;
    let mut expected = Vec::new();
    for (want, demand) in book.demands.values().enumerate() {
        for (supply, offer) in book.offers.values().enumerate() {
            if obstacle(offer, &offer.free, demand, 500, NOW).is_none() {
                expected.push(Edge { want, supply, gain: 1_000_000 });
            }
        }
    }
    assert!(expected.len() > 100, "{}", expected.len());
    assert_eq!(found, expected);
}

/// Random supplies and wants; needs are drawn so that some supplies hold several wants and some none.
fn instance(random: &mut ChaCha8Rng, supplies: usize, wants: usize, density: f64) -> Instance {
    let vector = |random: &mut ChaCha8Rng, most: u64| {
        let mut interfaces =
            vec![Interface { kind: "lora".into(), region: "EU868".into(), slots: random.random_range(0..=most) }];
        if random.random_bool(0.3) {
            interfaces.push(Interface { kind: "ble".into(), region: "world".into(), slots: random.random_range(0..=most) });
        }
        let battery_wh = random.random_bool(0.3).then(|| random.random_range(0..=most));
        let [cpu_millis, memory_bytes, storage_bytes, bandwidth_bps] = std::array::from_fn(|_| random.random_range(0..=most));
        Resources { cpu_millis, memory_bytes, storage_bytes, bandwidth_bps, uptime_s: 0, battery_wh, interfaces }
    };
    let supplies: Vec<_> = (0..supplies).map(|_| vector(random, 30)).collect();
    let wants: Vec<_> = (0..wants).map(|_| vector(random, 12)).collect();
    let mut edges = Vec::new();
    for (want, need) in wants.iter().enumerate() {
        for (supply, free) in supplies.iter().enumerate() {
            if free.covers(need) && random.random_bool(density) {
                // Few different gains, so that ties are common.
                edges.push(Edge { want, supply, gain: random.random_range(0..6) * 1_000 + random.random_range(0..2) });
            }
        }
    }
    Instance { supplies, wants, edges }
}

/// The greatest (gain, matches) by trying everything.
fn brute_force(instance: &Instance, want: usize, left: &mut [Resources]) -> (u128, usize) {
    if want == instance.wants.len() {
        return (0, 0);
    }
    let mut best = brute_force(instance, want + 1, left);
    for edge in instance.edges.iter().filter(|e| e.want == want) {
        if let Some(rest) = left[edge.supply].minus(&instance.wants[want]) {
            let before = std::mem::replace(&mut left[edge.supply], rest);
            let (gain, count) = brute_force(instance, want + 1, left);
            left[edge.supply] = before;
            best = best.max((gain + u128::from(edge.gain), count + 1));
        }
    }
    best
}

/// No want twice, only edges of the instance, and every supply holds all it got.
fn check(instance: &Instance, solutions: &[Solution], seed: u64) {
    let mut left = instance.supplies.clone();
    let mut served = std::collections::BTreeSet::new();
    for solution in solutions {
        assert_eq!(solution.gain, solution.chosen.iter().map(|e| u128::from(e.gain)).sum::<u128>());
        assert!(
            solution.gain <= solution.bound && (!solution.exact || solution.gain == solution.bound),
            "seed {seed}: {solution:?}"
        );
        for edge in &solution.chosen {
            assert!(instance.edges.contains(edge) && served.insert(edge.want), "seed {seed}: {edge:?}");
            left[edge.supply] = left[edge.supply]
                .minus(&instance.wants[edge.want])
                .unwrap_or_else(|| panic!("seed {seed}: capacity exceeded by {edge:?}"));
        }
    }
}

#[test]
fn small_instances_are_solved_as_by_brute_force() {
    let mut assigned = 0;
    for seed in 0..600 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (supplies, wants) = (random.random_range(1..=4), random.random_range(1..=6));
        let instance = instance(&mut random, supplies, wants, 0.8);
        let solutions = solve(&instance);
        check(&instance, &solutions, seed);
        let found = (solutions.iter().map(|s| s.gain).sum::<u128>(), solutions.iter().map(|s| s.chosen.len()).sum::<usize>());
        assert_eq!(found, brute_force(&instance, 0, &mut instance.supplies.clone()), "seed {seed}: {instance:?}");
        assert!(solutions.iter().all(|s| s.exact), "seed {seed}");
        assigned += found.1;
    }
    assert!(assigned > 500, "the instances are worth solving: {assigned}");
}

/// Slots are what is scarce, as in a real fleet; every provider reaches about a fifth of the customers.
fn fleet(random: &mut ChaCha8Rng, supplies: usize, wants: usize) -> Instance {
    let mut lora = |count: usize, slots: std::ops::Range<u64>| -> Vec<Resources> {
        let mut one = || Interface { kind: "lora".into(), region: "EU868".into(), slots: random.random_range(slots.clone()) };
        (0..count).map(|_| Resources { interfaces: vec![one()], ..Resources::default() }).collect()
    };
    let (supplies, wants) = (lora(supplies, 200..500), lora(wants, 20..150));
    let mut edges = Vec::new();
    for want in 0..wants.len() {
        for supply in 0..supplies.len() {
            if random.random_bool(0.2) {
                edges.push(Edge { want, supply, gain: random.random_range(0..3_000_000) });
            }
        }
    }
    Instance { supplies, wants, edges }
}

/// With one scarce resource the bound proves the solution to be good; with seven at once it is weak, and says less.
#[test]
fn large_instances_stay_within_capacity_and_near_their_bound() {
    for seed in 0..6 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for (instance, percent) in [(fleet(&mut random, 30, 150), 90), (instance(&mut random, 40, 300, 0.5), 55)] {
            let solutions = solve(&instance);
            check(&instance, &solutions, seed);
            let (gain, bound) = solutions.iter().fold((0, 0), |(g, b), s| (g + s.gain, b + s.bound));
            println!("seed {seed}: {gain} of at most {bound}: {} %", gain * 100 / bound);
            assert!(solutions.iter().any(|s| s.wants > EXACT_WANTS_MAX), "seed {seed}: a component too large for search");
            assert!(gain * 100 >= bound * percent, "seed {seed}: {gain} of at most {bound}");
            let mut shuffled = instance.clone();
            shuffled.edges.shuffle(&mut random);
            assert_eq!(solve(&shuffled), solutions, "seed {seed}: the order of edges does not matter");
        }
    }
}

/// `cargo test --release -p marketplace --test clearing -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_a_round_takes() {
    for (supplies, wants) in [(10, 50), (100, 500), (300, 1_500), (1_000, 5_000)] {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut instance = fleet(&mut random, supplies, wants);
        instance.edges.retain(|e| (e.want % 50) / 5 == e.supply % 10 || random.random_bool(0.02)); // local markets that touch
        let started = std::time::Instant::now();
        let solutions = solve(&instance);
        let (gain, bound) = solutions.iter().fold((0, 0), |(g, b), s| (g + s.gain, b + s.bound));
        let took = started.elapsed().as_millis();
        println!(
            "{supplies} offers, {wants} demands, {} edges: {took} ms, {} % of the bound",
            instance.edges.len(),
            gain * 100 / bound.max(1)
        );
    }
}

/// One supply and one scarce resource: the optimum is known from dynamic programming, for components beyond search too.
#[test]
fn bounds_hold_against_the_knapsack_optimum() {
    for seed in 0..60 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let count = random.random_range(5..80);
        let items: Vec<(u64, u64)> = (0..count).map(|_| (random.random_range(1..50), random.random_range(0..1_000))).collect();
        let cpu = |cpu_millis| Resources { cpu_millis, ..Resources::default() };
        let instance = Instance {
            supplies: vec![cpu(200)],
            wants: items.iter().map(|(size, _)| cpu(*size)).collect(),
            edges: items.iter().enumerate().map(|(want, (_, gain))| Edge { want, supply: 0, gain: *gain }).collect(),
        };
        let mut best = [0_u64; 201];
        for (size, gain) in &items {
            for room in (usize::try_from(*size).unwrap()..=200).rev() {
                best[room] = best[room].max(best[room - usize::try_from(*size).unwrap()] + gain);
            }
        }
        let solutions = solve(&instance);
        check(&instance, &solutions, seed);
        let [solution] = solutions.as_slice() else { panic!("one component") };
        let optimum = u128::from(best[200]);
        assert!(
            solution.gain <= optimum && optimum <= solution.bound,
            "seed {seed}: {} <= {optimum} <= {}",
            solution.gain,
            solution.bound
        );
        assert!(solution.gain * 100 >= optimum * 95, "seed {seed}: {} of {optimum}", solution.gain);
        assert!(!solution.exact || solution.gain == optimum, "seed {seed}");
    }
}

/// Greedy takes the large bid and leaves two that are worth more together.
#[test]
fn greedy_is_not_the_last_word() {
    let cpu = |cpu_millis| Resources { cpu_millis, ..Resources::default() };
    let edges = [(0, 10), (1, 9), (2, 9)].map(|(want, gain)| Edge { want, supply: 0, gain });
    let instance = Instance { supplies: vec![cpu(10)], wants: vec![cpu(10), cpu(5), cpu(5)], edges: edges.to_vec() };
    let [solution] = <[Solution; 1]>::try_from(solve(&instance)).unwrap();
    assert_eq!((solution.gain, solution.bound, solution.exact), (18, 18, true));
    assert_eq!(solution.chosen.iter().map(|e| e.want).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_decides_knows_no_clock_no_chance_and_no_input_or_output() {
    for (file, text) in [("book.rs", include_str!("../src/book.rs")), ("clearing.rs", include_str!("../src/clearing.rs"))] {
        for banned in ["tokio", "sqlx", "axum", "kit::", "rand::", "std::time", "HashMap", "async "] {
            assert!(!text.contains(banned), "{file} names {banned}");
        }
    }
}
