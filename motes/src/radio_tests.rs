use super::*;
use crate::frame::build_downlink;
use crate::mote::{RX1_DELAY_US, RX2_DELAY_US, RX2_FREQUENCY_HZ};

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
        let mote = usize::try_from(radio.by_address[&address]).expect("an index");
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
            Output::Radio(RadioRecord::Start(_) | RadioRecord::Downlink(_)) | Output::Hear { .. } | Output::Mote(_) => None,
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
