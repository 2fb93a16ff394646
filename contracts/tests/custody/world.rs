//! A small world around the product's own custody machine, for the model checker: members, clocks that drift, a network that
//! loses, doubles, delays and reorders, restarts that lose promises, disks that are lost or restored from a copy, members that stall,
//! releases, hand-backs that are overdue. Time comes in ticks.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use contracts::custody::{
    Config, Disk, Durable, Effect, Event, Machine, Mark, MemberIndex, MemberSet, Message, Readiness, RoleName, Rules, Timing,
};
use contracts::ids::Epoch;
use contracts::time::{BootTime, Millis};
use stateright::{Model, Property};

/// What a right clock counts per tick; a slow one counts 9, a fast one 11.
const TICK: u64 = 10;
/// Three ticks of promise, of which two and a half are held: the shortest lease in which the drift of clocks can be seen.
const TIMING: Timing = Timing {
    ttl: Millis(30),
    hold: Millis(24),
    renew: Millis(18),
    retry: Millis(18),
    delay_max: Millis(15),
    abstain: Millis(30),
};
const TTL_TICKS: usize = 3;
const RESTORED_SEQ: u64 = 1_000;

/// What is explored: everything that can happen within these bounds.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub members: u8,
    /// Length of a history after the first custody is settled.
    pub ticks: u8,
    pub epochs: u64,
    /// How many messages can be out of order at a time: held back by the network, to come at any later instant or never.
    pub late: usize,
    /// Ticks after which a late message is lost.
    pub lifetime: u8,
    pub faults: Faults,
    /// Whether each clock may be 10 % slow or fast, in every mix; else all are right.
    pub drift: bool,
    pub rules: Rules,
    /// Of how many states one is continued without faults, to see that somebody holds again. 0: none.
    pub recovery_sample: u64,
}

/// How many of each may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Faults {
    pub restarts: u8,
    pub duplicates: u8,
    pub stalls: u8,
    pub releases: u8,
    /// Members that are told that the newest holder should have given back.
    pub overdue: u8,
    /// Restarts with a disk that was lost or is a copy of the beginning. One at the most: a majority of disks survives.
    pub restores: u8,
}

pub const NO_FAULTS: Faults = Faults { restarts: 0, duplicates: 0, stalls: 0, releases: 0, overdue: 0, restores: 0 };

impl Scope {
    /// Loss at every message, one restart, clocks 10 % slow and fast in every mix: exhausted after more than 10^7 states.
    pub const fn exhaustive() -> Self {
        Self {
            members: 3,
            ticks: 6,
            epochs: 4,
            late: 0,
            lifetime: 4,
            faults: Faults { restarts: 1, ..NO_FAULTS },
            drift: true,
            rules: Rules::ALL,
            recovery_sample: 64,
        }
    }

    fn config(&self, me: MemberIndex) -> Config {
        let candidates = MemberSet::first(2);
        Config { me, members: self.members, candidates, first_holder: MemberIndex(0), timing: TIMING, rules: self.rules }
    }

    fn start(&self, me: MemberIndex, disk: Durable, now: BootTime) -> Machine {
        let mut machine = Machine::start(self.config(me), Disk::Kept(disk), MemberSet::first(2), now, 0);
        let effects = machine.apply(Event::Tick, now, 0);
        assert_eq!(effects, [], "a member that is not ready only listens");
        machine
    }

