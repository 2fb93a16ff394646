//! Who may transmit: asked by the bridge directly before each downlink, without waiting.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use contracts::ids::{Epoch, GroupId};
use peering::custody::Hold;

/// Under what a group's devices are served.
#[derive(Debug, Clone)]
enum Lease {
    /// No contract: nobody else could serve them.
    Alone,
    /// A contract: only while a majority promised it.
    Held(Hold),
}

/// All groups' leases; cheap to clone. A group that is not in here is not transmitted for.
#[derive(Debug, Clone, Default)]
pub struct Leases(Arc<RwLock<BTreeMap<GroupId, Lease>>>);

impl Leases {
    pub fn set_alone(&self, group: GroupId) {
        self.set(group, Lease::Alone);
    }

    pub fn set_held(&self, group: GroupId, hold: Hold) {
        self.set(group, Lease::Held(hold));
    }

    pub fn remove(&self, group: GroupId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    fn set(&self, group: GroupId, lease: Lease) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(group, lease);
    }

    /// Whether the group is served without a contract.
    #[must_use]
    pub fn is_alone(&self, group: GroupId) -> bool {
        matches!(self.0.read().unwrap_or_else(PoisonError::into_inner).get(&group), Some(Lease::Alone))
    }

    /// Whether a downlink of `epoch` may leave at this moment.
    #[must_use]
    pub fn holds(&self, group: GroupId, epoch: Epoch) -> bool {
        match self.0.read().unwrap_or_else(PoisonError::into_inner).get(&group) {
            Some(Lease::Alone) => true,
            Some(Lease::Held(hold)) => hold.holds(epoch),
            None => false,
        }
    }
}
