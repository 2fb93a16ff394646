//! What a node that cannot keep its promise does before its lease runs out: it hands over at once (rule 6 of the handover protocol).
//!
//! A node whose disk takes no readings is of no use as holder: nothing that it hears counts as served. If the other party is there, custody
//! goes to it; until the disk is well again this node does not ask for custody.

use contracts::custody::Readiness;
use contracts::ids::{GroupId, NodeId};

use super::{Parts, release_one};
use crate::timeline::Event;

/// Runs until the log has stopped.
pub async fn run(parts: Parts, group: GroupId, other: NodeId) {
    let mut writable = parts.core.log.writable();
    while writable.wait_for(|writable| !writable).await.is_ok() {
        parts.core.timeline.push(Event::Alarm { what: format!("the disk takes no readings: {group} is handed over") });
        set_readiness(&parts, group, Readiness::Unready).await;
        if is_there(&parts, group, other)
            && let Err(error) = release_one(&parts, group).await
        {
            tracing::warn!(%group, error = &error as &dyn std::error::Error, "custody was not released; it ends with its lease");
        }
        if writable.wait_for(|writable| *writable).await.is_err() {
            return;
        }
        parts.core.timeline.push(Event::Alarm { what: format!("the disk takes readings again: {group} may be held here") });
        set_readiness(&parts, group, Readiness::Ready).await;
    }
}

fn is_there(parts: &Parts, group: GroupId, member: NodeId) -> bool {
    parts.custody.subscribe(group).is_some_and(|view| !view.borrow().missing.contains(&member))
}

/// A group that is not driven now starts ready or not by its own guard.
async fn set_readiness(parts: &Parts, group: GroupId, readiness: Readiness) {
    if let Err(error) = parts.custody.set_readiness(group, readiness).await {
        tracing::debug!(%group, %error, "nobody asks for custody here now");
    }
}