    /// Request numbers of a restored process are new, as random ones are.
    fn start_restored(&self, me: MemberIndex, disk: Durable, now: BootTime) -> Machine {
        Machine::start(self.config(me), Disk::Restored(disk), MemberSet::first(2), now, RESTORED_SEQ)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Envelope {
    to: MemberIndex,
    from: MemberIndex,
    message: Message,
    age: u8,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Node {
    pub machine: Machine,
    disk: Durable,
    /// Written after a message left (only where S2 is off): on disk when the next event comes, lost in a restart before.
    unsynced: Option<Durable>,
    pub clock: BootTime,
    rate: u64,
    /// The last vote that left, as the receivers saw it; whatever became of the disk.
    vote: (Epoch, Option<MemberIndex>),
    /// The disk is of unknown age until the machine has written to it.
    restored: bool,
    overdue: Option<Epoch>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<Node>,
    /// On the way, in the order of sending.
    network: VecDeque<Envelope>,
    /// Held back, in no order.
    late: Vec<Envelope>,
    tick: u8,
    faults: Faults,
    elected: Epoch,
    pub violation: Option<&'static str>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tick {} {:?} {:?}", self.tick, self.faults, self.violation)?;
        for node in &self.nodes {
            writeln!(f, "  at {} (rate {}): {:?}", node.clock.0, node.rate, node.machine.view(node.clock))?;
        }
        self.network.iter().chain(&self.late).try_for_each(|envelope| writeln!(f, "  {envelope:?}"))
    }
}

/// A fault that does not stop with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Nothing,
    /// Does nothing any more.
    Dead(MemberIndex),
    /// Sends but hears nothing.
    Deaf(MemberIndex),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// One tick passes; the member named does not notice yet.
    Advance {
        stalled: Option<MemberIndex>,
    },
    /// The next message arrives.
    Deliver,
    Lose,
    /// It will be late.
    HoldBack,
    /// It arrives, and arrives again later.
    Duplicate,
    /// A message that was held back arrives.
    DeliverLate(usize),
    Restart(MemberIndex),
    /// It restarts with an empty disk, or with a copy from the beginning of the history.
    Restore {
        member: MemberIndex,
        empty: bool,
    },
    /// It is told that the newest holder should have given back by now.
    Overdue(MemberIndex),
    /// The holder hands over to the other candidate.
    Release(MemberIndex),
}

impl World {
    /// The first candidate holds epoch 1 and no abstention runs.
    pub fn settled(scope: &Scope, rates: &[u64]) -> Self {
        let node = |(me, rate): (u8, &u64)| Node {
            machine: scope.start(MemberIndex(me), Durable::default(), BootTime(0)),
            disk: Durable::default(),
            unsynced: None,
            clock: BootTime(0),
            rate: *rate,
            vote: (Epoch(0), None),
            restored: false,
            overdue: None,
        };
        let nodes = (0..scope.members).zip(rates).map(node).collect();
        let faults = scope.faults;
        let mut world =
            Self { nodes, network: VecDeque::new(), late: vec![], tick: 0, faults, elected: Epoch(0), violation: None };
        for me in (0..scope.members).map(MemberIndex) {
            world.tell(scope, me, Event::Ready(Readiness::Ready), 0);
        }
        assert!(world.run_to_recovery(scope, 5, Lasting::Nothing), "the first custody needs no luck");
        for _ in 0..=TTL_TICKS {
            world.deliver_all(scope);
            world.advance(scope, None, true);
        }
        world.tick = 0;
        world
    }

    /// Delivers everything, in order, and lets time pass until somebody holds who is not the one at fault.
    fn run_to_recovery(&mut self, scope: &Scope, ticks: usize, fault: Lasting) -> bool {
        let faulty = |member: MemberIndex| fault == Lasting::Dead(member) || fault == Lasting::Deaf(member);
        for tick in 0..=ticks {
            self.network.extend(std::mem::take(&mut self.late));
            while let Some(envelope) = self.network.pop_front() {
                if !faulty(envelope.to) && fault != Lasting::Dead(envelope.from) {
                    self.deliver(scope, &envelope);
                }
            }
            let mut nodes = (0..scope.members).map(MemberIndex).zip(&self.nodes);
            if nodes.any(|(me, node)| !faulty(me) && node.machine.holds(node.clock).is_some()) {
                return true;
            }
            if tick < ticks {
                self.advance(scope, None, true);
            }
        }
        false
    }

    pub fn holders(&self) -> usize {
        self.nodes.iter().filter(|node| node.machine.holds(node.clock).is_some()).count()
    }

