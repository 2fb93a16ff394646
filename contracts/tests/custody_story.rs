//! What the product does with custody, in virtual time: takeover, return, hand-over, restarts, lost disks, bad input.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "custody/stage.rs"]
mod stage;

use contracts::custody::{
    Config, Disk, DropReason, Durable, EPOCH_MAX, Effect, Error, Event, MemberIndex, MemberSet, Message, Readiness, Refusal,
    RoleName, Rules,
};
use contracts::ids::Epoch;
use contracts::time::Millis;
use stage::{A, B, Stage, TTL, W};

fn holds(member: MemberIndex) -> impl Fn(&Stage) -> bool {
    move |stage| stage.holder().is_some_and(|(holder, _)| holder == member)
}

fn taken_over() -> Stage {
    let mut stage = Stage::settled(Rules::ALL);
    stage.crash(A);
    stage.run_until(2 * TTL, holds(B)).unwrap();
    stage
}

#[test]
fn a_takeover_takes_the_rest_of_the_lease_and_three_round_trips() {
    for after in 0..25 {
        let mut stage = Stage::settled(Rules::ALL);
        stage.run(after * 10);
        let promised = [B, W].map(|member| stage.machine(member).view(stage.clock(member)).promise_left.0);
        let latest = promised.into_iter().max().unwrap();
        stage.crash(A);
        let took = stage.run_until(2 * TTL, holds(B)).unwrap();
        assert!(took <= latest + 6, "{took} ms with {latest} ms of promises left and round trips of 2 ms");
        assert_eq!(stage.violations, Vec::<String>::new());
    }
}

#[test]
fn the_witness_that_heard_the_holder_last_is_asked_again_when_it_said() {
    let mut stage = Stage::settled(Rules::ALL);
    stage.cut_one(A, B, true);
    stage.run(600);
    stage.crash(A);
    let left = stage.machine(W).view(stage.clock(W)).promise_left.0;
    let took = stage.run_until(2 * TTL, holds(B)).unwrap();
    assert!((left..=left + 6).contains(&took), "{took} ms with {left} ms of the witness's promise left");
}

#[test]
fn a_release_is_one_round_trip_away_from_the_next_custody() {
    let mut stage = Stage::settled(Rules::ALL);
    let effects = stage.tell(A, Event::Release { successor: Some(B) });
    assert_eq!(effects[0], Effect::Released { epoch: Epoch(1), successor: Some(B) }, "it stops before it tells");
    assert!(matches!(effects[1], Effect::Persist(_)));
    assert_eq!(stage.holder(), None);
    assert_eq!(stage.run_until(TTL, holds(B)), Some(3), "the release, then claim and grant, 1 ms each");
    assert_eq!(stage.holder(), Some((B, Epoch(2))));
}

#[test]
fn who_comes_back_follows_and_gets_custody_by_release() {
    let mut stage = taken_over();
    stage.restart(A);
    stage.run(20 * TTL);
    assert_eq!(stage.holder(), Some((B, Epoch(2))));
    assert_eq!(stage.process(A).disk.voted_for, Some(B), "the certificate told it");
    assert_eq!(stage.elections.len(), 2);
    stage.tell(B, Event::Release { successor: Some(A) });
    assert_eq!(stage.run_until(TTL, holds(A)), Some(3));
    assert_eq!(stage.violations, Vec::<String>::new());
}

#[test]
fn a_quick_restart_keeps_custody_under_a_new_epoch() {
    let mut stage = Stage::settled(Rules::ALL);
    stage.restart(A);
    let took = stage.run_until(TTL, holds(A)).unwrap();
    assert_eq!((took, stage.holder()), (4, Some((A, Epoch(2)))), "ask and claim, nobody had to wait");
}

#[test]
fn after_a_restart_of_everybody_somebody_holds_within_two_ttl() {
    for last in [A, B] {
        let mut stage = if last == A { Stage::settled(Rules::ALL) } else { taken_over() };
        stage.start_all();
        assert!(stage.run_until(2 * TTL, |stage| stage.holder().is_some()).is_some());
    }
    // The last holder's machine is gone for good, and the other one does not know that it was elected.
    let mut stage = taken_over();
    stage.crash(B);
    stage.restart(A);
    stage.restart(W);
    assert!(stage.run_until(2 * TTL, holds(A)).is_some());
}

