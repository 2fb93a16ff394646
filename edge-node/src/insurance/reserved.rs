//! What this node knows to be reserved, in memory: it goes with every vote, and the custody driver must not wait for a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use contracts::ids::GroupId;
use contracts::write_ahead::{Bound, Reserved};

/// Per group; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ReservedByGroup(Arc<RwLock<BTreeMap<GroupId, Reserved>>>);

impl ReservedByGroup {
    pub fn merge(&self, group: GroupId, known: &Reserved) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(group).or_default().merge(known);
    }

    pub fn raise(&self, group: GroupId, bounds: &[Bound]) {
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        groups.entry(group).or_default().raise_all(bounds);
    }

    /// The form in which it goes with a vote.
    #[must_use]
    pub fn bytes(&self, group: GroupId) -> Bytes {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&group).map_or_else(Bytes::new, |r| r.to_bytes().into())
    }
}
