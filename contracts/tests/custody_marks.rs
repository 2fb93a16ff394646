//! One history for each clause that looks pedantic: with it all is well, without it the history goes wrong. Delays are 1 ms, ttl is 1 s.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "custody/stage.rs"]
mod stage;

use contracts::custody::{Disk, Durable, Effect, Event, Mark, MemberIndex, Message, Readiness, Rules};
use contracts::ids::Epoch;
use stage::{A, B, Stage, TTL, W};

/// `history` says whether all was well at its end.
fn assert_decides(mark: Mark, history: fn(Rules) -> bool) {
    assert!(history(Rules::ALL), "with all rules the history is fine");
    assert!(!history(Rules::ALL.without(mark)), "without {mark} it must go wrong");
}

fn isolate(stage: &mut Stage, member: MemberIndex, cut: bool) {
    for other in stage.members() {
        stage.cut_both(member, other, cut);
    }
}

fn holds(member: MemberIndex) -> impl Fn(&Stage) -> bool {
    move |stage| stage.holder().is_some_and(|(holder, _)| holder == member)
}

/// A and B both vote for themselves in epoch 2; the witness hears only B, who holds. A is still cut off from B.
fn duel_that_b_wins(rules: Rules) -> Stage {
    let mut stage = Stage::settled(rules);
    isolate(&mut stage, A, true);
    stage.hold_back = Some(Box::new(|_, _, message| matches!(message, Message::Claim { .. })));
    stage.run_until(2 * TTL, |stage| stage.process(B).disk.voted_epoch == Epoch(2)).unwrap();
    stage.cut_both(A, W, false);
    stage.run_until(TTL, |stage| stage.process(A).disk.voted_epoch == Epoch(2)).unwrap();
    stage.held_back.retain(|(from, ..)| *from == B);
    stage.deliver_held_back();
    stage.run_until(10, holds(B)).unwrap();
    assert_eq!(stage.process(A).disk, Durable::vote(Epoch(2), A));
    stage
}

#[test]
fn s1_a_late_answer_counts_from_the_request_it_answers() {
    assert_decides(Mark::S1, |rules| {
        let mut stage = Stage::settled(rules);
        stage.hold_back = Some(Box::new(|_, to, message| to == A && matches!(message, Message::Renewed { .. })));
        stage.run_until(TTL, |stage| stage.held_back.len() == 2).unwrap();
        stage.cut_one(A, B, true);
        stage.cut_one(A, W, true);
        // Less than the 800 ms for which earlier answers count.
        stage.run(500);
        stage.deliver_held_back();
        stage.run_until(TTL, holds(B)).unwrap();
        stage.violations.is_empty()
    });
}

#[test]
fn s2_a_vote_is_on_disk_before_it_leaves() {
    assert_decides(Mark::S2, |rules| {
        let mut stage = Stage::settled(rules);
        stage.crash(A);
        stage.crash(B);
        stage.run(2 * TTL);
        let claim = Message::Claim { epoch: Epoch(9), seq: 1 };
        let effects = stage.tell(W, Event::Received { from: A, message: claim });
        let [first, second] = effects[..] else { panic!("one record and one answer, not {effects:?}") };
        assert!([first, second].iter().any(|effect| matches!(effect, Effect::Send { message: Message::Grant { .. }, .. })));
        matches!(first, Effect::Persist(_))
    });
}

#[test]
fn s3_a_restarted_member_abstains_because_it_forgot_its_promises() {
    assert_decides(Mark::S3, |rules| {
        let mut stage = Stage::settled(rules);
        isolate(&mut stage, A, true);
        stage.restart(B);
        stage.restart(W);
        stage.run_until(2 * TTL, holds(B));
        stage.violations.is_empty()
    });
}

