//! Liars among real members: the product's own groups and machines, with one that forgets, breaks a rule or tells two stories. Whoever has
//! the signed statements convicts it, and nobody else; its honest twin in the same story is acquitted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use contracts::custody::{
    Config, Disk, Durable, Effect, Event, Machine, Mark, MemberIndex, MemberSet, Message, Readiness, Rules,
};
use contracts::envelope::Keypair;
use contracts::time::BootTime;
use kit::clock::Clock;

use super::super::group::{Attachment, Group, Signer};
use super::super::hold::Hold;
use super::super::life::{Lives, Taken};
use super::super::statement::{BootId, RefusalStatement};
use super::super::view::{GroupConfig, Stated};
use super::super::wire::Said;
use super::super::{Certificate, StatementSink, certificate};
use super::*;

const GROUP: GroupId = GroupId::from_bytes([7; 16]);
const TTL: u64 = 1_000;
const A: u8 = 0;
const B: u8 = 1;
const W: u8 = 2;

fn key(member: u8) -> Keypair {
    Keypair::from_secret(&[member + 1; 32])
}

fn node(member: u8) -> NodeId {
    key(member).node_id()
}

fn terms() -> Terms {
    Terms { group: GROUP, members: vec![node(A), node(B), node(W)], ttl: Millis(TTL) }
}

/// Three members in virtual time; every message takes a millisecond and is signed, packed and verified as the driver does.
struct Cluster {
    groups: Vec<Group>,
    disks: Vec<Durable>,
    rules: [Rules; 3],
    cut: BTreeSet<(u8, u8)>,
    on_the_way: VecDeque<(u64, u8, u8, Said)>,
    kept: Arc<Mutex<Vec<Stated>>>,
    /// Of each member for each other, by (whose, for whom): its signs of life, as both ends have them.
    lives: BTreeMap<(u8, u8), (Lives, Lives)>,
    now: u64,
}

impl Cluster {
    /// `liar` lives by `rules`.
    fn with(liar: u8, rules: Rules) -> Self {
        let mut each = [Rules::ALL; 3];
        each[usize::from(liar)] = rules;
        let mut cluster = Self {
            groups: Vec::new(),
            disks: vec![Durable::default(); 3],
            rules: each,
            cut: BTreeSet::new(),
            on_the_way: VecDeque::new(),
            kept: Arc::default(),
            lives: BTreeMap::new(),
            now: 10 * TTL,
        };
        cluster.groups = (0..3).map(|member| cluster.process(member)).collect();
        // The abstention after the start is over before anybody asks.
        cluster.run(TTL + 1);
        cluster
    }

    fn is_ready(&mut self, member: u8) {
        self.tell(member, Event::Ready(Readiness::Ready), Attachment::None);
    }

    /// The customer holds epoch 1.
    fn first_custody(&mut self) {
        self.is_ready(A);
        assert_eq!(self.run_until_held_by(A), Epoch(1));
    }

    fn process(&self, member: u8) -> Group {
        let members = terms().members;
        let candidates = MemberSet::first(2);
        let mut config = Config::new(MemberIndex(member), 3, candidates, MemberIndex(A), Millis(TTL)).expect("valid");
        config.rules = self.rules[usize::from(member)];
        let disk = Disk::Kept(self.disks[usize::from(member)]);
        let machine = Machine::start(config, disk, candidates, BootTime(self.now), 0);
        let config = GroupConfig {
            group: GROUP,
            candidates: members[..2].to_vec(),
            eligible: members[..2].to_vec(),
            first_holder: members[0],
            members,
            ttl: Millis(TTL),
            readiness: Readiness::Ready,
        };
        Group::new(config, machine, Hold::new(Clock::manual()), Some(self.sink()))
    }

    fn sink(&self) -> StatementSink {
        let kept = Arc::clone(&self.kept);
        Arc::new(move |stated| kept.lock().expect("kept").push(stated))
    }

    fn group(&self, member: u8) -> &Group {
        &self.groups[usize::from(member)]
    }

    fn restart(&mut self, member: u8) {
        self.groups[usize::from(member)] = self.process(member);
        self.is_ready(member);
    }

