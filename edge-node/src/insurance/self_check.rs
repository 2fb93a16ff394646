//! What a node that cannot keep its promise does before its lease runs out: it hands over at once (rule 6 of the handover protocol).
//!
//! A node whose disk takes no readings is of no use as holder: nothing that it hears counts as served. If the other party is there, custody
//! goes to it; until the disk is well again this node neither asks for custody nor says that it is level. A release is a vote, on disk before
//! it leaves: where that write fails too the group stops here, and custody ends with the lease.

use std::time::Duration;

use contracts::custody::Readiness;
use contracts::ids::{GroupId, NodeId};

use super::{Parts, release_one};
use crate::timeline::Event;

/// While something is to be done it is looked at so often: the other party may come back, and a group is not driven before its guard joins it.
const INTERVAL: Duration = Duration::from_millis(500);

/// Runs until the log has stopped.
pub async fn run(parts: Parts, group: GroupId, other: NodeId) {
    let mut writable = parts.core.log.writable();
    let mut was_writable = true;
    loop {
        let is_writable = *writable.borrow_and_update();
        if was_writable != is_writable {
            let what =
                if is_writable { "takes readings again: {} may be held here" } else { "takes no readings: {} is handed over" };
            parts.core.timeline.push(Event::Alarm { what: format!("the disk {}", what.replace("{}", &group.to_string())) });
            was_writable = is_writable;
        }
        let readiness = if is_writable { Readiness::Ready } else { Readiness::Unready };
        let is_told = parts.custody.set_readiness(group, readiness).await.is_ok();
        if !is_writable
            && is_there(&parts, group, other)
            && let Err(error) = release_one(&parts, group).await
        {
            tracing::warn!(%group, error = &error as &dyn std::error::Error, "custody was not released; it ends with its lease");
        }
        let is_done = is_writable && is_told;
        tokio::select! {
            biased;
            changed = writable.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL), if !is_done => {}
        }
    }
}

fn is_there(parts: &Parts, group: GroupId, member: NodeId) -> bool {
    parts.custody.subscribe(group).is_some_and(|view| !view.borrow().missing.contains(&member))
}
