//! Forged, altered and replayed statements are told from good ones, by every member.

use bytes::Bytes;
use contracts::custody::{Config, Disk, Durable, Machine, MemberIndex, MemberSet, Message, Readiness, Refusal};
use contracts::envelope::{Envelope, Keypair};
use contracts::ids::{Epoch, GroupId, NodeId};
use contracts::time::{BootTime, Millis};
use kit::clock::Clock;

use super::certificate::Certificate;
use super::group::{Attachment, Forged, Group, Signer};
use super::hold::Hold;
use super::statement::{BootId, Digest, Grant, MemberClock};
use super::view::GroupConfig;
use super::wire::{Blob, Said, Signed};

const GROUP: GroupId = GroupId::from_bytes([7; 16]);

fn key(member: u8) -> Keypair {
    Keypair::from_secret(&[member + 1; 32])
}

fn node(member: u8) -> NodeId {
    key(member).node_id()
}

fn group_of(me: u8, group: GroupId) -> Group {
    let members = vec![node(0), node(1), node(2)];
    let candidates: MemberSet = [MemberIndex(0), MemberIndex(1)].into_iter().collect();
    let config = Config::new(MemberIndex(me), 3, candidates, MemberIndex(0), Millis(1_000)).expect("valid");
    let machine = Machine::start(config, Disk::Kept(Durable::default()), candidates, BootTime(0), 0);
    let config = GroupConfig {
        group,
        candidates: members[..2].to_vec(),
        eligible: members[..2].to_vec(),
        first_holder: members[0],
        members,
        ttl: Millis(1_000),
        readiness: Readiness::Ready,
    };
    Group::new(config, machine, Hold::new(Clock::manual()), None)
}

const DECIDED: BootTime = BootTime(3);

/// What `from` says to `to`, as the driver would send it: two milliseconds after it was decided.
fn say(from: u8, to: u8, message: Message) -> Said {
    let keypair = key(from);
    let signer = Signer { keypair: &keypair, boot: BootId([1; 16]), now: BootTime(5), statements: None, heard: &|_| None };
    let records = |_| Bytes::from_static(b"records");
    group_of(from, GROUP).say(MemberIndex(to), message, DECIDED, &signer, &records).expect("can be said")
}

fn all_messages() -> Vec<Message> {
    let (epoch, seq, voted_epoch) = (Epoch(4), 9, Epoch(3));
    let refusal = Refusal { voted_epoch, retry_after: Millis(50) };
    vec![
        Message::Renew { epoch, seq, certified: false },
        Message::Renewed { epoch, seq },
        Message::RenewRefused { epoch, seq, refusal },
        Message::Ask { epoch, seq },
        Message::AskYes { seq, voted_epoch },
        Message::AskNo { seq, refusal },
        Message::Claim { epoch, seq },
        Message::Grant { epoch, seq },
        Message::ClaimRefused { epoch, seq, refusal },
        Message::Release { epoch, successor: Some(MemberIndex(1)) },
        Message::Query { seq },
        Message::QueryAnswer { seq, voted_epoch },
    ]
}

#[test]
fn every_message_arrives_as_it_was_meant() {
    for message in all_messages() {
        let opened = group_of(1, GROUP).open(node(0), say(0, 1, message)).map(|(message, _)| message);
        assert_eq!(opened, Ok(message));
    }
}

#[test]
fn a_vote_names_the_time_from_which_its_promise_counts() {
    let Said::Grant { signed, .. } = say(0, 1, Message::Grant { epoch: Epoch(4), seq: 9 }) else { panic!("a vote") };
    let grant = signed.envelope::<Grant>(node(0)).verify::<Grant>().expect("signed").statement;
    assert_eq!(grant.clock.ms, DECIDED.0, "not that at which it left the disk");
}