    fn isolate(&mut self, member: u8) {
        for other in (0..3).filter(|other| *other != member) {
            self.cut_both(member, other);
        }
    }

    fn cut_both(&mut self, one: u8, other: u8) {
        self.cut.extend([(one, other), (other, one)]);
    }

    fn tell(&mut self, member: u8, event: Event, attachment: Attachment) {
        let sink = self.sink();
        let keypair = key(member);
        let lives = &self.lives;
        let heard = |of: NodeId| (0..3).find(|it| node(*it) == of).and_then(|of| lives.get(&(of, member))?.1.show());
        let signer =
            Signer { keypair: &keypair, boot: BootId([1; 16]), now: BootTime(self.now), statements: Some(&sink), heard: &heard };
        let group = &mut self.groups[usize::from(member)];
        for effect in group.apply(event, attachment, BootTime(self.now), self.now) {
            match effect {
                Effect::Persist(durable) => self.disks[usize::from(member)] = durable,
                Effect::Send { to, message } => {
                    let said = group.say(to, message, signer.now, &signer, &|_| Bytes::new()).expect("can be said");
                    self.on_the_way.push_back((self.now + 1, member, to.0, said));
                }
                Effect::Elected { .. }
                | Effect::Fenced { .. }
                | Effect::Released { .. }
                | Effect::Superseded { .. }
                | Effect::Dropped(_) => {}
            }
        }
        self.groups[usize::from(member)].publish(BootTime(self.now), &[]);
    }

    /// What the driver puts before a datagram with a claim or a renewal.
    fn show_life(&mut self, from: u8, to: u8) {
        let clock = MemberClock { boot: BootId([1; 16]), ms: self.now };
        let (told, heard) = self.lives.entry((from, to)).or_default();
        if let Some(anchor) = told.anchor(node(to), clock, || [u64::from(from), self.now]) {
            assert!(heard.hear_anchor(Envelope::sign(anchor, &key(from)), node(from), node(to)));
        }
        assert_eq!(told.reveal().map(|life| heard.take(life)), Some(Taken::Fresh));
        told.note_answer();
    }

    fn step(&mut self) {
        self.now += 1;
        while self.on_the_way.front().is_some_and(|(due, ..)| *due <= self.now) {
            let Some((_, from, to, said)) = self.on_the_way.pop_front() else { return };
            if self.cut.contains(&(from, to)) {
                continue;
            }
            if said.needs_life() {
                self.show_life(from, to);
            }
            let (message, attachment) = self.group(to).open(node(from), said).expect("honest bytes");
            self.tell(to, Event::Received { from: MemberIndex(from), message }, attachment);
        }
        for member in 0..3 {
            let due = self.group(member).machine.next_wake(BootTime(self.now));
            if due.is_some_and(|at| at.0 <= self.now) {
                self.tell(member, Event::Tick, Attachment::None);
            }
        }
    }

    fn run(&mut self, length: u64) {
        for _ in 0..length {
            self.step();
        }
    }

    fn holds(&self, member: u8) -> Option<Epoch> {
        self.group(member).machine.holds(BootTime(self.now))
    }

    fn run_until_held_by(&mut self, member: u8) -> Epoch {
        for _ in 0..5 * TTL {
            if let Some(epoch) = self.holds(member) {
                return epoch;
            }
            self.step();
        }
        panic!("member {member} never held");
    }

    /// What travelled: the statements that others verified, and the certificates of holders.
    fn evidence(&self) -> Vec<Envelope> {
        let kept = self.kept.lock().expect("kept");
        let mut evidence: Vec<Envelope> = Vec::new();
        for stated in kept.iter() {
            assert_eq!(stated.group, GROUP);
            if !evidence.contains(&stated.envelope) {
                evidence.push(stated.envelope.clone());
            }
        }
        evidence
    }

