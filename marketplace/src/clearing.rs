//! Clearing: which demand is served by which offer, so that the sum of (bid - ask) is greatest and no capacity is exceeded. Pure.
//!
//! Every want is served by at most one supply, a supply serves as many wants as its capacity vector holds: a generalised assignment problem
//! (Martello, Toth 1990, chapter 7) with vector capacities. Connected components are solved one by one. Each gets a heuristic solution
//! (greedy, then local improvement) and an upper bound from relaxations; if they meet, that is the optimum. Otherwise a component of up
//! to [`EXACT_WANTS_MAX`] wants is searched by branch and bound, at most [`EXACT_NODES_MAX`] nodes of it: a component whose product of
//! (options + 1) over its wants is within half that number is always solved exactly (while the round has nodes left). Beyond, the best
//! found is reported with its bound.
//! Among equal surpluses more matches are better; remaining ties fall by index, so equal instances give equal solutions.

use std::collections::BTreeMap;

use contracts::resources::Resources;

/// Components with more wants than this are not searched.
pub const EXACT_WANTS_MAX: usize = 32;
/// At most this many nodes of the search tree are visited per component.
pub const EXACT_NODES_MAX: u64 = 50_000;
/// At most this many nodes in one round, over all components.
pub const ROUND_NODES_MAX: u64 = 1_000_000;
/// At most this many pairs are looked at by local improvement per component.
pub const IMPROVEMENT_STEPS_MAX: u64 = 2_000_000;
/// At most this many times the prices behind the bound are improved, and fewer for large components: so many edges are looked at.
pub const BOUND_ROUNDS_MAX: usize = 60;
pub const BOUND_STEPS_MAX: usize = 400_000;

/// A feasible pair and what it gains (bid - ask, micro-units).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub want: usize,
    pub supply: usize,
    pub gain: u64,
}

/// What is to be cleared; edges name supplies and wants by index, each pair at most once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    pub supplies: Vec<Resources>,
    pub wants: Vec<Resources>,
    pub edges: Vec<Edge>,
}

/// The solution of one connected component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Solution {
    /// Chosen edges, by want.
    pub chosen: Vec<Edge>,
    pub supplies: usize,
    pub wants: usize,
    pub edges: usize,
    /// Sum of gains.
    pub gain: u128,
    /// No assignment gains more.
    pub bound: u128,
    /// `gain` is proven to be the greatest.
    pub exact: bool,
}

/// Clears every component, in order of its smallest want.
#[must_use]
pub fn solve(instance: &Instance) -> Vec<Solution> {
    let mut budget = ROUND_NODES_MAX;
    components(instance).iter().map(|edges| Component::new(instance, edges).solve(&mut budget)).collect()
}

/// Edges by connected component; sorted, components by smallest want.
fn components(instance: &Instance) -> Vec<Vec<Edge>> {
    fn find(parent: &mut [usize], mut node: usize) -> usize {
        while parent[node] != node {
            parent[node] = parent[parent[node]];
            node = parent[node];
        }
        node
    }
    let wants = instance.wants.len();
    let mut parent: Vec<usize> = (0..wants + instance.supplies.len()).collect();
    for edge in &instance.edges {
        let (a, b) = (find(&mut parent, edge.want), find(&mut parent, wants + edge.supply));
        parent[a.max(b)] = a.min(b); // the smallest index is the root: a want
    }
    let mut by_root: BTreeMap<usize, Vec<Edge>> = BTreeMap::new();
    let mut edges = instance.edges.clone();
    edges.sort_unstable();
    for edge in edges {
        by_root.entry(find(&mut parent, edge.want)).or_default().push(edge);
    }
    by_root.into_values().collect()
}

/// Gain first, then number of matches, in one number: gain * (wants + 1) + 1 per match.
type Weight = u128;

/// One component with local indices and capacities as plain vectors.
struct Component {
    wants: Vec<usize>,
    supplies: Vec<usize>,
    capacity: Vec<Vec<u64>>,
    need: Vec<Vec<u64>>,
    /// Per want its supplies with the weight: heaviest first, then by index.
    options: Vec<Vec<(usize, Weight)>>,
    gains: BTreeMap<(usize, usize), u64>,
}

