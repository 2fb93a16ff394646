use contracts::envelope::Keypair;
use proptest::prelude::*;

use super::super::statement::BootId;
use super::*;

fn key(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

fn node(number: u8) -> NodeId {
    key(number).node_id()
}

const CLOCK: MemberClock = MemberClock { boot: BootId([3; 16]), ms: 77 };

/// A chain of 1 for 2, and what 2 has of it.
fn pair() -> (Chain, Heard) {
    let chain = Chain::new([5, 6], node(2), CLOCK);
    let heard = Heard::new(Envelope::sign(&chain.anchor, &key(1)), node(1), node(2)).expect("its own anchor");
    (chain, heard)
}

#[test]
fn only_a_link_newer_than_all_before_is_fresh() {
    let (mut chain, mut heard) = pair();
    assert!(heard.show().is_none());
    let mut lives: Vec<Life> = (0..70).map(|_| chain.reveal().expect("long enough")).collect();
    let late = lives.remove(40);
    let too_late = lives.remove(2);
    for life in &lives {
        assert_eq!(heard.take(*life), Taken::Fresh, "{}", life.index);
        assert_eq!(heard.take(*life), Taken::Stale, "{} twice", life.index);
    }
    // What it would prolong could not be shown: the newest link was shown before.
    assert_eq!([late, too_late].map(|life| heard.take(life)), [Taken::Stale; 2], "overtaken on its way");
    let shown = heard.show().expect("heard");
    assert_eq!(shown.check(node(1), node(2)), Some(Proven { began: CLOCK, index: 70 }));
    assert_eq!(shown.check(node(3), node(2)), None, "of another");
    assert_eq!(shown.check(node(1), node(3)), None, "for another");
}

#[test]
fn what_nobody_revealed_is_not_believed() {
    let (mut chain, mut heard) = pair();
    let first = chain.reveal().expect("long enough");
    assert_eq!(heard.take(first), Taken::Fresh);
    let shown = heard.show().expect("heard");
    let with = |index, link: &str| Shown { index, link: link.to_owned(), ..shown.clone() };
    for made_up in
        [with(2, &shown.link), with(0, &shown.link), with(1, &"0".repeat(20)), with(1, "zz"), with(u16::MAX, &shown.link)]
    {
        assert_eq!(made_up.check(node(1), node(2)), None, "{made_up:?}");
    }
    for index in [2, 0, u16::MAX] {
        assert_eq!(heard.take(Life { index, ..first }), Taken::Unknown, "{index}");
    }
    assert!(Heard::new(shown.anchor.clone(), node(1), node(3)).is_none(), "an anchor for another");
    assert!(Heard::new(shown.anchor, node(3), node(2)).is_none(), "an anchor of another");
}

#[test]
fn a_chain_ends_and_a_long_silence_gives_it_up() {
    let (mut chain, mut heard) = pair();
    let lives: Vec<Life> = std::iter::from_fn(|| chain.reveal()).collect();
    assert_eq!(lives.len(), usize::from(CHAIN_LINKS));
    let gap = usize::from(GAP_MAX);
    assert_eq!(heard.take(lives[gap]), Taken::Unknown, "one more than may be lost");
    assert_eq!(heard.take(lives[gap - 1]), Taken::Fresh);
    for life in lives.iter().skip(2 * gap - 1).step_by(gap) {
        assert_eq!(heard.take(*life), Taken::Fresh, "{}", life.index);
    }
}

#[test]
fn an_anchor_goes_along_until_there_is_an_answer_and_again_when_it_is_asked_for() {
    let (mut one, mut two) = (Lives::default(), Lives::default());
    let mut secret = 0;
    let mut send = |one: &mut Lives, two: &mut Lives, is_anchor_lost: bool| {
        secret += 1;
        let anchor = one.anchor(node(2), CLOCK, || [secret, 9]).map(|anchor| Envelope::sign(anchor, &key(1)));
        let was_sent = anchor.is_some();
        if let Some(anchor) = anchor.filter(|_| !is_anchor_lost) {
            assert!(two.hear_anchor(anchor, node(1), node(2)));
        }
        (was_sent, one.reveal().map(|life| two.take(life)))
    };
    assert_eq!(send(&mut one, &mut two, true), (true, Some(Taken::Unknown)));
    one.give_up();
    assert_eq!(send(&mut one, &mut two, false), (true, Some(Taken::Fresh)));
    assert_eq!(send(&mut one, &mut two, false), (true, Some(Taken::Fresh)), "no answer yet");
    one.note_answer();
    assert_eq!(send(&mut one, &mut two, false), (false, Some(Taken::Fresh)));
    for _ in 3..usize::from(CHAIN_LINKS) - LINKS_LEFT_MIN {
        assert_eq!(send(&mut one, &mut two, false), (false, Some(Taken::Fresh)));
    }
    assert_eq!(send(&mut one, &mut two, false).1, Some(Taken::Fresh));
    assert_eq!(send(&mut one, &mut two, false), (true, Some(Taken::Fresh)), "the next chain, in time");
    // The other's process is a new one.
    two = Lives::default();
    one.note_answer();
    assert_eq!(send(&mut one, &mut two, false), (false, Some(Taken::Unknown)));
    one.give_up();
    one.give_up();
    assert_eq!(send(&mut one, &mut two, false), (true, Some(Taken::Fresh)));
    assert!(two.show().is_some_and(|shown| shown.check(node(1), node(2)).is_some()));
}

proptest! {
    #[test]
    fn guesses_are_refused(index in any::<u16>(), link in any::<[u8; LINK_BYTES]>()) {
        let (_, mut heard) = pair();
        prop_assert_eq!(heard.take(Life { index, link }), Taken::Unknown);
    }
}
