//! Tenants' downlinks: encrypted by question and answer, sent with an answer, reported, and handed over; and the share of the hour that a
//! gateway may be on air.

mod common;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{GATEWAY, GROUP, Mote, Rig, address, downlinks, tx_ack};
use contracts::ids::DevEui;
use contracts::time::{BootTime, Millis, WallTime};
use lora_bridge::bridge::Config;
use lora_bridge::mac::adr::AdrMode;
use lora_bridge::mac::queue::{Delivery, Downlink, Encrypted, Failure, ITEMS_MAX, Outcome, Question, Refused};
use lora_bridge::{CounterSource, Input, MissedReason, Mode, Now, Output, SessionState, Transmit, Window};
use lorawan::keys::AES128;
use lorawan::parser::{DataHeader, EncryptedDataPayload};
use rand::{Rng, SeedableRng};

fn now(rig: &Rig) -> Now {
    Now { boot: BootTime(rig.now), wall: WallTime(1_800_000_000_000 + rig.now) }
}

fn downlink(id: &str) -> Downlink {
    Downlink {
        id: id.to_owned(),
        f_port: 7,
        payload: Bytes::copy_from_slice(id.as_bytes()),
        confirmed: false,
        delivery: Delivery::AtMostOnce,
        priority: 0,
        expires_at: WallTime(1_900_000_000_000),
    }
}

fn queue(rig: &mut Rig, mote: &Mote, downlink: Downlink) -> Result<Vec<Output>, Refused> {
    let mut out = Vec::new();
    let at = now(rig);
    rig.bridge.queue_downlink(GROUP, mote.device, downlink, at, &mut out).map(|()| out)
}

fn questions(out: &[Output]) -> Vec<(DevEui, Question)> {
    let question = |output: &Output| match output {
        Output::EncryptWanted { device, question, .. } => Some((*device, question.clone())),
        _ => None,
    };
    out.iter().filter_map(question).collect()
}

fn outcomes(out: &[Output]) -> Vec<(String, Outcome)> {
    let outcome = |output: &Output| match output {
        Output::Downlink { id, outcome, .. } => Some((id.clone(), outcome.clone())),
        _ => None,
    };
    out.iter().filter_map(outcome).collect()
}

/// The tenant: answers every question.
fn encrypt(rig: &mut Rig, out: &[Output]) -> Vec<Output> {
    let mut all = Vec::new();
    for (device, question) in questions(out) {
        let counters = question.f_cnt_first..question.f_cnt_first + u32::from(question.count);
        let payloads = counters.map(|f_cnt| Mote::payload_on_air(&question.payload, f_cnt).into()).collect();
        let (id, session, f_cnt_first) = (question.id, question.session, question.f_cnt_first);
        all.extend(rig.apply(Input::Encrypted { answer: Encrypted { device, id, session, f_cnt_first, payloads } }));
    }
    all
}

#[derive(Debug, PartialEq, Eq)]
struct Heard {
    confirmed: bool,
    ack: bool,
    pending: bool,
    port: Option<u8>,
    payload: Vec<u8>,
    datr: String,
}

fn heard(transmit: &Transmit, mote: &Mote) -> Heard {
    let json: serde_json::Value = serde_json::from_slice(&transmit.bytes[4..]).expect("JSON");
    let phy = STANDARD.decode(json["txpk"]["data"].as_str().expect("a text")).expect("base64");
    let frame = EncryptedDataPayload::new(phy.clone()).expect("a frame");
    assert!(frame.validate_mic(&AES128(mote.key), transmit.f_cnt_down), "integrity code");
    let f_ctrl = frame.fhdr().fctrl();
    let head = 8 + usize::from(f_ctrl.f_opts_len());
    let end = phy.len() - 4;
    Heard {
        confirmed: phy[0] == 0xa0,
        ack: f_ctrl.ack(),
        pending: f_ctrl.f_pending(),
        port: (head < end).then(|| phy[head]),
        payload: phy[(head + 1).min(end)..end].to_vec(),
        datr: json["txpk"]["datr"].as_str().expect("a text").to_owned(),
    }
}