    fn advance(&mut self, scope: &Scope, stalled: Option<MemberIndex>, random_delays: bool) {
        self.tick += 1;
        for envelope in &mut self.late {
            envelope.age += 1;
        }
        self.late.retain(|envelope| envelope.age <= scope.lifetime);
        for node in &mut self.nodes {
            node.clock += Millis(node.rate);
        }
        for me in (0..scope.members).map(MemberIndex).filter(|me| Some(*me) != stalled) {
            let node = &self.nodes[usize::from(me.0)];
            let entropy = if random_delays { (u64::from(self.tick) * 7 + u64::from(me.0) * 11) % 16 } else { 0 };
            if node.machine.next_wake(node.clock).is_some_and(|at| at <= node.clock) {
                self.tell(scope, me, Event::Tick, entropy);
            }
        }
    }

    fn deliver_all(&mut self, scope: &Scope) {
        while let Some(envelope) = self.network.pop_front() {
            self.deliver(scope, &envelope);
        }
    }

    fn deliver(&mut self, scope: &Scope, envelope: &Envelope) {
        let Envelope { from, to, message, .. } = *envelope;
        self.tell(scope, to, Event::Received { from, message }, 0);
    }

    fn tell(&mut self, scope: &Scope, to: MemberIndex, event: Event, entropy: u64) {
        let node = &mut self.nodes[usize::from(to.0)];
        node.disk = node.unsynced.take().unwrap_or(node.disk);
        let held = node.machine.holds(node.clock);
        let effects = node.machine.apply(event, node.clock, entropy);
        let lost = held.is_some() && node.machine.holds(node.clock).is_none();
        if lost && !effects.iter().any(|effect| matches!(effect, Effect::Released { .. })) {
            self.violation = Some("custody ended while its lease ran");
        }
        let mut sent = false;
        for effect in effects {
            match effect {
                Effect::Persist(durable) if sent => self.nodes[usize::from(to.0)].unsynced = Some(durable),
                Effect::Persist(durable) => {
                    let node = &mut self.nodes[usize::from(to.0)];
                    (node.disk, node.restored) = (durable, false);
                }
                Effect::Send { to: receiver, message } => {
                    sent = true;
                    self.send(to, receiver, message);
                }
                Effect::Elected { epoch, grants } => self.note_election(scope, epoch, grants),
                Effect::Fenced { .. } | Effect::Released { .. } | Effect::Superseded { .. } | Effect::Dropped(_) => {}
            }
        }
    }

    fn note_election(&mut self, scope: &Scope, epoch: Epoch, grants: MemberSet) {
        if epoch <= self.elected {
            self.violation = Some("epochs rise");
        }
        if grants.len() * 2 <= usize::from(scope.members) {
            self.violation = Some("a certificate is a majority");
        }
        self.elected = self.elected.max(epoch);
    }

    fn send(&mut self, from: MemberIndex, to: MemberIndex, message: Message) {
        let vote = match message {
            Message::Claim { epoch, .. } => Some((epoch, Some(from))),
            Message::Grant { epoch, .. } => Some((epoch, Some(to))),
            _ => None,
        };
        let last = &mut self.nodes[usize::from(from.0)].vote;
        if let Some(vote) = vote {
            if vote.0 < last.0 || (vote.0 == last.0 && vote.1 != last.1) {
                self.violation = Some("one vote per member and epoch, upwards");
            }
            *last = vote;
        }
        self.network.push_back(Envelope { to, from, message, age: 0 });
    }

    fn hold_back(&mut self) {
        self.late.extend(self.network.pop_front());
        self.late.sort_unstable();
    }

