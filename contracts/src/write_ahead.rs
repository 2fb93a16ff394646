//! Write-ahead records: what a new holder must know before it transmits, kept on the disks of a majority before the old one transmits.
//!
//! Downlink counters are reserved in blocks; a member keeps, for every session of a device, the lowest counter that is not reserved.
//! Bounds only rise, so merging is taking the larger one, in any order and any number of times.
//!
//! A device that joins over the air gets a new session each time. The version of its newest join record stands among the bounds, under
//! [`JOINS`]; of two members that know different versions the higher one's bounds of the device count and the other's do not, so the
//! sessions of old joins do not pile up.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{DevEui, Epoch, SessionId};

/// At most this many sessions in one record or one group.
pub const SESSIONS_MAX: usize = 20_000;
/// Stands for a device's join records in place of a session; its bound is the version of the newest.
pub const JOINS: SessionId = SessionId::from_bytes([0xff; 8]);
/// Stands for a device's link records (where it listens) in place of a session; its bound is the version of the newest.
pub const LINKS: SessionId = SessionId::from_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
/// Bytes of one session's bound in [`Reserved::to_bytes`].
const ENTRY_BYTES: usize = 20;

/// Whether a bound is one of downlink counters, and not the version of a record.
#[must_use]
pub fn is_session(session: SessionId) -> bool {
    session != JOINS && session != LINKS
}

/// A reservation that a holder asks members to keep. Refused if `epoch` is below the member's voted epoch, or was granted to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub epoch: Epoch,
    /// Rises with every reservation of the epoch.
    pub seq: u64,
    pub bounds: Vec<Bound>,
}

/// Downlink counters of one session below `upto` may have been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    pub device: DevEui,
    pub session: SessionId,
    pub upto: u32,
}

/// The records of one device; what is secret in them is sealed to those who may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedRecord {
    pub device: DevEui,
    /// Hexadecimal.
    pub blob: String,
}

/// What a holder writes ahead: a [`Reservation`], and sealed records of devices; the newest of each device is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsWrite {
    pub epoch: Epoch,
    /// Rises with every write of the epoch.
    pub seq: u64,
    pub bounds: Vec<Bound>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sealed: Vec<SealedRecord>,
}

/// Characters of sealed records in one page, at most; one record may be longer. A page must come through a thin link before who asked gives up.
pub const PAGE_CHARS_MAX: usize = 64 << 10;
/// Bounds in one page, at most; those of one device stay together.
pub const PAGE_BOUNDS_MAX: usize = 512;

/// Asks for a page of what a member keeps of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsQuery {
    /// The `next` of the page before; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DevEui>,
}

/// A page of what a member keeps of a group: everything of some devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsView {
    pub bounds: Vec<Bound>,
    pub sealed: Vec<SealedRecord>,
    /// There is more, of devices behind this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<DevEui>,
}

/// A page that is being filled.
#[derive(Debug, Default)]
pub struct RecordsPage {
    sealed: Vec<SealedRecord>,
    chars: usize,
    is_full: bool,
}

impl RecordsPage {
    /// Adds a record, in order of devices. `false`: it is for the next page, and so is what follows.
    pub fn add(&mut self, record: SealedRecord) -> bool {
        self.is_full |= !self.sealed.is_empty() && self.chars + record.blob.len() > PAGE_CHARS_MAX;
        if !self.is_full {
            self.chars += record.blob.len();
            self.sealed.push(record);
        }
        !self.is_full
    }

    /// The page behind `after`, with those of all `bounds` of the group, in order, that belong on it.
    #[must_use]
    pub fn finish(mut self, bounds: impl Iterator<Item = Bound>, after: Option<DevEui>) -> RecordsView {
        let mut next = self.sealed.last().map(|record| record.device).filter(|_| self.is_full);
        let is_on_it = |bound: &Bound| Some(bound.device) > after && next.is_none_or(|next| bound.device <= next);
        let mut bounds: Vec<Bound> = bounds.filter(is_on_it).collect();
        if let Some(first_too_many) = bounds.get(PAGE_BOUNDS_MAX).map(|bound| bound.device) {
            let last = bounds.iter().map(|bound| bound.device).take_while(|device| *device < first_too_many).last();
            let last = last.unwrap_or(first_too_many);
            bounds.retain(|bound| bound.device <= last);
            self.sealed.retain(|record| record.device <= last);
            next = Some(last);
        }
        RecordsView { bounds, sealed: self.sealed, next }
    }
}

/// Everything a member knows to be reserved in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reserved(BTreeMap<(DevEui, SessionId), u32>);

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record has {ENTRY_BYTES} bytes per session and at most {SESSIONS_MAX} sessions")]
pub struct Malformed;

