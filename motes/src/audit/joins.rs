//! Joins: each request is accepted with one number, above all before. Whoever takes over may repeat the accept at another gateway.

use std::collections::BTreeMap;

use super::checks::is_alive;
use super::{Input, Report};
use crate::fleet::Eui64;
use crate::ledger::{Downlink, MoteRecord, RadioRecord};

/// From the first window of a request to the end of its second.
const WINDOWS_US: u64 = 1_500_000;

pub(super) fn judge(input: &Input<'_>, downlinks: &[&Downlink], report: &mut Report) {
    let mut accepts: Vec<(&Downlink, Eui64, u32)> =
        downlinks.iter().filter_map(|downlink| Some((*downlink, downlink.dev_eui?, downlink.accept?.join_nonce))).collect();
    accepts.sort_by_key(|(downlink, _, _)| downlink.start_us);
    let mut last: BTreeMap<Eui64, (&Downlink, u32)> = BTreeMap::new();
    let mut answers: BTreeMap<u64, Vec<(Eui64, u32)>> = BTreeMap::new();
    for (downlink, device, join_nonce) in &accepts {
        let is_repeated = last.get(device).is_some_and(|(before, nonce)| {
            nonce == join_nonce && before.gateway != downlink.gateway && downlink.start_us - before.start_us < WINDOWS_US
        });
        let has_risen = last.get(device).is_none_or(|(_, highest)| join_nonce > highest);
        report.join_nonces_not_risen += u64::from(!has_risen && !is_repeated);
        if has_risen {
            last.insert(*device, (*downlink, *join_nonce));
        }
        if let Some(frame) = downlink.frame {
            answers.entry(frame).or_default().push((downlink.gateway, *join_nonce));
        }
    }
    let is_at_odds = |answers: &&Vec<(Eui64, u32)>| answers.iter().any(|(_, nonce)| *nonce != answers[0].1);
    report.joins_answered_differently = answers.values().filter(is_at_odds).count() as u64;
    let is_by =
        |frame: &u64, gateway: &Eui64| answers.get(frame).is_some_and(|answers| answers.iter().any(|(by, _)| by == gateway));
    let taker = input.timeline.taker.as_ref();
    let taker = input.nodes.iter().find(|node| Some(&node.node) == taker).map(|node| node.gateway);
    let is_by_taker = |frame: &u64| taker.is_some_and(|taker| is_by(frame, &taker));
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
