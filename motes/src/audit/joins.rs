//! Joins: each request is accepted with one number, above all before. Whoever takes over may repeat the accept at another gateway.

use std::collections::{BTreeMap, BTreeSet};

use super::checks::is_alive;
use super::{Input, Report};
use crate::fleet::Eui64;
use crate::ledger::{Downlink, MoteRecord, RadioRecord};
use crate::link::RX2_FREQUENCY_HZ;

/// From the first window of a request to the end of its second; a mote's requests are further apart.
const WINDOWS_US: u64 = 1_500_000;

/// A request that was accepted.
struct Accepted {
    start_us: u64,
    join_nonce: u32,
    /// The highest of this device.
    highest: u32,
    gateways: BTreeSet<Eui64>,
}

impl Accepted {
    fn new(downlink: &Downlink, join_nonce: u32, highest: u32) -> Self {
        Self { start_us: downlink.start_us, join_nonce, highest: highest.max(join_nonce), gateways: [downlink.gateway].into() }
    }

    /// Whether a gateway may repeat the accept: another one, in the second window.
    fn may_be_repeated(&mut self, downlink: &Downlink) -> bool {
        downlink.frequency_hz == RX2_FREQUENCY_HZ && self.gateways.insert(downlink.gateway)
    }
}

pub(super) fn judge(input: &Input<'_>, downlinks: &[&Downlink], report: &mut Report) {
    let mut accepts: Vec<(&Downlink, Eui64, u32)> =
        downlinks.iter().filter_map(|downlink| Some((*downlink, downlink.dev_eui?, downlink.accept?.join_nonce))).collect();
    accepts.sort_by_key(|(downlink, _, _)| downlink.start_us);
    let mut accepted: BTreeMap<Eui64, Accepted> = BTreeMap::new();
    let mut answers: BTreeMap<u64, BTreeSet<Eui64>> = BTreeMap::new();
    for (downlink, device, join_nonce) in &accepts {
        if let Some(frame) = downlink.frame {
            answers.entry(frame).or_default().insert(downlink.gateway);
        }
        let Some(before) = accepted.get_mut(device) else {
            accepted.insert(*device, Accepted::new(downlink, *join_nonce, 0));
            continue;
        };
        let is_same_request = downlink.start_us - before.start_us < WINDOWS_US;
        if is_same_request && before.join_nonce == *join_nonce {
            report.join_nonces_not_risen += u64::from(!before.may_be_repeated(downlink));
            continue;
        }
        report.joins_answered_differently += u64::from(is_same_request);
        report.join_nonces_not_risen += u64::from(*join_nonce <= before.highest);
        *before = Accepted::new(downlink, *join_nonce, before.highest);
    }
    let taker = input.timeline.taker.as_ref();
    let taker = input.nodes.iter().find(|node| Some(&node.node) == taker).map(|node| node.gateway);
    let is_by_taker = |frame: &u64| taker.is_some_and(|taker| answers.get(frame).is_some_and(|by| by.contains(&taker)));
    for record in &input.ledgers.radio {
        let RadioRecord::JoinFrame(frame) = record else { continue };
        let mut hearers = input.nodes.iter().filter(|node| frame.gateways.contains(&node.gateway));
        report.join_requests += 1;
        report.join_requests_heard += u64::from(hearers.any(|node| is_alive(node, frame.end_us, 0)));
        report.join_requests_accepted += u64::from(answers.contains_key(&frame.frame));
        report.join_requests_accepted_by_taker += u64::from(is_by_taker(&frame.frame));
    }
    for record in &input.ledgers.motes {
        report.joined += u64::from(matches!(record, MoteRecord::Joined(_)));
        report.downlinks_received += u64::from(matches!(record, MoteRecord::DownlinkReceived(_)));
    }
}
