//! Where the keys of peers are reached: settable at any time, from node records that the callers verified.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use contracts::ids::NodeId;

/// Addresses kept per peer; more are cut off.
pub const ADDRESSES_PER_PEER_MAX: usize = 8;

/// Shared: every clone sees every change. A change is used by the next dial; connections that stand are left alone.
#[derive(Debug, Clone, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<NodeId, Vec<SocketAddr>>>>);

impl AddressBook {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces what was known of `node`; an empty list forgets it.
    pub fn set(&self, node: NodeId, addresses: impl IntoIterator<Item = SocketAddr>) {
        let addresses: Vec<_> = addresses.into_iter().take(ADDRESSES_PER_PEER_MAX).collect();
        let mut book = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if addresses.is_empty() {
            book.remove(&node);
        } else {
            book.insert(node, addresses);
        }
    }

    /// The addresses of `node`, none if it is unknown.
    #[must_use]
    pub fn get(&self, node: NodeId) -> Vec<SocketAddr> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned().unwrap_or_default()
    }
}
