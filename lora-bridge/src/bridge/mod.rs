//! The pure core: inputs in, outputs out, no I/O, no clock, no randomness.
//!
//! An uplink's way: datagram -> packets -> header -> session by address and integrity code -> 32-bit counter -> the set of what is known ->
//! [`Output::Uplink`] -> the owner's disk -> [`Input::Committed`] -> only now an answer, with a counter that is written ahead.
//!
//! # Layout
//! - [`io`] — inputs and outputs
//! - `collecting` — copies of one transmission by several gateways
//! - `hearing` — from the datagram to the uplink or the buffer
//! - `adapting` — adaptive data rate
//! - `answering` — what is owed to devices, what gateways say
//! - `resets` — devices that begin their counters anew
//! - `unknown` — frames of sessions that began at another node
//! - `joining` — activation over the air
//! - `keeping` — join requests that cannot be checked yet
//! - `linking` — changes of devices' receive windows and channels
//! - `planning` — what is owed, and by which gateways it can go
//! - `schedules` — when each gateway transmits
//! - `queueing` — tenants' downlinks on their way
//! - `custody` — registration, modes, replay, progress, streamed state

pub mod adapting;
mod answering;
mod collecting;
mod custody;
mod hearing;
pub mod io;
mod joining;
mod keeping;
mod linking;
mod planning;
mod queueing;
mod resets;
mod schedules;
mod unknown;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use contracts::ids::{DevEui, Epoch, EventId, GroupId};
use contracts::time::{BootTime, Millis};

use crate::buffer::{Buffer, Limits};
use crate::gwmp::GatewayEui;
use crate::gwmp::gateways::{GatewayStatus, Gateways, Routes};
use crate::gwmp::rxpk::Frame;
use crate::gwmp::sources::{Rate, Sources};
use crate::gwmp::taps::Taps;
use crate::mac::adr::AdrMode;
use crate::mac::duty_cycle::{AirTime, Ledger};
use crate::mac::queue::{Queue, QueueState};
use crate::mac::region::{Region, RegionName};
use crate::mac::registry::{Registry, SlotIndex};
use crate::mac::session::{Entry, Mark, SessionState};
use crate::mac::trials::Trials;
use crate::rules::{Clause, Rules};
use crate::stats::{DropReason, Stats};
use collecting::Collecting;
use io::{Input, Mode, Now, Output};
use joining::{Joining, OnAir};
use keeping::Keeping;
use planning::{Outstanding, Pending};
use resets::Resets;
use schedules::Schedules;
use unknown::Unknown;

/// At so many downlink counters left out since a device last received one an alarm is due: it is deaf past a gap of 16,384. Custody is given back
/// all the same, for a hand-back leaves none out.
pub const SKIPPED_ALARM: u32 = 8_192;

/// Transmit power that every gateway has.
pub const POWER_DBM_ANY: i8 = 14;

/// Buffered frames given out per input.
const REPLAY_BATCH: u64 = 1_024;
/// Offers made per input.
const OFFERS_BATCH: usize = 256;
const SWEEP_EVERY: Millis = Millis(250);
const RESERVE_RETRY: Millis = Millis(500);
const REPLAY_RETRY: Millis = Millis(100);

/// Bounds and waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// A gateway must have a downlink so long before its window opens.
    pub answer_margin: Millis,
    /// An uplink waits at most so long for the copies of gateways that heard its device lately, and not at all where none is missing.
    pub copies_wait: Millis,
    /// So long after a frame was heard the serving node's progress should have named it.
    pub offer_wait: Millis,
    /// Highest transmit power of the operator's gateways; the sub-band's limit is kept too. A gateway that says that it has not such a power
    /// is told [`POWER_DBM_ANY`] from then on.
    pub power_dbm_max: i8,
    pub sessions_max: usize,
    pub groups_max: usize,
    pub gateways_max: usize,
    /// What one source address may bring. A gateway with 16 demodulators hears some hundred packets a second.
    pub source_rate: Rate,
    /// Uplinks given to the owner and neither committed nor failed.
    pub in_flight_max: usize,
    /// Downlinks that wait for their `TX_ACK`.
    pub outstanding_max: usize,
    /// Downlinks of tenants that wait, over all devices.
    pub downlinks_max: usize,
    pub region: RegionName,
    pub buffer: Limits,
    /// All on in the product; checkers switch single clauses off.
    #[doc(hidden)]
    pub rules: Rules,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            answer_margin: Millis(100),
            copies_wait: Millis(40),
            offer_wait: Millis(30),
            power_dbm_max: 27,
            sessions_max: 200_000,
            groups_max: 1_024,
            gateways_max: 4_096,
            source_rate: Rate { per_second: 20_000, burst: 40_000 },
            in_flight_max: 65_536,
            outstanding_max: 8_192,
            downlinks_max: 65_536,
            region: RegionName::Eu868,
            buffer: Limits::default(),
            rules: Rules::ALL,
        }
    }
}

