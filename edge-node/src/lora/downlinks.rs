//! What tenants are told about their downlinks: questions that are open, and what became of each.
//!
//! Events live in memory, the newest of a group within a bound; a question stays open until it is answered or superseded, however many
//! events follow. What is owed at least once is kept on disk as one value of the group.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use contracts::ids::{DevAddr, DevEui, GroupId};
use contracts::time::WallTime;
use lora_bridge::mac::queue::{Outcome, Question, QueueState};
use tenant::{DOWNLINK_EVENTS_MAX, DownlinkEvent, DownlinkState};
use tokio::sync::watch;

/// Events that are remembered per group.
const EVENTS_MAX: usize = 4_096;
/// Under this key a group's owed downlinks are kept; tenants' own keys cannot begin with a dot.
pub const STATE_KEY: &str = ".downlinks";

#[derive(Debug)]
struct Group {
    events: VecDeque<DownlinkEvent>,
    /// At most one per device.
    open: BTreeMap<DevEui, DownlinkEvent>,
    owed: BTreeMap<DevEui, QueueState>,
    newest: watch::Sender<u64>,
    /// Rises when what is owed is on disk.
    stored: watch::Sender<u64>,
}

impl Default for Group {
    fn default() -> Self {
        let (newest, stored) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { events: VecDeque::new(), open: BTreeMap::new(), owed: BTreeMap::new(), newest, stored }
    }
}

/// All groups' events; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Downlinks(Arc<Mutex<BTreeMap<GroupId, Group>>>);

impl Downlinks {
    fn with<R>(&self, group: GroupId, act: impl FnOnce(&mut Group) -> R) -> R {
        act(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(group).or_default())
    }

