use super::*;
use crate::frame::build_downlink;
use crate::mote::{RX1_DELAY_US, RX2_DELAY_US, RX2_FREQUENCY_HZ};
use crate::seed::low_u32;

const START_US: u64 = 1_700_000_000_000_000;
const GATEWAYS: [Eui64; 2] = [Eui64(0xa), Eui64(0xb)];

fn world(seed: u64, motes: u32, confirmed_ppm: u32, loss_ppm: u32) -> (Fleet, Radio) {
    let fleet = Fleet::new(seed, motes).expect("a fleet");
    let policy = Policy {
        seed: fleet.seed(),
        period_us: 10_000_000,
        confirmed_ppm,
        rx2_data_rate: SpreadingFactor::SF12,
        duty_cycle: true,
        depth: crate::mote::Depth::default(),
    };
    let loss = Loss { uplink_ppm: loss_ppm, downlink_ppm: loss_ppm };
    let radio = Radio::new(&fleet, policy, loss, GATEWAYS.to_vec(), START_US);
    (fleet, radio)
}

/// A server behind the first gateway that acknowledges every confirmed frame that it hears, always in one window.
struct Server {
    now_us: u64,
    answers_in: Window,
    counters: Vec<u32>,
}

impl Server {
    fn new(fleet: &Fleet, answers_in: Window) -> Self {
        Self { now_us: START_US, answers_in, counters: vec![0; fleet.devices().len()] }
    }

    /// Strides of `stride_us` stand for a late machine.
    fn run(&mut self, fleet: &Fleet, radio: &mut Radio, duration_us: u64, stride_us: u64) -> Vec<Output> {
        let mut all = Vec::new();
        let end_us = self.now_us + duration_us;
        while self.now_us < end_us {
            self.now_us += stride_us;
            for output in radio.advance(self.now_us) {
                if let Output::Hear { gateway: 0, reception } = &output
                    && reception.bytes[0] == 0x80
                {
                    self.answer(fleet, radio, reception);
                }
                all.push(output);
            }
        }
        all
    }

    fn answer(&mut self, fleet: &Fleet, radio: &mut Radio, reception: &Reception) {
        let address = DevAddr(u32::from_le_bytes(reception.bytes[1..5].try_into().expect("four bytes")));
        let mote = radio.by_address[&address][0].mote;
        let (delay_us, frequency_hz, data_rate) = match self.answers_in {
            Window::Rx1 => (RX1_DELAY_US, reception.frequency_hz, reception.data_rate),
            Window::Rx2 => (RX2_DELAY_US, RX2_FREQUENCY_HZ, SpreadingFactor::SF12),
        };
        radio.transmit(Transmission {
            gateway: 0,
            bytes: build_downlink(&fleet.devices()[mote], self.counters[mote], true, false),
            start_us: reception.end_us + delay_us,
            data_rate,
            frequency_hz,
            inverted: true,
        });
        self.counters[mote] += 1;
    }
}

fn run(fleet: &Fleet, radio: &mut Radio, duration_us: u64, stride_us: u64, answers_in: Window) -> Vec<Output> {
    Server::new(fleet, answers_in).run(fleet, radio, duration_us, stride_us)
}

fn frames(outputs: &[Output]) -> Vec<&Frame> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Radio(RadioRecord::Frame(frame)) => Some(frame),
            Output::Radio(RadioRecord::Start(_) | RadioRecord::Downlink(_) | RadioRecord::JoinFrame(_))
            | Output::Hear { .. }
            | Output::Mote(_) => None,
        })
        .collect()
}

fn percent_of(part: usize, whole: usize) -> f64 {
    let to_f64 = |value: usize| f64::from(u32::try_from(value).expect("small"));
    100.0 * to_f64(part) / to_f64(whole)
}