#[test]
fn s4_a_vote_ends_promises_for_lower_epochs() {
    assert_decides(Mark::S4, |rules| {
        let mut stage = Stage::settled(rules);
        isolate(&mut stage, A, true);
        stage.run_until(2 * TTL, holds(B)).unwrap();
        let renewal = Message::Renew { epoch: Epoch(1), seq: 99, certified: false };
        let effects = stage.tell(W, Event::Received { from: A, message: renewal });
        effects.iter().all(|effect| !matches!(effect, Effect::Send { message: Message::Renewed { .. }, .. }))
    });
}

#[test]
fn s5_a_vote_is_a_promise() {
    assert_decides(Mark::S5, |rules| {
        let mut stage = Stage::settled(rules);
        isolate(&mut stage, A, true);
        stage.hold_back = Some(Box::new(|from, _, message| from == B && matches!(message, Message::Renew { .. })));
        stage.run_until(2 * TTL, holds(B)).unwrap();
        stage.cut_both(A, W, false);
        stage.run(TTL / 2);
        stage.violations.is_empty()
    });
}

#[test]
fn s6_only_the_one_voted_for_is_promised_anything() {
    assert_decides(Mark::S6, |rules| {
        let mut stage = duel_that_b_wins(rules);
        // A hears B's renewals of the epoch in which it voted for itself; then B and the witness lose each other.
        stage.cut_both(A, B, false);
        stage.run(TTL / 2);
        stage.cut_both(B, W, true);
        stage.run(3 * TTL);
        stage.violations.is_empty()
    });
}

#[test]
fn s7_a_grant_counts_from_the_sending_of_the_claim_and_a_late_one_for_nothing() {
    assert_decides(Mark::S7, |rules| {
        let mut stage = Stage::settled(rules);
        stage.crash(A);
        stage.hold_back = Some(Box::new(|_, to, message| to == B && matches!(message, Message::Grant { .. })));
        stage.run_until(2 * TTL, |stage| !stage.held_back.is_empty()).unwrap();
        isolate(&mut stage, B, true);
        stage.restart(A);
        stage.run_until(3 * TTL, holds(A)).unwrap();
        stage.deliver_held_back();
        stage.violations.is_empty()
    });
}

#[test]
fn s8_a_slow_clock_at_the_holder_and_fast_ones_elsewhere() {
    assert_decides(Mark::S8, |rules| {
        let mut stage = Stage::new(3, rules, 1);
        for (member, rate) in [(A, 900), (B, 1_100), (W, 1_100)] {
            stage.process_mut(member).rate = rate;
        }
        stage.start_all();
        stage.run(3 * TTL);
        isolate(&mut stage, A, true);
        stage.run_until(2 * TTL, |stage| stage.elections.iter().any(|(_, member, _)| *member == B)).unwrap();
        stage.violations.is_empty()
    });
}

#[test]
fn s9_a_holder_does_not_give_its_own_vote_away() {
    assert_decides(Mark::S9, |rules| {
        let mut stage = Stage::settled(rules);
        stage.hold_back = Some(Box::new(|_, to, message| to == B && matches!(message, Message::Renew { .. })));
        stage.run(3 * TTL);
        stage.violations.is_empty() && stage.holder() == Some((A, Epoch(1)))
    });
}

#[test]
fn s10_no_later_contract_makes_a_holder() {
    assert_decides(Mark::S10, |rules| {
        let mut stage = Stage::settled(rules);
        isolate(&mut stage, A, true);
        for member in [W, B] {
            let disk = Disk::Kept(stage.process(member).disk);
            stage.start_under(member, disk, B, Readiness::Ready);
        }
        stage.run(2 * TTL);
        stage.violations.is_empty()
    });
}

#[test]
fn s11_a_release_of_another_epoch_changes_nothing() {
    assert_decides(Mark::S11, |rules| {
        let mut stage = Stage::settled(rules);
        isolate(&mut stage, A, true);
        stage.run_until(2 * TTL, holds(B)).unwrap();
        let release = Message::Release { epoch: Epoch(1), successor: Some(A) };
        stage.tell(W, Event::Received { from: A, message: release });
        stage.cut_both(A, W, false);
        stage.run(TTL);
        stage.violations.is_empty()
    });
}