    /// A promise for an epoch that the receiver no longer claims or holds can do nothing any more: lost or not is the same.
    fn forget_closed(&mut self, scope: &Scope) {
        if !scope.rules.has(Mark::S4) {
            return;
        }
        let open = |envelope: &Envelope| {
            let machine = &self.nodes[usize::from(envelope.to.0)].machine;
            let in_role = matches!(machine.role(), RoleName::Claiming | RoleName::Holding);
            match envelope.message {
                Message::Renewed { epoch, .. } | Message::Grant { epoch, .. } => {
                    in_role && machine.durable().voted_epoch == epoch
                }
                _ => true,
            }
        };
        self.late.retain(open);
        self.network.retain(open);
    }

    fn restart(&mut self, scope: &Scope, me: MemberIndex) {
        let node = &mut self.nodes[usize::from(me.0)];
        (node.unsynced, node.overdue) = (None, None);
        let restored = node.restored;
        node.machine =
            if restored { scope.start_restored(me, node.disk, node.clock) } else { scope.start(me, node.disk, node.clock) };
        self.tell(scope, me, Event::Ready(Readiness::Ready), 0);
    }

    fn restore(&mut self, scope: &Scope, me: MemberIndex, empty: bool) {
        let node = &mut self.nodes[usize::from(me.0)];
        let beginning = Durable::vote(Epoch(1), MemberIndex(0));
        (node.disk, node.restored) = (if empty { Durable::default() } else { beginning }, true);
        if node.vote.1 == Some(me) {
            // A candidacy of which nobody heard dies with its process: only votes for others must never be given twice.
            node.vote = (Epoch(0), None);
        }
        self.restart(scope, me);
    }

    fn hand_back_overdue(&mut self, scope: &Scope, me: MemberIndex) {
        self.nodes[usize::from(me.0)].overdue = Some(self.elected);
        self.tell(scope, me, Event::HandBackOverdue { epoch: self.elected }, 0);
    }

    fn is_sampled(&self, one_of: u64) -> bool {
        let mut hasher = DefaultHasher::new();
        self.network.hash(&mut hasher);
        self.nodes.iter().for_each(|node| node.vote.hash(&mut hasher));
        one_of > 0 && hasher.finish().is_multiple_of(one_of)
    }

    /// From here on without faults: does everybody promise to the one that holds, so that any other may be lost? Whoever was told
    /// that the holder is overdue does not, nor who voted in a higher epoch.
    pub fn catches_up(&self, scope: &Scope) -> bool {
        let mut future = self.clone();
        for _ in 0..5 * TTL_TICKS {
            future.network.extend(std::mem::take(&mut future.late));
            future.deliver_all(scope);
            future.advance(scope, None, true);
        }
        future.deliver_all(scope);
        let held = (0..scope.members).zip(&future.nodes).find_map(|(me, node)| Some((me, node.machine.holds(node.clock)?)));
        held.is_some_and(|(holder, epoch)| {
            future.nodes.iter().all(|node| {
                let voted_epoch = node.machine.durable().voted_epoch;
                let promises = node.machine.view(node.clock).promised_to == Some(MemberIndex(holder));
                // Who failed in a higher epoch promises nothing for lower ones (S4).
                voted_epoch > epoch || node.overdue == Some(epoch) || (promises && voted_epoch == epoch)
            })
        })
    }