/// Time on air of one sub-band of a gateway within the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct DutyCycle {
    pub gateway: crate::gwmp::GatewayEui,
    pub from_hz: u32,
    pub to_hz: u32,
    pub spent_micros: u64,
    pub budget_micros: u64,
}

#[derive(Debug)]
struct Group {
    mode: Mode,
    /// The highest in which this node served.
    epoch: Epoch,
    replay: Option<Replay>,
    /// Devices' data rates are managed.
    adr: AdrMode,
    /// When the other party last told that it hears devices.
    heard_there: Option<BootTime>,
}

#[derive(Debug, Clone, Copy)]
struct Replay {
    cursor: u64,
    frames: u64,
    not_before: BootTime,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    slot: SlotIndex,
    mark: Mark,
    is_buffered: bool,
    /// The name under which it waited for its session.
    awaited: Option<EventId>,
}

/// What was dropped and should not have come, or could not be taken, for a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub reason: DropReason,
    /// Since the last report.
    pub count: u64,
    /// Who sent the last of them; absent where a frame was dropped after its datagram was read.
    pub from: Option<SocketAddr>,
    pub gateway: Option<GatewayEui>,
}

/// The state of a bridge. One owner; see [`crate::server`] for the one with the socket.
#[derive(Debug)]
pub struct Bridge {
    config: Config,
    registry: Registry,
    groups: BTreeMap<GroupId, Group>,
    gateways: Gateways,
    sources: Sources,
    taps: Taps,
    faults: BTreeMap<DropReason, Fault>,
    buffer: Buffer,
    in_flight: HashMap<EventId, InFlight>,
    collecting: Collecting,
    resets: Resets,
    unknown: Unknown,
    trials: Trials,
    /// Answers owed, at most one per session: class A listens after its newest uplink only.
    pending: BTreeMap<SlotIndex, Pending>,
    outstanding: BTreeMap<u16, Outstanding>,
    /// The same by age.
    sent: VecDeque<(BootTime, u16)>,
    next_token: u16,
    /// Downlinks of tenants, by device.
    queues: BTreeMap<DevEui, Queue>,
    /// How many wait.
    queued: usize,
    /// Devices whose next downlink may have to be encrypted.
    asking: BTreeSet<DevEui>,
    /// Devices whose state the other node must know.
    state_due: BTreeSet<DevEui>,
    ledger: Ledger,
    schedules: Schedules,
    /// Devices that join over the air.
    joining: BTreeMap<DevEui, Joining>,
    /// What they sent and cannot be checked yet.
    keeping: Keeping,
    /// Those of them with a join under way.
    joins: BTreeSet<DevEui>,
    /// Accepts that wait for their `TX_ACK`.
    accepts: BTreeMap<u16, OnAir>,
    /// Device and counter of downlinks of which no gateway said anything.
    silent: Vec<(DevEui, u32)>,
    /// Reservations to ask for at the end of this input.
    wanted: Vec<(GroupId, DevEui, u32)>,
    /// Sessions whose reservation was asked for and not granted.
    waiting: BTreeSet<SlotIndex>,
    swept: BootTime,
    asked: BootTime,
    frame: Frame,
    stats: Stats,
}