    fn convictions(&self) -> BTreeSet<(NodeId, Offence)> {
        let evidence = self.evidence();
        assert!(!evidence.is_empty());
        let found = convict(&terms(), &evidence);
        for conviction in &found {
            // The two statements alone are enough, wherever they are shown, as JSON.
            let proof = conviction.proof.map(|place| serde_json::to_string(&evidence[place]).expect("JSON"));
            let shown = proof.map(|json| serde_json::from_str::<Envelope>(&json).expect("its own JSON"));
            let again = convict(&terms(), &shown);
            assert_eq!(
                again.iter().map(|it| (it.member, it.offence)).collect::<Vec<_>>(),
                [(conviction.member, conviction.offence)]
            );
        }
        found.into_iter().map(|it| (it.member, it.offence)).collect()
    }

    fn certificate(&self, member: u8) -> Certificate {
        self.group(member).view.borrow().certificate.as_deref().cloned().expect("it was elected")
    }
}

const NOBODY: BTreeSet<(NodeId, Offence)> = BTreeSet::new();

fn alone(member: u8, offence: Offence) -> BTreeSet<(NodeId, Offence)> {
    BTreeSet::from([(node(member), offence)])
}

/// The witness' store forgets: the provider is elected with its vote, then the customer in the same epoch.
fn witness_restarts(forgets: bool) -> Cluster {
    let mut cluster = Cluster::with(W, Rules::ALL);
    cluster.first_custody();
    cluster.is_ready(B);
    cluster.run(TTL);
    cluster.isolate(A);
    assert_eq!(cluster.run_until_held_by(B), Epoch(2));
    if forgets {
        cluster.disks[usize::from(W)] = Durable::default();
    }
    cluster.isolate(B);
    cluster.restart(W);
    cluster.cut.clear();
    cluster.isolate(B);
    cluster.run_until_held_by(A);
    cluster
}

#[test]
fn a_witness_that_votes_twice_in_an_epoch_is_convicted() {
    let cluster = witness_restarts(true);
    assert_eq!(cluster.convictions(), alone(W, Offence::TwoVotes));
    // Both certificates of the epoch are valid by themselves: only together they show who lied.
    let members = terms().members;
    for holder in [A, B] {
        let certificate = cluster.certificate(holder);
        assert_eq!(certificate::verify(&certificate, &members, GROUP, Epoch(2)), Ok(node(holder)));
        assert_eq!(convict(&terms(), &certificate.grants), []);
    }
    let both: Vec<Envelope> = [A, B].iter().flat_map(|holder| cluster.certificate(*holder).grants).collect();
    assert_eq!(convict(&terms(), &both).iter().map(|it| it.member).collect::<Vec<_>>(), [node(W)]);

    let honest = witness_restarts(false);
    assert_eq!((honest.convictions(), honest.holds(A)), (NOBODY, Some(Epoch(3))));
}

/// The witness' vote for the customer still binds it when the provider asks.
fn provider_asks_early(rules: Rules) -> Cluster {
    let mut cluster = Cluster::with(W, rules);
    cluster.cut_both(A, B);
    cluster.first_custody();
    cluster.isolate(A);
    cluster.is_ready(B);
    cluster.run_until_held_by(B);
    cluster
}

#[test]
fn a_grant_against_a_running_promise_convicts_the_witness() {
    let liar = provider_asks_early(Rules::ALL.without(Mark::S5));
    assert_eq!(liar.convictions(), alone(W, Offence::BrokenPromise));
    assert!(liar.holds(A).is_some() && liar.holds(B).is_some(), "it had made two holders");
    let honest = provider_asks_early(Rules::ALL);
    assert_eq!((honest.convictions(), honest.holds(A)), (NOBODY, None));
}

/// The customer holds by the provider's promise alone; the witness is free.
fn provider_claims_early(rules: Rules) -> Cluster {
    let mut cluster = Cluster::with(B, rules);
    cluster.cut_both(A, W);
    cluster.first_custody();
    cluster.cut_both(A, B);
    cluster.is_ready(B);
    cluster.run_until_held_by(B);
    cluster
}

