//! A group of custody machines in virtual milliseconds, with a network, clocks and disks that a test breaks at will, and checks
//! that know the truth another way: at most one holder, one vote per member and epoch, epochs rise.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use contracts::custody::{Config, Disk, Durable, Effect, Event, Machine, MemberIndex, MemberSet, Message, Readiness, Rules};
use contracts::ids::Epoch;
use contracts::time::{BootTime, Millis};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

pub const TTL: u64 = 1_000;
pub const A: MemberIndex = MemberIndex(0);
pub const B: MemberIndex = MemberIndex(1);
pub const W: MemberIndex = MemberIndex(2);

/// Seeded: the same histories for the same seed.
#[derive(Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.random()
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.random_range(0..bound)
    }

    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1_000) < chance
    }
}

/// What the network does to each message.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub loss_permille: u64,
    pub duplicate_permille: u64,
    /// Each message takes 1 to this many milliseconds.
    pub delay_max: u64,
    /// Some are later by up to three ttl.
    pub late_permille: u64,
}

impl Link {
    pub const GOOD: Self = Self { loss_permille: 0, duplicate_permille: 0, delay_max: 1, late_permille: 0 };
}

#[derive(Debug)]
pub struct Process {
    /// None while the process is down.
    pub machine: Option<Machine>,
    pub disk: Durable,
    /// Milliseconds that the clock counts per true second.
    pub rate: u64,
    /// What the clock showed at true time 0.
    pub offset: u64,
    /// Suspended until then: nothing is noticed.
    pub paused_until: u64,
    /// The last vote that left since the disk was last lost.
    vote: (Epoch, Option<MemberIndex>),
    /// The disk is of unknown age until the machine has written to it.
    restored: bool,
}

type Filter = Box<dyn Fn(MemberIndex, MemberIndex, &Message) -> bool>;

pub struct Stage {
    pub processes: Vec<Process>,
    pub now: u64,
    pub rules: Rules,
    pub random: Random,
    pub link: Link,
    /// `cut[from][to]`: nothing passes.
    pub cut: Vec<Vec<bool>>,
    /// Messages that match are kept here instead.
    pub hold_back: Option<Filter>,
    pub held_back: Vec<(MemberIndex, MemberIndex, Message)>,
    in_flight: BTreeMap<(u64, u64), (MemberIndex, MemberIndex, Message)>,
    sent: u64,
    pub elections: Vec<(u64, MemberIndex, Epoch)>,
    pub violations: Vec<String>,
}

impl Stage {
    /// All members start with new disks; everybody wants and may have custody, the first member is named by the contract.
    pub fn new(members: u8, rules: Rules, seed: u64) -> Self {
        let process = |_| Process {
            machine: None,
            disk: Durable::default(),
            rate: 1_000,
            offset: 0,
            paused_until: 0,
            vote: (Epoch(0), None),
            restored: false,
        };
        let count = usize::from(members);
        Self {
            processes: (0..members).map(process).collect(),
            now: 0,
            rules,
            random: Random::new(seed),
            link: Link::GOOD,
            cut: vec![vec![false; count]; count],
            hold_back: None,
            held_back: vec![],
            in_flight: BTreeMap::new(),
            sent: 0,
            elections: vec![],
            violations: vec![],
        }
    }

    /// Three members; the first holds epoch 1, all abstentions are over, promises are fresh.
    pub fn settled(rules: Rules) -> Self {
        let mut stage = Self::new(3, rules, 1);
        stage.start_all();
        stage.run(3 * TTL);
        assert_eq!(stage.holder(), Some((A, Epoch(1))));
        stage
    }

    pub fn members(&self) -> impl Iterator<Item = MemberIndex> + use<> {
        (0u8..).take(self.processes.len()).map(MemberIndex)
    }

    pub fn start_all(&mut self) {
        for member in self.members() {
            self.start(member, Disk::Kept(self.process(member).disk));
        }
    }

    pub fn process(&self, member: MemberIndex) -> &Process {
        &self.processes[usize::from(member.0)]
    }