/// Who is served by whom, and what is left.
#[derive(Clone)]
struct Plan {
    choice: Vec<Option<(usize, Weight)>>,
    left: Vec<Vec<u64>>,
    weight: Weight,
}

fn fits(need: &[u64], left: &[u64]) -> bool {
    need.iter().zip(left).all(|(n, l)| n <= l)
}

/// Dimensions of a vector: four plain ones, battery, then the named interfaces.
fn vector(resources: &Resources, interfaces: &[(&str, &str)], battery_absent: u64) -> Vec<u64> {
    let r = resources;
    let mut vector = vec![r.cpu_millis, r.memory_bytes, r.storage_bytes, r.bandwidth_bps, r.battery_wh.unwrap_or(battery_absent)];
    vector.extend(interfaces.iter().map(|(kind, region)| {
        r.interfaces.iter().find(|i| (i.kind.as_str(), i.region.as_str()) == (*kind, *region)).map_or(0, |i| i.slots)
    }));
    vector
}

impl Plan {
    fn assign(&mut self, want: usize, need: &[u64], (supply, weight): (usize, Weight)) {
        for (left, need) in self.left[supply].iter_mut().zip(need) {
            *left -= need; // callers checked that it fits
        }
        self.choice[want] = Some((supply, weight));
        self.weight += weight;
    }

    fn release(&mut self, want: usize, need: &[u64]) -> Option<(usize, Weight)> {
        let (supply, weight) = self.choice[want].take()?;
        for (left, need) in self.left[supply].iter_mut().zip(need) {
            *left += need;
        }
        self.weight -= weight;
        Some((supply, weight))
    }
}

