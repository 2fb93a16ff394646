//! Every transmission of a confirmed uplink: answered on air in a window of its own, or why not.
//!
//! What the motes and gateways wrote down decides; of the nodes only the times at which they held custody are believed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::checks::{as_downlink, is_alive};
use super::report::{LIST_MAX, list};
use super::{Input, NodeLife};
use crate::airtime::SpreadingFactor;
use crate::fleet::Eui64;
use crate::gateway::KEEPALIVE_US;
use crate::ledger::{Downlink, Frame, GatewayRecord, MoteRecord, RadioRecord};
use crate::mote::{RX1_DELAY_US, Window};

/// Answers are owed again so long after a kill.
const OUTAGE_MS: u64 = 1_500;
/// Until then after an uplink its answer is decided: RX2 and some.
const DECIDED_US: u64 = 2_100_000;
/// The hour over which duty cycles count (ETSI EN 300 220-2, 4.3.3).
const HOUR_US: u64 = 3_600_000_000;
/// Smallest answer: header, address, control, counter, integrity code.
const ANSWER_BYTES_MIN: usize = 12;
/// A packet forwarder keeps so much between two transmissions (`jitqueue.c`: start delay, margin), rounded up.
const GUARD_US: u64 = 4_000;
/// From the end of an uplink to its windows.
const WINDOWS_US: [u64; 2] = [RX1_DELAY_US, RX1_DELAY_US + 1_000_000];

/// A time in which a node held custody, wall-clock milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name, as in [`NodeLife::node`].
    pub node: String,
    /// From its custody on.
    pub from_ms: u64,
    /// To its release, its loss, or its death; nothing if it holds to the end.
    pub to_ms: Option<u64>,
}

/// What is known beside the ledgers.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// Who held when, in order.
    pub held: &'a [Held],
    /// When the holder was killed, in order.
    pub kills_ms: &'a [u64],
    /// Of the motes' second window.
    pub rx2_data_rate: SpreadingFactor,
}

/// What became of a transmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Answered on air in RX1.
    Rx1,
    /// Answered on air in RX2.
    Rx2,
    /// Not judged: at most 1.5 s after a kill.
    Outage,
    /// No gateway of a living node heard it.
    Unheard,
    /// The gateway of the node that held custody did not hear it; the other node's frames are data, and are not answered.
    NotByHolder,
    /// The holder died before the answer could be with its gateway.
    HolderDied,
    /// Nobody held custody: it was being handed back.
    InHandover,
    /// The holder's process had begun so shortly before that its gateway need not have opened the way for downlinks yet (`PULL_DATA`).
    NotPulled,
    /// The gateway refused the answer: its queue had another for that time.
    Refused,
    /// Neither window's band had air time left in that hour.
    NoAirtime,
    /// The gateway sent something else in both windows.
    Busy,
    /// The gateways were switched off before the second window was over.
    SwitchedOff,
    /// None of these: it should have been answered.
    Unexplained,
}

/// The fates of all transmissions of confirmed uplinks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Transmissions by fate.
    pub fates: BTreeMap<Fate, u64>,
    /// Of the judged ones, those that were to be answered: heard by the holder, which lived on, with air time left.
    pub owed: u64,
    /// Of these, answered.
    pub answered: u64,
    /// Device, counter, end on air (wall-clock milliseconds) of those without an explanation.
    pub unexplained: Vec<(Eui64, u32, u64)>,
    /// Air time of each gateway per band, microseconds in the fullest hour.
    pub airtime_us: BTreeMap<String, u64>,
}

/// A band of EU868 by a frequency in it: the share of an hour that a transmitter may use.
fn band(frequency_hz: u32) -> (&'static str, u64) {
    match frequency_hz {
        865_000_000..=867_999_999 => ("865.0-868.0", HOUR_US / 100),
        868_000_000..=868_600_000 => ("868.0-868.6", HOUR_US / 100),
        868_700_000..=869_200_000 => ("868.7-869.2", HOUR_US / 1_000),
        869_400_000..=869_650_000 => ("869.4-869.65", HOUR_US / 10),
        869_700_000..=870_000_000 => ("869.7-870.0", HOUR_US / 100),
        _ => ("other", HOUR_US / 1_000),
    }
}