    /// From here on without faults but one that lasts: does somebody hold within five ttl?
    pub fn recovers(&self, scope: &Scope) -> bool {
        let members = (0..scope.members).map(MemberIndex);
        let lasting = members.flat_map(|member| [Lasting::Dead(member), Lasting::Deaf(member)]).chain([Lasting::Nothing]);
        // A restored disk needs every candidate once: disk and candidate lost together are beyond what is promised.
        let waits = self.nodes.iter().any(|node| node.restored);
        lasting.into_iter().filter(|fault| !waits || *fault == Lasting::Nothing).all(|fault| {
            let mut future = self.clone();
            let held = future.run_to_recovery(scope, 5 * TTL_TICKS, fault);
            future.violation.is_none() && held
        })
    }
}

impl Model for Scope {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let choices: &[u64] = if self.drift { &[TICK - 1, TICK + 1] } else { &[TICK] };
        let mut mixes: Vec<Vec<u64>> = vec![vec![]];
        for _ in 0..self.members {
            mixes = mixes
                .iter()
                .flat_map(|mix| choices.iter().map(move |rate| mix.iter().copied().chain([*rate]).collect()))
                .collect();
        }
        // Witnesses are alike: of mixes that differ in their order only one is explored.
        mixes.retain(|mix| mix.get(2..).is_none_or(<[u64]>::is_sorted));
        mixes.iter().map(|rates| World::settled(self, rates)).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.violation.is_some() {
            return;
        }
        if !world.network.is_empty() {
            let room = world.late.len() < self.late;
            actions.extend([Action::Deliver, Action::Lose]);
            actions.extend(room.then_some(Action::HoldBack));
            actions.extend((room && world.faults.duplicates > 0).then_some(Action::Duplicate));
            return;
        }
        actions.extend((0..world.late.len()).map(Action::DeliverLate));
        let members = (0..self.members).map(MemberIndex);
        if world.faults.restarts > 0 {
            actions.extend(members.clone().map(Action::Restart));
        }
        if world.faults.restores > 0 {
            let both = |member| [true, false].map(|empty| Action::Restore { member, empty });
            actions.extend(members.clone().flat_map(both));
        }
        if world.faults.overdue > 0 {
            let untold = |me: &MemberIndex| world.nodes[usize::from(me.0)].overdue != Some(world.elected);
            actions.extend(members.clone().filter(untold).map(Action::Overdue));
        }
        let holding = |me: &MemberIndex| world.nodes[usize::from(me.0)].machine.role() == RoleName::Holding;
        if world.faults.releases > 0 {
            actions.extend(members.clone().filter(holding).map(Action::Release));
        }
        if world.tick < self.ticks {
            let stalled = members.map(Some).filter(|_| world.faults.stalls > 0).chain([None]);
            actions.extend(stalled.map(|stalled| Action::Advance { stalled }));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Advance { stalled } => {
                next.faults.stalls -= u8::from(stalled.is_some());
                next.advance(self, stalled, false);
            }
            Action::Deliver => {
                let envelope = next.network.pop_front()?;
                next.deliver(self, &envelope);
            }
            Action::Lose => drop(next.network.pop_front()),
            Action::HoldBack => next.hold_back(),
            Action::Duplicate => {
                next.faults.duplicates -= 1;
                next.deliver(self, &next.network.front()?.clone());
                next.hold_back();
            }
            Action::DeliverLate(index) => {
                let envelope = next.late.remove(index);
                next.deliver(self, &envelope);
            }
            Action::Restart(me) => {
                next.faults.restarts -= 1;
                next.restart(self, me);
            }
            Action::Restore { member, empty } => {
                next.faults.restores -= 1;
                next.restore(self, member, empty);
            }
            Action::Overdue(me) => {
                next.faults.overdue -= 1;
                next.hand_back_overdue(self, me);
            }
            Action::Release(me) => {
                next.faults.releases -= 1;
                let successor = Some(MemberIndex(1 - me.0));
                next.tell(self, me, Event::Release { successor }, 0);
            }
        }
        next.forget_closed(self);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one holder", |_: &Self, world: &World| world.holders() <= 1),
            Property::always("no rule broken on the way", |_: &Self, world: &World| world.violation.is_none()),
            Property::always("somebody holds within 5 ttl once faults stop", |scope: &Self, world: &World| {
                !world.is_sampled(scope.recovery_sample) || world.recovers(scope)
            }),
            Property::always("who missed or lost a vote stands by the holder within 5 ttl", |scope: &Self, world: &World| {
                !world.is_sampled(scope.recovery_sample) || world.catches_up(scope)
            }),
            // Without this the rest could be true of a world in which nothing happens.
            Property::sometimes("the other candidate holds", |_: &Self, world: &World| {
                world.nodes[1].machine.role() == RoleName::Holding
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.nodes.iter().all(|node| node.machine.durable().voted_epoch <= Epoch(self.epochs))
    }
}
