//! Two bridges, one fleet, and everything that may go wrong between them, by seed: crashes, takeovers, releases, slow disks, lost and late
//! progress, late grants. The judge keeps its own books.

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{GROUP, Mote, Rig, downlinks, offers, on_air, uplinks, wanted};
use contracts::ids::{DevEui, EventId};
use lora_bridge::{CounterSource, Input, Mark, Mode, Output, Session, SessionState};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const MOTES: u32 = 4;
const STEPS: u32 = 3_000;

struct Node {
    rig: Rig,
    is_up: bool,
    /// Given out, not yet on disk.
    to_commit: VecDeque<(EventId, Mark)>,
    disk: BTreeMap<EventId, Mark>,
    /// Served, not yet told to the peer.
    to_tell: VecDeque<Mark>,
    to_grant: VecDeque<(DevEui, u32)>,
    given: BTreeSet<EventId>,
}

struct World {
    seed: u64,
    rng: ChaCha8Rng,
    motes: Vec<Mote>,
    nodes: [Node; 2],
    holder: usize,
    epoch: u64,
    /// What the majority has written ahead.
    records: BTreeMap<DevEui, u32>,
    /// Given up by a disk. The owner may try as often as it likes before it says so.
    failed: BTreeSet<EventId>,
    /// The customer's store.
    store: BTreeSet<EventId>,
    heard: BTreeSet<EventId>,
    /// By each node since its start.
    heard_by: [BTreeSet<EventId>; 2],
    /// Heard by a crashed node alone, and not on disk.
    gone: BTreeSet<EventId>,
    last_down: BTreeMap<DevEui, u32>,
    answers: u32,
    next: Vec<u32>,
}