#[test]
fn two_of_three_without_a_majority_abstain() {
    let mut stage = Stage::settled(Rules::ALL);
    stage.crash(A);
    stage.crash(W);
    stage.run(20 * TTL);
    assert_eq!((stage.holder(), stage.elections.len()), (None, 1));
    assert_eq!(stage.process(B).disk.voted_epoch, Epoch(1), "asking changes nothing");
}

#[test]
fn any_two_of_five_may_be_lost() {
    for lost in [[A, W], [W, MemberIndex(3)], [MemberIndex(3), MemberIndex(4)]] {
        let mut stage = Stage::new(5, Rules::ALL, 3);
        stage.start_all();
        stage.run(3 * TTL);
        lost.into_iter().for_each(|member| stage.crash(member));
        stage.run(3 * TTL);
        assert!(stage.holder().is_some());
        assert_eq!(stage.violations, Vec::<String>::new());
    }
}

#[test]
fn who_is_not_ready_or_not_eligible_is_not_elected() {
    for event in [Event::Ready(Readiness::Unready), Event::Ready(Readiness::SuccessorOnly)] {
        let mut stage = Stage::settled(Rules::ALL);
        stage.tell(B, event);
        stage.crash(A);
        stage.run(5 * TTL);
        assert_eq!(stage.holder(), None);
        stage.tell(B, Event::Ready(Readiness::Ready));
        assert!(stage.run_until(TTL, holds(B)).is_some());
    }
    let mut stage = Stage::settled(Rules::ALL);
    stage.tell(W, Event::Eligible([A].into_iter().collect()));
    stage.crash(A);
    stage.run(5 * TTL);
    assert_eq!(stage.holder(), None);
    stage.tell(W, Event::Eligible(MemberSet::first(2)));
    assert!(stage.run_until(TTL, holds(B)).is_some());
}

#[test]
fn who_wants_custody_only_by_release_gets_it_by_release() {
    let mut stage = Stage::settled(Rules::ALL);
    stage.tell(B, Event::Ready(Readiness::SuccessorOnly));
    stage.tell(A, Event::Release { successor: Some(B) });
    assert_eq!(stage.run_until(TTL, holds(B)), Some(3));
}

#[test]
fn a_release_to_nobody_keeps_everybody_away_for_one_ttl() {
    let mut stage = Stage::settled(Rules::ALL);
    stage.tell(A, Event::Release { successor: None });
    let took = stage.run_until(3 * TTL, |stage| stage.holder().is_some()).unwrap();
    assert!(took >= TTL, "{took} ms");
}

#[test]
fn an_overdue_hand_back_ends_custody() {
    let mut stage = taken_over();
    stage.restart(A);
    stage.run(2 * TTL);
    for member in [A, W] {
        stage.tell(member, Event::HandBackOverdue { epoch: Epoch(2) });
    }
    let took = stage.run_until(3 * TTL, holds(A)).unwrap();
    assert!(took <= TTL + 300, "{took} ms: B is fenced, then its last promises run out");
    assert_eq!(stage.violations, Vec::<String>::new());
}

#[test]
fn a_lost_disk_is_no_second_vote() {
    // The witness voted for B in epoch 2 and forgets everything.
    let mut stage = taken_over();
    stage.start(W, Disk::Restored(Durable::default()));
    assert_eq!(stage.machine(W).role(), RoleName::Recovering);
    stage.run(3 * TTL);
    assert_eq!(stage.machine(W).role(), RoleName::Recovering, "A may know of a higher epoch");
    stage.restart(A);
    stage.run(2 * TTL);
    assert_ne!(stage.machine(W).role(), RoleName::Recovering);
    assert!(stage.process(W).disk.voted_epoch >= Epoch(2));
    stage.run(3 * TTL);
    assert!(stage.holder().is_some());
    assert_eq!(stage.violations, Vec::<String>::new());
}

#[test]
fn a_restored_candidate_hears_who_may_have_elected_it() {
    let mut stage = taken_over();
    let old = Durable::vote(Epoch(1), A);
    stage.start(B, Disk::Restored(old));
    stage.run(TTL);
    assert_eq!(stage.machine(B).role(), RoleName::Recovering, "the witness alone is not enough: A is a candidate");
    stage.restart(A);
    stage.run(2 * TTL);
    assert!(stage.process(B).disk.voted_epoch >= Epoch(2));
    assert!(stage.holder().is_some());
    assert_eq!(stage.violations, Vec::<String>::new());
}

