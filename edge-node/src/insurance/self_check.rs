//! What a node that cannot keep its promise does before its lease runs out: it hands over at once (rule 6 of the handover protocol).
//!
//! - [`check`] — what a node finds of itself, and what follows from it (pure)
//!
//! A node whose disk takes no readings is of no use as holder: nothing that it hears counts as served. If the other party is there, custody
//! goes to it; until the disk is well again this node neither asks for custody nor says that it is level. A release is a vote, on disk before
//! it leaves: where that write fails too the group stops here, and custody ends with the lease.
//!
//! A node whose gateways are silent while the other party hears the devices, or whose containers end again and again, hands over too, but is
//! better than nobody: it still takes what is released to it, and asks again once the other party is away.

pub mod check;

use std::time::Duration;

use contracts::ids::{GroupId, NodeId};
use peering::custody::Role;
use tokio::sync::watch;

use self::check::{Check, Finding, News, Seen};
use super::{Parts, release_one};
use crate::timeline::Event;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks for ever, but not after the log has stopped. `is_fit` is false while this node must not ask for custody back.
pub async fn run(parts: Parts, group: GroupId, other: NodeId, is_fit: watch::Sender<bool>) {
    let mut writable = parts.core.log.writable();
    let mut check = Check::new(parts.core.clock.boot());
    let mut told = None;
    loop {
        let is_writable = *writable.borrow_and_update();
        let Some(seen) = look(&parts, group, other, is_writable).await else { return };
        let verdict = check.look(&seen, parts.core.clock.boot());
        for news in verdict.news {
            parts.core.timeline.push(Event::Alarm { what: text(news, group) });
        }
        is_fit.send_if_modified(|fit| std::mem::replace(fit, verdict.is_fit) != verdict.is_fit);
        if told != Some(verdict.readiness) {
            // A group is not driven before its guard joins it.
            told = parts.custody.set_readiness(group, verdict.readiness).await.ok().map(|()| verdict.readiness);
        }
        if verdict.release
            && let Err(error) = release_one(&parts, group).await
        {
            tracing::warn!(%group, error = &error as &dyn std::error::Error, "custody was not released; it ends with its lease");
        }
        tokio::select! {
            biased;
            changed = writable.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// `None`: the bridge has stopped.
async fn look(parts: &Parts, group: GroupId, other: NodeId, is_writable: bool) -> Option<Seen> {
    let signs = parts.bridge.radio_signs(group).await.ok()?;
    let view = parts.custody.subscribe(group).map(|view| view.borrow().clone());
    Some(Seen {
        is_writable,
        silence: signs.silence,
        heard_there: signs.heard_there,
        is_failing: parts.core.orchestrator.as_ref().is_some_and(|orchestrator| orchestrator.is_failing(group)),
        holds: view.as_ref().is_some_and(|view| matches!(view.role, Role::Holder { .. })),
        other_is_there: view.as_ref().is_some_and(|view| !view.missing.contains(&other)),
        other_holds: view.is_some_and(|view| view.voted_for == Some(other)),
    })
}

fn text(news: News, group: GroupId) -> String {
    let (finding, what) = match news {
        News::Began(finding) => (finding, "is handed over"),
        News::Over(finding) => (finding, "may be held here again"),
        News::Borne(finding) => (finding, "may be held here all the same, the other party does not hold it"),
    };
    let is_over = matches!(news, News::Over(_));
    let state = match finding {
        Finding::Disk if is_over => "the disk takes readings again",
        Finding::Disk => "the disk takes no readings",
        Finding::Radio if is_over => "a gateway is heard again",
        Finding::Radio => "no gateway is heard",
        Finding::Containers if is_over => "the containers keep running again",
        Finding::Containers => "the containers do not keep running",
    };
    format!("{state}: {group} {what}")
}