impl Bridge {
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            registry: Registry::new(config.sessions_max),
            groups: BTreeMap::new(),
            gateways: Gateways::new(config.gateways_max),
            sources: Sources::new(config.source_rate, config.gateways_max.saturating_mul(2)),
            taps: Taps::default(),
            faults: BTreeMap::new(),
            buffer: Buffer::new(config.buffer),
            in_flight: HashMap::new(),
            collecting: Collecting::default(),
            resets: Resets::default(),
            unknown: Unknown::default(),
            trials: Trials::new(),
            pending: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            sent: VecDeque::new(),
            next_token: 0,
            queues: BTreeMap::new(),
            queued: 0,
            asking: BTreeSet::new(),
            state_due: BTreeSet::new(),
            ledger: Ledger::new(config.region.region(), config.gateways_max),
            schedules: Schedules::default(),
            joining: BTreeMap::new(),
            keeping: Keeping::default(),
            joins: BTreeSet::new(),
            accepts: BTreeMap::new(),
            silent: Vec::new(),
            wanted: Vec::new(),
            waiting: BTreeSet::new(),
            swept: BootTime(0),
            asked: BootTime(0),
            frame: Frame::default(),
            stats: Stats::default(),
        }
    }

    /// Takes one input and appends what is to be done, in order.
    pub fn apply(&mut self, input: Input<'_>, now: Now, out: &mut Vec<Output>) {
        match input {
            Input::Datagram { from, bytes } => self.datagram(from, bytes, now, out),
            Input::Register { group, sessions } => self.register(group, &sessions, now, out),
            Input::Remove { group } => self.remove(group, out),
            Input::Custody { group, mode } => self.custody(group, mode, now, out),
            Input::Committed { events } => self.committed(&events, now, out),
            Input::CommitFailed { events } => self.commit_failed(&events, now),
            Input::Reserved { entries } => self.reserved(&entries, now, out),
            Input::Reset { entries } => self.reset(&entries, now, out),
            Input::WrittenAhead { sessions } => self.follow(&sessions, now, out),
            Input::CountersFrom { entries, source } => self.counters_from(&entries, source, now, out),
            Input::PeerProgress { served, settled } => {
                self.note_served(&served);
                self.note_settled(&settled);
            }
            Input::Settled { marks } => self.note_settled(&marks),
            Input::Offered { frame } => self.offered(&frame, now, out),
            Input::Import { states } => self.import(&states, now, out),
            Input::Kept { group, frames } => self.restore_kept(group, frames, now, out),
            Input::Awaited { frames } => self.restore_awaited(&frames, now, out),
            Input::Taps { taps } => self.taps.set(taps),
            Input::Adr { group, mode } => self.set_adr(group, mode),
            Input::PeerMargins { margins } => self.note_margins(&margins, now.boot),
            Input::RegisterJoining { group, devices } => self.register_joining(group, devices, now, out),
            Input::Recorded { record } => self.recorded(&record, now, out),
            Input::Records { records } => self.take_records(&records, now, out),
            Input::LinkRecorded { record } => self.link_recorded(&record, now, out),
            Input::LinkRecords { records } => self.take_link_records(records),
            Input::RestoreQueues { queues } => queues.iter().for_each(|(device, state)| self.merge_queue(*device, state)),
            Input::Encrypted { answer } => self.encrypted(answer, now, out),
            Input::AirTime { spent } => self.ledger.restore(&spent, now.boot),
            Input::Routes { routes } => self.gateways.restore(&routes, now.boot, now.wall),
            Input::Tick => self.tick(now, out),
        }
        let mut forgotten = self.buffer.take_forgotten();
        forgotten.append(&mut self.unknown.take_forgotten());
        if !forgotten.is_empty() {
            out.push(Output::Forget { events: forgotten });
        }
        self.flush(now, out);
    }

    /// What is said once per input.
    fn flush(&mut self, now: Now, out: &mut Vec<Output>) {
        self.flush_silent(out);
        self.flush_wanted(now, out);
        self.flush_queues(out);
    }

    const fn region(&self) -> &'static Region {
        self.config.region.region()
    }

    /// What a gateway is told to transmit with.
    fn power_dbm(&self, gateway: GatewayEui, frequency_hz: u32) -> i8 {
        let (_, band) = self.region().sub_band(frequency_hz);
        let power_dbm = band.erp_dbm_max().min(self.config.power_dbm_max);
        if self.gateways.has_refused_power(gateway) { power_dbm.min(POWER_DBM_ANY) } else { power_dbm }
    }

    /// When the next [`Input::Tick`] has something to do, at the latest.
    #[must_use]
    pub fn next_due(&self) -> Option<BootTime> {
        let replay = self.groups.values().filter_map(|group| group.replay).map(|replay| replay.not_before);
        let reserve = (!self.waiting.is_empty()).then(|| self.asked + RESERVE_RETRY);
        let has_deadlines = !self.pending.is_empty()
            || !self.outstanding.is_empty()
            || self.buffer.len() > 0
            || self.queued > 0
            || self.unknown.has_failed();
        let sweep = has_deadlines.then(|| self.swept + SWEEP_EVERY);
        replay
            .chain(reserve)
            .chain(sweep)
            .chain(self.buffer.next_offer())
            .chain(self.collecting.next_due())
            .chain(self.resets.next_due())
            .chain(self.next_accept())
            .min()
    }

    /// Whether a counter needs no delivery by this node: the customer's store has it, or this node took it already.
    fn is_known(&self, entry: &Entry, f_cnt: u32) -> bool {
        let is_below = !self.config.rules.has(Clause::D1) && f_cnt < entry.f_cnt_up_next;
        entry.settled.contains(f_cnt) || entry.taken.contains(f_cnt) || is_below
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Output>) {
        self.collecting.give_due(now.boot, out);
        self.tick_resets(now, out);
        self.make_offers(now, out);
        self.send_accepts(now, out);
        let due: Vec<GroupId> = self
            .groups
            .iter()
            .filter(|(_, group)| group.replay.is_some_and(|replay| replay.not_before <= now.boot))
            .map(|(id, _)| *id)
            .collect();
        for group in due {
            self.replay(group, now, out);
        }
        if now.boot.since(self.swept) >= SWEEP_EVERY {
            self.swept = now.boot;
            self.sweep_answers(now, out);
            self.sweep_queues(now, out);
            self.buffer.sweep(now.boot);
            self.sweep_awaited(now, out);
        }
        if !self.waiting.is_empty() && now.boot.since(self.asked) >= RESERVE_RETRY {
            self.ask_again(now);
        }
    }

    /// The next downlink counter of each device, for a release: exact once custody has ended.
    #[must_use]
    pub fn exact_counters(&self, group: GroupId) -> Vec<(DevEui, u32)> {
        let slots = self.registry.group(group);
        let entries = slots.iter().filter_map(|slot| self.registry.get(*slot)).filter(|entry| !entry.is_past);
        entries.map(|entry| (entry.device, entry.down.next)).collect()
    }

    /// Up to `max` states of a group's sessions from `cursor` (0 at first) on, and where to go on.
    #[must_use]
    pub fn export(&self, group: GroupId, cursor: u32, max: usize) -> (Vec<SessionState>, Option<u32>) {
        let mut states = Vec::new();
        for (slot, entry) in
            self.registry.entries().filter(|(slot, entry)| *slot >= cursor && entry.group == group && !entry.is_past)
        {
            if states.len() == max {
                return (states, Some(slot));
            }
            states.push(self.with_queue(entry.state()));
        }
        (states, None)
    }

    /// The state of one device's session.
    #[must_use]
    pub fn state(&self, device: DevEui) -> Option<SessionState> {
        let slot = self.registry.slot_of(device)?;
        self.registry.get(slot).map(|entry| self.with_queue(entry.state()))
    }

    fn with_queue(&self, mut state: SessionState) -> SessionState {
        let used = state.queue.used;
        state.queue = QueueState { used, ..self.queues.get(&state.device).map(Queue::shared).unwrap_or_default() };
        state
    }

    /// The mode of a group.
    #[must_use]
    pub fn mode(&self, group: GroupId) -> Option<Mode> {
        self.groups.get(&group).map(|group| group.mode)
    }

    /// All gateways of now, by EUI.
    #[must_use]
    pub fn gateways(&self, now: BootTime) -> Vec<GatewayStatus> {
        self.gateways.statuses(now)
    }

    /// Where gateways are reached, to be stored and given back with [`Input::Routes`] when this bridge begins anew.
    #[must_use]
    pub fn routes(&self, now: Now) -> Routes {
        self.gateways.routes(now.boot, now.wall)
    }

    /// What was dropped since the last call, one entry per reason; not what neighbours' devices send in good order.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults).into_values().collect()
    }

    /// What each sub-band of each gateway has spent of its hour.
    #[must_use]
    pub fn duty_cycle(&self, now: BootTime) -> Vec<DutyCycle> {
        let region = self.region();
        let spent = self.ledger.spent(now);
        let row = |(gateway, band, spent_micros): (_, usize, _)| {
            let band = region.sub_bands.get(band).copied().unwrap_or(region.elsewhere);
            DutyCycle { gateway, from_hz: band.from_hz, to_hz: band.to_hz, spent_micros, budget_micros: band.budget_micros() }
        };
        spent.map(row).collect()
    }

    /// What was spent, to be stored and given back with [`Input::AirTime`] when this bridge begins anew.
    #[must_use]
    pub fn air_time(&self, now: BootTime) -> AirTime {
        self.ledger.air_time(now)
    }

    /// Counters and sizes. Walks over all sessions: not for every datagram.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            buffer_lost: self.buffer.counts.lost,
            buffer_evicted_served: self.buffer.counts.evicted_served,
            buffer_frames: self.buffer.len(),
            awaited_frames: self.unknown.len(),
            buffer_bytes: self.buffer.bytes(),
            sessions: self.registry.len(),
            gateways: self.gateways.len(),
            in_flight: self.in_flight.len(),
            trials: self.trials.made,
            payloads_waiting: self.queued,
            f_cnt_down_skipped_max: self.registry.entries().map(|(_, entry)| entry.down.skipped).max().unwrap_or(0),
            ..self.stats.clone()
        }
    }
}
