//! Joins: whoever accepts, each accept has a new number above all before, and one gateway sends it.

use std::collections::{BTreeMap, BTreeSet};

use super::checks::is_alive;
use super::{Input, Report};
use crate::fleet::Eui64;
use crate::ledger::{Downlink, MoteRecord, RadioRecord};

pub(super) fn judge(input: &Input<'_>, downlinks: &[&Downlink], report: &mut Report) {
    let mut accepts: Vec<(&Downlink, Eui64, u32)> =
        downlinks.iter().filter_map(|downlink| Some((*downlink, downlink.dev_eui?, downlink.accept?.join_nonce))).collect();
    accepts.sort_by_key(|(downlink, _, _)| downlink.start_us);
    let mut highest: BTreeMap<Eui64, u32> = BTreeMap::new();
    let mut gateways: BTreeMap<u64, BTreeSet<Eui64>> = BTreeMap::new();
    for (downlink, device, join_nonce) in &accepts {
        let last = highest.get(device).copied();
        report.join_nonces_not_risen += u64::from(last.is_some_and(|last| *join_nonce <= last));
        highest.insert(*device, last.map_or(*join_nonce, |last| last.max(*join_nonce)));
        if let Some(frame) = downlink.frame {
            gateways.entry(frame).or_default().insert(downlink.gateway);
        }
    }
    report.joins_by_two_gateways = gateways.values().filter(|gateways| gateways.len() > 1).count() as u64;
    let taker = input.timeline.taker.as_ref();
    let taker = input.nodes.iter().find(|node| Some(&node.node) == taker).map(|node| node.gateway);
    let is_by_taker = |frame: &u64| taker.is_some_and(|taker| gateways.get(frame).is_some_and(|by| by.contains(&taker)));
    for record in &input.ledgers.radio {
        let RadioRecord::JoinFrame(frame) = record else { continue };
        let mut hearers = input.nodes.iter().filter(|node| frame.gateways.contains(&node.gateway));
        report.join_requests += 1;
        report.join_requests_heard += u64::from(hearers.any(|node| is_alive(node, frame.end_us, 0)));
        report.join_requests_accepted += u64::from(gateways.contains_key(&frame.frame));
        report.join_requests_accepted_by_taker += u64::from(is_by_taker(&frame.frame));
    }
    for record in &input.ledgers.motes {
        report.joined += u64::from(matches!(record, MoteRecord::Joined(_)));
        report.downlinks_received += u64::from(matches!(record, MoteRecord::DownlinkReceived(_)));
    }
}