#[test]
fn s12_who_stands_by_a_winner_does_so_after_a_restart() {
    assert_decides(Mark::S12, |rules| {
        let mut stage = duel_that_b_wins(rules);
        stage.cut_both(A, B, false);
        stage.run_until(TTL, |stage| stage.machine(A).durable().holder() == Some(B)).unwrap();
        stage.cut_both(B, W, true);
        // The witness is free again; B holds by A's promises alone, of which A's next process knows nothing.
        stage.run(2 * TTL);
        stage.cut_both(A, B, true);
        stage.restart(A);
        stage.run(TTL);
        stage.violations.is_empty() && stage.elections.iter().any(|(_, member, epoch)| (*member, *epoch) == (B, Epoch(2)))
    });
}

#[test]
fn l6_who_lost_a_duel_stands_by_the_winner() {
    assert_decides(Mark::L6, |rules| {
        let mut stage = duel_that_b_wins(rules);
        stage.cut_both(A, B, false);
        stage.run(TTL);
        stage.crash(W);
        for _ in 0..5 * TTL {
            stage.run(1);
            if stage.holder() != Some((B, Epoch(2))) {
                return false;
            }
        }
        // It gave no second vote, whoever asks for one; and what it follows ends by release, without a wait.
        let claim = Message::Claim { epoch: Epoch(2), seq: 1 };
        let effects = stage.tell(A, Event::Received { from: B, message: claim });
        assert!(effects.iter().all(|effect| !matches!(effect, Effect::Send { message: Message::Grant { .. }, .. })));
        stage.restart(W);
        stage.tell(B, Event::Release { successor: Some(A) });
        stage.run_until(TTL, holds(A)).is_some_and(|took| took <= 3) && stage.violations.is_empty()
    });
}

#[test]
fn l1_a_deaf_holder_does_not_stand_in_the_way_for_ever() {
    assert_decides(Mark::L1, |rules| {
        let mut stage = Stage::settled(rules);
        stage.cut_one(B, A, true);
        stage.cut_one(W, A, true);
        stage.run_until(10 * TTL, holds(B)).is_some() && stage.violations.is_empty()
    });
}

#[test]
fn l2_a_candidate_that_cannot_win_goes_on_promising() {
    assert_decides(Mark::L2, |rules| {
        let mut stage = Stage::settled(rules);
        stage.cut_one(A, B, true);
        stage.run(3 * TTL);
        stage.cut_one(A, B, false);
        stage.run(TTL);
        stage.machine(B).view(stage.clock(B)).promised_to == Some(A) && stage.holder() == Some((A, Epoch(1)))
    });
}

#[test]
fn l3_two_that_vote_against_each_other_do_not_do_so_for_ever() {
    assert_decides(Mark::L3, |rules| {
        let mut stage = Stage::new(3, rules, 1);
        for member in [A, B] {
            stage.process_mut(member).disk = Durable::vote(Epoch(5), member);
            stage.restart(member);
        }
        stage.run_until(3 * TTL, |stage| stage.holder().is_some()).is_some()
    });
}

#[test]
fn l4_who_missed_a_vote_learns_of_it() {
    assert_decides(Mark::L4, |rules| {
        let mut stage = Stage::settled(rules);
        stage.crash(B);
        stage.restart(A);
        stage.run_until(TTL, |stage| stage.holder() == Some((A, Epoch(2)))).unwrap();
        stage.run(TTL);
        stage.restart(B);
        stage.run_until(TTL, |stage| stage.process(B).disk.voted_epoch == Epoch(2)).is_some()
    });
}

#[test]
fn l5_a_dead_successor_does_not_stand_in_the_way_for_ever() {
    assert_decides(Mark::L5, |rules| {
        let mut stage = Stage::settled(rules);
        stage.crash(B);
        stage.tell(A, Event::Release { successor: Some(B) });
        stage.run_until(10 * TTL, |stage| stage.holder() == Some((A, Epoch(2)))).is_some()
    });
}
