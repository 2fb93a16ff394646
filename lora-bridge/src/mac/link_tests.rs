use super::*;
use crate::mac::region::EU868;

const SESSION: SessionId = SessionId::from_bytes([1; 8]);
const OTHER: SessionId = SessionId::from_bytes([2; 8]);

fn at_first() -> Radio {
    Radio::at_first(ReceiveWindows::eu868(), false, &EU868)
}

fn timing(seconds: u8) -> Wish {
    Wish { rx1_delay_seconds: Some(seconds), ..Wish::default() }
}

fn heard(f_cnt: u32) -> Heard {
    Heard { f_cnt, answers: Answers::default() }
}

fn timed(f_cnt: u32) -> Heard {
    Heard { f_cnt, answers: Answers { rx_timing: Some(true), ..Answers::default() } }
}

fn request(link: &Link, at: Heard) -> Vec<u8> {
    let mut commands = Vec::new();
    link.write_request(at, &EU868, 15, &mut commands);
    commands
}

/// Steps and writes ahead at once.
fn through(link: &mut Link, at: Heard) -> Option<State> {
    let (version, state, _) = link.step(at, &EU868, Epoch(3), BootTime(0))?;
    assert!(link.recorded(version));
    Some(state)
}

fn record(version: u32, session: SessionId, state: State) -> LinkRecord {
    LinkRecord { device: DevEui::from_u64(1), version, session, state }
}

#[test]
fn the_table_in_order() {
    let mut link = Link::new(timing(5), at_first());
    assert!(link.is_certain(heard(10)), "nothing was ever changed");
    let (version, drafted, _) = link.step(heard(10), &EU868, Epoch(3), BootTime(0)).expect("a draft");
    assert_eq!(version, 3 << 12);
    assert_eq!(request(&link, heard(10)), [0; 0], "not written ahead");
    assert!(link.step(heard(11), &EU868, Epoch(3), BootTime(499)).is_none(), "under way");
    assert_eq!(link.step(heard(11), &EU868, Epoch(3), BootTime(500)).map(|again| (again.0, again.1)), Some((version, drafted)));
    assert!(!link.recorded(version + 1));
    assert!(link.recorded(version));
    assert_eq!(request(&link, heard(11)), [0x08, 5]);
    link.note_asked(11);
    assert!(link.is_due(heard(12)));
    // The answer: nothing may be sent before a majority knows.
    let (version, state, news) = link.step(timed(12), &EU868, Epoch(3), BootTime(600)).expect("a draft");
    assert_eq!((state.radio.windows.rx1_delay_seconds, state.asked, news), (5, None, Some(News::Taken)));
    assert!(!link.is_certain(timed(12)));
    assert_eq!(link.state().radio.windows.rx1_delay_seconds, 1);
    assert_eq!(link.latest_windows().rx1_delay_seconds, 5);
    assert!(link.recorded(version));
    assert!(link.is_certain(timed(12)), "the answer is repeated until something comes");
    assert_eq!(link.state().radio.windows.rx1_delay_seconds, 5);
    assert!(through(&mut link, timed(13)).is_none());
}

#[test]
fn an_answer_that_is_repeated_is_not_taken_for_the_next_ones() {
    let mut link = Link::new(timing(5), at_first());
    through(&mut link, heard(10));
    assert!(through(&mut link, timed(12)).is_some());
    link.set_wish(timing(2), at_first());
    assert!(through(&mut link, timed(13)).is_none(), "its last answer still sticks");
    assert_eq!(through(&mut link, heard(14)).and_then(|state| state.asked).map(|asked| asked.since), Some(14));
    // Heard late, as by a successor that had it in its buffer.
    assert!(link.is_certain(timed(13)) && through(&mut link, timed(13)).is_none());
    assert_eq!(through(&mut link, timed(15)).map(|state| state.radio.windows.rx1_delay_seconds), Some(2));
}

#[test]
fn who_takes_over_writes_ahead_first_and_knows_both() {
    let mut before = Link::new(timing(5), at_first());
    let asked = through(&mut before, heard(10)).expect("asked for");
    for is_answered in [false, true] {
        let mut link = Link::new(timing(5), at_first());
        link.adopt(SESSION, record(3 << 12, SESSION, asked.clone()));
        link.change_custody();
        assert!(!link.is_certain(heard(20)), "what it has may be on this disk only");
        let at = if is_answered { timed(20) } else { heard(20) };
        let (version, state, _) = link.step(at, &EU868, Epoch(4), BootTime(0)).expect("a draft");
        assert_eq!(version, 4 << 12);
        assert_eq!(request(&link, at), [0; 0]);
        assert!(link.recorded(version));
        assert!(link.is_certain(at));
        assert_eq!(state.radio.windows.rx1_delay_seconds, if is_answered { 5 } else { 1 });
        assert_eq!(request(&link, at), if is_answered { vec![] } else { vec![0x08, 5] });
    }
}