#[test]
fn rates_and_losses_come_out_as_asked() {
    for seed in 1..=5 {
        let (fleet, mut radio) = world(seed, 200, 50_000, 50_000);
        let mut server = Server::new(&fleet, Window::Rx1);
        let outputs = server.run(&fleet, &mut radio, 1_000_000_000, 10_000);
        let frames = frames(&outputs);
        let counts = radio.counts();
        // 200 motes, one reading per 10 s, 1,000 s; skipped ones are those whose mote was busy with retries.
        let readings = counts.frames_sent + counts.readings_skipped;
        assert!((19_700..20_600).contains(&readings), "seed {seed}: {counts:?}");
        let by_first = frames.iter().filter(|frame| frame.gateways.contains(&GATEWAYS[0])).count();
        let by_any = frames.iter().filter(|frame| !frame.gateways.is_empty()).count();
        assert!((94.4..95.6).contains(&percent_of(by_first, frames.len())), "seed {seed}");
        assert!((99.6..99.9).contains(&percent_of(by_any, frames.len())), "seed {seed}");
        assert_eq!(u64::try_from(by_any).expect("small"), counts.frames_heard);
        assert!((850..1_150).contains(&counts.confirmed_sent), "seed {seed}: {counts:?}");
        radio.stop_sending();
        server.run(&fleet, &mut radio, 200_000_000, 10_000);
        assert!(radio.is_drained());
        assert_eq!(radio.counts().confirmed_acknowledged, radio.counts().confirmed_sent, "seed {seed}");
    }
}

#[test]
fn a_late_machine_changes_no_decision() {
    let (fleet, mut punctual) = world(9, 50, 200_000, 200_000);
    let (_, mut late) = world(9, 50, 200_000, 200_000);
    let first = run(&fleet, &mut punctual, 300_000_000, 1_000, Window::Rx2);
    let second = run(&fleet, &mut late, 300_000_000, 250_000, Window::Rx2);
    assert!(late.counts().lag_us_max > 200_000);
    assert_eq!(first, second);
    let (other_fleet, mut other) = world(10, 50, 200_000, 200_000);
    assert_ne!(first, run(&other_fleet, &mut other, 300_000_000, 1_000, Window::Rx2));
}

#[test]
fn both_windows_serve_and_counters_are_reconstructed() {
    for window in [Window::Rx1, Window::Rx2] {
        let (fleet, mut radio) = world(4, 20, 1_000_000, 0);
        let outputs = run(&fleet, &mut radio, 100_000_000, 10_000, window);
        let mut downlinks = 0;
        for output in &outputs {
            if let Output::Radio(RadioRecord::Downlink(downlink)) = output {
                downlinks += 1;
                assert_eq!(downlink.window, Some(window));
                assert_eq!(downlink.f_cnt.map(crate::seed::low_u16), downlink.f_cnt_low);
                assert!(downlink.ack && downlink.reached && downlink.frame.is_some() && downlink.f_cnt.is_some());
            }
        }
        assert!(downlinks >= 150, "{downlinks}");
        let ends = outputs.iter().filter_map(|output| match output {
            Output::Mote(MoteRecord::UplinkEnd(end)) => Some(end),
            Output::Mote(_) | Output::Radio(_) | Output::Hear { .. } => None,
        });
        assert!(ends.clone().all(|end| end.acknowledged == Some(window) && end.attempts == 1));
    }
}

#[test]
fn full_counter_is_found_across_a_wrap_and_garbage_is_recorded() {
    let (fleet, mut radio) = world(4, 2, 0, 0);
    let device = &fleet.devices()[1];
    let send = |radio: &mut Radio, bytes: Vec<u8>| {
        let transmission = Transmission {
            gateway: 1,
            bytes,
            start_us: START_US,
            data_rate: SpreadingFactor::SF7,
            frequency_hz: 868_100_000,
            inverted: true,
        };
        radio.start_downlink(transmission.clone(), &mut Vec::new());
        let mut outputs = Vec::new();
        radio.start_downlink(transmission, &mut outputs);
        match outputs.pop() {
            Some(Output::Radio(RadioRecord::Downlink(downlink))) => downlink,
            other => panic!("no downlink: {other:?}"),
        }
    };
    for f_cnt in [3, 65_500, 65_536, 65_530, 131_071, 131_072] {
        let downlink = send(&mut radio, build_downlink(device, f_cnt, false, false));
        assert_eq!((downlink.f_cnt, downlink.mote, downlink.gateway), (Some(f_cnt), Some(1), GATEWAYS[1]));
    }
    let stranger = Fleet::new(77, 1).expect("a fleet").devices()[0].clone();
    let foreign = send(&mut radio, build_downlink(&stranger, 1, false, false));
    assert_eq!((foreign.mote, foreign.f_cnt, foreign.dev_addr), (None, None, Some(stranger.dev_addr)));
    let garbage = send(&mut radio, vec![1, 2, 3]);
    assert_eq!((garbage.dev_addr, garbage.bytes.as_str()), (None, "010203"));
}

