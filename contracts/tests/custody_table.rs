//! Every role of the machine against every event, rendered: `custody_table.md` beside this file is the golden page.
//! `UPDATE_GOLDEN=1` writes it anew.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;

use contracts::custody::{
    Config, Disk, Durable, Effect, Event, Machine, MemberIndex, MemberSet, Message, Readiness, Refusal, RoleName,
};
use contracts::ids::Epoch;
use contracts::time::{BootTime, Millis};

const A: MemberIndex = MemberIndex(0);
const B: MemberIndex = MemberIndex(1);
const W: MemberIndex = MemberIndex(2);
const TTL: Millis = Millis(1_000);
/// When each machine gets the event; clocks start at 0.
const NOW: BootTime = BootTime(5_000);

fn start(disk: Disk) -> Machine {
    let config = Config::new(B, 3, MemberSet::first(2), A, TTL).unwrap();
    let mut machine = Machine::start(config, disk, MemberSet::first(2), BootTime(0), 0);
    machine.apply(Event::Tick, BootTime(0), 0);
    machine
}

fn receive(machine: &mut Machine, from: MemberIndex, message: Message, at: BootTime) -> Vec<Effect> {
    machine.apply(Event::Received { from, message }, at, 0)
}

/// B follows A, who holds epoch 3.
fn bound() -> Machine {
    let mut machine = start(Disk::Kept(Durable::vote(Epoch(3), A)));
    machine.apply(Event::Ready(Readiness::Ready), BootTime(0), 0);
    receive(&mut machine, A, Message::Renew { epoch: Epoch(3), seq: 1, certified: false }, NOW - Millis(100));
    machine
}

fn asking() -> Machine {
    let mut machine = start(Disk::Kept(Durable::vote(Epoch(3), A)));
    machine.apply(Event::Ready(Readiness::Ready), NOW - Millis(10), 0);
    machine
}

fn claiming() -> Machine {
    let mut machine = asking();
    receive(&mut machine, W, Message::AskYes { seq: 1, voted_epoch: Epoch(3) }, NOW - Millis(10));
    machine
}

fn holding() -> Machine {
    let mut machine = claiming();
    receive(&mut machine, W, Message::Grant { epoch: Epoch(4), seq: 1 }, NOW - Millis(9));
    machine
}

/// Every state in which the machine answers differently, made by events.
fn states() -> Vec<(&'static str, RoleName, Machine)> {
    let mut unready = start(Disk::Kept(Durable::vote(Epoch(3), A)));
    unready.apply(Event::Tick, NOW - Millis(1), 0);
    let mut abstaining =
        Machine::start(*unready.config(), Disk::Kept(unready.durable()), MemberSet::first(2), NOW - Millis(5), 0);
    abstaining.apply(Event::Ready(Readiness::Ready), NOW - Millis(5), 0);
    let mut told_of_release = bound();
    told_of_release.apply(Event::Ready(Readiness::Unready), NOW - Millis(2), 0);
    receive(&mut told_of_release, A, Message::Release { epoch: Epoch(3), successor: Some(B) }, NOW - Millis(2));
    let mut lost = claiming();
    receive(&mut lost, A, Message::Renew { epoch: Epoch(4), seq: 7, certified: true }, NOW - Millis(5));
    let mut releasing = holding();
    releasing.apply(Event::Release { successor: Some(A) }, NOW - Millis(5), 0);
    let mut stopped = bound();
    stopped.apply(Event::Stop, NOW, 0);
    vec![
        ("recovering (disk lost)", RoleName::Recovering, start(Disk::Restored(Durable::default()))),
        ("follower, promised to A", RoleName::Follower, bound()),
        ("follower, abstaining after restart", RoleName::Follower, abstaining),
        ("follower, free but not ready", RoleName::Follower, unready),
        ("follower, A released to it while it was not ready", RoleName::Follower, told_of_release),
        ("asking", RoleName::Asking, asking()),
        ("claiming epoch 4", RoleName::Claiming, claiming()),
        ("follower, voted for itself in epoch 4, which A won", RoleName::Follower, lost),
        ("holding epoch 4", RoleName::Holding, holding()),
        ("released epoch 4 to A", RoleName::Follower, releasing),
        ("stopped", RoleName::Stopped, stopped),
    ]
}

