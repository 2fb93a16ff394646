//! Where the reputation of providers comes from. The marketplace only compares scores; whoever judges (the arbitrator) makes them.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use contracts::ids::NodeId;

/// The score of a node nobody has evidence about, in thousandths.
pub const NEUTRAL_PERMILLE: u16 = 500;

/// A source of scores, asked once per clearing round.
#[async_trait]
pub trait Reputation: std::fmt::Debug + Send + Sync + 'static {
    /// Scores in thousandths (0 to 1,000) of those of `nodes` that are known; the others count as [`NEUTRAL_PERMILLE`].
    async fn scores(&self, nodes: &BTreeSet<NodeId>) -> BTreeMap<NodeId, u16>;
}

/// Knows nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unknown;

#[async_trait]
impl Reputation for Unknown {
    async fn scores(&self, _: &BTreeSet<NodeId>) -> BTreeMap<NodeId, u16> {
        BTreeMap::new()
    }
}

/// Scores that were handed in.
#[async_trait]
impl Reputation for BTreeMap<NodeId, u16> {
    async fn scores(&self, nodes: &BTreeSet<NodeId>) -> BTreeMap<NodeId, u16> {
        self.iter().filter(|(node, _)| nodes.contains(node)).map(|(node, score)| (*node, *score)).collect()
    }
}
