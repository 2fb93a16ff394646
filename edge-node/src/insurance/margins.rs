//! How well the node in standby hears each device, told to the one that serves: it keeps devices within the reach of both, and the customer
//! knows which devices its insurance covers.
//!
//! What cannot be told is not queued up: every further uplink of a device brings the same again.

use std::time::Duration;

use contracts::ids::{GroupId, NodeId};
use tokio::sync::watch;

use super::Parts;
use crate::edge2edge::messages::{MARGINS_MAX, Margins};

/// Devices that were heard since the last time are told so often.
const INTERVAL: Duration = Duration::from_secs(5);
/// Nobody waits longer for a peer that may have died.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Runs for ever; silent while this node serves.
pub async fn run(parts: Parts, group: GroupId, peer: NodeId, serves: watch::Receiver<bool>) {
    let client = parts.core.client.within(ANSWER_MAX);
    loop {
        tokio::time::sleep(INTERVAL).await;
        if *serves.borrow() {
            continue;
        }
        loop {
            let Ok(margins) = parts.bridge.take_margins(group, MARGINS_MAX).await else { return };
            let is_full = margins.len() == MARGINS_MAX;
            if margins.is_empty() {
                break;
            }
            let told: Result<(), _> = client.post(peer, &format!("/peer/v1/groups/{group}/margins"), &Margins { margins }).await;
            if let Err(error) = told {
                tracing::debug!(%peer, %error, "how devices are heard was not told");
                break;
            }
            if !is_full {
                break;
            }
        }
    }
}