fn one() -> (Mote, Rig) {
    let mote = Mote::new(1);
    let rig = Rig::serving(std::slice::from_ref(&mote));
    (mote, rig)
}

#[test]
fn a_payload_goes_with_the_next_answer_under_the_counter_for_which_it_is_encrypted() {
    let (mote, mut rig) = one();
    let asked = queue(&mut rig, &mote, downlink("a")).expect("room");
    assert_eq!(questions(&asked).len(), 1);
    assert!(questions(&queue(&mut rig, &mote, downlink("a")).expect("the same")).is_empty(), "the same id is the same");
    // Not encrypted yet: the acknowledgement goes alone, and says that more waits.
    let out = rig.hear_and_commit(&mote.frame(0, true));
    let bare = heard(downlinks(&out)[0], &mote);
    assert_eq!((bare.ack, bare.pending, bare.port), (true, true, None));
    assert!(encrypt(&mut rig, &asked).is_empty(), "nothing is sent without an uplink");
    rig.now += 3_000;
    let out = rig.hear_and_commit(&mote.frame(1, false));
    let sent = downlinks(&out)[0];
    let full = heard(sent, &mote);
    assert_eq!((full.ack, full.pending, full.port, full.confirmed), (false, false, Some(7), false));
    assert_eq!((sent.f_cnt_down, full.payload), (1, Mote::payload_on_air(b"a", 1)));
    let ack = tx_ack(sent, "");
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &ack });
    assert_eq!(outcomes(&out), [("a".to_owned(), Outcome::Sent { f_cnt: 1, gateway: GATEWAY })]);
    rig.now += 3_000;
    assert!(downlinks(&rig.hear_and_commit(&mote.frame(2, false))).is_empty(), "once");
    assert!(questions(&queue(&mut rig, &mote, downlink("a")).expect("done")).is_empty(), "and never again under this id");
}

#[test]
fn an_answer_that_comes_while_the_window_is_open_is_in_time() {
    let (mote, mut rig) = one();
    let asked = queue(&mut rig, &mote, downlink("a")).expect("room");
    assert!(downlinks(&rig.hear_and_commit(&mote.frame(0, false))).is_empty());
    rig.now += 950;
    let out = encrypt(&mut rig, &asked);
    assert_eq!(downlinks(&out)[0].window, Window::Rx2);
}

#[test]
fn the_higher_priority_goes_first_and_the_queue_is_bounded() {
    let (mote, mut rig) = one();
    let mut out = Vec::new();
    for n in 0..ITEMS_MAX {
        let priority = u8::from(n == 9);
        let item = Downlink { priority, ..downlink(&format!("d{n:02}")) };
        out.extend(queue(&mut rig, &mote, item).expect("room"));
    }
    assert_eq!(queue(&mut rig, &mote, downlink("more")), Err(Refused::Full));
    assert_eq!(queue(&mut rig, &Mote::new(9), downlink("x")), Err(Refused::Unknown));
    let long = Downlink { payload: vec![0; 243].into(), ..downlink("long") };
    assert_eq!(queue(&mut rig, &Mote::new(1), long), Err(Refused::Form));
    let mut order = Vec::new();
    for f_cnt in 0..u32::try_from(ITEMS_MAX).expect("small") {
        rig.reserve(std::slice::from_ref(&mote), 100);
        let more = rig.advance(3_000);
        out.extend(more);
        encrypt(&mut rig, &out);
        rig.pull();
        out = rig.hear_and_commit(&mote.frame(f_cnt, false));
        let sent = downlinks(&out)[0].clone();
        order.push(String::from_utf8(heard(&sent, &mote).payload[..3].to_vec()).expect("text"));
        out.extend(rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&sent, "NONE") }));
    }
    assert_eq!(order[..4], ["d09", "d00", "d01", "d02"]);
    assert_eq!(rig.bridge.stats().payloads_waiting, 0);
}

