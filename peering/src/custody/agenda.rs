//! When the machines of all groups want to be woken, in order: a turn of the driver costs what is due, not what there is.

use std::collections::{BTreeMap, BTreeSet};

use contracts::ids::GroupId;
use contracts::time::BootTime;

/// When a machine is to be woken, and until when that may be put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: BootTime,
    pub(super) latest: BootTime,
}

/// Pure. Every change of a group is followed by [`Agenda::set`].
#[derive(Debug, Default)]
pub(super) struct Agenda {
    due: BTreeMap<GroupId, Due>,
    by_at: BTreeSet<(BootTime, GroupId)>,
    by_latest: BTreeSet<(BootTime, GroupId)>,
}

impl Agenda {
    /// What `group` waits for from now on; nothing, if only a message can change it.
    pub(super) fn set(&mut self, group: GroupId, due: Option<Due>) {
        let before = match due {
            Some(due) => self.due.insert(group, due),
            None => self.due.remove(&group),
        };
        if before == due {
            return;
        }
        if let Some(before) = before {
            self.by_at.remove(&(before.at, group));
            self.by_latest.remove(&(before.latest, group));
        }
        if let Some(due) = due {
            self.by_at.insert((due.at, group));
            self.by_latest.insert((due.latest, group));
        }
    }

    /// When machines are woken next. Those that have time wait a little for others that are due soon, so that what they say leaves
    /// together; once together they stay so. Whatever has no time to lose is never kept waiting.
    pub(super) fn next(&self) -> Option<BootTime> {
        let latest = self.by_latest.first()?.0;
        self.by_at.range(..=(latest, GroupId::from_bytes([u8::MAX; 16]))).next_back().map(|(at, _)| *at)
    }

    /// Which groups are due at `now`, the earliest first.
    pub(super) fn due(&self, now: BootTime) -> Vec<GroupId> {
        self.by_at.iter().take_while(|(at, _)| *at <= now).map(|(_, group)| *group).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As it is said, without an index.
    fn next_of(due: &BTreeMap<GroupId, Due>) -> Option<BootTime> {
        let latest = due.values().map(|due| due.latest).min()?;
        due.values().map(|due| due.at).filter(|at| *at <= latest).max()
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan_over_all_groups(
            changes in proptest::collection::vec((0_u8..12, proptest::option::of((0_u64..50, 0_u64..20))), 0..80),
            now in 0_u64..60,
        ) {
            let (mut agenda, mut plain) = (Agenda::default(), BTreeMap::new());
            for (group, due) in changes {
                let group = GroupId::from_bytes([group; 16]);
                let due = due.map(|(at, slack)| Due { at: BootTime(at), latest: BootTime(at + slack) });
                agenda.set(group, due);
                match due {
                    Some(due) => plain.insert(group, due),
                    None => plain.remove(&group),
                };
                prop_assert_eq!(agenda.next(), next_of(&plain));
            }
            let mut expected: Vec<_> = plain.iter().filter(|(_, due)| due.at <= BootTime(now)).map(|(id, due)| (due.at, *id)).collect();
            expected.sort();
            let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
            prop_assert_eq!(agenda.due(BootTime(now)), expected);
        }
    }
}