fn events() -> Vec<Event> {
    let from = |from, message| Event::Received { from, message };
    let refusal = |voted_epoch| Refusal { voted_epoch: Epoch(voted_epoch), retry_after: Millis(7) };
    vec![
        Event::Tick,
        from(A, Message::Renew { epoch: Epoch(3), seq: 2, certified: false }),
        from(A, Message::Renew { epoch: Epoch(4), seq: 2, certified: false }),
        from(A, Message::Renew { epoch: Epoch(4), seq: 2, certified: true }),
        from(A, Message::Renew { epoch: Epoch(5), seq: 2, certified: false }),
        from(A, Message::Renew { epoch: Epoch(5), seq: 2, certified: true }),
        from(W, Message::Renewed { epoch: Epoch(4), seq: 2 }),
        from(W, Message::RenewRefused { epoch: Epoch(4), seq: 2, refusal: refusal(3) }),
        from(A, Message::Ask { epoch: Epoch(3), seq: 9 }),
        from(W, Message::AskYes { seq: 1, voted_epoch: Epoch(3) }),
        from(W, Message::AskNo { seq: 1, refusal: refusal(3) }),
        from(A, Message::Claim { epoch: Epoch(4), seq: 9 }),
        from(A, Message::Claim { epoch: Epoch(6), seq: 9 }),
        from(W, Message::Grant { epoch: Epoch(4), seq: 1 }),
        from(W, Message::ClaimRefused { epoch: Epoch(4), seq: 1, refusal: refusal(5) }),
        from(A, Message::Release { epoch: Epoch(3), successor: Some(B) }),
        from(A, Message::Release { epoch: Epoch(4), successor: Some(B) }),
        from(A, Message::Release { epoch: Epoch(2), successor: Some(B) }),
        from(W, Message::Query { seq: 5 }),
        from(A, Message::QueryAnswer { seq: 0, voted_epoch: Epoch(3) }),
        from(MemberIndex(6), Message::Query { seq: 5 }),
        Event::Eligible(MemberSet::EMPTY),
        Event::Ready(Readiness::Unready),
        Event::Ready(Readiness::SuccessorOnly),
        Event::Ready(Readiness::Ready),
        Event::Release { successor: Some(A) },
        Event::HandBackOverdue { epoch: Epoch(3) },
        Event::Stop,
    ]
}

fn name(member: MemberIndex) -> &'static str {
    ["A", "B", "W"].get(usize::from(member.0)).copied().unwrap_or("a stranger")
}

fn describe_message(message: &Message) -> String {
    let plain = |kind: &str, epoch: Epoch| format!("{kind} {epoch}");
    match *message {
        Message::Renew { epoch, certified: true, .. } => plain("Renew with certificate", epoch),
        Message::Renew { epoch, .. } => plain("Renew", epoch),
        Message::Renewed { epoch, .. } => plain("Renewed", epoch),
        Message::RenewRefused { epoch, refusal, .. } => format!("RenewRefused {epoch} (voted {})", refusal.voted_epoch),
        Message::Ask { .. } => "Ask".into(),
        Message::AskYes { voted_epoch, .. } => plain("AskYes above", voted_epoch),
        Message::AskNo { refusal, .. } => format!("AskNo (voted {}, again in {})", refusal.voted_epoch, refusal.retry_after),
        Message::Claim { epoch, .. } => plain("Claim", epoch),
        Message::Grant { epoch, .. } => plain("Grant", epoch),
        Message::ClaimRefused { epoch, refusal, .. } => {
            format!("ClaimRefused {epoch} (voted {}, again in {})", refusal.voted_epoch, refusal.retry_after)
        }
        Message::Release { epoch, successor } => format!("Release {epoch} to {}", successor.map_or("nobody", name)),
        Message::Query { .. } => "Query".into(),
        Message::QueryAnswer { voted_epoch, .. } => plain("QueryAnswer", voted_epoch),
    }
}