    pub fn process_mut(&mut self, member: MemberIndex) -> &mut Process {
        &mut self.processes[usize::from(member.0)]
    }

    pub fn machine(&self, member: MemberIndex) -> &Machine {
        self.process(member).machine.as_ref().expect("the process runs")
    }

    pub fn clock(&self, member: MemberIndex) -> BootTime {
        let process = self.process(member);
        BootTime(process.offset + self.now * process.rate / 1_000)
    }

    pub fn start(&mut self, member: MemberIndex, disk: Disk) {
        self.start_under(member, disk, A, Readiness::Ready);
    }

    /// Starts under a contract that names `first_holder`.
    pub fn start_under(&mut self, member: MemberIndex, disk: Disk, first_holder: MemberIndex, readiness: Readiness) {
        let members = u8::try_from(self.processes.len()).expect("few members");
        let mut config = Config::new(member, members, MemberSet::first(2), first_holder, Millis(TTL)).expect("a valid group");
        config.rules = self.rules;
        let seq = if matches!(disk, Disk::Restored(_)) { self.random.next() >> 1 } else { 0 };
        let machine = Machine::start(config, disk, MemberSet::first(2), self.clock(member), seq);
        let process = self.process_mut(member);
        process.machine = Some(machine);
        process.restored = matches!(disk, Disk::Restored(_));
        if process.restored {
            process.vote = (Epoch(0), None);
        }
        self.tell(member, Event::Ready(readiness));
    }

    pub fn crash(&mut self, member: MemberIndex) {
        self.process_mut(member).machine = None;
    }

    pub fn restart(&mut self, member: MemberIndex) {
        let Process { disk, restored, .. } = *self.process(member);
        self.start(member, if restored { Disk::Restored(disk) } else { Disk::Kept(disk) });
    }

    pub fn cut_both(&mut self, one: MemberIndex, other: MemberIndex, cut: bool) {
        self.cut_one(one, other, cut);
        self.cut_one(other, one, cut);
    }

    pub fn cut_one(&mut self, from: MemberIndex, to: MemberIndex, cut: bool) {
        self.cut[usize::from(from.0)][usize::from(to.0)] = cut;
    }

    /// Who holds now.
    pub fn holder(&self) -> Option<(MemberIndex, Epoch)> {
        self.holders().next()
    }

    pub fn holders(&self) -> impl Iterator<Item = (MemberIndex, Epoch)> {
        self.members().filter_map(|member| {
            let epoch = self.process(member).machine.as_ref()?.holds(self.clock(member))?;
            Some((member, epoch))
        })
    }

    pub fn tell(&mut self, member: MemberIndex, event: Event) -> Vec<Effect> {
        let clock = self.clock(member);
        let entropy = self.random.next();
        let Some(machine) = &mut self.processes[usize::from(member.0)].machine else { return vec![] };
        let held = machine.holds(clock);
        let effects = machine.apply(event, clock, entropy);
        let lost = held.is_some() && machine.holds(clock).is_none();
        let due = machine.next_wake(clock);
        if lost && !effects.iter().any(|effect| matches!(effect, Effect::Released { .. })) && event != Event::Stop {
            self.violate(format!("custody of {member} ended by {event:?} while its lease ran"));
        }
        if due.is_some_and(|due| due <= clock) {
            self.violate(format!("{member} is due at once after {event:?}"));
        }
        for effect in &effects {
            match *effect {
                Effect::Persist(durable) => {
                    let process = self.process_mut(member);
                    (process.disk, process.restored) = (durable, false);
                }
                Effect::Send { to, message } => self.send(member, to, message),
                Effect::Elected { epoch, grants } => self.note_election(member, epoch, grants),
                Effect::Fenced { .. } | Effect::Released { .. } | Effect::Superseded { .. } | Effect::Dropped(_) => {}
            }
        }
        if self.holders().count() > 1 {
            let holders: Vec<_> = self.holders().collect();
            self.violate(format!("more than one holder: {holders:?}"));
        }
        effects
    }

