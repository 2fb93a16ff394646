//! Each lie beside its honest twin.

use super::*;
use crate::account::ENTRIES_MAX;
use crate::envelope::Keypair;
use crate::ids::SessionId;

const GROUP: GroupId = GroupId::from_bytes([7; 16]);
const CUSTOMER: u8 = 1;
const INSURER: u8 = 2;
const STORE: u8 = 4;
const STRANGER: u8 = 9;
/// Long after every account.
const JUDGED: WallTime = WallTime(10_000_000);

fn key(number: u8) -> Keypair {
    Keypair::from_secret(&[number; 32])
}

fn node(number: u8) -> NodeId {
    key(number).node_id()
}

fn terms() -> Terms {
    Terms { group: GROUP, members: vec![node(CUSTOMER), node(INSURER)], store: node(STORE), patience: Millis(3_600_000) }
}

fn phy(f_cnt: u32) -> Vec<u8> {
    format!("frame {f_cnt}").into_bytes()
}

fn heard(f_cnt: u32) -> Heard {
    Heard {
        device: DevEui::from_u64(1),
        session: SessionId::from_bytes([3; 8]),
        f_cnt,
        frame: FrameDigest::of(&phy(f_cnt)),
        heard_at: WallTime(1_000 + u64::from(f_cnt)),
        snr_tenth_db: -75,
    }
}

fn account(number: u64, previous: Option<&Envelope>, frames: &[u32]) -> Account {
    Account {
        group: GROUP,
        node: node(INSURER),
        number,
        previous: previous.map(Envelope::id),
        at: WallTime(60_000 * number),
        heard: frames.iter().map(|f_cnt| heard(*f_cnt)).collect(),
        dropped: Vec::new(),
    }
}

fn signed(account: &Account) -> Envelope {
    Envelope::sign(account, &key(INSURER))
}

fn receipt(by: u8, frames: &[u32]) -> Envelope {
    let events = frames.iter().map(|f_cnt| heard(*f_cnt).event()).collect();
    Envelope::sign(&Receipt { store: node(by), group: GROUP, events, at: WallTime(90_000) }, &key(by))
}

fn show(by: u8, frames: &[u32]) -> Envelope {
    let frames = frames.iter().map(|f_cnt| hex::encode(phy(*f_cnt))).collect();
    Envelope::sign(&ShownFrames { group: GROUP, node: node(by), frames }, &key(by))
}

fn found(statements: &[Envelope]) -> Vec<(NodeId, Offence, u64)> {
    let convictions = convict(&terms(), statements, JUDGED);
    let mut reversed = statements.to_vec();
    reversed.reverse();
    let same = |one: &Conviction, other: &Conviction| {
        (one.node, one.offence, &one.missing) == (other.node, other.offence, &other.missing)
    };
    let again = convict(&terms(), &reversed, JUDGED);
    assert!(convictions.len() == again.len() && convictions.iter().zip(&again).all(|(one, other)| same(one, other)));
    convictions.into_iter().map(|it| (it.node, it.offence, it.number)).collect()
}