    /// Forgets a group.
    pub fn remove(&self, group: GroupId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    fn push(group: &mut Group, at: WallTime, device: DevEui, id: String, state: DownlinkState) -> DownlinkEvent {
        let cursor = *group.newest.borrow() + 1;
        let event = DownlinkEvent { cursor, at_ms: at.0, id, dev_eui: tenant::DevEui(*device.as_bytes()), state };
        if group.events.len() >= EVENTS_MAX {
            group.events.pop_front();
        }
        group.events.push_back(event.clone());
        group.newest.send_replace(cursor);
        event
    }

    /// The bridge wants a payload encrypted; an earlier question for the device is superseded.
    pub fn ask(&self, group: GroupId, at: WallTime, device: DevEui, dev_addr: DevAddr, question: Question) {
        let state = DownlinkState::Wanted {
            f_port: question.f_port,
            payload: tenant::HexBytes(question.payload.to_vec()),
            dev_addr: tenant::DevAddr(*dev_addr.as_bytes()),
            session: question.session.to_string(),
            joined: question.joined.map(crate::tenants::http::told),
            f_cnt_first: question.f_cnt_first,
            count: question.count,
        };
        self.with(group, |group| {
            let event = Self::push(group, at, device, question.id, state);
            group.open.insert(device, event);
        });
    }

    pub fn tell(&self, group: GroupId, at: WallTime, device: DevEui, id: String, outcome: Outcome) {
        let (state, is_end) = match outcome {
            Outcome::Sent { f_cnt, gateway } => (DownlinkState::Sent { f_cnt, gateway: gateway.to_string() }, false),
            Outcome::Acked { f_cnt } => (DownlinkState::Acked { f_cnt }, true),
            Outcome::Expired => (DownlinkState::Expired, true),
            Outcome::Failed(failure) => (DownlinkState::Failed { reason: failure.name().to_owned() }, true),
        };
        self.with(group, |group| {
            if is_end && group.open.get(&device).is_some_and(|open| open.id == id) {
                group.open.remove(&device);
            }
            Self::push(group, at, device, id, state);
        });
    }

    /// The tenant answered.
    pub fn answered(&self, group: GroupId, device: DevEui, id: &str, f_cnt_first: u32) {
        let is_this = |open: &DownlinkEvent| {
            open.id == id && matches!(open.state, DownlinkState::Wanted { f_cnt_first: first, .. } if first == f_cnt_first)
        };
        self.with(group, |group| {
            if group.open.get(&device).is_some_and(is_this) {
                group.open.remove(&device);
            }
        });
    }

    /// Events behind `after`; without it the questions that are open. And what tells of newer ones.
    #[must_use]
    pub fn after(&self, group: GroupId, after: Option<u64>) -> (Vec<DownlinkEvent>, watch::Receiver<u64>) {
        self.with(group, |group| {
            let newest = group.newest.subscribe();
            // A cursor from before a restart of this node is none of these events'.
            let after = after.filter(|after| *after <= *newest.borrow());
            let mut events: Vec<DownlinkEvent> = match after {
                None => group.open.values().cloned().collect(),
                Some(after) => {
                    group.events.iter().filter(|event| event.cursor > after).take(DOWNLINK_EVENTS_MAX).cloned().collect()
                }
            };
            events.sort_unstable_by_key(|event| event.cursor);
            events.truncate(DOWNLINK_EVENTS_MAX);
            (events, newest)
        })
    }

    /// Notes what is owed to a device; the whole group's as bytes for the disk.
    #[must_use]
    pub fn set_owed(&self, group: GroupId, device: DevEui, state: QueueState) -> Vec<u8> {
        self.with(group, |group| {
            if state.is_empty() {
                group.owed.remove(&device);
            } else {
                group.owed.insert(device, state);
            }
            serde_json::to_vec(&group.owed).unwrap_or_default()
        })
    }

    /// What the disk said of a group.
    pub fn restore(&self, group: GroupId, bytes: &[u8]) -> BTreeMap<DevEui, QueueState> {
        let owed: BTreeMap<DevEui, QueueState> = serde_json::from_slice(bytes).unwrap_or_default();
        self.with(group, |group| group.owed.clone_from(&owed));
        owed
    }

    pub fn note_stored(&self, group: GroupId) {
        self.with(group, |group| group.stored.send_modify(|count| *count += 1));
    }

    /// Whether a downlink is among what is owed or done, as far as the disk knows when the receiver next changes.
    #[must_use]
    pub fn stored(&self, group: GroupId) -> watch::Receiver<u64> {
        self.with(group, |group| group.stored.subscribe())
    }

    /// Whether a downlink is known as owed or done.
    #[must_use]
    pub fn knows(&self, group: GroupId, device: DevEui, id: &str) -> bool {
        self.with(group, |group| {
            group
                .owed
                .get(&device)
                .is_some_and(|state| state.open.iter().any(|open| open.id == id) || state.done.iter().any(|done| done == id))
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use contracts::ids::SessionId;
    use lora_bridge::mac::queue::Failure;

    use super::*;

    const GROUP: GroupId = GroupId::from_bytes([1; 16]);

    fn question(id: &str, f_cnt_first: u32) -> Question {
        let session = SessionId::from_bytes([2; 8]);
        Question { id: id.to_owned(), f_port: 1, payload: Bytes::from_static(b"x"), session, joined: None, f_cnt_first, count: 8 }
    }

    #[test]
    fn open_questions_come_first_and_the_rest_by_cursor() {
        let (downlinks, device) = (Downlinks::default(), DevEui::from_u64(1));
        let ask = |id, first| downlinks.ask(GROUP, WallTime(5), device, DevAddr::from_u32(7), question(id, first));
        ask("a", 0);
        ask("a", 6);
        let (events, mut newest) = downlinks.after(GROUP, None);
        assert_eq!(events.len(), 1, "the newer question of the device");
        assert_eq!((events[0].cursor, *newest.borrow_and_update()), (2, 2));
        downlinks.answered(GROUP, device, "a", 0);
        assert_eq!(downlinks.after(GROUP, None).0.len(), 1, "an answer to an older question changes nothing");
        downlinks.answered(GROUP, device, "a", 6);
        assert!(downlinks.after(GROUP, None).0.is_empty());
        downlinks.tell(GROUP, WallTime(6), device, "a".to_owned(), Outcome::Failed(Failure::Unknown));
        assert!(newest.has_changed().expect("open"));
        let (events, _) = downlinks.after(GROUP, Some(2));
        assert_eq!(events[0].state, DownlinkState::Failed { reason: "unknown".to_owned() });
        ask("b", 9);
        assert_eq!(downlinks.after(GROUP, Some(1_000)).0[0].id, "b", "a cursor from another life asks for what is open");
    }

    #[test]
    fn what_is_owed_comes_back_from_the_disk() {
        let (downlinks, device) = (Downlinks::default(), DevEui::from_u64(1));
        let state = QueueState { open: vec![], done: vec!["d".to_owned()], used: None };
        let bytes = downlinks.set_owed(GROUP, device, state.clone());
        let again = Downlinks::default();
        assert_eq!(again.restore(GROUP, &bytes), BTreeMap::from([(device, state)]));
        assert!(again.knows(GROUP, device, "d") && !again.knows(GROUP, device, "e"));
    }
}