    fn violate(&mut self, what: String) {
        let now = self.now;
        self.violations.push(format!("at {now}: {what}"));
    }

    fn note_election(&mut self, member: MemberIndex, epoch: Epoch, grants: MemberSet) {
        if self.elections.last().is_some_and(|(_, _, last)| *last >= epoch) {
            self.violate(format!("{member} is elected in {epoch}, not above the last"));
        }
        if grants.len() * 2 <= self.processes.len() || !grants.contains(member) {
            self.violate(format!("{grants:?} is no certificate for {member}"));
        }
        self.elections.push((self.now, member, epoch));
    }

    fn send(&mut self, from: MemberIndex, to: MemberIndex, message: Message) {
        let vote = match message {
            Message::Claim { epoch, .. } => Some((epoch, Some(from))),
            Message::Grant { epoch, .. } => Some((epoch, Some(to))),
            _ => None,
        };
        let last = self.process(from).vote;
        if let Some(vote) = vote {
            if vote.0 < last.0 || (vote.0 == last.0 && vote.1 != last.1) {
                self.violate(format!("{from} votes {vote:?} after {last:?}"));
            }
            self.process_mut(from).vote = vote;
        }
        if self.hold_back.as_ref().is_some_and(|filter| filter(from, to, &message)) {
            return self.held_back.push((from, to, message));
        }
        if self.cut[usize::from(from.0)][usize::from(to.0)] || self.random.permille(self.link.loss_permille) {
            return;
        }
        let copies = 1 + u64::from(self.random.permille(self.link.duplicate_permille));
        for _ in 0..copies {
            let late = if self.random.permille(self.link.late_permille) { self.random.below(3 * TTL) } else { 0 };
            let due = self.now + 1 + self.random.below(self.link.delay_max) + late;
            self.sent += 1;
            self.in_flight.insert((due, self.sent), (from, to, message));
        }
    }

    /// Lets all that was held back arrive, now.
    pub fn deliver_held_back(&mut self) {
        self.hold_back = None;
        for (from, to, message) in std::mem::take(&mut self.held_back) {
            self.tell(to, Event::Received { from, message });
        }
    }

    /// When `member` next acts by itself, in true time.
    fn wake(&self, member: MemberIndex) -> Option<u64> {
        let process = self.process(member);
        let due = process.machine.as_ref()?.next_wake(self.clock(member))?;
        let counted = due.0.saturating_sub(process.offset);
        Some((counted * 1_000).div_ceil(process.rate).max(self.now).max(process.paused_until))
    }

    /// Lets `length` milliseconds pass.
    pub fn run(&mut self, length: u64) {
        let end = self.now + length;
        while self.step(end) {}
        self.now = end;
    }

    /// Lets time pass until `done`, at most `length` milliseconds; says how many passed.
    pub fn run_until(&mut self, length: u64, done: impl Fn(&Self) -> bool) -> Option<u64> {
        let (start, end) = (self.now, self.now + length);
        while !done(self) {
            if !self.step(end) {
                self.now = end;
                return done(self).then_some(length);
            }
        }
        Some(self.now - start)
    }

    fn step(&mut self, end: u64) -> bool {
        let wake = self.members().filter_map(|member| self.wake(member).map(|at| (at, member))).min();
        let arrival = self.in_flight.first_key_value().map(|(key, _)| *key);
        match (wake, arrival) {
            (Some((at, member)), arrival) if at <= end && arrival.is_none_or(|(due, _)| at <= due) => {
                self.now = at;
                self.tell(member, Event::Tick);
                true
            }
            (_, Some(key)) if key.0 <= end => {
                self.now = self.now.max(key.0);
                let Some((from, to, message)) = self.in_flight.remove(&key) else { return false };
                let paused_until = self.process(to).paused_until;
                if paused_until > self.now {
                    self.in_flight.insert((paused_until, key.1), (from, to, message));
                } else {
                    self.tell(to, Event::Received { from, message });
                }
                true
            }
            _ => false,
        }
    }
}
