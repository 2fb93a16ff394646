//! Random histories: crashes, restored disks, cuts of any shape, loss, duplication, reorder, late messages, suspended members,
//! drifting clocks, releases, overdue hand-backs. Checked at every event, and at the end: once faults stop somebody holds within five ttl.

#[path = "custody/stage.rs"]
mod stage;

use contracts::custody::{Disk, Durable, Event, Mark, MemberIndex, Rules};
use stage::{Link, Stage, TTL};

const SEEDS: u64 = 3_000;
/// Faults per history, half a ttl apart on average.
const BREAKS: u64 = 60;

struct Outcome {
    violations: Vec<String>,
    elections: usize,
    /// From the end of the faults until somebody holds; None: not within five ttl.
    recovery: Option<u64>,
}

struct Walk {
    stage: Stage,
    members: u8,
    /// Who may lose its disk: one member per history, so that a majority of disks survives.
    careless: MemberIndex,
    old_disk: Durable,
}

impl Walk {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut random = stage::Random::new(seed);
        let members = if random.below(4) == 0 { 5 } else { 3 };
        let mut stage = Stage::new(members, rules, seed);
        for member in stage.members() {
            let process = stage.process_mut(member);
            process.rate = 900 + random.below(201);
            process.offset = random.below(100 * TTL);
        }
        let careless = MemberIndex(u8::try_from(random.below(u64::from(members))).expect("few members"));
        Self { stage, members, careless, old_disk: Durable::default() }
    }

    fn pick(&mut self) -> MemberIndex {
        MemberIndex(u8::try_from(self.stage.random.below(u64::from(self.members))).expect("few members"))
    }

    fn break_something(&mut self) {
        let member = self.pick();
        let other = self.pick();
        let stage = &mut self.stage;
        match stage.random.below(21) {
            0..=2 => stage.crash(member),
            3..=5 => self.start_again(member),
            6 => stage.cut_both(member, other, true),
            7 => stage.cut_one(member, other, true),
            8 => stage.cut_both(member, other, false),
            9 => {
                for other in stage.members() {
                    let (cut, deaf_only) = (stage.random.below(2) == 0, stage.random.below(3) == 0);
                    stage.cut_one(other, member, cut);
                    stage.cut_one(member, other, cut && !deaf_only);
                }
            }
            10 => {
                stage.cut.iter_mut().flatten().for_each(|cut| *cut = false);
                self.old_disk = stage.process(self.careless).disk;
            }
            11 => stage.process_mut(member).paused_until = stage.now + stage.random.below(2 * TTL),
            12 | 13 => {
                if let Some((holder, _)) = stage.holder() {
                    let successor = (stage.random.below(4) > 0).then_some(MemberIndex(1 - holder.0));
                    stage.tell(holder, Event::Release { successor });
                }
            }
            14..=16 => self.mend(),
            17 => {
                if let Some((_, epoch)) = stage.holder() {
                    stage.tell(member, Event::HandBackOverdue { epoch });
                }
            }
            _ => {
                let loss_permille = [0, 50, 300][usize::try_from(stage.random.below(3)).expect("small")];
                let late_permille = stage.random.below(60);
                stage.link = Link { loss_permille, duplicate_permille: 50, delay_max: 60, late_permille };
            }
        }
    }

    fn start_again(&mut self, member: MemberIndex) {
        let stage = &mut self.stage;
        if member == self.careless && stage.random.below(3) == 0 {
            let disk = if stage.random.below(2) == 0 { Durable::default() } else { self.old_disk };
            stage.process_mut(member).disk = disk;
            stage.start(member, Disk::Restored(disk));
        } else {
            stage.restart(member);
        }
    }

    fn stop_faults(&mut self) {
        self.stage.link = Link { delay_max: 20, ..Link::GOOD };
        self.mend();
    }

    fn mend(&mut self) {
        let stage = &mut self.stage;
        stage.cut.iter_mut().flatten().for_each(|cut| *cut = false);
        for member in stage.members() {
            let now = stage.now;
            let process = stage.process_mut(member);
            process.paused_until = process.paused_until.min(now);
            if process.machine.is_none() {
                stage.restart(member);
            }
        }
    }
}

fn walk(seed: u64, rules: Rules) -> Outcome {
    let mut walk = Walk::new(seed, rules);
    walk.stage.start_all();
    for _ in 0..BREAKS {
        let pause = walk.stage.random.below(TTL);
        walk.stage.run(pause);
        walk.break_something();
    }
    walk.stop_faults();
    let recovery = walk.stage.run_until(5 * TTL, |stage| stage.holder().is_some());
    walk.stage.run(2 * TTL);
    let Stage { violations, elections, .. } = walk.stage;
    Outcome { violations, elections: elections.len(), recovery }
}

#[test]
fn random_histories_keep_every_promise() {
    let mut recoveries = Vec::new();
    let mut elections = 0;
    let one = std::env::var("CUSTODY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let outcome = walk(seed, Rules::ALL);
        assert_eq!(outcome.violations, Vec::<String>::new(), "replay with CUSTODY_SEED={seed}");
        let recovery = outcome.recovery;
        assert!(recovery.is_some(), "nobody held within 5 ttl after the faults; replay with CUSTODY_SEED={seed}");
        recoveries.extend(recovery);
        elections += outcome.elections;
    }
    recoveries.sort_unstable();
    let [median, p99] = [recoveries.len() / 2, recoveries.len() * 99 / 100].map(|index| recoveries[index]);
    println!("{} histories, {elections} elections, recovery: p50 {median} ms, p99 {p99} ms", recoveries.len());
    println!("longest recovery {} ms at ttl {TTL} ms", recoveries.last().expect("at least one history"));
    assert!(one.is_some() || elections > 8 * recoveries.len(), "custody must change often for this to mean anything");
}

#[test]
fn equal_seeds_give_equal_histories() {
    let [first, second] = [walk(7, Rules::ALL), walk(7, Rules::ALL)];
    assert_eq!((first.elections, first.recovery), (second.elections, second.recovery));
}

#[test]
fn histories_catch_broken_clauses() {
    for mark in [Mark::S3, Mark::S5, Mark::S9, Mark::S11] {
        let caught = (0..SEEDS).find(|seed| !walk(*seed, Rules::ALL.without(mark)).violations.is_empty());
        assert!(caught.is_some(), "nobody notices that {mark} is off");
    }
}

#[test]
#[ignore = "by hand: how many of the histories each clause decides"]
fn histories_that_each_clause_decides() {
    for mark in Mark::ALL {
        let outcomes = (0..SEEDS).map(|seed| walk(seed, Rules::ALL.without(mark)));
        let (mut wrong, mut stuck) = (0, 0);
        for outcome in outcomes {
            wrong += u64::from(!outcome.violations.is_empty());
            stuck += u64::from(outcome.recovery.is_none());
        }
        println!("without {mark}: {wrong} of {SEEDS} wrong, {stuck} without a holder");
    }
}