#[test]
fn downlink_without_inverted_polarisation_is_not_heard() {
    let (fleet, mut radio) = world(4, 1, 1_000_000, 0);
    let end_us = loop {
        let next = radio.next_us().expect("something happens");
        let outputs = radio.advance(next);
        if let Some(frame) = frames(&outputs).first() {
            break frame.end_us;
        }
    };
    let State::Listening { exchange, .. } = radio.motes[0].state().clone() else { panic!("not listening") };
    radio.transmit(Transmission {
        gateway: 0,
        bytes: build_downlink(&fleet.devices()[0], 0, true, false),
        start_us: end_us + RX1_DELAY_US,
        data_rate: exchange.data_rate,
        frequency_hz: exchange.frequency_hz,
        inverted: false,
    });
    radio.advance(end_us + 3_000_000);
    assert!(matches!(radio.motes[0].state(), State::Backoff(_)));
}

/// A server behind the first gateway that accepts every join request, and tells each mote something with its first uplink.
#[derive(Default)]
struct JoinServer {
    join_nonce: u32,
    sessions: BTreeMap<DevAddr, (Eui64, Session, u32)>,
    nonces: BTreeMap<Eui64, Vec<u16>>,
}

impl JoinServer {
    fn take(&mut self, fleet: &Fleet, radio: &mut Radio, reception: &Reception) {
        match reception.bytes[0] >> 5 {
            0 => self.accept(fleet, radio, reception),
            _ => self.tell(radio, reception),
        }
    }

    fn transmit(radio: &mut Radio, reception: &Reception, delay_us: u64, bytes: Vec<u8>) {
        let Reception { end_us, data_rate, frequency_hz, .. } = *reception;
        radio.transmit(Transmission { gateway: 0, bytes, start_us: end_us + delay_us, data_rate, frequency_hz, inverted: true });
    }

    fn accept(&mut self, fleet: &Fleet, radio: &mut Radio, reception: &Reception) {
        let bytes = &reception.bytes;
        let dev_eui = Eui64(u64::from_le_bytes(bytes[9..17].try_into().expect("eight bytes")));
        let dev_nonce = u16::from_le_bytes([bytes[17], bytes[18]]);
        let device = fleet.devices().iter().find(|device| device.dev_eui == dev_eui).expect("one of ours");
        let app_key = device.otaa.as_ref().expect("it joins").app_key;
        self.nonces.entry(dev_eui).or_default().push(dev_nonce);
        self.join_nonce += 1;
        // Each device gets one address for all its sessions: keys tell them apart.
        let dev_addr = DevAddr(0x0200_0000 | low_u32(dev_eui.0) & 0xff);
        // RX1 one step slower, two seconds after the uplink; RX2 at DR 3.
        let accept = join::build_accept(&app_key, self.join_nonce, dev_addr, 0x13, 2, &[867_100_000]);
        let read = join::read_accept(&app_key, dev_nonce, &accept).expect("our own");
        let session = Session { ordinal: 0, dev_addr, nwk_s_key: read.nwk_s_key, app_s_key: read.app_s_key };
        self.sessions.insert(dev_addr, (dev_eui, session, 0));
        Self::transmit(radio, reception, 5_000_000, accept);
    }

    fn tell(&mut self, radio: &mut Radio, reception: &Reception) {
        let address = DevAddr(u32::from_le_bytes(reception.bytes[1..5].try_into().expect("four bytes")));
        let Some((_, session, f_cnt)) = self.sessions.get_mut(&address) else { return };
        let downlink = crate::frame::Downlink {
            f_cnt: *f_cnt,
            ack: true,
            confirmed: false,
            f_port: Some(9),
            payload: vec![1, 2, 3],
            commands: vec![0x06],
        };
        *f_cnt += 1;
        let bytes = crate::frame::build_downlink_with(session, &downlink);
        let data_rate = reception.data_rate.lower_data_rate();
        Self::transmit(radio, &Reception { data_rate, ..reception.clone() }, 2_000_000, bytes);
    }
}