#[test]
fn a_refusal_in_rx1_leads_to_rx2_with_a_payload_for_the_new_counter() {
    let (mote, mut rig) = one();
    let asked = queue(&mut rig, &mote, downlink("a")).expect("room");
    encrypt(&mut rig, &asked);
    let out = rig.hear_and_commit(&mote.frame(0, false));
    let sent = downlinks(&out)[0].clone();
    assert_eq!(sent.window, Window::Rx1);
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&sent, "COLLISION_PACKET") });
    let again = downlinks(&out)[0].clone();
    assert_eq!((again.window, again.f_cnt_down), (Window::Rx2, 1));
    assert_eq!(heard(&again, &mote).payload, Mote::payload_on_air(b"a", 1));
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&again, "TOO_LATE") });
    assert!(outcomes(&out).is_empty(), "not sent, so it waits");
    rig.now += 3_000;
    assert_eq!(downlinks(&rig.hear_and_commit(&mote.frame(1, false)))[0].f_cnt_down, 2);
}

#[test]
fn a_confirmed_downlink_is_sent_until_it_is_acknowledged() {
    let (mote, mut rig) = one();
    rig.reserve(std::slice::from_ref(&mote), 100);
    let asked = queue(&mut rig, &mote, Downlink { confirmed: true, ..downlink("a") }).expect("room");
    encrypt(&mut rig, &asked);
    for f_cnt in 0..3 {
        let out = rig.hear_and_commit(&mote.frame(f_cnt, false));
        let sent = downlinks(&out)[0].clone();
        assert!(heard(&sent, &mote).confirmed);
        assert_eq!(sent.f_cnt_down, f_cnt);
        let told = rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&sent, "") });
        assert_eq!(outcomes(&told).len(), 1, "sent");
        rig.now += 6_000;
        encrypt(&mut rig, &out);
    }
    let out = rig.hear(&mote.frame_with(3, false, 0x20, &[]));
    assert_eq!(outcomes(&out), [("a".to_owned(), Outcome::Acked { f_cnt: 2 })]);
    // Another one is given up in the end.
    let mut out = queue(&mut rig, &mote, Downlink { confirmed: true, ..downlink("b") }).expect("room");
    let mut sent = 0;
    for f_cnt in 4..20 {
        encrypt(&mut rig, &out);
        rig.pull();
        out = rig.hear_and_commit(&mote.frame(f_cnt, false));
        if let Some(transmit) = downlinks(&out).first().copied().cloned() {
            sent += 1;
            rig.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&transmit, "") });
        }
        rig.now += 6_000;
        rig.reserve(std::slice::from_ref(&mote), 100);
        let more = rig.advance(1_000);
        out.extend(more);
    }
    assert_eq!((sent, rig.bridge.stats().payloads_failed), (8, 1));
}

#[test]
fn what_nobody_reports_is_unknown_or_goes_again() {
    let (mote, mut rig) = one();
    let asked = queue(&mut rig, &mote, downlink("once")).expect("room");
    encrypt(&mut rig, &asked);
    assert_eq!(downlinks(&rig.hear_and_commit(&mote.frame(0, false))).len(), 1);
    let out = rig.advance(5_300);
    assert_eq!(outcomes(&out), [("once".to_owned(), Outcome::Failed(Failure::Unknown))]);
    let asked = queue(&mut rig, &mote, Downlink { delivery: Delivery::AtLeastOnce, ..downlink("least") }).expect("room");
    encrypt(&mut rig, &asked);
    assert_eq!(downlinks(&rig.hear_and_commit(&mote.frame(1, false))).len(), 1);
    assert!(outcomes(&rig.advance(5_300)).is_empty());
    assert_eq!(downlinks(&rig.hear_and_commit(&mote.frame(2, false))).len(), 1, "again");
    let late = Downlink { expires_at: now(&rig).wall + Millis(10_000), ..downlink("late") };
    queue(&mut rig, &mote, late).expect("room");
    let out = rig.advance(10_000);
    assert_eq!(outcomes(&out), [("late".to_owned(), Outcome::Expired)]);
}