/// Air time of every gateway and band in the hour before a moment.
struct Airtime<'a> {
    /// End and length of each transmission, by gateway and band, in order.
    used: BTreeMap<(Eui64, &'static str), Vec<(u64, u64)>>,
    downlinks: &'a [&'a Downlink],
}

impl<'a> Airtime<'a> {
    fn of(downlinks: &'a [&'a Downlink]) -> Self {
        let mut used: BTreeMap<(Eui64, &'static str), Vec<(u64, u64)>> = BTreeMap::new();
        for downlink in downlinks {
            let length_us = downlink.end_us - downlink.start_us;
            used.entry((downlink.gateway, band(downlink.frequency_hz).0)).or_default().push((downlink.end_us, length_us));
        }
        Self { used, downlinks }
    }

    fn in_hour_before(&self, gateway: Eui64, band: &'static str, at_us: u64) -> u64 {
        let used = self.used.get(&(gateway, band)).map(Vec::as_slice).unwrap_or_default();
        used.iter().filter(|(end_us, _)| *end_us <= at_us && end_us + HOUR_US > at_us).map(|(_, length_us)| length_us).sum()
    }

    /// Whether one more answer of the smallest size would have fitted into RX1's or RX2's band.
    fn is_left(&self, gateway: Eui64, at_us: u64) -> bool {
        let answer_us = SpreadingFactor::SF7.airtime_us(ANSWER_BYTES_MIN, false);
        [868_100_000, 869_525_000].into_iter().any(|frequency_hz| {
            let (name, bound_us) = band(frequency_hz);
            self.in_hour_before(gateway, name, at_us) + answer_us <= bound_us
        })
    }

    fn fullest(&self) -> BTreeMap<String, u64> {
        let mut fullest: BTreeMap<String, u64> = BTreeMap::new();
        for downlink in self.downlinks {
            let name = band(downlink.frequency_hz).0;
            let used_us = self.in_hour_before(downlink.gateway, name, downlink.end_us);
            let most = fullest.entry(format!("{} {name}", downlink.gateway)).or_default();
            *most = used_us.max(*most);
        }
        fullest
    }
}

struct Judge<'a> {
    input: &'a Input<'a>,
    service: &'a Service<'a>,
    answered: BTreeMap<u64, Window>,
    /// Device address bytes and time of refused answers.
    refused: BTreeSet<(u64, Eui64)>,
    airtime: &'a Airtime<'a>,
    /// Data rates of uplinks by mote and the microsecond of their end.
    data_rates: BTreeMap<(u32, u64), SpreadingFactor>,
    switched_off_us: u64,
}

/// Judges all transmissions of confirmed uplinks.
#[must_use]
pub fn judge(input: &Input<'_>, service: &Service<'_>) -> Answers {
    let downlinks: Vec<&Downlink> = input.ledgers.radio.iter().filter_map(as_downlink).collect();
    let airtime = Airtime::of(&downlinks);
    let is_answer = |downlink: &&&Downlink| downlink.ack && downlink.window.is_some();
    let answered = downlinks.iter().filter(is_answer).filter_map(|d| Some((d.frame?, d.window?))).collect();
    let refused = input
        .ledgers
        .gateways
        .iter()
        .filter_map(|record| match record {
            GatewayRecord::Rejected { gateway, at_us, .. } => Some((*at_us, *gateway)),
            GatewayRecord::Start(_)
            | GatewayRecord::Queued { .. }
            | GatewayRecord::Malformed { .. }
            | GatewayRecord::Server { .. }
            | GatewayRecord::Totals { .. } => None,
        })
        .collect();
    let data_rates = input.ledgers.motes.iter().filter_map(|record| match record {
        MoteRecord::Attempt(attempt) => Some(((attempt.mote, attempt.end_us), attempt.data_rate)),
        _ => None,
    });
    let switched_off = input.ledgers.gateways.iter().filter_map(|record| match record {
        GatewayRecord::Totals { at_us, .. } => Some(*at_us),
        _ => None,
    });
    let switched_off_us = switched_off.min().unwrap_or(u64::MAX);
    let judge = Judge { input, service, answered, refused, airtime: &airtime, data_rates: data_rates.collect(), switched_off_us };
    let mut answers = Answers { airtime_us: airtime.fullest(), ..Answers::default() };
    for record in &input.ledgers.radio {
        let RadioRecord::Frame(frame) = record else { continue };
        if !frame.confirmed {
            continue;
        }
        let fate = judge.fate(frame);
        *answers.fates.entry(fate).or_default() += 1;
        match fate {
            Fate::Rx1 | Fate::Rx2 => {
                answers.owed += 1;
                answers.answered += 1;
            }
            Fate::Unexplained => {
                answers.owed += 1;
                if answers.unexplained.len() < LIST_MAX {
                    list(&mut answers.unexplained, (frame.dev_eui, frame.f_cnt, frame.end_us / 1_000));
                }
            }
            Fate::Outage
            | Fate::Unheard
            | Fate::NotByHolder
            | Fate::HolderDied
            | Fate::InHandover
            | Fate::NotPulled
            | Fate::Refused
            | Fate::NoAirtime
            | Fate::Busy
            | Fate::SwitchedOff => {}
        }
    }
    answers
}

