//! One history of two nodes for each clause about readings: with it every owed reading reaches the customer's store once, without it
//! one is lost. Node A owns the devices, node B insures them.

mod common;

use std::collections::BTreeMap;

use common::{GROUP, Mote, Rig, offers, uplinks};
use contracts::ids::{Epoch, EventId};
use lora_bridge::{Clause, Config, Input, Mark, Mode, Output, Rules};

/// Two bridges, their disks, the customer's store.
struct World {
    mote: Mote,
    a: Rig,
    b: Rig,
    /// How often the store got each reading.
    store: BTreeMap<EventId, u32>,
}

impl World {
    /// A serves in epoch 1, B stands by.
    fn new(rules: Rules) -> Self {
        let mote = Mote::new(1);
        let rig = || {
            let mut rig = Rig::with(Config { rules, ..Config::default() });
            rig.prepare(std::slice::from_ref(&mote));
            rig
        };
        let (mut a, mut b) = (rig(), rig());
        a.custody(Mode::Serving { epoch: Epoch(1), foreign_lease_end: None });
        b.custody(Mode::Standby);
        Self { mote, a, b, store: BTreeMap::new() }
    }

    /// What `out` gave to the owner of the node goes to its disk.
    fn commit(rig: &mut Rig, out: &[Output]) -> Vec<Mark> {
        let (events, marks) = uplinks(out).iter().map(|uplink| (uplink.event, uplink.mark())).unzip();
        rig.commit(events);
        marks
    }

    fn deliver(&mut self, marks: &[Mark]) {
        for mark in marks {
            *self.store.entry(mark.event()).or_default() += 1;
        }
        self.a.apply(Input::Settled { marks: marks.to_vec() });
        self.b.apply(Input::PeerProgress { served: marks.to_vec(), settled: marks.to_vec() });
    }

    fn takeover(&mut self) -> Vec<Output> {
        self.a.custody(Mode::Fenced);
        self.b.custody(Mode::Serving { epoch: Epoch(2), foreign_lease_end: None })
    }

    fn has_exactly(&self, counters: &[u32]) -> bool {
        let wanted: BTreeMap<EventId, u32> = counters.iter().map(|f_cnt| (self.mote.event(*f_cnt), 1)).collect();
        self.store == wanted
    }
}

fn assert_decides(clause: Clause, history: fn(Rules) -> bool) {
    assert!(history(Rules::ALL), "with all rules the history is fine");
    assert!(!history(Rules::ALL.without(clause)), "without {clause} a reading must be missing");
    for other in Clause::ALL.into_iter().filter(|other| *other != clause) {
        assert!(history(Rules::ALL.without(other)), "it is {clause} alone that decides, not {other}");
    }
}

#[test]
fn d1_a_frame_that_only_the_other_gateway_heard_is_late_not_served() {
    assert_decides(Clause::D1, |rules| {
        let mut world = World::new(rules);
        let frames = [0, 1, 2].map(|f_cnt| world.mote.frame(f_cnt, false));
        for (f_cnt, frame) in frames.iter().enumerate() {
            world.b.hear(frame);
            // A's gateway misses the one in the middle.
            if f_cnt != 1 {
                let out = world.a.hear(frame);
                let marks = World::commit(&mut world.a, &out);
                world.deliver(&marks);
            }
        }
        let offered = world.b.advance(1_000);
        for offer in offers(&offered) {
            let out = world.a.apply(Input::Offered { frame: offer.frame.clone() });
            let marks = World::commit(&mut world.a, &out);
            world.deliver(&marks);
        }
        world.has_exactly(&[0, 1, 2])
    });
}

#[test]
fn d2_a_node_whose_epoch_is_over_takes_readings() {
    assert_decides(Clause::D2, |rules| {
        let mut world = World::new(rules);
        let replayed = world.takeover();
        assert!(uplinks(&replayed).is_empty());
        // Both hear the first; the second is out of range of B.
        let frames = [0, 1].map(|f_cnt| world.mote.frame(f_cnt, false));
        let out = world.b.hear(&frames[0]);
        let marks = World::commit(&mut world.b, &out);
        world.b.apply(Input::Settled { marks: marks.clone() });
        world.a.apply(Input::PeerProgress { served: marks.clone(), settled: marks.clone() });
        for mark in marks {
            world.store.insert(mark.event(), 1);
        }
        for mode in [Mode::Fenced, Mode::Following] {
            world.a.custody(mode);
            for frame in &frames {
                let out = world.a.hear(frame);
                let marks = World::commit(&mut world.a, &out);
                world.deliver(&marks);
            }
            world.a.now += 5_000;
        }
        world.has_exactly(&[0, 1])
    });
}

#[test]
fn d3_what_another_node_served_is_kept_until_the_store_has_it() {
    assert_decides(Clause::D3, |rules| {
        let mut world = World::new(rules);
        for f_cnt in 0..4 {
            let frame = world.mote.frame(f_cnt, false);
            world.b.hear(&frame);
            let out = world.a.hear(&frame);
            let marks = World::commit(&mut world.a, &out);
            match f_cnt {
                // In the store before A dies; on A's disk, told one by one; on A's disk, told by the streamed state.
                0 => world.deliver(&marks),
                1 | 2 => drop(world.b.apply(Input::PeerProgress { served: marks, settled: vec![] })),
                _ => {
                    let (states, _) = world.a.bridge.export(GROUP, 0, 10);
                    world.b.apply(Input::Import { states });
                }
            }
        }
        // A dies with its disk; B was in range of all of it.
        let replayed = world.takeover();
        let marks = World::commit(&mut world.b, &replayed);
        for mark in marks {
            *world.store.entry(mark.event()).or_default() += 1;
        }
        world.has_exactly(&[0, 1, 2, 3])
    });
}