fn describe_event(event: &Event) -> String {
    match event {
        Event::Received { from, message } => format!("{} from {}", describe_message(message), name(*from)),
        Event::Eligible(members) => format!("eligible: {members:?}"),
        Event::Release { successor } => format!("command: release to {}", successor.map_or("nobody", name)),
        Event::HandBackOverdue { epoch } => format!("hand-back of {epoch} overdue"),
        Event::Tick | Event::Ready(_) | Event::Stop => format!("{event:?}"),
    }
}

fn describe_effect(effect: &Effect) -> String {
    match effect {
        Effect::Persist(durable) => {
            let released = durable
                .released
                .map_or(String::new(), |released| format!(", released to {}", released.successor.map_or("nobody", name)));
            let elected = durable.elected.map_or(String::new(), |elected| format!(", stands by {}", name(elected)));
            format!("**sync** vote {} for {}{released}{elected}", durable.voted_epoch, durable.voted_for.map_or("?", name))
        }
        Effect::Send { to, message } => format!("{} to {}", describe_message(message), name(*to)),
        Effect::Elected { epoch, grants } => format!("**elected** {epoch} by {grants:?}"),
        Effect::Fenced { epoch } => format!("**fenced** {epoch}"),
        Effect::Released { epoch, .. } => format!("**released** {epoch}"),
        Effect::Superseded { epoch, by } => format!("**superseded** {epoch} by {by}"),
        Effect::Dropped(reason) => format!("dropped: {reason:?}"),
    }
}

fn render() -> String {
    let mut page = String::from(
        "# The custody machine: every state, every event\n\nMade by `tests/custody_table.rs`. The machine is B of the group A, B (candidates) \
         and W (witness), ttl 1 s; it last voted in epoch 3, for A, unless the heading says otherwise.\n",
    );
    for (heading, role, machine) in states() {
        assert_eq!(machine.role(), role, "{heading}");
        write!(page, "\n## B is {heading}\n\n| event | what B does | then |\n|---|---|---|\n").unwrap();
        for event in events() {
            let mut after = machine.clone();
            let effects: Vec<String> = after.apply(event, NOW, 0).iter().map(describe_effect).collect();
            let done = if effects.is_empty() { "-".into() } else { effects.join("; ") };
            writeln!(page, "| {} | {done} | {:?} |", describe_event(&event), after.role()).unwrap();
        }
    }
    page
}

#[test]
fn every_state_and_event_is_on_the_golden_page() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/custody_table.md");
    let page = render();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert!(page == golden, "the machine differs from {path}; if it should, run with UPDATE_GOLDEN=1 and read the difference");
}

/// Rules that hold in every cell, said another way.
#[test]
fn what_no_state_does_on_any_event() {
    for (heading, _, machine) in states() {
        for event in events() {
            let mut after = machine.clone();
            let effects = after.apply(event, NOW, 0);
            let cell = format!("{heading} / {}", describe_event(&event));
            let (before, now) = (machine.durable(), after.durable());
            assert!(now.voted_epoch >= before.voted_epoch, "votes only go upwards: {cell}");
            let synced = effects.iter().rev().find_map(|effect| match effect {
                Effect::Persist(durable) => Some(*durable),
                _ => None,
            });
            assert_eq!(synced.unwrap_or(before), now, "what changed is synced: {cell}");
            let vote_leaves = effects
                .iter()
                .position(|effect| matches!(effect, Effect::Send { message: Message::Grant { .. } | Message::Claim { .. }, .. }));
            let sync = effects.iter().position(|effect| matches!(effect, Effect::Persist(_)));
            if now != before && vote_leaves.is_some() {
                assert!(sync < vote_leaves, "synced before it leaves: {cell}");
            }
            if machine.holds(NOW).is_some() && after.holds(NOW).is_none() {
                let said = |effect: &Effect| {
                    matches!(effect, Effect::Released { .. } | Effect::Fenced { .. } | Effect::Superseded { .. })
                };
                assert!(effects.iter().any(said), "the end of custody is told: {cell}");
            }
            assert!(after.next_wake(NOW).is_none_or(|wake| wake > NOW), "nothing is left undone: {cell}");
        }
    }
}
