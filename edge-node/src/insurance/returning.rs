//! The customer's way back: it takes over what the provider heard and made, says that it is level, and is given custody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use contracts::contract::Contract;
use contracts::envelope::Envelope;
use contracts::ids::Epoch;
use tokio::sync::watch;

use super::{Error, Parts, progress};
use crate::edge2edge::messages::{Level, LevelAnswer, LevelReport, OpenUplinks};
use crate::timeline::Event;

/// Between two looks at the provider's log.
const INTERVAL: Duration = Duration::from_millis(100);
/// Pause after the provider did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Nobody waits longer for a provider that may have died.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Catches up with the provider until custody changes (the caller then drops this). Never returns by itself. `provider_holds` is set once the
/// provider answers as the holder.
pub(super) async fn catch_up(parts: &Parts, contract: &Contract, provider_holds: &AtomicBool, mut is_fit: watch::Receiver<bool>) {
    let mut cursor = 0;
    let mut imported = 0;
    let (mut has_states, mut has_said_level) = (false, false);
    let mut behind_since = None;
    loop {
        // A node that can store or hear nothing is level with nobody, and would be given what it has just handed over.
        if is_fit.wait_for(|is_fit| *is_fit).await.is_err() {
            return std::future::pending().await;
        }
        let answer = step(parts, contract, &mut cursor, &mut imported, &mut has_states).await;
        let is_holding = |answer: &LevelAnswer| match answer {
            LevelAnswer::Released { .. } | LevelAnswer::Wait { .. } | LevelAnswer::Behind => true,
            LevelAnswer::NotHolding => false,
        };
        if answer.as_ref().is_ok_and(is_holding) {
            provider_holds.store(true, Ordering::Relaxed);
        }
        // From the end of the quiet time on this node is level, but for what was heard since its last look.
        behind_since = match &answer {
            Ok(LevelAnswer::Behind) => behind_since.or(Some(parts.core.clock.boot())),
            Ok(LevelAnswer::Released { .. } | LevelAnswer::Wait { .. } | LevelAnswer::NotHolding) => None,
            Err(_) => behind_since,
        };
        if behind_since.is_some_and(|since| parts.core.clock.boot().since(since) > contract.terms.handback_deadline) {
            refuse_renewals(parts, contract).await;
            behind_since = None;
        }
        match answer {
            Ok(LevelAnswer::Released { epoch }) => {
                tracing::info!(group = %contract.group, %epoch, "custody was released to this node");
                tokio::time::sleep(INTERVAL).await;
            }
            Ok(LevelAnswer::Wait { .. }) if !has_said_level => {
                has_said_level = true;
                parts.core.timeline.push(Event::Level { group: contract.group, imported });
            }
            Ok(LevelAnswer::Wait { .. } | LevelAnswer::Behind | LevelAnswer::NotHolding) => tokio::time::sleep(INTERVAL).await,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot catch up with the provider now");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The provider should have given custody back: this member promises nothing more to its present epoch.
pub(super) async fn refuse_renewals(parts: &Parts, contract: &Contract) {
    let group = contract.group;
    let Some(epoch) = parts.custody.subscribe(group).map(|view| view.borrow().voted_epoch) else { return };
    parts.core.timeline.push(Event::Alarm { what: format!("{group} is not given back in time: epoch {epoch} is refused here") });
    if let Err(error) = parts.custody.set_hand_back_overdue(group, epoch).await {
        tracing::debug!(%group, %error, "nobody asks for renewals here now");
    }
}

/// Fetches what is open, stores it, fetches the sessions once (the provider's progress keeps them current), then says level.
async fn step(
    parts: &Parts,
    contract: &Contract,
    cursor: &mut u64,
    imported: &mut u64,
    has_states: &mut bool,
) -> Result<LevelAnswer, Error> {
    let (group, provider) = (contract.group, contract.provider.node);
    let client = parts.core.client.within(ANSWER_MAX);
    loop {
        let page: OpenUplinks = client.get(provider, &format!("/peer/v1/groups/{group}/open?after={cursor}")).await?;
        let marks = page
            .uplinks
            .iter()
            .map(|open| lora_bridge::mac::session::Mark {
                device: open.uplink.device,
                session: open.uplink.session,
                f_cnt: open.uplink.f_cnt,
            })
            .collect();
        let open: Vec<_> =
            page.uplinks.into_iter().filter(|open| open.uplink.group == group).map(|open| (open.uplink, open.decoded)).collect();
        *imported += open.len() as u64;
        if !open.is_empty() {
            parts.core.log.import(open).await?;
            parts.bridge.peer_progress(marks, Vec::new()).await?;
        }
        *cursor = page.upto.max(*cursor);
        if !page.more {
            break;
        }
    }
    if !*has_states {
        progress::pull_states(parts, group, provider).await?;
        *has_states = true;
    }
    let epoch = parts.custody.subscribe(group).map_or(Epoch(0), |view| view.borrow().voted_epoch);
    let level = Level { group, node: parts.core.me(), epoch, upto: *cursor };
    let report = LevelReport { level: Envelope::sign(&level, &parts.core.identity.keypair) };
    Ok(client.post(provider, &format!("/peer/v1/groups/{group}/level"), &report).await?)
}