#[test]
fn what_is_signed_is_refused_from_another_for_another_and_in_another_group() {
    let mut signed = 0;
    for message in all_messages() {
        let said = say(0, 1, message);
        let is_signed = matches!(said, Said::Ask(_) | Said::Grant { .. } | Said::Refusal(_) | Said::Release { .. });
        if !is_signed {
            continue;
        }
        signed += 1;
        let opened = |group: Group, from, said: &Said| group.open(from, said.clone()).map(|(message, _)| message);
        assert_eq!(opened(group_of(1, GROUP), node(2), &said), Err(Forged), "in another's name: {message:?}");
        assert_eq!(opened(group_of(1, GroupId::from_bytes([8; 16])), node(0), &said), Err(Forged), "replayed: {message:?}");
        let to_one = matches!(said, Said::Grant { .. } | Said::Refusal(_));
        let elsewhere = opened(group_of(2, GROUP), node(0), &said);
        assert_eq!(elsewhere.is_err(), to_one, "shown to a third member: {message:?}");
    }
    assert_eq!(signed, 6, "asks, refusals, grants, releases");
}

#[test]
fn attachments_are_bound_to_what_was_signed() {
    let (epoch, seq) = (Epoch(4), 9);
    let open = |said| group_of(1, GROUP).open(node(0), said).map(|(_, attachment)| attachment);
    let Said::Grant { signed, records } = say(0, 1, Message::Grant { epoch, seq }) else { panic!("a grant") };
    assert!(matches!(open(Said::Grant { signed: signed.clone(), records }), Ok(Attachment::Grant { .. })));
    let altered = Blob(Bytes::from_static(b"other records"));
    assert!(matches!(open(Said::Grant { signed: signed.clone(), records: altered.clone() }), Err(Forged)));
    assert!(matches!(open(Said::Release { signed: signed.clone(), handover: altered.clone() }), Err(Forged)), "another kind");
    assert!(matches!(open(Said::Ask(signed)), Err(Forged)), "another kind");
    let Said::Release { signed, handover } = say(0, 1, Message::Release { epoch, successor: None }) else { panic!("a release") };
    assert!(matches!(open(Said::Release { signed: signed.clone(), handover }), Ok(Attachment::Release(_))));
    assert!(matches!(open(Said::Release { signed, handover: altered }), Err(Forged)));
}

#[test]
fn a_certified_renewal_needs_a_certificate_of_its_sender_and_epoch() {
    let (epoch, seq) = (Epoch(4), 9);
    let clock = MemberClock { boot: BootId([1; 16]), ms: 5 };
    let grant = Grant { group: GROUP, epoch, candidate: node(0), seq, records: Digest::of(b""), clock };
    let by = |voters: &[u8]| {
        let grants = voters.iter().map(|voter| Envelope::sign(&grant, &key(*voter))).collect();
        let certificate = Certificate { group: GROUP, epoch, holder: node(0), grants };
        Some(Blob(serde_json::to_vec(&certificate).expect("json").into()))
    };
    let open = |from, epoch, certificate| group_of(1, GROUP).open(from, Said::Renew { epoch, seq, certificate }).map(|(m, _)| m);
    assert_eq!(open(node(0), epoch, by(&[0, 2])), Ok(Message::Renew { epoch, seq, certified: true }));
    assert_eq!(open(node(2), epoch, by(&[0, 2])), Err(Forged), "somebody else's");
    assert_eq!(open(node(0), epoch.next(), by(&[0, 2])), Err(Forged), "of another epoch");
    assert_eq!(open(node(0), epoch, by(&[0])), Err(Forged), "of a minority");
    assert_eq!(open(node(0), epoch, by(&[0, 7])), Err(Forged), "with a stranger");
    assert_eq!(open(node(0), epoch, Some(Blob(Bytes::from_static(b"{}")))), Err(Forged), "of nothing");
    assert_eq!(open(node(0), epoch, None), Ok(Message::Renew { epoch, seq, certified: false }));
}

#[test]
fn numbers_that_json_readers_would_bend_are_refused() {
    let clock = MemberClock { boot: BootId([1; 16]), ms: 5 };
    let grant = Grant { group: GROUP, epoch: Epoch(1 << 53), candidate: node(1), seq: 1, records: Digest::of(b""), clock };
    let said = Said::Grant { signed: Signed::new(Envelope::sign(&grant, &key(0))), records: Blob(Bytes::new()) };
    assert!(group_of(1, GROUP).open(node(0), said).is_err());
}