#[test]
fn at_least_once_goes_to_the_other_node_which_has_it_encrypted_anew() {
    let (mote, mut a) = one();
    let item = Downlink { delivery: Delivery::AtLeastOnce, ..downlink("least") };
    let out = queue(&mut a, &mote, item).expect("room");
    let state = |out: &[Output]| -> Vec<SessionState> {
        out.iter().filter_map(|o| if let Output::StateDue { state, .. } = o { Some((**state).clone()) } else { None }).collect()
    };
    let told = state(&out);
    assert_eq!(told.len(), 1);
    queue(&mut a, &mote, downlink("most")).expect("room");
    encrypt(&mut a, &out);
    a.hear_and_commit(&mote.frame(0, false));
    // A dies without a word. B begins above all that A may have used.
    let mut b = Rig::standby(std::slice::from_ref(&mote));
    b.now = a.now;
    let json = serde_json::to_string(&told).expect("JSON");
    b.apply(Input::Import { states: serde_json::from_str(&json).expect("its own JSON") });
    b.apply(Input::CountersFrom { entries: vec![(mote.device, 16)], source: CounterSource::Reservation });
    let out = b.serve(2, None);
    let asked = questions(&out);
    assert_eq!((asked[0].1.id.as_str(), asked[0].1.f_cnt_first), ("least", 16));
    b.reserve(std::slice::from_ref(&mote), 32);
    encrypt(&mut b, &out);
    b.now += 3_000;
    let out = b.hear_and_commit(&mote.frame(1, false));
    let sent = downlinks(&out)[0].clone();
    assert_eq!((sent.f_cnt_down, heard(&sent, &mote).payload), (16, Mote::payload_on_air(b"least", 16)));
    let out = b.apply(Input::Datagram { from: address(1_001), bytes: &tx_ack(&sent, "") });
    // A comes back and hears that it is done.
    let done = state(&out);
    assert_eq!(done[0].queue.done, ["least"]);
    a.custody(Mode::Following);
    a.apply(Input::Import { states: done });
    assert!(a.bridge.state(mote.device).expect("there").queue.open.is_empty());
    assert_eq!(a.bridge.stats().payloads_waiting, 1, "what was never tried and is A's own");
}

