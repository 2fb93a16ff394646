//! Who is who: this node's record where others look for it, the records of others in the own directory, the marketplace's key pinned.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use contracts::envelope::Envelope;
use contracts::ids::{NodeId, OwnerId};
use contracts::node_record::Role;

use super::{Error, Inner};

/// Where the marketplace's key is pinned, below the state directory: its address and its node id.
const PIN_FILE: &str = "marketplace.pin";
/// Records are looked up so often while one is missing, and while none is.
const PAUSE_MISSING: Duration = Duration::from_secs(1);
const PAUSE_COMPLETE: Duration = Duration::from_secs(30);
/// A young cloud looks so often for edges of its owner, which can deliver nothing before it knows them; later the arbitrator's events tell.
const PAUSE_YOUNG_CLOUD: Duration = Duration::from_secs(2);
const YOUNG: Duration = Duration::from_secs(60);

/// Keeps the records that this node needs in its directory, for ever.
pub(super) async fn keep_records(inner: Arc<Inner>) {
    let started = tokio::time::Instant::now();
    loop {
        let missing = inner.refresh_records().await;
        let is_young_cloud = inner.core.config.role == Role::Cloud && started.elapsed() < YOUNG;
        let pause = match (missing, is_young_cloud) {
            (true, _) => PAUSE_MISSING,
            (false, true) => PAUSE_YOUNG_CLOUD,
            (false, false) => PAUSE_COMPLETE,
        };
        tokio::select! {
            biased;
            () = inner.records_wanted(missing) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Inner {
    /// Resolves when a contract names nodes that are not known yet.
    async fn records_wanted(&self, missing: bool) {
        let mut changed = self.core.agreements.changed();
        loop {
            if !missing && self.needed().iter().any(|node| !self.core.directory.admits(*node)) {
                return;
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The nodes that this one has to know: its cloud, arbitrator, witnesses, and the members of its contracts.
    fn needed(&self) -> BTreeSet<NodeId> {
        let config = &self.core.config;
        let mut needed: BTreeSet<NodeId> = config.cloud.into_iter().chain(config.arbitrator.as_ref().map(|a| a.node)).collect();
        if let Some(policy) = &self.core.policy {
            needed.extend(policy.witnesses.iter().copied().chain([policy.arbitrator]));
        }
        for agreement in self.core.agreements.list().into_iter().filter(|a| !a.wiped) {
            needed.extend(agreement.contract.members());
            needed.insert(agreement.contract.readings_to);
        }
        needed.remove(&self.core.me());
        needed
    }

    /// Asks for the newest records. Returns whether one is still missing.
    async fn refresh_records(&self) -> bool {
        let mut missing = false;
        for node in self.needed() {
            match self.fetch_record(node).await {
                Ok(envelope) => self.put_record(&envelope).await,
                Err(error) => tracing::debug!(%node, error = error.chain(), "no record of a node"),
            }
            missing |= !self.core.directory.admits(node);
        }
        if let Err(error) = self.fetch_own_fleet().await {
            tracing::debug!(error = error.chain(), "the owner's nodes were not looked up");
        }
        if missing {
            // The marketplace may just not have been there yet.
            self.ask_marketplace.notify_one();
        }
        missing
    }

    async fn put_record(&self, envelope: &Envelope) {
        if let Err(error) = self.core.directory.put(envelope).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a node record is not taken");
        }
    }

    /// A node's record from the arbitrator, if it is its own, else from the marketplace, else from the arbitrator.
    async fn fetch_record(&self, node: NodeId) -> Result<Envelope, Error> {
        if self.core.config.arbitrator.as_ref().is_some_and(|a| a.node == node) {
            let arbitrator = self.arbitrator()?.describe_arbitrator().await?;
            return if arbitrator.node == node {
                Ok(arbitrator.record)
            } else {
                Err(Error::Final(format!("the arbitrator is {}, not {node}", arbitrator.node)))
            };
        }
        match self.marketplace() {
            Ok(marketplace) => match marketplace.node(node).await {
                Ok(known) => Ok(known.record),
                Err(error) => match self.arbitrator() {
                    Ok(arbitrator) => Ok(arbitrator.get_node(node).await?.record),
                    Err(_) => Err(error.into()),
                },
            },
            Err(_) => Ok(self.arbitrator()?.get_node(node).await?.record),
        }
    }

    /// A cloud lets the edges of its owner talk to it.
    async fn fetch_own_fleet(&self) -> Result<(), Error> {
        if self.core.config.role != Role::Cloud {
            return Ok(());
        }
        let Some(marketplace) = &self.marketplace else { return Ok(()) };
        for node in marketplace.nodes().await? {
            self.put_own(node.owner, node.id, &node.record).await;
        }
        Ok(())
    }

    async fn put_own(&self, owner: OwnerId, node: NodeId, record: &Envelope) {
        if owner == self.core.owner && node != self.core.me() {
            self.put_record(record).await;
        }
    }

    /// A node registered with the arbitrator: a cloud looks whether it is one of its owner's.
    pub(super) async fn meet_newcomer(&self, node: NodeId) -> Result<(), Error> {
        if self.core.config.role == Role::Cloud && node != self.core.me() {
            let known = self.arbitrator()?.get_node(node).await?;
            self.put_own(known.owner, known.node, &known.record).await;
        }
        Ok(())
    }

    /// The marketplace's key: as pinned on disk for its address, else as it says now, which pins it.
    pub(super) async fn pin_marketplace(&self, client: &marketplace::client::Client) -> Result<NodeId, Error> {
        if let Some(pinned) = *self.pinned.borrow() {
            return Ok(pinned);
        }
        let url = self.core.config.marketplace.as_ref().map(|m| m.url.clone()).unwrap_or_default();
        let path = self.core.config.state_directory.join(PIN_FILE);
        let reading = path.clone();
        let read = kit::task::blocking(move || std::fs::read_to_string(reading)).await;
        let on_disk = read.ok().and_then(Result::ok).and_then(|text| read_pin(&text, &url));
        let says = client.marketplace().await?.id;
        if let Some(pinned) = on_disk.filter(|pinned| *pinned != says) {
            self.alarm(format!(
                "the marketplace at {url} was {pinned} and says now that it is {says}; remove {} if that is right",
                path.display()
            ));
            return Err(Error::NotYet("the marketplace changed its key"));
        }
        if on_disk.is_none() {
            kit::file::replace(&path, format!("{url} {says}\n").as_bytes(), 0o644)?;
        }
        self.pinned.send_replace(Some(says));
        Ok(says)
    }
}

/// The node id pinned for `url`.
fn read_pin(text: &str, url: &str) -> Option<NodeId> {
    let (pinned_url, node) = text.trim().split_once(' ')?;
    if pinned_url == url { node.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_counts_for_its_address_only() {
        let node = NodeId::from_bytes([7; 32]);
        let text = format!("http://127.0.0.1:7310 {node}\n");
        assert_eq!(read_pin(&text, "http://127.0.0.1:7310"), Some(node));
        assert_eq!(read_pin(&text, "http://127.0.0.1:7311"), None);
        assert_eq!(read_pin("nonsense", "nonsense"), None);
    }
}
