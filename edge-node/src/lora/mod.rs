//! The node's side of the LoRa bridge: puts uplinks on disk before they count, and tells those who wait for them.
//!
//! - [`air_time`] — time on air, on disk
//! - [`alarms`] — devices that may soon be deaf
//! - [`leases`] — what the bridge asks directly before each downlink
//! - [`downlinks`] — what tenants are told about their downlinks
//! - [`links`] — where progress, offers and reservations of a group go
//! - [`routes`] — where gateways are reached, on disk
//! - [`standby`] — what was heard in standby, on disk

pub mod air_time;
pub mod alarms;
pub mod downlinks;
pub mod leases;
pub mod links;
pub mod routes;
pub mod standby;

use std::collections::BTreeMap;

use contracts::digits;
use contracts::ids::GroupId;
use lora_bridge::GatewayEui;
use lora_bridge::bridge::io::{OfferedFrame, Output, Uplink as HeardUplink, UplinkKind};
use lora_bridge::gwmp::rxpk::RxMeta;
use lora_bridge::mac::session::{Mark, SessionState};
use lora_bridge::server::BridgeHandle;
use tokio::sync::mpsc;

use crate::insurance::records::Record;
use crate::readings::log::Log;
use crate::readings::pace::Pace;
use crate::readings::{Kind, Reception, Uplink};
use crate::timeline::{Event, Timeline};
use links::{Links, Wish};
use standby::Standby;

/// What the node keeps of its radio is no group's.
const NOBODY: GroupId = GroupId::from_bytes([0; 16]);

