use contracts::contract::Outcome;

use super::*;

const NOW: WallTime = WallTime(1_000_000_000);
const GROUP: GroupId = GroupId::from_bytes([4; 16]);
const PROVIDER: NodeId = NodeId::from_bytes([2; 32]);
const CLOUD: NodeId = NodeId::from_bytes([5; 32]);
const CONTRACT: ContractId = ContractId::from_bytes([9; 32]);

fn id(n: u8) -> StatementId {
    StatementId::from_bytes([n; 32])
}

fn listed(n: u8, kind: ListingKind) -> Listed {
    Listed { id: id(n), kind, valid_from: NOW - Millis(1), valid_until: NOW + VALIDITY, fits: true }
}

fn pair(n: u8, part: Part, state: MatchState) -> Pair {
    Pair { id: id(n), offer: id(10), demand: id(20), part, state, until: NOW + Millis(60_000) }
}

fn deal(part: Part, state: State) -> Deal {
    Deal {
        id: CONTRACT,
        part,
        state,
        group: GROUP,
        matched_by: Some(id(30)),
        provider: PROVIDER,
        receiver: CLOUD,
        overdue: false,
        winding_up: false,
    }
}

fn customer() -> Situation {
    Situation { now: NOW, buys_for: Some(GROUP), ..Situation::default() }
}

fn provider() -> Situation {
    Situation { now: NOW, sells: true, ..Situation::default() }
}

fn check(name: &str, situation: &Situation, expected: &[Step]) {
    assert_eq!(steps(situation), expected.iter().copied().collect(), "{name}");
}

#[test]
fn listings_follow_what_is_wanted() {
    use ListingKind::{Demand, Offer};
    let offer = listed(10, Offer);
    let held = pair(30, Part::Provider, MatchState::Held);
    let admitted = BTreeSet::from([id(30)]);
    check("nobody wants anything", &Situation { now: NOW, ..Situation::default() }, &[]);
    check("something is free", &provider(), &[Step::List(Offer)]);
    check("it is listed", &Situation { listings: vec![offer], ..provider() }, &[]);
    check(
        "nothing is free any more",
        &Situation { sells: false, listings: vec![offer], ..provider() },
        &[Step::Withdraw(id(10))],
    );
    let other = Listed { fits: false, ..offer };
    check("what is free changed", &Situation { listings: vec![other], ..provider() }, &[Step::Withdraw(id(10))]);
    let negotiating = Situation { listings: vec![other], pairs: vec![held], admitted: admitted.clone(), ..provider() };
    check("it changed while somebody negotiates", &negotiating, &[]);
    let gone = Situation { sells: false, ..negotiating };
    check("nothing is free while somebody negotiates", &gone, &[]);
    let ending = Listed { valid_until: NOW + RENEWAL - Millis(1), ..offer };
    check("it ends soon", &Situation { listings: vec![ending], ..provider() }, &[Step::List(Offer)]);
    let next = Listed { valid_from: ending.valid_until, valid_until: ending.valid_until + VALIDITY, ..listed(11, Offer) };
    check("its successor is listed", &Situation { listings: vec![ending, next], ..provider() }, &[]);
    let wrong = Listed { fits: false, ..next };
    check("the successor is wrong", &Situation { listings: vec![ending, wrong], ..provider() }, &[Step::Withdraw(id(11))]);
    let over = Listed { valid_until: NOW, ..offer };
    check("it has ended", &Situation { listings: vec![over], ..provider() }, &[Step::List(Offer)]);
    let twice = Situation { listings: vec![listed(11, Offer), offer], ..provider() };
    check("a restart listed twice", &twice, &[Step::Withdraw(id(10))]);
    check("insurance is wanted", &customer(), &[Step::List(Demand)]);
    let insured = Situation { deals: vec![deal(Part::Customer, State::Standby { activations: 0 })], ..customer() };
    let told = BTreeSet::from([(CONTRACT, PROVIDER), (CONTRACT, CLOUD)]);
    check(
        "insured",
        &Situation { announced: told.clone(), listings: vec![listed(20, Demand)], ..insured },
        &[Step::Withdraw(id(20))],
    );
    let over = Situation {
        announced: told,
        deals: vec![deal(Part::Customer, State::Ended { outcome: Outcome::Honoured })],
        ..customer()
    };
    check("insurance has ended", &over, &[Step::List(Demand)]);
}