impl Reserved {
    /// Raises the bound of a session; a lower one changes nothing. `false`: the group is full and the session unknown. A newer join of a
    /// device ends its other sessions: what is read back or named together goes by [`Self::raise_all`].
    pub fn raise(&mut self, bound: Bound) -> bool {
        self.raise_all(&[bound])
    }

    fn raise_one(&mut self, bound: &Bound) -> bool {
        let key = (bound.device, bound.session);
        if self.0.len() >= SESSIONS_MAX && !self.0.contains_key(&key) {
            return false;
        }
        let upto = self.0.entry(key).or_default();
        *upto = bound.upto.max(*upto);
        true
    }

    /// What one write, or one member, names. A newer join of a device ends its sessions but those that are named with it: a reservation of
    /// the new session may have come before the join.
    pub fn raise_all(&mut self, bounds: &[Bound]) -> bool {
        let newer: Vec<DevEui> = bounds
            .iter()
            .filter(|bound| bound.session == JOINS && self.joins(bound.device) < bound.upto)
            .map(|bound| bound.device)
            .collect();
        if !newer.is_empty() {
            let named: BTreeSet<_> = bounds.iter().map(|bound| (bound.device, bound.session)).collect();
            for device in newer {
                self.forget_others(device, &named);
            }
        }
        bounds.iter().all(|bound| self.raise_one(bound))
    }

    /// Takes over what another member knows. Of different joins of a device the newer one's sessions count; of these the higher bounds, whoever
    /// knows them: a member that did not hear of the join may have heard of what was reserved after it.
    pub fn merge(&mut self, other: &Self) {
        let of_newest = |bound: &Bound, known: &Self| {
            self.joins(bound.device) <= other.joins(bound.device) || known.upto(bound.device, bound.session).is_some()
        };
        let bounds: Vec<Bound> = other.bounds().filter(|bound| of_newest(bound, self)).collect();
        self.raise_all(&bounds);
    }

    /// Takes back what was claimed of devices whose newest records are not in `stored`: what the same member had on its disk later. A claim may be
    /// of a write that the disk refused.
    pub fn limit_to(&mut self, stored: &Self) {
        let refuted: BTreeSet<DevEui> =
            self.bounds().map(|bound| bound.device).filter(|device| self.is_newer(stored, *device)).collect();
        for device in refuted {
            self.forget_others(device, &BTreeSet::new());
            for bound in stored.of_device(device) {
                self.raise_one(&bound);
            }
        }
    }

    /// Whether this knows a newer record of the device than the other.
    #[must_use]
    pub fn is_newer(&self, other: &Self, device: DevEui) -> bool {
        self.joins(device) > other.joins(device) || self.links(device) > other.links(device)
    }

    /// Version of a device's newest join record; 0 if it never joined.
    #[must_use]
    pub fn joins(&self, device: DevEui) -> u32 {
        self.upto(device, JOINS).unwrap_or(0)
    }

    /// Version of a device's newest link record; 0 if nothing was changed since it joined.
    #[must_use]
    pub fn links(&self, device: DevEui) -> u32 {
        self.upto(device, LINKS).unwrap_or(0)
    }

    fn of_device(&self, device: DevEui) -> impl Iterator<Item = Bound> {
        let range = (device, SessionId::from_bytes([0; 8]))..=(device, JOINS);
        self.0.range(range).map(|((device, session), upto)| Bound { device: *device, session: *session, upto: *upto })
    }

    fn forget_others(&mut self, device: DevEui, named: &BTreeSet<(DevEui, SessionId)>) {
        let of_device: Vec<_> = self.of_device(device).map(|bound| (device, bound.session)).collect();
        for key in of_device.iter().filter(|key| !named.contains(key)) {
            self.0.remove(key);
        }
    }

    #[must_use]
    pub fn upto(&self, device: DevEui, session: SessionId) -> Option<u32> {
        self.0.get(&(device, session)).copied()
    }

