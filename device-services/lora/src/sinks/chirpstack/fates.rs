//! What became of downlinks, as ChirpStack tells it: `txack` when a gateway took one, `ack` when the device acknowledged it or did not,
//! `log` when it was given up.
//!
//! The node remembers such events in memory: what it forgot before the broker came back is not told. What was told is noted with the node,
//! so that a restart of this service repeats next to nothing.

use std::{convert::Infallible, sync::Arc};

use serde_json::json;
use tenant::{Backoff, Client, DownlinkEvent, DownlinkState, Error};
use tokio::sync::mpsc;

use super::{Message, Settings, rfc3339};
use crate::config::Config;

/// Among the values kept with the node.
const KEY: &str = "sink.chirpstack.fates";
/// Messages that wait for the broker; beyond, the node keeps them.
const WAITING_MAX: usize = 64;
/// Why a downlink ended that was sent as often as it may be.
const NOT_ACKNOWLEDGED: &str = "not_acknowledged";

/// Why a downlink ended that did not fit the device's data rate.
const TOO_LONG: &str = "too_long";

/// When the last event that was told happened, and its cursor: later ones are greater, also of a node that counts anew.
type Told = (u64, u64);

/// Starts with what the node remembers; gives messages for the broker, and what has to run beside.
pub(super) fn follow(
    settings: Settings,
    client: Arc<Client>,
    config: Arc<Config>,
) -> (mpsc::Receiver<Message>, impl Future<Output = ()> + Send) {
    let (messages, taken) = mpsc::channel(WAITING_MAX);
    let follow = async move {
        let mut backoff = Backoff::default();
        let mut told = None;
        while !messages.is_closed() {
            let make = |event: &DownlinkEvent| message(&settings, &config, event);
            let Err(_interrupted) = tell(&client, &mut told, &mut backoff, make, &messages).await;
            tokio::time::sleep(backoff.next_wait()).await;
        }
    };
    (taken, follow)
}

async fn tell(
    client: &Client,
    told: &mut Option<Told>,
    backoff: &mut Backoff,
    make: impl Fn(&DownlinkEvent) -> Option<Message>,
    messages: &mpsc::Sender<Message>,
) -> Result<Infallible, Error> {
    let mut last = match *told {
        Some(told) => told,
        None => kept(client).await?,
    };
    // From the first that the node remembers: one that started anew counts anew.
    let mut after = 0;
    loop {
        for event in client.downlink_events(Some(after)).await?.events {
            after = event.cursor;
            let at = (event.at_ms, event.cursor);
            if at <= last {
                continue;
            }
            if let Some(message) = make(&event) {
                // An error means that the sink has ended, and with it soon this.
                let _ended = messages.send(message).await;
            }
            last = at;
        }
        if *told != Some(last) {
            client.put_state(KEY, format!("{} {}", last.0, last.1).into()).await?;
            *told = Some(last);
        }
        // Only now: a node that answers and keeps nothing is not to be asked ever again without a pause.
        backoff.reset();
    }
}

async fn kept(client: &Client) -> Result<Told, Error> {
    let kept = client.state(KEY).await?;
    let parse = |bytes: &[u8]| {
        let (at_ms, cursor) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
        Some((at_ms.parse().ok()?, cursor.parse().ok()?))
    };
    Ok(kept.and_then(|bytes| parse(&bytes)).unwrap_or_default())
}

fn message(settings: &Settings, config: &Config, event: &DownlinkEvent) -> Option<Message> {
    let device = event.dev_eui;
    let info = settings.device_info(device, config.devices.get(&device));
    let time = rfc3339(event.at_ms);
    let ack = |acknowledged: bool, f_cnt: Option<u32>| {
        let document = json!({"deduplicationId": event_uuid(event), "time": time, "deviceInfo": info, "queueItemId": event.id,
            "acknowledged": acknowledged, "fCntDown": f_cnt});
        Message::json(settings.topic(device, "ack"), &document)
    };
    let log = |code: &str, description: String| {
        let context = json!({"queue_item_id": event.id});
        let document = json!({"time": time, "deviceInfo": info, "level": "ERROR", "code": code, "description": description, "context": context});
        Message::json(settings.topic(device, "log"), &document)
    };
    match &event.state {
        DownlinkState::Wanted { .. } => None,
        DownlinkState::Sent { f_cnt, gateway } => {
            // Its number tells it apart from others of the gateway.
            let number = event.cursor & u64::from(u32::MAX);
            let document = json!({"downlinkId": number, "time": time, "deviceInfo": info, "queueItemId": event.id, "fCntDown": f_cnt,
                "gatewayId": gateway});
            Some(Message::json(settings.topic(device, "txack"), &document))
        }
        DownlinkState::Acked { f_cnt } => Some(ack(true, Some(*f_cnt))),
        DownlinkState::Failed { reason } if reason == NOT_ACKNOWLEDGED => Some(ack(false, None)),
        DownlinkState::Failed { reason } if reason == TOO_LONG => {
            Some(log("DOWNLINK_PAYLOAD_SIZE", "longer than the device's data rate allows in both windows".to_owned()))
        }
        DownlinkState::Failed { reason } => Some(log("DOWNLINK_GATEWAY", format!("given up: {reason}"))),
        DownlinkState::Expired => Some(log("EXPIRED", "expired before it was sent or acknowledged".to_owned())),
    }
}

/// The same whenever the event is told again.
fn event_uuid(event: &DownlinkEvent) -> String {
    uuid::Uuid::from_u64_pair(event.at_ms, event.cursor).to_string()
}