fn node(motes: &[Mote]) -> Node {
    let mut rig = Rig::new();
    rig.prepare(motes);
    Node {
        rig,
        is_up: true,
        to_commit: VecDeque::new(),
        disk: BTreeMap::new(),
        to_tell: VecDeque::new(),
        to_grant: VecDeque::new(),
        given: BTreeSet::new(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let motes: Vec<Mote> = (0..MOTES).map(Mote::new).collect();
        let mut world = Self {
            seed,
            rng: ChaCha8Rng::seed_from_u64(seed),
            nodes: [node(&motes), node(&motes)],
            next: vec![0; motes.len()],
            motes,
            holder: 0,
            epoch: 1,
            records: BTreeMap::new(),
            failed: BTreeSet::new(),
            store: BTreeSet::new(),
            heard: BTreeSet::new(),
            heard_by: [BTreeSet::new(), BTreeSet::new()],
            gone: BTreeSet::new(),
            last_down: BTreeMap::new(),
            answers: 0,
        };
        world.custody(0, world.serving());
        world.custody(1, Mode::Standby);
        world
    }

    fn serving(&self) -> Mode {
        Mode::Serving { epoch: contracts::ids::Epoch(self.epoch), foreign_lease_end: None }
    }

    /// Node 0 owns the devices; node 1 insures them.
    fn idle(node: usize) -> Mode {
        if node == 0 { Mode::Following } else { Mode::Standby }
    }

    fn custody(&mut self, node: usize, mode: Mode) {
        let out = self.nodes[node].rig.custody(mode);
        self.take(node, &out);
    }

    fn take(&mut self, at: usize, out: &[Output]) {
        let seed = self.seed;
        for downlink in downlinks(out) {
            assert_eq!((at, downlink.epoch.0), (self.holder, self.epoch), "seed {seed}: a downlink without custody");
            let last = self.last_down.insert(downlink.device, downlink.f_cnt_down);
            assert!(
                last.is_none_or(|last| last < downlink.f_cnt_down),
                "seed {seed}: counter {last:?} -> {}",
                downlink.f_cnt_down
            );
            assert!(downlink.f_cnt_down < self.records[&downlink.device], "seed {seed}: not written ahead");
            let mote = self.motes.iter().position(|mote| mote.device == downlink.device).expect("a mote");
            assert!(on_air(downlink, &self.motes[mote]).ack);
            let event = downlink.event;
            let is_durable = self.nodes.iter().any(|node| node.disk.contains_key(&event)) || self.store.contains(&event);
            assert!(is_durable, "seed {seed}: acknowledged before it is on disk");
            self.answers += 1;
        }
        let node = &mut self.nodes[at];
        for uplink in uplinks(out) {
            assert_eq!(uplink.event, uplink.mark().event());
            assert!(node.given.insert(uplink.event), "seed {seed}: node {at} gave {:?} twice", uplink.mark());
            assert!(self.heard.contains(&uplink.event), "seed {seed}: an uplink that nobody sent");
            node.to_commit.push_back((uplink.event, uplink.mark()));
        }
        node.to_grant.extend(wanted(out));
        let other = 1 - at;
        for offer in offers(out) {
            if self.nodes[other].is_up && self.rng.random_bool(0.8) {
                let answer = self.nodes[other].rig.apply(Input::Offered { frame: offer.frame.clone() });
                self.take(other, &answer);
            }
        }
    }

    fn transmit(&mut self) {
        let mote = self.rng.random_range(0..self.motes.len());
        if self.rng.random_bool(0.6) {
            self.next[mote] += 1;
        }
        // A mote's confirmed frames are repeated as they are.
        let f_cnt = self.next[mote];
        let phy = self.motes[mote].frame(f_cnt, f_cnt.is_multiple_of(2));
        for at in 0..2 {
            if self.nodes[at].is_up && self.rng.random_bool(0.8) {
                let event = self.motes[mote].event(f_cnt);
                self.heard.insert(event);
                self.heard_by[at].insert(event);
                let out = self.nodes[at].rig.hear(&phy);
                self.take(at, &out);
            }
        }
    }

    fn commit(&mut self, at: usize) {
        let many = self.rng.random_range(1..10);
        let node = &mut self.nodes[at];
        let batch: Vec<_> = (0..many).map_while(|_| node.to_commit.pop_front()).collect();
        let (fail, succeed): (Vec<_>, Vec<_>) = batch.into_iter().partition(|_| self.rng.random_bool(0.05));
        for (event, mark) in &succeed {
            node.disk.insert(*event, *mark);
            node.to_tell.push_back(*mark);
        }
        for (event, _) in &fail {
            node.given.remove(event);
            self.failed.insert(*event);
        }
        let out = node.rig.commit(succeed.iter().map(|(event, _)| *event).collect());
        self.take(at, &out);
        let out = self.nodes[at].rig.apply(Input::CommitFailed { events: fail.iter().map(|(event, _)| *event).collect() });
        self.take(at, &out);
    }

    fn tell(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let served: Vec<Mark> = node.to_tell.drain(..).collect();
        let settled: Vec<Mark> = served.iter().filter(|_| self.rng.random_bool(0.5)).copied().collect();
        self.store.extend(settled.iter().map(Mark::event));
        node.rig.apply(Input::Settled { marks: settled.clone() });
        if self.nodes[1 - at].is_up && self.rng.random_bool(0.9) {
            self.nodes[1 - at].rig.apply(Input::PeerProgress { served, settled });
        }
    }

    fn grant(&mut self, at: usize) {
        let Some((device, upto)) = self.nodes[at].to_grant.pop_front() else { return };
        if at != self.holder {
            return;
        }
        let record = self.records.entry(device).or_default();
        *record = (*record).max(upto);
        if self.rng.random_bool(0.8) {
            let out = self.nodes[at].rig.apply(Input::Reserved { entries: vec![(device, upto)] });
            self.take(at, &out);
        }
    }

    fn stream(&mut self, from: usize) {
        let (states, _): (Vec<SessionState>, _) = self.nodes[from].rig.bridge.export(GROUP, 0, 100);
        let out = self.nodes[1 - from].rig.apply(Input::Import { states });
        self.take(1 - from, &out);
    }

    /// The other node takes custody: after a release with exact counters, or without a word.
    fn hand_over(&mut self) {
        let (from, to) = (self.holder, 1 - self.holder);
        if !self.nodes[to].is_up {
            return;
        }
        let is_release = self.nodes[from].is_up && self.rng.random_bool(0.5);
        if self.nodes[from].is_up {
            self.custody(from, if is_release { Self::idle(from) } else { Mode::Fenced });
            if self.rng.random() {
                self.stream(from);
            }
        }
        let counters: Vec<(DevEui, u32)> = if is_release {
            self.nodes[from].rig.bridge.exact_counters(GROUP)
        } else {
            self.records.iter().map(|(device, upto)| (*device, *upto)).collect()
        };
        let source = if is_release { CounterSource::Release } else { CounterSource::Reservation };
        let out = self.nodes[to].rig.apply(Input::CountersFrom { entries: counters, source });
        self.take(to, &out);
        self.holder = to;
        self.epoch += 1;
        if self.nodes[from].is_up {
            self.custody(from, Self::idle(from));
        }
        self.custody(to, self.serving());
    }

    /// kill -9: what was not on disk is gone. It comes back with what the disk and the records say.
    fn crash(&mut self, at: usize) {
        let is_on_disk = |event: &EventId| self.nodes.iter().any(|node| node.disk.contains_key(event));
        let alone: Vec<EventId> =
            self.heard_by[at].difference(&self.heard_by[1 - at]).filter(|event| !is_on_disk(event)).copied().collect();
        self.gone.extend(alone);
        self.heard_by[at].clear();
        let disk = std::mem::take(&mut self.nodes[at].disk);
        let now = self.nodes[at].rig.now;
        self.nodes[at] = node(&[]);
        self.nodes[at].rig.now = now;
        self.nodes[at].disk = disk;
        self.nodes[at].is_up = false;
    }

    fn restart(&mut self, at: usize) {
        let records = self.records.clone();
        let node = &mut self.nodes[at];
        node.is_up = true;
        node.rig.pull();
        let sessions: Vec<Session> = self
            .motes
            .iter()
            .map(|mote| {
                let mut session = mote.session();
                for mark in node.disk.values().filter(|mark| mark.device == mote.device) {
                    session.served.insert(mark.f_cnt);
                }
                session.f_cnt_down_reserved = records.get(&mote.device).copied().unwrap_or(0);
                session
            })
            .collect();
        // What the disk holds is delivered from there; the bridge may give it out again, under the same name.
        node.to_tell.extend(node.disk.values().copied());
        node.rig.apply(Input::Register { group: GROUP, sessions });
        let mode = if at == self.holder {
            self.epoch += 1;
            self.serving()
        } else {
            Self::idle(at)
        };
        self.custody(at, mode);
    }

    fn step(&mut self) {
        let by = self.rng.random_range(1..400);
        let at = self.rng.random_range(0..2);
        for node in &mut self.nodes {
            node.rig.now += by;
        }
        if !self.nodes[at].is_up {
            if self.rng.random_bool(0.1) {
                self.restart(at);
            }
            return;
        }
        match self.rng.random_range(0..1_000) {
            0..400 => self.transmit(),
            400..650 => self.commit(at),
            650..750 => self.tell(at),
            750..900 => self.grant(at),
            900..980 => {
                self.nodes[at].rig.pull();
                let out = self.nodes[at].rig.advance(0);
                self.take(at, &out);
            }
            980..990 => self.hand_over(),
            990..995 => self.crash(at),
            _ => self.stream(at),
        }
    }

    /// Faults stop; both nodes get all the time they need.
    fn settle(&mut self) {
        for at in 0..2 {
            if !self.nodes[at].is_up {
                self.restart(at);
            }
        }
        for _ in 0..400 {
            for at in 0..2 {
                self.nodes[at].rig.now += 500;
                let out = self.nodes[at].rig.advance(0);
                self.take(at, &out);
                self.commit(at);
                self.tell(at);
            }
        }
    }
}

#[test]
fn no_counter_twice_no_early_acknowledgement_nothing_twice_nothing_lost() {
    let mut answers = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        let on_disk: BTreeSet<EventId> = world.nodes.iter().flat_map(|node| node.disk.keys()).copied().collect();
        // Only what a disk gave up, or a crashed node alone had heard, and had not on disk, may be missing.
        let lost: Vec<_> = world
            .heard
            .difference(&on_disk)
            .filter(|event| !world.gone.contains(*event) && !world.failed.contains(*event))
            .collect();
        assert!(lost.is_empty(), "seed {seed}: lost {} of {}", lost.len(), world.heard.len());
        assert!(world.heard.len() > 500, "seed {seed}");
        answers += world.answers;
    }
    assert!(answers > 5_000, "the runs are not empty: {answers}");
}