#[test]
fn a_provider_that_claims_against_its_own_promise_is_convicted_by_its_certificate() {
    let liar = provider_claims_early(Rules::ALL.without(Mark::S5));
    assert_eq!(liar.convictions(), alone(B, Offence::EarlyClaim));
    assert!(liar.holds(A).is_some() && liar.holds(B).is_some(), "it had made two holders");
    let shown: Vec<Envelope> = [A, B].iter().flat_map(|holder| liar.certificate(*holder).grants).collect();
    assert_eq!(convict(&terms(), &shown).len(), 1, "what the two show is enough");
    let honest = provider_claims_early(Rules::ALL);
    assert_eq!((honest.convictions(), honest.holds(A)), (NOBODY, None));
}

fn release_from_a(cluster: &mut Cluster, handover: &'static [u8]) {
    let sink = cluster.sink();
    let keypair = key(A);
    let now = BootTime(cluster.now);
    let signer = Signer { keypair: &keypair, boot: BootId([1; 16]), now, statements: Some(&sink), heard: &|_| None };
    let group = &mut cluster.groups[usize::from(A)];
    group.set_handover(Bytes::from_static(handover));
    let message = Message::Release { epoch: Epoch(1), successor: Some(MemberIndex(B)) };
    let said = group.say(MemberIndex(W), message, signer.now, &signer, &|_| Bytes::new()).expect("can be said");
    cluster.on_the_way.push_back((cluster.now + 1, A, W, said));
}

#[test]
fn counters_that_differ_between_two_releases_convict_who_released() {
    let story = |second: &'static [u8]| {
        let mut cluster = Cluster::with(A, Rules::ALL);
        cluster.first_custody();
        cluster.is_ready(B);
        cluster.run(10);
        cluster.groups[usize::from(A)].set_handover(Bytes::from_static(b"next 17"));
        cluster.tell(A, Event::Release { successor: Some(MemberIndex(B)) }, Attachment::None);
        if second != b"next 17" {
            release_from_a(&mut cluster, second);
        }
        // At once, long before the voters' promises would have run out: the release excuses them.
        assert_eq!(cluster.run_until_held_by(B), Epoch(2));
        cluster.run(TTL / 2);
        cluster.convictions()
    };
    assert_eq!(story(b"next 11"), alone(A, Offence::TwoReleases));
    assert_eq!(story(b"next 17"), NOBODY);
}

/// The customer is dead, and the witness keeps its place: it tells its own machine of renewals that nobody sent.
fn renewals_are_made_up(cluster: &mut Cluster) {
    for seq in 500..520 {
        let message = Message::Renew { epoch: Epoch(1), seq, certified: false };
        cluster.tell(W, Event::Received { from: MemberIndex(A), message }, Attachment::None);
        cluster.run(TTL / 5);
    }
    assert_eq!((cluster.holds(A), cluster.holds(B)), (None, None), "the dead holder's place is kept");
}

fn customer_holds_then_dies() -> Cluster {
    let mut cluster = Cluster::with(W, Rules::ALL);
    cluster.first_custody();
    cluster.is_ready(B);
    cluster.run(TTL);
    cluster.isolate(A);
    cluster
}

#[test]
fn a_witness_that_makes_up_renewals_of_a_dead_holder_is_convicted() {
    let mut liar = customer_holds_then_dies();
    renewals_are_made_up(&mut liar);
    assert_eq!(liar.convictions(), alone(W, Offence::PromisedToSilence));

    // One that shows nothing at all, or what it heard of somebody else.
    let mut silent = customer_holds_then_dies();
    silent.lives.clear();
    renewals_are_made_up(&mut silent);
    assert_eq!(silent.convictions(), alone(W, Offence::PromisedToSilence));

    // Its honest twin votes when its promise is over.
    let mut honest = customer_holds_then_dies();
    assert_eq!(honest.run_until_held_by(B), Epoch(2));
    assert_eq!(honest.convictions(), NOBODY);
}

/// The provider alone is cut off from a customer that lives: the witness refuses it, again and again, and is right.
#[test]
fn a_witness_that_hears_the_holder_may_refuse_for_ever() {
    let mut cluster = Cluster::with(W, Rules::ALL);
    cluster.first_custody();
    cluster.is_ready(B);
    cluster.run(TTL);
    cluster.cut_both(A, B);
    cluster.run(10 * TTL);
    let for_another = |envelope: &&Envelope| {
        envelope.verify::<RefusalStatement>().is_ok_and(|it| it.statement.promised.is_some_and(|promised| promised.to == node(A)))
    };
    let refusals = cluster.evidence().iter().filter(for_another).count();
    assert!(refusals > 5, "{refusals}");
    assert_eq!((cluster.convictions(), cluster.holds(A)), (NOBODY, Some(Epoch(1))));
}