#[test]
fn records_of_other_sessions_wait_for_them_and_versions_never_fall() {
    let mut link = Link::new(timing(5), at_first());
    let mut state = State { radio: at_first(), asked: None, refused: vec![] };
    state.radio.windows.rx1_delay_seconds = 7;
    link.adopt(SESSION, record(9_000, OTHER, state.clone()));
    assert_eq!(link.state().radio.windows.rx1_delay_seconds, 1);
    link.restart(OTHER, at_first());
    assert_eq!((link.state(), link.version()), (&state, 9_000));
    link.adopt(OTHER, record(8_999, OTHER, State { radio: at_first(), asked: None, refused: vec![] }));
    assert_eq!(link.version(), 9_000, "an older one");
    link.restart(SESSION, at_first());
    assert!(link.is_certain(heard(0)), "a new session begins as the device does");
    let (version, ..) = link.step(heard(0), &EU868, Epoch(3), BootTime(0)).expect("a draft");
    assert!(version > 9_000);
}

#[test]
fn wishes_become_commands_in_order() {
    let channel = |index, frequency_hz, downlink_hz| WishedChannel {
        index,
        channel: Channel { frequency_hz, data_rate_min: 0, data_rate_max: 5, downlink_hz },
    };
    let wish = Wish {
        rx1_delay_seconds: Some(2),
        rx1_data_rate_offset: Some(1),
        rx2_data_rate: DataRate::eu868(3),
        channels: vec![channel(0, 868_100_000, Some(869_100_000)), channel(3, 867_100_000, Some(868_900_000))],
        ..Wish::default()
    };
    let mut radio = at_first();
    let mut requests = Vec::new();
    loop {
        let next = wish.changes(&radio, &EU868).next();
        let Some(change) = next else { break };
        let mut bytes = Vec::new();
        assert!(change.write(&EU868, &mut bytes));
        requests.push(bytes);
        radio = radio.with(change, &EU868);
    }
    // 869.525 MHz is 8,695,250 = 0x84add2 in units of 100 Hz, 867.1 MHz 0x844f18 - the low byte first.
    let hz = |hz: u32| (hz / 100).to_le_bytes()[..3].to_vec();
    assert_eq!(hz(869_525_000), [0xd2, 0xad, 0x84]);
    assert_eq!(
        requests,
        [
            vec![0x08, 2],
            [vec![0x05, 0x13], hz(869_525_000)].concat(),
            [vec![0x0a, 0], hz(869_100_000)].concat(),
            [vec![0x07, 3], hz(867_100_000), vec![0x50]].concat(),
            [vec![0x0a, 3], hz(868_900_000)].concat(),
        ]
    );
    assert_eq!(
        (radio.rx1_hz(868_100_000), radio.rx1_hz(868_300_000), radio.rx1_hz(867_100_000)),
        (869_100_000, 868_300_000, 868_900_000)
    );
    let joined = Radio::at_first(ReceiveWindows::eu868(), true, &EU868);
    assert_eq!(joined.channels.len(), 5, "those of the join-accept");
    let listed = Wish { channels: vec![channel(3, 867_100_000, None)], ..Wish::default() };
    assert_eq!(listed.changes(&joined, &EU868).next(), None);
}

#[test]
fn requests_grow_rare_and_status_has_its_interval() {
    let mut link = Link::new(timing(5), at_first());
    through(&mut link, heard(0));
    let asked = (0..1_000).filter(|f_cnt| {
        let is_due = link.is_due(heard(*f_cnt));
        if is_due {
            link.note_asked(*f_cnt);
        }
        is_due
    });
    assert_eq!(asked.take(9).collect::<Vec<_>>(), [0, 1, 2, 3, 5, 9, 17, 33, 65]);
    let device = DevEui::from_u64(0x80);
    assert!(!link.is_status_due(device, BootTime(0)), "no interval");
    link.set_wish(Wish { status_interval: Some(Millis(8_000)), ..Wish::default() }, at_first());
    let due = |link: &mut Link, at| link.is_status_due(device, BootTime(at));
    assert!(!due(&mut link, 0) && !due(&mut link, 3_999) && due(&mut link, 4_000), "spread over an interval");
    link.note_status_asked(BootTime(4_000));
    assert!(!due(&mut link, 4_999) && due(&mut link, 5_000), "no answer");
    link.note_status(DeviceStatus { battery: 254, margin_db: 7, at: BootTime(5_500) });
    assert!(!due(&mut link, 13_499) && due(&mut link, 13_500));
}