    pub fn bounds(&self) -> impl Iterator<Item = Bound> {
        self.0.iter().map(|((device, session), upto)| Bound { device: *device, session: *session, upto: *upto })
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Device (8 bytes) | session (8) | bound (4, big-endian), for each session in order. Goes with every vote.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * ENTRY_BYTES);
        for bound in self.bounds() {
            bytes.extend_from_slice(bound.device.as_bytes());
            bytes.extend_from_slice(bound.session.as_bytes());
            bytes.extend_from_slice(&bound.upto.to_be_bytes());
        }
        bytes
    }

    /// # Errors
    /// [`Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        if !bytes.len().is_multiple_of(ENTRY_BYTES) || bytes.len() / ENTRY_BYTES > SESSIONS_MAX {
            return Err(Malformed);
        }
        let mut bounds = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        for entry in bytes.chunks_exact(ENTRY_BYTES) {
            let part = |from: usize| entry[from..from + 8].try_into().map_err(|_| Malformed);
            let upto = entry[16..].try_into().map(u32::from_be_bytes).map_err(|_| Malformed)?;
            bounds.push(Bound { device: DevEui::from_bytes(part(0)?), session: SessionId::from_bytes(part(8)?), upto });
        }
        let mut reserved = Self::default();
        reserved.raise_all(&bounds);
        Ok(reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(device: u64, upto: u32) -> Bound {
        Bound { device: DevEui::from_u64(device), session: SessionId::from_bytes([7; 8]), upto }
    }

    #[test]
    fn bounds_only_rise_in_whatever_order_they_come() {
        let all = [bound(1, 16), bound(2, 32), bound(1, 48), bound(1, 32)];
        let (mut forwards, mut backwards) = (Reserved::default(), Reserved::default());
        all.iter().for_each(|b| assert!(forwards.raise(*b)));
        all.iter().rev().for_each(|b| assert!(backwards.raise(*b)));
        assert_eq!(forwards, backwards);
        assert_eq!(forwards.upto(DevEui::from_u64(1), SessionId::from_bytes([7; 8])), Some(48));
    }

    /// Three members hear of joins and reservations in any order, and agree once all have heard of all.
    #[test]
    fn a_newer_join_ends_the_sessions_before_it_in_whatever_order_it_is_heard_of() {
        let session = |n: u8| SessionId::from_bytes([n; 8]);
        let device = DevEui::from_u64(1);
        let write = |version: u32, of: u8, upto| {
            vec![Bound { device, session: session(of), upto }, Bound { device, session: JOINS, upto: version }]
        };
        let writes = [write(10, 1, 16), write(20, 2, 16), write(30, 3, 16)];
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for order in orders {
            let mut members: Vec<Reserved> = order
                .iter()
                .map(|n| {
                    let mut member = Reserved::default();
                    assert!(member.raise_all(&writes[*n]));
                    member
                })
                .collect();
            members[0].raise(Bound { device: DevEui::from_u64(2), session: session(9), upto: 5 });
            for (to, from) in [(0, 1), (1, 2), (0, 2), (2, 0), (1, 0)] {
                let known = members[from].clone();
                members[to].merge(&known);
            }
            assert_eq!(members[0], members[1]);
            assert_eq!(members[1], members[2]);
            assert_eq!((members[0].len(), members[0].upto(device, session(3))), (3, Some(16)), "{order:?}");
        }
    }

    /// Members that hear of a join and of what was reserved after it in either order, or of one of the two only.
    #[test]
    fn what_was_reserved_after_a_join_counts_whoever_heard_of_it() {
        let device = DevEui::from_u64(1);
        let [old, new] = [1, 2].map(|n| SessionId::from_bytes([n; 8]));
        let at = |session, upto| Bound { device, session, upto };
        let join = [at(JOINS, 20), at(new, 16)];
        let before = [at(JOINS, 10), at(old, 48)];
        let made = |writes: &[&[Bound]]| {
            let mut member = Reserved::default();
            writes.iter().for_each(|write| assert!(member.raise_all(write)));
            member
        };
        let in_order = made(&[&before, &join, &[at(new, 32)]]);
        let joined_late = made(&[&before, &[at(new, 32)], &join]);
        assert_eq!((in_order.upto(device, new), in_order.upto(device, old)), (Some(32), None));
        assert_eq!(joined_late, in_order);
        let (only_join, only_reserved) = (made(&[&before, &join]), made(&[&before, &[at(new, 32)]]));
        for (one, other) in [(&only_join, &only_reserved), (&only_reserved, &only_join)] {
            let mut merged = one.clone();
            merged.merge(other);
            assert_eq!(merged, in_order);
        }
        // Bounds of a device that joined are read back whole.
        assert_eq!(Reserved::from_bytes(&in_order.to_bytes()), Ok(in_order));
    }

    #[test]
    fn a_link_record_ends_no_session_and_a_join_ends_the_link_records_before_it() {
        let (device, session) = (DevEui::from_u64(1), SessionId::from_bytes([7; 8]));
        let versioned = |session, upto| Bound { device, session, upto };
        let mut reserved = Reserved::default();
        reserved.raise(bound(1, 48));
        reserved.raise(versioned(LINKS, 9));
        assert_eq!((reserved.upto(device, session), reserved.links(device)), (Some(48), 9));
        reserved.raise(versioned(JOINS, 3));
        assert_eq!((reserved.upto(device, session), reserved.links(device), reserved.joins(device)), (None, 0, 3));
        assert!(is_session(session) && !is_session(LINKS) && !is_session(JOINS));
    }

    /// A vote names a join whose write the member's disk then refused; and what it does have of other devices.
    #[test]
    fn what_a_member_has_not_on_its_disk_is_not_believed() {
        let (joined, other) = (DevEui::from_u64(1), DevEui::from_u64(2));
        let [old, new] = [1, 2].map(|n| SessionId::from_bytes([n; 8]));
        let at = |device, session, upto| Bound { device, session, upto };
        let before = [at(joined, JOINS, 10), at(joined, old, 48), at(other, LINKS, 3), at(other, old, 16)];
        let (mut stored, mut claimed) = (Reserved::default(), Reserved::default());
        stored.raise_all(&before);
        claimed.raise_all(&before);
        claimed.raise_all(&[at(joined, JOINS, 20), at(joined, new, 16)]);
        claimed.raise(at(other, old, 32));
        assert!(claimed.is_newer(&stored, joined) && !claimed.is_newer(&stored, other));
        claimed.limit_to(&stored);
        let known = |device, session| claimed.upto(device, session);
        assert_eq!((known(joined, JOINS), known(joined, old), known(joined, new)), (Some(10), Some(48), None));
        // Counters that were announced and not stored are skipped at worst.
        assert_eq!((known(other, LINKS), known(other, old)), (Some(3), Some(32)));
        claimed.raise(at(other, LINKS, 4));
        claimed.limit_to(&stored);
        assert_eq!(claimed, stored);
    }

    /// What a member that keeps these gives page by page.
    fn pages(records: &[SealedRecord], bounds: &[Bound]) -> Vec<RecordsView> {
        let (mut after, mut pages) = (None, Vec::new());
        loop {
            let mut page = RecordsPage::default();
            records.iter().filter(|record| Some(record.device) > after).all(|record| page.add(record.clone()));
            let view = page.finish(bounds.iter().copied(), after);
            after = view.next;
            pages.push(view);
            if after.is_none() {
                break;
            }
        }
        assert_eq!(pages.iter().flat_map(|page| &page.sealed).collect::<Vec<_>>(), records.iter().collect::<Vec<_>>());
        assert_eq!(pages.iter().flat_map(|page| &page.bounds).collect::<Vec<_>>(), bounds.iter().collect::<Vec<_>>());
        pages
    }

    #[test]
    fn pages_hold_everything_once_and_are_bounded() {
        let of = |n: u64, chars| SealedRecord { device: DevEui::from_u64(n), blob: "a".repeat(chars) };
        let records = [of(1, 10), of(3, PAGE_CHARS_MAX - 10), of(4, PAGE_CHARS_MAX + 1), of(6, 1), of(7, 1)];
        let bounds: Vec<Bound> = (1..=8).map(|device| bound(device, 16)).collect();
        let pages = pages(&records, &bounds);
        assert_eq!(pages.iter().map(|page| page.sealed.len()).collect::<Vec<_>>(), [2, 1, 2]);
        assert_eq!(pages.iter().map(|page| page.bounds.len()).collect::<Vec<_>>(), [3, 1, 4]);
    }

    #[test]
    fn a_page_ends_where_its_bounds_are_too_many_and_parts_no_device() {
        let session = |n: u16| SessionId::from_bytes(u64::from(n).to_be_bytes());
        let of = |device, sessions| (0..sessions).map(move |n| Bound { session: session(n), ..bound(device, 16) });
        let max = u16::try_from(PAGE_BOUNDS_MAX).expect("small");
        let bounds: Vec<Bound> =
            of(1, 1).chain(of(2, max)).chain(of(3, max + 1)).chain((4..1_000).map(|n| bound(n, 16))).collect();
        let records: Vec<_> = (1..1_000).map(|n| SealedRecord { device: DevEui::from_u64(n), blob: "a".into() }).collect();
        let pages = pages(&records, &bounds);
        let lengths: Vec<_> = pages.iter().map(|page| page.bounds.len()).collect();
        assert_eq!(lengths, [1, PAGE_BOUNDS_MAX, PAGE_BOUNDS_MAX + 1, PAGE_BOUNDS_MAX, 996 - PAGE_BOUNDS_MAX]);
    }

    #[test]
    fn bytes_read_back_and_rubbish_does_not() {
        let mut reserved = Reserved::default();
        (1..50).for_each(|n| assert!(reserved.raise(bound(n, u32::try_from(n).expect("small") * 16))));
        assert_eq!(Reserved::from_bytes(&reserved.to_bytes()), Ok(reserved.clone()));
        assert_eq!(Reserved::from_bytes(&reserved.to_bytes()[1..]), Err(Malformed));
        assert_eq!(Reserved::from_bytes(&vec![0; (SESSIONS_MAX + 1) * ENTRY_BYTES]), Err(Malformed));
    }
}
