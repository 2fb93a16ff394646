//! Tells the other party what is served and settled, and offers it what it lacks.
//!
//! Progress is gathered for a few milliseconds. If it cannot be told, it is not queued up: once the peer is back it gets whole session
//! states, which say the same and cannot be out of order.

use std::time::Duration;

use contracts::ids::{GroupId, NodeId};
use lora_bridge::mac::session::{Mark, SessionState};
use tokio::sync::{mpsc, watch};

use super::{Error, Parts};
use crate::edge2edge::messages::{FRAMES_MAX, Frames, MARKS_MAX, Progress, STATES_MAX, Sessions};
use crate::lora::links::Outgoing;

/// How long progress gathers.
const LINGER: Duration = Duration::from_millis(8);
/// First and longest pause after the peer did not answer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Nobody waits longer for a peer that may have died.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Runs until the link is closed. `serves` says whether this node holds custody: only then it tells what it served.
pub async fn run(
    parts: Parts,
    group: GroupId,
    peer: NodeId,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut serves: watch::Receiver<bool>,
) {
    let mut pause = PAUSE.0;
    let mut states_due = true;
    let mut batch = Vec::new();
    loop {
        // Whole states that are due do not wait for something new to tell.
        let is_due = states_due && *serves.borrow_and_update();
        tokio::select! {
            biased;
            taken = outgoing.recv_many(&mut batch, MARKS_MAX) => if taken == 0 { return },
            // An error means that the guard has ended, and with it soon the link.
            Ok(()) = serves.changed(), if states_due => {}
            () = tokio::time::sleep(PAUSE.1), if is_due => {}
        }
        tokio::time::sleep(LINGER).await;
        while let Ok(more) = outgoing.try_recv() {
            batch.push(more);
        }
        states_due |= parts.links.take_overflow(group);
        let is_serving = *serves.borrow();
        let told = async {
            // A node in standby knows nothing that the node that serves does not.
            if states_due && is_serving {
                push_states(&parts, group, peer).await?;
            }
            tell(&parts, group, peer, std::mem::take(&mut batch), is_serving).await
        };
        match told.await {
            Ok(()) => {
                states_due &= !is_serving;
                pause = PAUSE.0;
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "progress was not told; whole states follow");
                states_due = true;
                batch.clear();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

async fn tell(parts: &Parts, group: GroupId, peer: NodeId, batch: Vec<Outgoing>, is_serving: bool) -> Result<(), Error> {
    let mut progress = Progress::default();
    let (mut frames, mut flushes, mut states) = (Vec::new(), Vec::new(), Vec::new());
    for outgoing in batch {
        match outgoing {
            Outgoing::Served(marks) if is_serving => progress.served.extend(marks),
            Outgoing::Served(_) => {}
            Outgoing::Settled(marks) => progress.settled.extend(marks),
            Outgoing::Offer(frame) => frames.push(frame),
            Outgoing::State(state) => states.push(*state),
            Outgoing::Flush(told) => flushes.push(told),
        }
    }
    let client = parts.core.client.within(ANSWER_MAX);
    for part in parts_of(progress) {
        let () = client.post(peer, &format!("/peer/v1/groups/{group}/progress"), &part).await?;
    }
    for frames in frames.chunks(FRAMES_MAX) {
        let () = client.post(peer, &format!("/peer/v1/groups/{group}/frames"), &Frames { frames: frames.to_vec() }).await?;
    }
    for states in states.chunks(STATES_MAX) {
        let sessions = Sessions { states: states.to_vec(), next: None };
        let () = client.post(peer, &format!("/peer/v1/groups/{group}/sessions"), &sessions).await?;
    }
    for told in flushes {
        let _nobody_waits = told.send(());
    }
    Ok(())
}

/// Cuts progress into messages within the limit.
fn parts_of(progress: Progress) -> Vec<Progress> {
    let half = MARKS_MAX / 2;
    let messages = progress.served.len().div_ceil(half).max(progress.settled.len().div_ceil(half));
    let part = |marks: &[Mark], n: usize| marks.chunks(half).nth(n).unwrap_or_default().to_vec();
    (0..messages).map(|n| Progress { served: part(&progress.served, n), settled: part(&progress.settled, n) }).collect()
}

async fn push_states(parts: &Parts, group: GroupId, peer: NodeId) -> Result<(), Error> {
    let mut cursor = 0;
    loop {
        let (states, next) = parts.bridge.export(group, cursor, STATES_MAX).await?;
        let () = parts
            .core
            .client
            .within(ANSWER_MAX)
            .post(peer, &format!("/peer/v1/groups/{group}/sessions"), &Sessions { states, next })
            .await?;
        match next {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

/// That the customer's store has a reading is believed of nobody but the store: what a peer says was settled is on its disk, and no more. A
/// buffered frame goes for a receipt only ([`super::accounts`]).
pub(crate) fn without_hearsay(mut states: Vec<SessionState>) -> Vec<SessionState> {
    for state in &mut states {
        let settled = std::mem::take(&mut state.settled);
        state.served.merge(&settled);
    }
    states
}

/// Fetches the peer's session states into the bridge.
pub(crate) async fn pull_states(parts: &Parts, group: GroupId, peer: NodeId) -> Result<(), Error> {
    let mut cursor = 0;
    loop {
        let page: Sessions = parts.core.client.get(peer, &format!("/peer/v1/groups/{group}/sessions?cursor={cursor}")).await?;
        parts.bridge.import(without_hearsay(page.states)).await?;
        match page.next {
            Some(next) if next > cursor => cursor = next,
            Some(_) | None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::ids::{DevEui, SessionId};

    use super::*;

    #[test]
    fn progress_is_cut_without_losing_a_mark() {
        let mark = |f_cnt| Mark { device: DevEui::from_u64(1), session: SessionId::from_bytes([1; 8]), f_cnt };
        let progress = Progress { served: (0..10_000).map(mark).collect(), settled: (0..3).map(mark).collect() };
        let parts = parts_of(progress.clone());
        assert!(parts.iter().all(|p| p.served.len() + p.settled.len() <= MARKS_MAX));
        assert_eq!(parts.iter().flat_map(|p| p.served.clone()).collect::<Vec<_>>(), progress.served);
        assert_eq!(parts.iter().flat_map(|p| p.settled.clone()).collect::<Vec<_>>(), progress.settled);
        assert!(parts_of(Progress::default()).is_empty());
    }
}