#[test]
fn no_contract_is_made_before_custody_is_back_and_the_pause_is_over() {
    use ListingKind::Demand;
    for outcome in [Outcome::Breached, Outcome::Cancelled, Outcome::Honoured, Outcome::Expired] {
        let ended = |winding_up| Situation {
            deals: vec![Deal { winding_up, ..deal(Part::Customer, State::Ended { outcome }) }],
            ..customer()
        };
        check("custody is with the provider", &ended(true), &[]);
        let listed_before = Situation { listings: vec![listed(20, Demand)], ..ended(true) };
        check("a demand from before", &listed_before, &[Step::Withdraw(id(20))]);
        let matched = Situation {
            pairs: vec![pair(30, Part::Customer, MatchState::Held)],
            admitted: BTreeSet::from([id(30)]),
            ..listed_before
        };
        check("a match from before", &matched, &[]);
        check("custody is back", &ended(false), &[Step::List(Demand)]);
        let other = Situation { buys_for: Some(GroupId::from_bytes([5; 16])), ..ended(true) };
        check("another group is another matter", &other, &[Step::List(Demand)]);
        let of_insurer = Deal { part: Part::Provider, winding_up: true, ..deal(Part::Customer, State::Ended { outcome }) };
        check(
            "what this node insured is another matter",
            &Situation { deals: vec![of_insurer], ..customer() },
            &[Step::List(Demand)],
        );
    }
    let paused = |from| Situation { buys_from: Some(from), ..customer() };
    check("in the pause", &paused(NOW + Millis(1)), &[]);
    check("after it", &paused(NOW), &[Step::List(Demand)]);
}

#[test]
fn a_match_becomes_a_contract_step_by_step() {
    use ListingKind::Demand;
    let listings = vec![listed(20, Demand)];
    let matched = Situation { listings: listings.clone(), pairs: vec![pair(30, Part::Customer, MatchState::Held)], ..customer() };
    check("a match", &matched, &[Step::Admit(id(30))]);
    let known = Situation { admitted: BTreeSet::from([id(30), id(31)]), ..matched };
    check("the other side is known", &known, &[Step::Meet(id(30))]);
    check("in the pause after a refusal", &Situation { buys_from: Some(NOW + Millis(1)), ..known.clone() }, &[]);
    check("after it", &Situation { buys_from: Some(NOW), ..known.clone() }, &[Step::Meet(id(30))]);
    check("the demand is not ours any more", &Situation { listings: vec![], ..known.clone() }, &[Step::List(Demand)]);
    check("it came to nothing", &Situation { given_up: BTreeSet::from([id(30)]), ..known.clone() }, &[]);
    check("the hold ran out", &Situation { now: NOW + Millis(60_000), ..known.clone() }, &[]);
    let two = Situation {
        pairs: vec![pair(31, Part::Customer, MatchState::Held), pair(30, Part::Customer, MatchState::Held)],
        ..known.clone()
    };
    check("two at once", &two, &[Step::Meet(id(30))]);
    let with = |state| Situation { deals: vec![deal(Part::Customer, state)], ..known.clone() };
    check("written", &with(State::Proposed), &[Step::Sign(CONTRACT)]);
    let confirm = Step::Confirm { pair: id(30), contract: CONTRACT };
    check("signed by both", &with(State::Agreed), &[Step::Submit(CONTRACT), confirm]);
    let announce = [PROVIDER, CLOUD].map(|to| Step::Announce { contract: CONTRACT, to });
    check("in force", &with(State::Preparing), &[confirm, announce[0], announce[1]]);
    let told = Situation { announced: BTreeSet::from([(CONTRACT, PROVIDER)]), ..with(State::Preparing) };
    check("one was told", &told, &[confirm, announce[1]]);
    let confirmed = Situation { pairs: vec![pair(30, Part::Customer, MatchState::Confirmed)], ..with(State::Preparing) };
    check("confirmed", &confirmed, &[Step::Withdraw(id(20)), announce[0], announce[1]]);
    check("refused", &with(State::Ended { outcome: Outcome::Cancelled }), &[Step::Meet(id(30))]);
}

#[test]
fn a_provider_prepares_and_helps_a_forgetful_customer() {
    let base = Situation { listings: vec![listed(10, ListingKind::Offer)], ..provider() };
    let with = |state| Situation { deals: vec![deal(Part::Provider, state)], ..base.clone() };
    check("the customer has to submit", &with(State::Agreed), &[]);
    let late = Situation { deals: vec![Deal { overdue: true, ..deal(Part::Provider, State::Agreed) }], ..base.clone() };
    check("it did not", &late, &[Step::Submit(CONTRACT)]);
    check("in force", &with(State::Preparing), &[Step::Prepare(CONTRACT)]);
    check("ready", &with(State::Standby { activations: 0 }), &[]);
    let receiver = Situation { now: NOW, deals: vec![deal(Part::Receiver, State::Preparing)], ..Situation::default() };
    check("a cloud only listens", &receiver, &[]);
}