impl Component {
    fn new(instance: &Instance, edges: &[Edge]) -> Self {
        let index = |of: fn(&Edge) -> usize| -> Vec<usize> {
            let mut all: Vec<_> = edges.iter().map(of).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let (wants, supplies) = (index(|e| e.want), index(|e| e.supply));
        let mut interfaces: Vec<(&str, &str)> =
            wants.iter().flat_map(|w| &instance.wants[*w].interfaces).map(|i| (i.kind.as_str(), i.region.as_str())).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        let scale = wants.len() as u128 + 1;
        let mut options = vec![Vec::new(); wants.len()];
        let mut gains = BTreeMap::new();
        for edge in edges {
            let (Ok(want), Ok(supply)) = (wants.binary_search(&edge.want), supplies.binary_search(&edge.supply)) else {
                continue;
            };
            options[want].push((supply, u128::from(edge.gain) * scale + 1));
            gains.insert((want, supply), edge.gain);
        }
        for list in &mut options {
            list.sort_unstable_by_key(|(supply, weight)| (std::cmp::Reverse(*weight), *supply));
        }
        // A node without a battery figure runs on mains, which covers any need.
        let capacity = supplies.iter().map(|s| vector(&instance.supplies[*s], &interfaces, u64::MAX)).collect();
        let need = wants.iter().map(|w| vector(&instance.wants[*w], &interfaces, 0)).collect();
        Self { wants, supplies, capacity, need, options, gains }
    }

    fn solve(&self, budget: &mut u64) -> Solution {
        let (by_weight, by_size) = (self.improve(self.greedy(false)), self.improve(self.greedy(true)));
        let mut plan = if by_size.weight > by_weight.weight { by_size } else { by_weight };
        let mut bound = self.bound(plan.weight).max(plan.weight);
        let mut exact = bound == plan.weight;
        if !exact && self.wants.len() <= EXACT_WANTS_MAX {
            let allowed = EXACT_NODES_MAX.min(*budget);
            let mut search = Search::new(self, plan, allowed);
            search.visit(0);
            *budget -= search.visited.min(allowed);
            exact = search.visited <= allowed;
            plan = search.best;
            if exact {
                bound = plan.weight;
            }
        }
        self.solution(&plan, bound, exact)
    }

    fn solution(&self, plan: &Plan, bound: Weight, exact: bool) -> Solution {
        let chosen: Vec<Edge> = plan
            .choice
            .iter()
            .enumerate()
            .filter_map(|(want, choice)| choice.map(|(supply, _)| (want, supply)))
            .map(|(want, supply)| Edge {
                want: self.wants[want],
                supply: self.supplies[supply],
                gain: self.gains[&(want, supply)],
            })
            .collect();
        let gain = chosen.iter().map(|e| u128::from(e.gain)).sum();
        let bound = if exact { gain } else { bound / (self.wants.len() as u128 + 1) };
        // The weight also counts matches: equal gains may still differ in weight.
        Solution {
            chosen,
            supplies: self.supplies.len(),
            wants: self.wants.len(),
            edges: self.gains.len(),
            gain,
            bound,
            exact: exact || gain == bound,
        }
    }

    fn empty(&self) -> Plan {
        Plan { choice: vec![None; self.wants.len()], left: self.capacity.clone(), weight: 0 }
    }

    /// Takes edges in order of weight, or of weight per share of the supply's scarcest resource.
    fn greedy(&self, per_size: bool) -> Plan {
        let mut order: Vec<(Weight, usize, usize, Weight)> = Vec::new();
        for (want, options) in self.options.iter().enumerate() {
            for &(supply, weight) in options {
                let value = if per_size { weight * 1_000_000 / (1 + self.share_ppm(want, supply)) } else { weight };
                order.push((value, want, supply, weight));
            }
        }
        order.sort_unstable_by_key(|(value, want, supply, _)| (std::cmp::Reverse(*value), *want, *supply));
        let mut plan = self.empty();
        for (_, want, supply, weight) in order {
            if plan.choice[want].is_none() && fits(&self.need[want], &plan.left[supply]) {
                plan.assign(want, &self.need[want], (supply, weight));
            }
        }
        plan
    }

    /// The largest share of any one resource of `supply` that `want` takes, in millionths.
    fn share_ppm(&self, want: usize, supply: usize) -> u128 {
        let share = |(need, have): (&u64, &u64)| u128::from(*need) * 1_000_000 / u128::from(*have).max(1);
        self.need[want].iter().zip(&self.capacity[supply]).map(share).max().unwrap_or(0)
    }

    /// Serves the unserved, moves to heavier options, and evicts one want for a heavier one if the evicted loses less, until nothing helps.
    fn improve(&self, mut plan: Plan) -> Plan {
        let mut steps = 0;
        loop {
            let before = plan.weight;
            for want in 0..self.wants.len() {
                self.relocate(&mut plan, want);
                self.evict_for(&mut plan, want, &mut steps);
                if steps > IMPROVEMENT_STEPS_MAX {
                    return plan;
                }
            }
            if plan.weight == before {
                return plan;
            }
        }
    }

    /// Gives `want` the heaviest option that fits; never a lighter one than it has.
    fn relocate(&self, plan: &mut Plan, want: usize) {
        let need = &self.need[want];
        let had = plan.release(want, need);
        let best = self.options[want].iter().copied().find(|(supply, _)| fits(need, &plan.left[*supply]));
        // What it had fits still, so `best` weighs at least as much.
        if let Some(option) = best.or(had) {
            plan.assign(want, need, option);
        }
    }

    fn evict_for(&self, plan: &mut Plan, want: usize, steps: &mut u64) {
        let present = plan.choice[want].map_or(0, |(_, weight)| weight);
        for &(supply, weight) in self.options[want].iter().take_while(|(_, weight)| *weight > present) {
            for victim in 0..self.wants.len() {
                *steps += 1;
                if victim == want || plan.choice[victim].is_none_or(|(s, _)| s != supply) {
                    continue;
                }
                if self.has_room(plan, supply, victim, want) && self.try_evict(plan, victim, want, (supply, weight)) {
                    return;
                }
            }
        }
    }

    /// Puts `want` in the place of `victim`, which moves where it still fits; undone and `false` if that loses.
    fn try_evict(&self, plan: &mut Plan, victim: usize, want: usize, option: (usize, Weight)) -> bool {
        let before = plan.weight;
        let had = [victim, want].map(|w| (w, plan.release(w, &self.need[w])));
        plan.assign(want, &self.need[want], option);
        self.relocate(plan, victim);
        if plan.weight > before {
            return true;
        }
        for w in [victim, want] {
            plan.release(w, &self.need[w]);
        }
        for (w, had) in had {
            if let Some(option) = had {
                plan.assign(w, &self.need[w], option);
            }
        }
        false
    }

    /// Whether `want` fits on `supply` once `victim` is gone from it.
    fn has_room(&self, plan: &Plan, supply: usize, victim: usize, want: usize) -> bool {
        let freed = plan.left[supply].iter().zip(&self.need[victim]);
        self.need[want].iter().zip(freed).all(|(need, (left, back))| u128::from(*need) <= u128::from(*left) + u128::from(*back))
    }

    /// An upper bound of the weight, the least of: every want gets its heaviest option; all supplies are one knapsack; and a Lagrangian
    /// relaxation (Fisher 1981): each supply packs alone, and wants have prices that make it costly to be packed twice. Any prices give a
    /// bound; subgradient steps look for good ones until the bound meets `incumbent`.
    fn bound(&self, incumbent: Weight) -> Weight {
        let best_option = |options: &Vec<(usize, Weight)>| options.first().map_or(0, |(_, weight)| *weight);
        let all: Vec<Item> =
            self.options.iter().map(best_option).enumerate().map(|(want, weight)| Item { want, weight }).collect();
        let dimensions = self.capacity.first().map_or(0, Vec::len);
        let pool: Vec<u128> = (0..dimensions).map(|d| self.capacity.iter().map(|c| u128::from(c[d])).sum()).collect();
        let mut best = all.iter().map(|i| i.weight).sum::<Weight>().min(self.packed(&all, &pool).weight);
        let mut of_supply: Vec<Vec<Item>> = vec![Vec::new(); self.supplies.len()];
        for (want, options) in self.options.iter().enumerate() {
            options.iter().for_each(|&(supply, weight)| of_supply[supply].push(Item { want, weight }));
        }
        let mut prices: Vec<Weight> = vec![0; self.wants.len()];
        let (mut pace, mut in_vain) = (1.0, 0);
        for _ in 0..(BOUND_STEPS_MAX / self.gains.len().max(1)).clamp(1, BOUND_ROUNDS_MAX) {
            let (weight, packed_times) = self.priced(&of_supply, &prices);
            in_vain = if weight < best { 0 } else { in_vain + 1 };
            best = best.min(weight);
            if best <= incumbent {
                break;
            }
            if in_vain > 4 {
                (pace, in_vain) = (pace / 2.0, 0);
            }
            step(&mut prices, &packed_times, weight - incumbent, pace);
        }
        best
    }

    /// The Lagrangian at these prices, and how often each want is packed.
    fn priced(&self, of_supply: &[Vec<Item>], prices: &[Weight]) -> (Weight, Vec<f64>) {
        let mut packed_times = vec![0.0; self.wants.len()];
        let mut total: Weight = prices.iter().sum();
        for (items, capacity) in of_supply.iter().zip(&self.capacity) {
            let gain = |item: &Item| {
                item.weight.checked_sub(prices[item.want]).filter(|w| *w > 0).map(|weight| Item { weight, ..*item })
            };
            let worth: Vec<Item> = items.iter().filter_map(gain).collect();
            let packed = self.packed(&worth, &capacity.iter().copied().map(u128::from).collect::<Vec<_>>());
            total += packed.weight;
            packed.parts.iter().for_each(|(want, part)| packed_times[*want] += part);
        }
        (total, packed_times)
    }

    /// The least bound of `items` in one knapsack, over each resource alone and over the sum of the shares of all resources (a surrogate
    /// constraint: what keeps each share within one keeps their sum within their number).
    fn packed(&self, items: &[Item], capacity: &[u128]) -> Packed {
        const WHOLE: u128 = 1_000_000_000;
        let share = |want: usize| -> u128 {
            let shares = self.need[want].iter().zip(capacity).filter(|(_, have)| **have > 0);
            shares.map(|(need, have)| u128::from(*need) * WHOLE / have).sum() // rounded down: weaker, never wrong
        };
        let mut least = fractional(items.iter().map(|i| (*i, share(i.want))).collect(), WHOLE * capacity.len() as u128);
        for (d, have) in capacity.iter().enumerate() {
            let packed = fractional(items.iter().map(|i| (*i, u128::from(self.need[i.want][d]))).collect(), *have);
            if packed.weight < least.weight {
                least = packed;
            }
        }
        least
    }
}

/// A want that may be packed, and its weight there.
#[derive(Clone, Copy)]
struct Item {
    want: usize,
    weight: Weight,
}

/// A fractional packing: its weight, rounded up, and which part of each want is in.
struct Packed {
    weight: Weight,
    parts: Vec<(usize, f64)>,
}

/// The greatest weight of items in a knapsack when the last one may be cut (Dantzig 1957).
fn fractional(mut items: Vec<(Item, u128)>, capacity: u128) -> Packed {
    // weight_a / size_a > weight_b / size_b, without division; sizes are below 2^54 and weights below 2^71
    items.sort_unstable_by(|(a, size_a), (b, size_b)| (b.weight * size_a).cmp(&(a.weight * size_b)).then(a.want.cmp(&b.want)));
    let mut room = capacity;
    let mut packed = Packed { weight: 0, parts: Vec::with_capacity(items.len()) };
    for (item, size) in items {
        if size <= room {
            room -= size;
            packed.weight += item.weight;
            packed.parts.push((item.want, 1.0));
        } else {
            packed.weight += (item.weight * room).div_ceil(size);
            #[expect(clippy::cast_precision_loss, reason = "only steers the search for prices")]
            packed.parts.push((item.want, room as f64 / size as f64));
            break;
        }
    }
    packed
}

/// A subgradient step (Held, Wolfe, Crowder 1974): wants that are packed more than once become dearer, others cheaper, never below zero.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "any prices give a valid bound; casts saturate"
)]
fn step(prices: &mut [Weight], packed_times: &[f64], gap: Weight, pace: f64) {
    let length: f64 = packed_times.iter().map(|times| (times - 1.0).powi(2)).sum();
    let size = pace * gap as f64 / length.max(1e-9);
    for (price, times) in prices.iter_mut().zip(packed_times) {
        *price = (*price as f64 + size * (times - 1.0)).clamp(0.0, 2e21) as Weight; // 2e21 < 2^71: dearer than any want is worth
    }
}