#[test]
fn motes_join_take_their_parameters_and_join_anew() {
    let fleet = Fleet::with_otaa(3, 6, 1_000_000).expect("a fleet");
    let depth = crate::mote::Depth { adr: true, requests_ppm: 500_000, rejoin_us: 60_000_000 };
    let policy = Policy {
        seed: fleet.seed(),
        period_us: 10_000_000,
        confirmed_ppm: 0,
        rx2_data_rate: SpreadingFactor::SF12,
        duty_cycle: true,
        depth,
    };
    let mut radio = Radio::new(&fleet, policy, Loss { uplink_ppm: 0, downlink_ppm: 0 }, GATEWAYS.to_vec(), START_US);
    let mut server = JoinServer::default();
    let mut records = Vec::new();
    for now_us in (START_US..START_US + 300_000_000).step_by(10_000) {
        for output in radio.advance(now_us) {
            if let Output::Hear { gateway: 0, reception } = &output {
                server.take(&fleet, &mut radio, reception);
            }
            records.push(output);
        }
    }
    let counts = radio.counts();
    assert!(counts.joined >= 20 && counts.joined == counts.join_requests, "{counts:?}");
    for (device, nonces) in fleet.devices().iter().zip(server.nonces.values()) {
        let is_counting = device.otaa.as_ref().is_some_and(|otaa| otaa.rules == crate::fleet::JoinRules::V1_0_4);
        assert_eq!(nonces.windows(2).all(|pair| pair[1] == pair[0] + 1), is_counting, "{nonces:?}");
    }
    let received: Vec<_> = records
        .iter()
        .filter_map(|output| if let Output::Mote(MoteRecord::DownlinkReceived(got)) = output { Some(got) } else { None })
        .collect();
    assert!(received.len() > 40, "{}", received.len());
    assert!(received.iter().all(|got| (got.f_port, got.payload.as_str(), got.commands.as_str()) == (Some(9), "010203", "06")));
    let attempts: Vec<_> = records
        .iter()
        .filter_map(|output| if let Output::Mote(MoteRecord::Attempt(attempt)) = output { Some(attempt) } else { None })
        .collect();
    assert!(attempts.iter().any(|attempt| attempt.frequency_hz == 867_100_000), "the listed channel is used");
    assert!(attempts.iter().any(|attempt| attempt.options.starts_with("06ff0a")), "DevStatusAns");
    assert!(attempts.iter().any(|attempt| attempt.options.ends_with("0d")), "DeviceTimeReq");
    let downlinks = records.iter().filter_map(|output| match output {
        Output::Radio(RadioRecord::Downlink(downlink)) => Some(downlink),
        Output::Radio(_) | Output::Mote(_) | Output::Hear { .. } => None,
    });
    assert!(downlinks.clone().all(|downlink| downlink.window == Some(Window::Rx1) && downlink.mote.is_some()));
    let accepts = downlinks.filter_map(|downlink| downlink.accept).map(|accept| accept.join_nonce);
    assert_eq!(accepts.collect::<Vec<_>>(), (1..=server.join_nonce).collect::<Vec<_>>());
}

#[test]
fn a_mote_that_nobody_accepts_waits_longer_and_longer() {
    let fleet = Fleet::with_otaa(3, 1, 1_000_000).expect("a fleet");
    let (_, radio) = world(3, 1, 0, 0);
    let policy = Policy {
        seed: fleet.seed(),
        period_us: 1_000_000,
        confirmed_ppm: 0,
        rx2_data_rate: SpreadingFactor::SF12,
        duty_cycle: true,
        depth: crate::mote::Depth::default(),
    };
    let mut radio = Radio::new(&fleet, policy, radio.loss, GATEWAYS.to_vec(), START_US);
    let outputs = radio.advance(START_US + 3_600_000_000);
    let starts: Vec<_> = outputs
        .iter()
        .filter_map(|output| if let Output::Mote(MoteRecord::JoinAttempt(attempt)) = output { Some(attempt) } else { None })
        .collect();
    // 40 s on average at the end, and the duty cycle of SF12: an hour has room for some dozens.
    assert!((20..120).contains(&starts.len()), "{}", starts.len());
    assert_eq!(starts.last().expect("a request").data_rate, SpreadingFactor::SF12);
    assert!(starts.windows(2).all(|pair| pair[1].start_us - pair[0].end_us >= 6_000_000));
    assert_eq!(radio.counts().frames_sent, 0);
}
