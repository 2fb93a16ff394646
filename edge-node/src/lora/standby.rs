//! What was heard in standby, on this node's disk: a copy of the bridge's buffer that survives the process.
//!
//! Frames whose session is not known yet are among them, each under the name of its bytes.
//!
//! Nothing waits for it. Frames gather for a few milliseconds and share one transaction; one that is settled meanwhile is never written.
//! Bounded by the bridge's buffer: whatever leaves that is named here, and forgotten.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId, SessionId};
use lora_bridge::bridge::io::{KeptFrame, OfferedFrame};
use lora_bridge::gwmp::rxpk::RxMeta;
use lora_bridge::mac::session::Mark;
use lora_bridge::server::BridgeHandle;
use tokio::sync::Notify;

use super::reception;
use crate::readings::log::Log;
use crate::readings::{Kind, StoredUplink, Uplink};
use crate::store::Store;

/// How long frames gather.
const LINGER: Duration = Duration::from_millis(10);
/// Frames, and names to forget, in one transaction at most.
const BATCH_MAX: usize = 1_024;
/// After the disk refused a batch; something new is tried at once.
const RETRY: Duration = Duration::from_millis(500);
/// Rows read at a time.
const PAGE: u32 = 1_024;

/// Stands in the log for a session that is not known.
pub const UNKNOWN: SessionId = SessionId::from_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfd]);

/// What a node counts of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames written.
    pub written: u64,
    /// Frames settled or thrown away before they had to be written.
    pub spared: u64,
    /// Writes that the disk refused.
    pub failed: u64,
    /// Frames in memory only.
    pub waiting: u64,
}

#[derive(Debug, Default)]
struct State {
    /// To be written, in the order in which they were heard.
    frames: BTreeMap<u64, Uplink>,
    places: BTreeMap<EventId, u64>,
    next: u64,
    /// To be dropped from the disk, once all frames before this place are on it: what waited for its session is forgotten because it is
    /// among the frames now.
    forget: BTreeMap<EventId, u64>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    news: Notify,
    written: AtomicU64,
    spared: AtomicU64,
    failed: AtomicU64,
}

/// A handle to the copy; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Standby(Arc<Inner>);

impl Standby {
    /// Writes for ever.
    pub async fn run(self, log: Log) {
        let mut is_refused = false;
        loop {
            if self.is_empty() {
                self.0.news.notified().await;
            } else if is_refused {
                // Timeout or news: both mean to try again.
                let _either = tokio::time::timeout(RETRY, self.0.news.notified()).await;
            }
            tokio::time::sleep(LINGER).await;
            is_refused = !self.write(&log).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        let state = self.state();
        state.frames.is_empty() && state.forget.is_empty()
    }

    /// To be kept until it is forgotten, or written as deliverable.
    pub fn keep(&self, uplink: Uplink) {
        self.state().keep(uplink);
        self.0.news.notify_one();
    }

    /// Needed no more.
    pub fn forget(&self, events: Vec<EventId>) {
        let spared = self.state().forget(events);
        self.0.spared.fetch_add(spared, Ordering::Relaxed);
        self.0.news.notify_one();
    }

    /// Since the process began, and how many frames wait now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Inner { written, spared, failed, .. } = &*self.0;
        let waiting = self.state().frames.len() as u64;
        Counts { written: count(written), spared: count(spared), failed: count(failed), waiting }
    }