#[test]
fn a_gateway_is_never_longer_on_air_than_its_share_and_says_so() {
    let motes: Vec<Mote> = (0..40).map(Mote::new).collect();
    let config = Config { sessions_max: 100, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.prepare(&motes);
    rig.serve(1, None);
    rig.reserve(&motes, 1_000);
    let (mut in_rx1, mut in_rx2) = (0_u32, 0_u32);
    for n in 0..4_000_u32 {
        rig.now += 700;
        if n % 20 == 0 {
            rig.pull();
        }
        let mote = &motes[usize::try_from(n % 40).expect("small")];
        for transmit in downlinks(&rig.hear_and_commit(&mote.frame(n / 40, true))) {
            match transmit.window {
                Window::Rx1 => in_rx1 += 1,
                Window::Rx2 => in_rx2 += 1,
            }
        }
    }
    // 46 minutes: SF9 acknowledgements of 12 bytes take 145 ms of 36 s in RX1, 991 ms of 360 s in RX2 on SF12.
    assert!(in_rx1 <= 249 && in_rx1 > 150, "{in_rx1} in RX1");
    assert!(in_rx2 <= 363 && in_rx2 > 300, "{in_rx2} in RX2");
    let stats = rig.bridge.stats();
    let (missed, busy) = (stats.missed(MissedReason::DutyCycle), stats.missed(MissedReason::Busy));
    assert_eq!(u64::from(4_000 - in_rx1 - in_rx2), missed + busy, "every answer that was refused is counted");
    assert!(missed > busy * 5, "{missed} for their share, {busy} while it sent another");
    for band in rig.bridge.duty_cycle(BootTime(rig.now)) {
        assert!(band.spent_micros <= band.budget_micros, "{band:?}");
        assert!(band.spent_micros * 10 > band.budget_micros * 8, "used up to where an answer still fits: {band:?}");
    }
}

/// Whatever happens, in whatever order: no counter twice, every payload under its own counter, every downlink ends at most once.
#[test]
#[expect(clippy::too_many_lines, reason = "one table of everything that may happen")]
fn histories() {
    let mut ended = 0;
    for seed in 0..60_u64 {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let motes: Vec<Mote> = (0..3).map(Mote::new).collect();
        let mut rig = Rig::serving(&motes);
        let (mut open, mut to_ack): (Vec<Output>, Vec<Transmit>) = (Vec::new(), Vec::new());
        let (mut next, mut upto) = ([0_u32; 3], 16);
        let mut last: BTreeMap<DevEui, u32> = BTreeMap::new();
        let mut ends: BTreeMap<String, u32> = BTreeMap::new();
        let mut epoch = 1;
        for step in 0..1_500 {
            rig.now += rng.random_range(1..900);
            let n = rng.random_range(0..3);
            let out = match rng.random_range(0..100) {
                0..15 => {
                    let item = Downlink {
                        confirmed: rng.random(),
                        delivery: if rng.random() { Delivery::AtLeastOnce } else { Delivery::AtMostOnce },
                        priority: rng.random_range(0..3),
                        expires_at: now(&rig).wall + Millis(rng.random_range(1..60_000)),
                        ..downlink(&format!("{step}"))
                    };
                    queue(&mut rig, &motes[n], item).unwrap_or_default()
                }
                15..35 => {
                    let some = std::mem::take(&mut open);
                    encrypt(&mut rig, &some)
                }
                35..65 => {
                    next[n] += u32::from(rng.random_bool(0.9));
                    let f_ctrl = if rng.random_bool(0.3) { 0x20 } else { 0 };
                    let out = rig.hear(&motes[n].frame_with(next[n], rng.random_bool(0.3), f_ctrl, &[]));
                    let events = common::uplinks(&out).iter().map(|uplink| uplink.event).collect();
                    let mut all = out;
                    all.extend(rig.commit(events));
                    all
                }
                65..85 if !to_ack.is_empty() => {
                    let which = rng.random_range(0..to_ack.len());
                    let error = ["", "NONE", "TOO_LATE", "COLLISION_PACKET"][rng.random_range(0..4)];
                    let datagram = tx_ack(&to_ack.swap_remove(which), error);
                    rig.apply(Input::Datagram { from: address(1_001), bytes: &datagram })
                }
                85..90 => {
                    upto += 8;
                    rig.reserve(&motes, upto)
                }
                90..92 => {
                    let mut out = rig.custody(if rng.random() { Mode::Fenced } else { Mode::Following });
                    epoch += 1;
                    out.extend(rig.serve(epoch, None));
                    out
                }
                _ => {
                    rig.pull();
                    rig.advance(0)
                }
            };
            for transmit in downlinks(&out) {
                let before = last.insert(transmit.device, transmit.f_cnt_down);
                assert!(before.is_none_or(|before| before < transmit.f_cnt_down), "seed {seed}: a counter twice");
                assert!(transmit.f_cnt_down < upto, "seed {seed}: not written ahead");
                let mote = motes.iter().find(|mote| mote.device == transmit.device).expect("a mote");
                let air = heard(transmit, mote);
                if air.port.is_some() {
                    assert!(air.payload.ends_with(&transmit.f_cnt_down.to_be_bytes()), "seed {seed}: another counter's payload");
                }
                to_ack.push(transmit.clone());
            }
            for (id, outcome) in outcomes(&out) {
                if !matches!(outcome, Outcome::Sent { .. }) {
                    *ends.entry(id).or_default() += 1;
                }
            }
            open.extend(out.into_iter().filter(|output| matches!(output, Output::EncryptWanted { .. })));
            assert!(rig.bridge.stats().payloads_waiting <= 3 * ITEMS_MAX);
        }
        assert!(ends.values().all(|times| *times == 1), "seed {seed}: {ends:?}");
        ended += ends.len();
    }
    assert!(ended > 1_000, "the histories are not empty: {ended}");
}

/// A device that is heard well is told to be faster and quieter, once it lets the network choose; and not at all where it is insured.
#[test]
fn adaptive_data_rate_is_asked_for_answered_and_off_unless_switched_on() {
    let (mote, mut rig) = one();
    rig.reserve(std::slice::from_ref(&mote), 1_000);
    let hear = |rig: &mut Rig, f_cnt: u32, commands: &[&dyn lorawan::maccommands::SerializableMacCommand]| {
        rig.now += 5_000;
        rig.pull();
        let phy = mote.frame_with(f_cnt, false, 0x80, commands);
        let tmst = rig.tmst();
        let datagram = common::push_with(GATEWAY, &[(tmst, phy)], 2, 90);
        rig.apply(Input::Datagram { from: address(1_002), bytes: &datagram });
        rig.commit(vec![mote.event(f_cnt)])
    };
    for f_cnt in 0..30 {
        assert!(downlinks(&hear(&mut rig, f_cnt, &[])).is_empty(), "off");
    }
    rig.apply(Input::Adr { group: GROUP, mode: AdrMode::Insured });
    for f_cnt in 30..35 {
        assert!(downlinks(&hear(&mut rig, f_cnt, &[])).is_empty(), "the insurer does not hear it");
    }
    // Custody begins: how it is heard is not known any more.
    rig.custody(Mode::Following);
    rig.serve(2, None);
    rig.reserve(std::slice::from_ref(&mote), 2_000);
    rig.apply(Input::Adr { group: GROUP, mode: AdrMode::Alone });
    for f_cnt in 35..54 {
        assert!(downlinks(&hear(&mut rig, f_cnt, &[])).is_empty(), "too few");
    }
    let out = hear(&mut rig, 54, &[]);
    let json: serde_json::Value = serde_json::from_slice(&downlinks(&out)[0].bytes[4..]).expect("JSON");
    let phy = STANDARD.decode(json["txpk"]["data"].as_str().expect("a text")).expect("base64");
    // SF9 at 9 dB: 11.5 dB to spare are three steps, two of them to DR5.
    assert_eq!((phy[5], &phy[8..13]), (0x85, &[0x03, 0x51, 0xff, 0x00, 0x61][..]), "ADR and LinkADRReq");
    let mut answer = lorawan::maccommandcreator::LinkADRAnsCreator::new();
    answer.set_channel_mask_ack(true).set_data_rate_ack(true).set_tx_power_ack(true);
    assert!(downlinks(&hear(&mut rig, 55, &[&answer])).is_empty(), "taken");
    for f_cnt in 56..65 {
        assert!(downlinks(&hear(&mut rig, f_cnt, &[])).is_empty(), "heard anew before it is asked again");
    }
}

#[test]
fn the_power_that_a_device_took_is_known_after_a_restart_and_at_the_other_node() {
    let (mote, mut rig) = one();
    let hear = |rig: &mut Rig, f_cnt: u32, snr: i16, commands: &[&dyn lorawan::maccommands::SerializableMacCommand]| {
        rig.now += 60_000;
        rig.pull();
        let bytes = common::push_with(GATEWAY, &[(rig.tmst(), mote.frame_with(f_cnt, false, 0x80, commands))], 2, snr);
        let mut out = rig.apply(Input::Datagram { from: address(1_002), bytes: &bytes });
        out.extend(rig.commit(vec![mote.event(f_cnt)]));
        out
    };
    let power = |out: &[Output]| {
        let transmit = *downlinks(out).first()?;
        let json: serde_json::Value = serde_json::from_slice(&transmit.bytes[4..]).expect("JSON");
        let phy = STANDARD.decode(json["txpk"]["data"].as_str().expect("a text")).expect("base64");
        (phy[8] == 0x03).then_some(phy[9] & 0x0f)
    };
    rig.apply(Input::Adr { group: GROUP, mode: AdrMode::Alone });
    let asked: Vec<_> = (0..20).filter_map(|f_cnt| power(&hear(&mut rig, f_cnt, 90, &[]))).collect();
    assert_eq!(asked, [1]);
    let mut answer = lorawan::maccommandcreator::LinkADRAnsCreator::new();
    answer.set_channel_mask_ack(true).set_data_rate_ack(true).set_tx_power_ack(true);
    let out = hear(&mut rig, 20, 90, &[&answer]);
    let due: Vec<_> =
        out.iter().filter_map(|o| if let Output::StateDue { state, .. } = o { Some((**state).clone()) } else { None }).collect();
    let [state] = &due[..] else { panic!("to the disk and to the other node, once: {due:?}") };
    assert_eq!(state.queue.used.map(|used| (used.f_cnt, used.tx_power, used.nb_trans)), Some((20, 1, 1)));
    let json = serde_json::to_string(state).expect("JSON");
    assert_eq!(&serde_json::from_str::<SessionState>(&json).expect("its own JSON"), state);
    // What was streamed before there was such a part.
    let old = json.replace(&format!(r#","queue":{}"#, serde_json::to_string(&state.queue).expect("JSON")), "");
    assert_ne!(old, json);
    let old: SessionState = serde_json::from_str(&old).expect("the form before");
    let queues = vec![(mote.device, state.queue.clone())];
    for (told, expected) in [
        (None, None),
        (Some(Input::Import { states: vec![old] }), None),
        (Some(Input::RestoreQueues { queues }), Some(0)),
        (Some(Input::Import { states: vec![state.clone()] }), Some(0)),
    ] {
        let what = format!("{told:?}");
        let mut next = Rig::new();
        next.now = rig.now;
        next.prepare(std::slice::from_ref(&mote));
        told.into_iter().for_each(|told| drop(next.apply(told)));
        next.apply(Input::PeerProgress { served: (0..=20).map(|f_cnt| mote.mark(f_cnt)).collect(), settled: vec![] });
        next.serve(2, None);
        next.reserve(std::slice::from_ref(&mote), 100);
        next.apply(Input::Adr { group: GROUP, mode: AdrMode::Alone });
        let asked: Vec<_> = (21..41).filter_map(|f_cnt| power(&hear(&mut next, f_cnt, -90, &[]))).collect();
        assert_eq!(asked.first().copied(), expected, "louder again, after {what}");
        assert_eq!(next.bridge.state(mote.device).and_then(|state| state.queue.used).is_some(), expected.is_some(), "{what}");
    }
}

#[test]
fn a_word_of_the_gateway_that_nobody_understands_is_silence() {
    let (mote, mut rig) = one();
    let asked = queue(&mut rig, &mote, downlink("once")).expect("room");
    encrypt(&mut rig, &asked);
    let out = rig.hear_and_commit(&mote.frame(0, false));
    let sent = downlinks(&out)[0].clone();
    let garbled = [&[2, sent.bytes[1], sent.bytes[2], 5][..], &sent.gateway.0.to_be_bytes(), br#"{"txpk_ack":{"er"#].concat();
    let out = rig.apply(Input::Datagram { from: address(1_001), bytes: &garbled });
    assert!(downlinks(&out).is_empty(), "it may be on air: nothing goes in RX2");
    assert_eq!(rig.bridge.stats().tx_results["unreadable"], 1);
    let mut out = rig.advance(3_000);
    out.extend(rig.hear_and_commit(&mote.frame(1, false)));
    assert!(downlinks(&out).is_empty(), "at most once");
    out.extend(rig.advance(3_000));
    assert_eq!(outcomes(&out), [("once".to_owned(), Outcome::Failed(Failure::Unknown))]);
}

#[test]
fn a_payload_too_long_for_the_devices_rate_ends_by_name_and_what_waits_behind_it_goes() {
    let (mote, mut rig) = one();
    // 123 bytes at SF9, 59 at SF12 of RX2: header and port are 8 of them, and the counter that these tests append 4.
    let payload = |bytes: usize| Downlink { payload: vec![7; bytes].into(), ..downlink(&bytes.to_string()) };
    let mut asked = queue(&mut rig, &mote, payload(112)).expect("room");
    asked.extend(queue(&mut rig, &mote, payload(111)).expect("room"));
    let out = encrypt(&mut rig, &asked);
    assert!(outcomes(&out).is_empty(), "the rate of its turn counts");
    let mut out = rig.hear_and_commit(&mote.frame(0, false));
    assert_eq!(outcomes(&out), [("112".to_owned(), Outcome::Failed(Failure::TooLong))]);
    assert_eq!((rig.bridge.stats().missed(MissedReason::TooLong), rig.bridge.stats().missed(MissedReason::DutyCycle)), (1, 0));
    // The next one may even be encrypted in time.
    out = encrypt(&mut rig, &out);
    let sent = downlinks(&out)[0];
    assert_eq!((sent.window, heard(sent, &mote).payload.len()), (Window::Rx1, 115));
}