#[test]
fn a_stopped_machine_is_fenced_and_deaf() {
    let mut stage = Stage::settled(Rules::ALL);
    assert_eq!(stage.tell(A, Event::Stop), [Effect::Fenced { epoch: Epoch(1) }]);
    assert_eq!(stage.holder(), None);
    assert_eq!(stage.tell(A, Event::Tick), [Effect::Dropped(DropReason::Stopped)]);
    assert_eq!(stage.machine(A).next_wake(stage.clock(A)), None);
}

#[test]
fn bad_input_is_dropped_and_counted() {
    let mut stage = Stage::settled(Rules::ALL);
    let before = stage.machine(W).clone();
    let ask = Message::Ask { epoch: Epoch(1), seq: 1 };
    let cases = [
        (MemberIndex(200), ask, DropReason::Stranger),
        (W, ask, DropReason::Stranger),
        (A, Message::Claim { epoch: Epoch(u64::MAX), seq: 0 }, DropReason::EpochTooLarge),
        (A, Message::AskYes { seq: 7, voted_epoch: Epoch(EPOCH_MAX.0 + 1) }, DropReason::EpochTooLarge),
        (B, Message::Release { epoch: Epoch(1), successor: Some(B) }, DropReason::NotReleasable),
        (A, Message::Release { epoch: Epoch(7), successor: Some(B) }, DropReason::NotReleasable),
        (A, Message::Renewed { epoch: Epoch(1), seq: u64::MAX }, DropReason::Stale),
        (A, Message::QueryAnswer { seq: 0, voted_epoch: EPOCH_MAX }, DropReason::Stale),
    ];
    for (from, message, reason) in cases {
        let effects = stage.tell(W, Event::Received { from, message });
        assert_eq!(effects, [Effect::Dropped(reason)], "{message:?} from {from}");
    }
    assert_eq!(*stage.machine(W), before);
    let effects = stage.tell(A, Event::Received { from: W, message: ask });
    assert_eq!(effects, [Effect::Dropped(DropReason::NotACandidate)], "witnesses only vote");
}

#[test]
fn an_epoch_without_a_next_ends_in_no_claim_and_no_panic() {
    let mut stage = taken_over();
    stage.crash(B);
    stage.restart(A);
    stage.run(5);
    let liar = Refusal { voted_epoch: EPOCH_MAX, retry_after: Millis(u64::MAX) };
    stage.tell(A, Event::Received { from: B, message: Message::AskNo { seq: 1, refusal: liar } });
    stage.run(5 * TTL);
    assert_eq!(stage.process(A).disk.voted_epoch, Epoch(1));
}

#[test]
fn numbers_of_a_group_have_limits() {
    let group = |members, candidates, ttl| Config::new(A, members, MemberSet::first(candidates), A, Millis(ttl)).map(|_| ());
    assert_eq!(group(3, 2, TTL), Ok(()));
    assert_eq!(group(2, 2, TTL), Err(Error::Members(2)));
    assert_eq!(group(8, 2, TTL), Err(Error::Members(8)));
    assert_eq!(group(3, 0, TTL), Err(Error::NoCandidate));
    assert_eq!(group(3, 5, TTL), Err(Error::NotAMember(MemberIndex(3))));
    assert_eq!(group(3, 2, 99), Err(Error::Ttl(Millis(99))));
    assert_eq!(group(3, 2, 3_600_001), Err(Error::Ttl(Millis(3_600_001))));
    let foreign = Config::new(A, 3, MemberSet::first(2), W, Millis(TTL));
    assert_eq!(foreign, Err(Error::NotACandidate(W)));
}

#[test]
fn messages_read_back() {
    let refusal = Refusal { voted_epoch: Epoch(3), retry_after: Millis(4) };
    let messages = [
        Message::Renew { epoch: Epoch(1), seq: 2, certified: true },
        Message::ClaimRefused { epoch: Epoch(1), seq: 2, refusal },
        Message::Release { epoch: Epoch(1), successor: None },
        Message::Query { seq: 9 },
    ];
    for message in messages {
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<Message>(&text).unwrap(), message, "{text}");
    }
}
