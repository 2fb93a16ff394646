//! The network between machines: each direction of each link has its own delay, loss, doubling, bandwidth and cuts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contracts::ids::NodeId;
use contracts::time::Millis;
use peering::in_process::{Faults, Kind, Message, Passage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Parts per million that are all.
pub const PPM: u32 = 1_000_000;
/// Who waits for a message over a cut link learns so after this time: the transport's idle timeout.
const LOST_AFTER: Millis = Millis(5_000);
/// A stream repeats a lost packet at the most so often before the delay counts as loss.
const REPETITIONS_MAX: u32 = 8;

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    pub delay_ms: u64,
    /// Added to the delay at random; messages pass each other.
    pub jitter_ms: u64,
    pub loss_ppm: u32,
    pub doubled_ppm: u32,
    /// 0: not limited.
    pub bits_per_second: u64,
}

impl Default for Link {
    /// A LAN.
    fn default() -> Self {
        Self { delay_ms: 1, jitter_ms: 0, loss_ppm: 0, doubled_ppm: 0, bits_per_second: 0 }
    }
}

#[derive(Debug)]
struct State {
    rng: ChaCha8Rng,
    usual: Link,
    /// Addresses that are on another's machine.
    aliases: BTreeMap<NodeId, NodeId>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    cut: BTreeMap<(NodeId, NodeId), ()>,
    /// Until when a link of limited bandwidth is busy.
    busy_until: BTreeMap<(NodeId, NodeId), Instant>,
    /// Bytes and datagrams that were sent.
    sent: (u64, u64),
}

/// The links of a scenario; clones are the same ones.
#[derive(Debug, Clone)]
pub struct Links(Arc<Mutex<State>>);

impl Links {
    #[must_use]
    pub fn new(seed: u64, usual: Link) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let state = State {
            rng,
            usual,
            aliases: BTreeMap::new(),
            links: BTreeMap::new(),
            cut: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            sent: (0, 0),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All links are like this, except those that were set apart.
    pub fn set_usual(&self, link: Link) {
        self.state().usual = link;
    }

    /// These addresses are reached over the links of others.
    pub fn set_aliases(&self, aliases: BTreeMap<NodeId, NodeId>) {
        self.state().aliases = aliases;
    }

    /// One direction is like this.
    pub fn set(&self, from: NodeId, to: NodeId, link: Link) {
        self.state().links.insert((from, to), link);
    }

    /// Nothing passes from here to there.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state().cut.insert((from, to), ());
    }

    /// Everything passes again.
    pub fn mend(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.links.clear();
    }

    /// Whether something is not as usual, or usual is not faultless.
    #[must_use]
    pub fn is_disturbed(&self) -> bool {
        let state = self.state();
        !state.cut.is_empty() || !state.links.is_empty() || state.usual.loss_ppm > 0
    }

    /// Bytes and datagrams that were sent so far.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        self.state().sent
    }

    /// What decides in the medium. `look` is called first, at every message.
    #[must_use]
    pub fn faults(&self, look: impl Fn() + Send + Sync + 'static) -> Faults {
        let links = self.clone();
        Arc::new(move |message| {
            look();
            links.state().passage(message)
        })
    }
}

impl State {
    fn passage(&mut self, message: &Message) -> Passage {
        let place = |node: NodeId| self.aliases.get(&node).copied().unwrap_or(node);
        let way = (place(message.from), place(message.to));
        if message.kind == Kind::Datagram {
            self.sent = (self.sent.0 + message.bytes as u64, self.sent.1 + 1);
        }
        if self.cut.contains_key(&way) {
            return Passage::LostAfter(LOST_AFTER);
        }
        let link = self.links.get(&way).copied().unwrap_or(self.usual);
        let delay = self.delay(&link) + self.queueing(way, &link, message.bytes);
        match message.kind {
            Kind::Datagram if self.happens(link.loss_ppm) => Passage::Lost,
            Kind::Datagram if self.happens(link.doubled_ppm) => {
                let again = delay + self.delay(&link) + self.delay(&link);
                Passage::Doubled(delay, again)
            }
            Kind::Datagram => Passage::Delayed(delay),
            Kind::Stream | Kind::Ping => {
                let mut total = delay;
                for repetition in 0..REPETITIONS_MAX {
                    if !self.happens(link.loss_ppm) {
                        return Passage::Delayed(total);
                    }
                    // A probe timeout of QUIC (RFC 9002), doubled each time.
                    total = total + Millis((2 * link.delay_ms + 30) << repetition);
                }
                Passage::LostAfter(LOST_AFTER)
            }
        }
    }

    fn happens(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.rng.random_range(0..PPM) < ppm
    }

    fn delay(&mut self, link: &Link) -> Millis {
        Millis(link.delay_ms + if link.jitter_ms > 0 { self.rng.random_range(0..=link.jitter_ms) } else { 0 })
    }

    fn queueing(&mut self, way: (NodeId, NodeId), link: &Link, bytes: usize) -> Millis {
        if link.bits_per_second == 0 {
            return Millis::ZERO;
        }
        let now = Instant::now();
        let airtime = std::time::Duration::from_micros(bytes as u64 * 8 * 1_000_000 / link.bits_per_second);
        let free_at = self.busy_until.get(&way).copied().map_or(now, |at| at.max(now)) + airtime;
        self.busy_until.insert(way, free_at);
        Millis(u64::try_from(free_at.duration_since(now).as_millis()).unwrap_or(u64::MAX))
    }
}