impl Judge<'_> {
    fn fate(&self, frame: &Frame) -> Fate {
        let at_ms = frame.end_us / 1_000;
        let kills = self.service.kills_ms;
        if kills.iter().any(|kill_ms| (*kill_ms..kill_ms + OUTAGE_MS).contains(&at_ms)) {
            return Fate::Outage;
        }
        match self.answered.get(&frame.frame) {
            Some(Window::Rx1) => return Fate::Rx1,
            Some(Window::Rx2) => return Fate::Rx2,
            None => {}
        }
        if frame.end_us + DECIDED_US > self.switched_off_us {
            return Fate::SwitchedOff;
        }
        let hearers: Vec<&NodeLife> = self
            .input
            .nodes
            .iter()
            .filter(|node| frame.gateways.contains(&node.gateway) && is_alive(node, frame.end_us, 0))
            .collect();
        if hearers.is_empty() {
            return Fate::Unheard;
        }
        let holds = |held: &&Held| held.from_ms <= at_ms && held.to_ms.is_none_or(|to_ms| at_ms < to_ms);
        let Some(held) = self.service.held.iter().find(holds) else { return Fate::InHandover };
        let Some(node) = hearers.into_iter().find(|node| node.node == held.node) else { return Fate::NotByHolder };
        if kills.iter().any(|kill_ms| (at_ms..at_ms + DECIDED_US / 1_000).contains(kill_ms)) {
            return Fate::HolderDied;
        }
        let begun_ms = node.alive.iter().map(|alive| alive.from_ms).filter(|from_ms| *from_ms <= at_ms).max();
        // A node that is there from the beginning on has heard from its gateway before the first frame.
        let is_restarted = node.alive.first().is_some_and(|first| begun_ms > Some(first.from_ms));
        if is_restarted && begun_ms.is_some_and(|begun_ms| at_ms < begun_ms + KEEPALIVE_US / 1_000) {
            return Fate::NotPulled;
        }
        // A refused answer names its device only by address, so the time must do: a gateway refuses few.
        let window = (frame.end_us, Eui64(0))..(frame.end_us + DECIDED_US, Eui64(u64::MAX));
        if self.refused.range(window).any(|(_, gateway)| *gateway == node.gateway) {
            return Fate::Refused;
        }
        if self.is_busy(node.gateway, frame) {
            return Fate::Busy;
        }
        if self.airtime.is_left(node.gateway, frame.end_us) { Fate::Unexplained } else { Fate::NoAirtime }
    }

    /// Whether the gateway's one transmitter was on air while it would have had to send the smallest answer, in each window.
    fn is_busy(&self, gateway: Eui64, frame: &Frame) -> bool {
        let rx1 = self.data_rates.get(&(frame.mote, frame.end_us)).copied().unwrap_or(SpreadingFactor::SF7);
        let data_rates = [rx1, self.service.rx2_data_rate];
        WINDOWS_US.into_iter().zip(data_rates).all(|(delay_us, data_rate)| {
            let from_us = frame.end_us + delay_us;
            let to_us = from_us + data_rate.airtime_us(ANSWER_BYTES_MIN, false);
            let others = self.airtime.downlinks.iter().filter(|it| it.gateway == gateway && it.frame != Some(frame.frame));
            others.into_iter().any(|other| other.start_us < to_us + GUARD_US && from_us < other.end_us + GUARD_US)
        })
    }
}