    /// One transaction; false if the disk did not take it, and then all of it waits again.
    async fn write(&self, log: &Log) -> bool {
        let (frames, forget) = self.state().take();
        let count = frames.len() as u64;
        if keep(log, frames.values().cloned()).await.is_err() {
            let mut state = self.state();
            state.forget.extend(forget);
            state.put_back(frames);
            self.0.failed.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.0.written.fetch_add(count, Ordering::Relaxed);
        if !forget.is_empty() && log.forget(forget.keys().copied().collect()).await.is_err() {
            self.state().forget.extend(forget);
            self.0.failed.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        true
    }
}

impl State {
    fn keep(&mut self, uplink: Uplink) {
        let (event, place) = (uplink.event, self.next);
        // It was thrown away before and is heard again.
        self.forget.remove(&event);
        if let Some(before) = self.places.insert(event, place) {
            self.frames.remove(&before);
        }
        self.frames.insert(place, uplink);
        self.next += 1;
    }

    /// How many need not be written at all.
    fn forget(&mut self, events: Vec<EventId>) -> u64 {
        let mut spared = 0;
        for event in events {
            match self.places.remove(&event).and_then(|place| self.frames.remove(&place)) {
                Some(_unwritten) => spared += 1,
                None => drop(self.forget.insert(event, self.next)),
            }
        }
        spared
    }

    fn take(&mut self) -> (BTreeMap<u64, Uplink>, BTreeMap<EventId, u64>) {
        let end = self.frames.keys().nth(BATCH_MAX).copied().unwrap_or(u64::MAX);
        let rest = self.frames.split_off(&end);
        let frames = std::mem::replace(&mut self.frames, rest);
        for uplink in frames.values() {
            self.places.remove(&uplink.event);
        }
        let forget: BTreeMap<_, _> = self
            .forget
            .iter()
            .filter(|(_, place)| **place <= end)
            .take(BATCH_MAX)
            .map(|(event, place)| (*event, *place))
            .collect();
        self.forget.retain(|event, _| !forget.contains_key(event));
        (frames, forget)
    }

    fn put_back(&mut self, frames: BTreeMap<u64, Uplink>) {
        for (place, uplink) in frames {
            // Forgotten or kept anew meanwhile.
            if !self.forget.contains_key(&uplink.event) && !self.places.contains_key(&uplink.event) {
                self.places.insert(uplink.event, place);
                self.frames.insert(place, uplink);
            }
        }
    }
}

/// Whoever insures answers for what it heard, but not for what may be nobody's.
async fn keep(log: &Log, frames: impl Iterator<Item = Uplink>) -> Result<(), crate::readings::log::Error> {
    let (awaited, heard): (Vec<_>, Vec<_>) = frames.partition(|uplink| uplink.session == UNKNOWN);
    let (heard, awaited) = tokio::join!(async { if heard.is_empty() { Ok(()) } else { log.hear(heard).await } }, async {
        if awaited.is_empty() { Ok(()) } else { log.append(awaited).await }
    });
    heard.and(awaited)
}

/// A frame of a session that is not known, as it is kept.
#[must_use]
pub fn awaited(group: GroupId, event: EventId, dev_addr: DevAddr, frame: &OfferedFrame) -> Uplink {
    Uplink {
        event,
        group,
        device: DevEui::from_u64(0),
        dev_addr,
        session: UNKNOWN,
        joined: None,
        f_cnt: 0,
        f_port: None,
        confirmed: false,
        frm_payload: String::new(),
        phy: hex::encode(&frame.phy),
        heard_at: frame.heard_at,
        kind: Kind::Late,
        epoch: Epoch(0),
        deliver: false,
        rx: reception(frame.gateway, &frame.rx),
        others: Vec::new(),
    }
}

/// Gives the bridge what an earlier process kept for a group.
///
/// # Errors
/// The database or the bridge failed.
pub async fn restore(store: &Store, bridge: &BridgeHandle, group: GroupId) -> Result<(), crate::insurance::Error> {
    let mut after = 0;
    loop {
        let page = store.list_kept(group, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.seq;
        let frames = page.iter().filter_map(|stored| {
            let frame = kept_frame(stored);
            if frame.is_none() {
                tracing::error!(%group, event = %stored.uplink.event, "a kept frame cannot be read and stays where it is");
            }
            frame
        });
        let (awaited, kept): (Vec<_>, Vec<_>) = frames.partition(|kept| kept.mark.session == UNKNOWN);
        bridge.kept(group, kept).await?;
        bridge.awaited(awaited.into_iter().map(|kept| kept.frame).collect()).await?;
    }
}

fn kept_frame(StoredUplink { uplink, .. }: &StoredUplink) -> Option<KeptFrame> {
    let rx = RxMeta {
        tmst: Some(uplink.rx.tmst),
        frequency_hz: Some(uplink.rx.frequency_hz),
        data_rate: uplink.rx.data_rate.parse().ok()?,
        rssi_dbm: Some(uplink.rx.rssi_dbm),
        snr_decibel_tenths: Some(uplink.rx.snr_tenth_db),
    };
    let frame = OfferedFrame {
        phy: hex::decode(&uplink.phy).ok()?.into(),
        gateway: uplink.rx.gateway.parse().ok()?,
        rx,
        heard_at: uplink.heard_at,
    };
    let mark = Mark { device: uplink.device, session: uplink.session, f_cnt: uplink.f_cnt };
    Some(KeptFrame { mark, joined: uplink.joined, frame })
}

#[cfg(test)]
mod tests {
    use contracts::time::WallTime;
    use lora_bridge::GatewayEui;

    use super::*;

    fn frame(n: u16) -> Uplink {
        let phy = bytes::Bytes::copy_from_slice(&n.to_be_bytes());
        let frame = OfferedFrame { phy, gateway: GatewayEui(1), rx: crate::lora::tests::rx(), heard_at: WallTime(0) };
        let event = EventId::new(DevEui::from_u64(n.into()), UNKNOWN, 0);
        awaited(GroupId::from_bytes([1; 16]), event, DevAddr::from_u32(1), &frame)
    }

    #[test]
    fn what_was_stored_is_dropped_once_all_that_came_before_is_stored_and_not_later() {
        let mut state = State::default();
        let [first, second] = [frame(9_001).event, frame(9_002).event];
        let count = u16::try_from(BATCH_MAX).expect("small");
        (0..count - 1).for_each(|n| state.keep(frame(n)));
        assert_eq!(state.forget(vec![first]), 0, "it is on the disk");
        (count - 1..2 * count).for_each(|n| state.keep(frame(n)));
        assert_eq!(state.forget(vec![second]), 0);
        // More arrives than is written: what was to be dropped before that does not wait for it.
        (2 * count..5 * count).for_each(|n| state.keep(frame(n)));
        let (frames, forget) = state.take();
        assert_eq!((frames.len(), forget.keys().copied().collect::<Vec<_>>()), (BATCH_MAX, vec![first]));
        // The disk did not take it.
        state.forget.extend(forget);
        state.put_back(frames);
        let mut turns = 0;
        let (before, forget) = loop {
            let (frames, forget) = state.take();
            turns += 1;
            if forget.contains_key(&second) {
                break (frames, forget);
            }
            assert_eq!(frames.len(), BATCH_MAX);
        };
        assert_eq!((turns, before.len(), forget.len()), (2, BATCH_MAX, 1));
        assert_eq!(state.frames.len(), 3 * BATCH_MAX);
    }
}