/// Depth-first branch and bound: wants in order of their heaviest option, options heaviest first, then unserved.
struct Search<'a> {
    component: &'a Component,
    order: Vec<usize>,
    plan: Plan,
    best: Plan,
    visited: u64,
    allowed: u64,
}

impl<'a> Search<'a> {
    fn new(component: &'a Component, incumbent: Plan, allowed: u64) -> Self {
        let mut order: Vec<usize> = (0..component.wants.len()).collect();
        order.sort_by_key(|want| std::cmp::Reverse(component.options[*want].first().map_or(0, |(_, weight)| *weight)));
        Self { component, order, plan: component.empty(), best: incumbent, visited: 0, allowed }
    }

    /// The present plan plus, for each want to come, its heaviest option that fits now.
    fn reachable(&self, depth: usize) -> Weight {
        let heaviest = |want: &usize| {
            let need = &self.component.need[*want];
            self.component.options[*want]
                .iter()
                .find(|(supply, _)| fits(need, &self.plan.left[*supply]))
                .map_or(0, |(_, weight)| *weight)
        };
        self.plan.weight + self.order[depth..].iter().map(heaviest).sum::<Weight>()
    }

    fn visit(&mut self, depth: usize) {
        self.visited += 1;
        if self.plan.weight > self.best.weight {
            self.best = self.plan.clone();
        }
        if self.visited > self.allowed || depth == self.order.len() || self.reachable(depth) <= self.best.weight {
            return;
        }
        let component = self.component;
        let want = self.order[depth];
        let need = &component.need[want];
        for &option in &component.options[want] {
            if fits(need, &self.plan.left[option.0]) {
                self.plan.assign(want, need, option);
                self.visit(depth + 1);
                self.plan.release(want, need);
            }
        }
        self.visit(depth + 1);
    }
}