/// Why something cannot be given back to the bridge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the database")]
    Store(#[from] crate::store::Error),
    #[error("the bridge")]
    Bridge(#[from] lora_bridge::server::Error),
}

/// Takes the bridge's outputs for ever. Uplinks are committed in the order in which they came; nothing counts as served before.
pub async fn consume(
    mut outputs: mpsc::Receiver<Vec<Output>>,
    bridge: BridgeHandle,
    log: Log,
    links: Links,
    standby: Standby,
    timeline: Timeline,
) {
    let mut pace = Pace::default();
    while let Some(mut batch) = outputs.recv().await {
        pace.turn().await;
        // What came meanwhile shares the transaction.
        while let Ok(more) = outputs.try_recv() {
            batch.extend(more);
        }
        let (mut heard, mut replayed) = (Vec::new(), Vec::new());
        for output in batch {
            match output {
                Output::Uplink(uplink) => {
                    mirror(&uplink, &links);
                    heard.push(uplink);
                }
                Output::Keep(uplink) => standby.keep(Uplink { deliver: false, ..stored(uplink, &links) }),
                Output::Await { group, event, dev_addr, frame } => standby.keep(standby::awaited(group, event, dev_addr, &frame)),
                Output::Forget { events } => standby.forget(events),
                Output::OfferDue(offer) => links.offer(offer.group, offer.frame),
                Output::OfferKnown { group, mark, is_settled } => {
                    links.served(group, vec![mark]);
                    if is_settled {
                        links.settled(group, vec![mark]);
                    }
                }
                Output::ReserveWanted { group, entries } => links.reserve(group, Wish::Counters(entries)),
                Output::ResetWanted(reset) => links.reserve(reset.group, Wish::Reset(reset)),
                Output::SessionChanged { group, device, session } => links.set_session(group, device, session),
                Output::EncryptWanted { group, device, dev_addr, question } => {
                    links.downlinks().ask(group, timeline.clock().wall(), device, dev_addr, question);
                }
                Output::Downlink { group, device, id, outcome } => {
                    links.downlinks().tell(group, timeline.clock().wall(), device, id, outcome);
                }
                Output::StateDue { group, state } => {
                    keep_owed(&log, &links, group, &state).await;
                    links.state(group, state);
                }
                Output::RecordsMissing { group } => links.records_missing(group),
                Output::RecordWanted { group, epoch, record } => links.record(group, (epoch, Record::Join(record))),
                Output::LinkRecordWanted { group, epoch, record } => links.record(group, (epoch, Record::Link(record))),
                Output::Replayed { group, frames } => replayed.push((group, frames)),
                Output::Refused { group, device, reason } => {
                    timeline.push(Event::Alarm { what: format!("session of {device} in {group} refused: {reason:?}") });
                }
                Output::Send { .. } | Output::Transmit(_) | Output::Accept(_) => {
                    debug_assert!(false, "the server of the bridge sends these itself")
                }
            }
        }
        let are_stored = if heard.is_empty() { Ok(true) } else { commit(heard, &bridge, &log, &links).await };
        match are_stored {
            // Only now: its last frames are among these. If they were not stored they are replayed again, and it is said again.
            Ok(true) => replayed.into_iter().for_each(|(group, frames)| links.replayed(group, frames)),
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

/// By the contract's `mirror` clause the insurer gets every frame as it is heard: what reached no disk when this node dies is not lost.
fn mirror(uplink: &HeardUplink, links: &Links) {
    let is_own = match uplink.kind {
        UplinkKind::Live | UplinkKind::Late => true,
        UplinkKind::Buffered => false,
    };
    if is_own && links.mirrors(uplink.group) {
        let HeardUplink { phy, gateway, rx, heard_at, .. } = uplink;
        links.offer(uplink.group, OfferedFrame { phy: phy.clone(), gateway: *gateway, rx: *rx, heard_at: *heard_at });
    }
}

/// What is owed to a device at least once survives this process.
async fn keep_owed(log: &Log, links: &Links, group: GroupId, state: &SessionState) {
    let bytes = links.downlinks().set_owed(group, state.device, state.queue.clone());
    match log.store().put_tenant_value(group, downlinks::STATE_KEY, &bytes, u32::MAX).await {
        Ok(_) => links.downlinks().note_stored(group),
        Err(error) => tracing::error!(%error, "owed downlinks were not stored"),
    }
}

/// Whether they are on disk now.
async fn commit(
    heard: Vec<HeardUplink>,
    bridge: &BridgeHandle,
    log: &Log,
    links: &Links,
) -> Result<bool, lora_bridge::server::Error> {
    let events = heard.iter().map(|u| u.event).collect();
    let mut marks: BTreeMap<GroupId, Vec<Mark>> = BTreeMap::new();
    for uplink in &heard {
        marks.entry(uplink.group).or_default().push(uplink.mark());
    }
    let uplinks = heard.into_iter().map(|uplink| stored(uplink, links));
    let (insured, own): (Vec<_>, Vec<_>) = uplinks.partition(|uplink| links.is_insurer(uplink.group));
    // Queued together, written together.
    let (kept, served) = tokio::join!(async { if insured.is_empty() { Ok(()) } else { log.hear(insured).await } }, async {
        if own.is_empty() { Ok(()) } else { log.append(own).await }
    },);
    match kept.and(served) {
        Ok(()) => {
            bridge.committed(events).await?;
            for (group, marks) in marks {
                links.served(group, marks);
            }
            Ok(true)
        }
        Err(error) => {
            tracing::error!(%error, "uplinks were not stored and are not served");
            bridge.commit_failed(events).await?;
            Ok(false)
        }
    }
}

fn stored(uplink: HeardUplink, links: &Links) -> Uplink {
    Uplink {
        dev_addr: uplink.dev_addr(),
        event: uplink.event,
        group: uplink.group,
        device: uplink.device,
        session: uplink.session,
        joined: uplink.joined,
        f_cnt: uplink.f_cnt,
        f_port: uplink.f_port,
        confirmed: uplink.confirmed,
        frm_payload: digits::text(&uplink.frm_payload),
        phy: digits::text(&uplink.phy),
        heard_at: uplink.heard_at,
        kind: match uplink.kind {
            UplinkKind::Live => Kind::Live,
            UplinkKind::Late => Kind::Late,
            UplinkKind::Buffered => Kind::Replayed,
        },
        epoch: links.epoch(uplink.group),
        deliver: true,
        rx: reception(uplink.gateway, &uplink.rx),
        others: uplink.others.iter().map(|other| reception(other.gateway, &other.rx)).collect(),
    }
}

fn reception(gateway: GatewayEui, rx: &RxMeta) -> Reception {
    Reception {
        gateway: gateway.to_string(),
        tmst: rx.tmst.unwrap_or(0),
        frequency_hz: rx.frequency_hz.unwrap_or(0),
        data_rate: rx.data_rate.to_string(),
        rssi_dbm: rx.rssi_dbm.unwrap_or(0),
        snr_tenth_db: rx.snr_decibel_tenths.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use contracts::ids::{DevAddr, DevEui, EventId, SessionId};
    use contracts::time::{BootTime, WallTime};

    use super::*;

    /// How a gateway heard something.
    pub(super) fn rx() -> RxMeta {
        RxMeta {
            tmst: Some(0),
            frequency_hz: Some(868_100_000),
            data_rate: "SF7BW125".parse().expect("a data rate"),
            rssi_dbm: None,
            snr_decibel_tenths: None,
        }
    }

    /// A device that joined at the other node is heard before its record is here.
    #[test]
    fn an_uplink_has_the_address_of_its_frame_whatever_is_known_of_its_device() {
        let (device, session) = (DevEui::from_u64(7), SessionId::from_bytes([8; 8]));
        let heard = HeardUplink {
            event: EventId::new(device, session, 0),
            group: GroupId::from_bytes([1; 16]),
            device,
            session,
            joined: None,
            f_cnt: 0,
            f_port: Some(1),
            confirmed: false,
            frm_payload: bytes::Bytes::new(),
            phy: bytes::Bytes::from_static(&[0x40, 0x7e, 0x02, 0x6a, 0x01, 0, 0, 0, 1, 0, 0, 0, 0]),
            gateway: GatewayEui(1),
            rx: rx(),
            others: Vec::new(),
            heard_at: WallTime(0),
            heard_boot: BootTime(0),
            kind: UplinkKind::Live,
        };
        assert_eq!(stored(heard, &Links::default()).dev_addr, DevAddr::from_u32(0x016a_027e));
    }
}