/// A member that lost a duel, follows its winner and votes again: three votes that only the certificate between them explains.
#[test]
fn who_follows_a_certificate_is_excused_by_it() {
    let clock = |ms| MemberClock { boot: BootId([1; 16]), ms };
    let vote = |by: u8, epoch, candidate: u8, ms| {
        let records = super::super::statement::Digest::of(b"");
        let grant = Grant { group: GROUP, epoch: Epoch(epoch), candidate: node(candidate), seq: 1, records, clock: clock(ms) };
        Envelope::sign(&grant, &key(by))
    };
    let lost = [vote(A, 2, A, 100), vote(A, 3, B, 300)];
    let won = [vote(B, 2, B, 90), vote(W, 2, B, 95)];
    let found = |statements: &[&[Envelope]]| {
        let found = convict(&terms(), &statements.concat());
        found.into_iter().map(|it| (it.member, it.offence)).collect::<BTreeSet<_>>()
    };
    assert_eq!(found(&[&lost]), alone(A, Offence::BrokenPromise));
    assert_eq!(found(&[&lost, &won[..1]]), alone(A, Offence::BrokenPromise), "one vote elects nobody");
    assert_eq!(found(&[&lost, &won]), NOBODY);
    assert_eq!(found(&[&[vote(W, 5, A, 200), vote(W, 4, B, 900)]]), alone(W, Offence::VoteBackwards));
    let another_boot =
        Grant { clock: MemberClock { boot: BootId([2; 16]), ms: 1 }, ..read::<Grant>(&terms(), &lost[1]).expect("good").1 };
    assert_eq!(found(&[&[lost[0].clone(), Envelope::sign(&another_boot, &key(A))]]), NOBODY, "two boots have no order");
    let mut forged = vote(W, 2, A, 95);
    forged.signatures[0].sig[3] ^= 1;
    assert_eq!(found(&[&won, &[forged]]), NOBODY, "what does not verify proves nothing");
    let stranger = Envelope::sign(&read::<Grant>(&terms(), &won[1]).expect("good").1, &Keypair::from_secret(&[9; 32]));
    assert_eq!(found(&[&[stranger, vote(W, 2, A, 95)]]), NOBODY);
}

/// The provider was granted epoch 2 too late and held epoch 3 by votes of which none is shown; then it stopped for the customer.
#[test]
fn who_stopped_in_a_later_epoch_binds_nobody_by_an_earlier_one() {
    let clock = |ms| MemberClock { boot: BootId([1; 16]), ms };
    let nothing = super::super::statement::Digest::of(b"");
    let vote = |epoch, candidate: u8, ms| {
        let (epoch, candidate) = (Epoch(epoch), node(candidate));
        Envelope::sign(&Grant { group: GROUP, epoch, candidate, seq: 1, records: nothing, clock: clock(ms) }, &key(W))
    };
    let release = |by: u8, epoch, successor: u8| {
        let (epoch, successor) = (Epoch(epoch), Some(MemberIndex(successor)));
        Envelope::sign(&Release { group: GROUP, epoch, successor, handover: nothing, clock: clock(300) }, &key(by))
    };
    let found = |released: Envelope| {
        let found = convict(&terms(), &[vote(2, B, 100), vote(4, A, 100 + TTL / 2), released]);
        found.into_iter().map(|it| (it.member, it.offence)).collect::<BTreeSet<_>>()
    };
    for epoch in [2, 3] {
        assert_eq!(found(release(B, epoch, A)), NOBODY, "{epoch}");
    }
    for (by, epoch, successor) in [(B, 1, A), (B, 4, A), (A, 3, A), (B, 3, B)] {
        assert_eq!(found(release(by, epoch, successor)), alone(W, Offence::BrokenPromise), "{by} {epoch} {successor}");
    }
}