#[test]
fn a_heard_frame_goes_over_the_wire_as_it_is() {
    let heard = Heard { snr_tenth_db: i16::MIN, ..heard(u32::MAX) };
    let text = serde_json::to_string(&heard).expect("text");
    assert_eq!(text.len(), 53);
    assert_eq!(serde_json::from_str::<Heard>(&text).expect("read back"), heard);
    for wrong in ["\"\"", "\"AAAA\"", "7", "\"not base64 at all, whatever the length of it may be\""] {
        assert!(serde_json::from_str::<Heard>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_insurer_that_hides_what_it_heard_is_convicted_and_its_honest_twin_is_not() {
    let first = signed(&account(1, None, &[1, 2, 3]));
    let second = signed(&account(2, Some(&first), &[4]));
    let honest = [first.clone(), receipt(STORE, &[1, 2]), second.clone(), receipt(STORE, &[3, 4])];
    assert_eq!(found(&honest), []);
    let hides_three = [first.clone(), receipt(STORE, &[1, 2]), second, receipt(STORE, &[4])];
    assert_eq!(found(&hides_three), [(node(INSURER), Offence::HeardNotServed, 1)]);
    let [conviction] = &convict(&terms(), &hides_three, JUDGED)[..] else { panic!("one") };
    assert_eq!((conviction.missing.as_slice(), conviction.proof.as_slice()), (&[heard(3).event()][..], &[first.id()][..]));
}

#[test]
fn a_frame_that_is_still_on_its_disk_excuses_it_and_another_frame_does_not() {
    let first = signed(&account(1, None, &[1]));
    assert_eq!(found(&[first.clone(), show(INSURER, &[1])]), []);
    // Whoever has it: nothing is lost.
    assert_eq!(found(&[first.clone(), show(CUSTOMER, &[1])]), []);
    assert_eq!(found(&[first, show(INSURER, &[2])]), [(node(INSURER), Offence::HeardNotServed, 1)]);
}

#[test]
fn what_was_given_up_and_said_so_is_no_secret() {
    let first = signed(&account(1, None, &[1, 2]));
    let mut second = account(2, Some(&first), &[]);
    second.dropped = vec![heard(1).event()];
    assert_eq!(found(&[first.clone(), signed(&second), receipt(STORE, &[2])]), []);
    assert_eq!(found(&[first, signed(&second)]), [(node(INSURER), Offence::HeardNotServed, 1)], "2 is nowhere");
}

#[test]
fn nobody_is_convicted_before_its_time() {
    let first = signed(&account(1, None, &[1]));
    let due = WallTime(60_000) + terms().patience;
    assert_eq!(convict(&terms(), std::slice::from_ref(&first), WallTime(due.0 - 1)), []);
    assert_eq!(convict(&terms(), &[first], due).len(), 1);
}

#[test]
fn receipts_of_others_excuse_nobody() {
    let first = signed(&account(1, None, &[1]));
    // By the insurer itself, by a stranger, of another group, and by the insurer in the store's name.
    let forged = Receipt { store: node(STORE), group: GROUP, events: vec![heard(1).event()], at: WallTime(1) };
    let elsewhere = Receipt { group: GroupId::from_bytes([8; 16]), ..forged.clone() };
    let mut cosigned = Envelope::sign(&forged, &key(INSURER));
    cosigned.cosign(&key(STRANGER));
    for receipt in [
        receipt(INSURER, &[1]),
        receipt(STRANGER, &[1]),
        Envelope::sign(&elsewhere, &key(STORE)),
        Envelope::sign(&forged, &key(INSURER)),
        cosigned,
    ] {
        assert_eq!(found(&[first.clone(), receipt]), [(node(INSURER), Offence::HeardNotServed, 1)]);
    }
}

#[test]
fn an_insurer_with_two_stories_is_convicted() {
    let first = signed(&account(1, None, &[1]));
    let other = signed(&account(1, None, &[2]));
    let receipts = receipt(STORE, &[1, 2, 3]);
    assert_eq!(found(&[first.clone(), first.clone(), receipts.clone()]), [], "one account shown twice is one");
    assert_eq!(found(&[first.clone(), other.clone(), receipts.clone()]), [(node(INSURER), Offence::TwoAccounts, 1)]);
    let second = signed(&account(2, Some(&first), &[3]));
    assert_eq!(found(&[first, second.clone(), receipts.clone()]), []);
    assert_eq!(found(&[other, second.clone(), receipts.clone()]), [(node(INSURER), Offence::TwoAccounts, 2)], "a broken chain");
    assert_eq!(found(&[second, receipts]), [], "what is not shown contradicts nobody");
}

#[test]
fn forged_replayed_and_malformed_statements_convict_nobody() {
    let of_insurer = account(1, None, &[1]);
    // In the insurer's name, of another group, by one who is no member, with a second signature.
    let forged = Envelope::sign(&of_insurer, &key(CUSTOMER));
    let elsewhere = signed(&Account { group: GroupId::from_bytes([8; 16]), ..of_insurer.clone() });
    let stranger = Envelope::sign(&Account { node: node(STRANGER), ..of_insurer.clone() }, &key(STRANGER));
    let mut cosigned = signed(&of_insurer);
    cosigned.cosign(&key(CUSTOMER));
    let mut tampered = signed(&of_insurer);
    tampered.payload = signed(&account(1, None, &[2])).payload;
    let twice = signed(&Account { heard: vec![heard(1), heard(1)], ..of_insurer.clone() });
    let too_many = signed(&Account { heard: (0..=4_096).map(heard).collect(), ..of_insurer.clone() });
    let without_chain = signed(&Account { number: 2, ..of_insurer });
    for envelope in [forged, elsewhere, stranger, cosigned, tampered, twice, too_many, without_chain] {
        assert_eq!(found(std::slice::from_ref(&envelope)), [], "{}", String::from_utf8_lossy(&envelope.payload[..80]));
    }
    let full = account(1, None, &(0..4_096).collect::<Vec<_>>());
    assert_eq!(full.heard.len(), ENTRIES_MAX);
    assert_eq!(found(&[signed(&full)]).len(), 1, "the bound itself is taken");
}

#[test]
fn coverage_counts_only_commitments_to_the_very_frame() {
    let frames = (0..4).map(|f_cnt| (heard(f_cnt).device, heard(f_cnt).event(), FrameDigest::of(&phy(f_cnt))));
    let mut claimed = account(1, None, &[0, 1, 2]);
    // It knows the counters that come, and not what is in them.
    claimed.heard[2].frame = FrameDigest::of(b"made up");
    let covered = coverage(frames, [&claimed]);
    assert_eq!(covered, BTreeMap::from([(DevEui::from_u64(1), Coverage { frames: 4, committed: 2 })]));
}
