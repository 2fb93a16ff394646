//! What the audit found; each field says how it is counted.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fleet::Eui64;

/// Entries in each list of the report; the counts go on beyond.
pub const LIST_MAX: usize = 100;

/// A reading named in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedReading {
    /// Device EUI.
    pub device: Eui64,
    /// Uplink counter.
    pub f_cnt: u32,
    /// The mote's own number.
    pub reading: u32,
    /// Confirmed uplink.
    pub confirmed: bool,
    /// End on air of the frame from which on it is owed, milliseconds.
    pub heard_ms: u64,
    /// Gateways that heard that frame.
    pub gateways: Vec<Eui64>,
    /// Time from there to the store; nothing if it never came.
    pub delay_ms: Option<u64>,
    /// Node that delivered it.
    pub delivered_by: Option<String>,
}

/// A row of the store that is one too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Duplicate {
    /// Device EUI.
    pub device: Eui64,
    /// Uplink counter in the row.
    pub f_cnt: u32,
    /// Reading number in the row.
    pub reading: Option<u32>,
    /// Event id of the row.
    pub event_id: String,
    /// Node that delivered it.
    pub delivered_by: String,
}

/// A row of the store that says something else than the mote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongValue {
    /// Device EUI.
    pub device: Eui64,
    /// Uplink counter.
    pub f_cnt: u32,
    /// Reading number and tenths of a degree as sent; nothing if no such uplink was sent.
    pub sent: Option<(u32, i16)>,
    /// Reading number and tenths of a degree as stored.
    pub stored: (Option<u32>, Option<i32>),
}

/// How well the radio covered the motes while so many nodes were alive: a check on the radio, not on the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Frames that ended on air meanwhile.
    pub frames_sent: u64,
    /// Of these, heard by a gateway of a living node.
    pub frames_heard: u64,
    /// Share in percent, two decimals.
    pub percent: f64,
}

/// The findings of an audit. Counts are exact; lists end after [`LIST_MAX`] entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Frames that ended on air, retries included.
    pub frames_sent: u64,
    /// Of these, heard by at least one gateway, whether its node was alive or not.
    pub frames_heard: u64,
    /// Of these, owed: heard by a gateway whose node was alive then and for the margin (50 ms) afterwards.
    pub frames_owed: u64,
    /// Heard by gateways of living nodes, all of which died within the margin: in the common case, by A alone right before its kill.
    pub heard_by_a_alone_within_50ms_before_kill: u64,
    /// Heard, but only by gateways whose nodes were dead.
    pub heard_by_nobody_alive: u64,
    /// Sent and heard by number of nodes alive.
    pub coverage_by_nodes_alive: BTreeMap<u64, Coverage>,

    /// Readings sent: distinct pairs of device and counter with at least one frame that ended on air.
    pub readings_sent: u64,
    /// Of these, with at least one owed frame.
    pub readings_owed: u64,
    /// Of the readings sent, found in the store at least once (owed or not).
    pub readings_delivered: u64,
    /// Readings found in the store although not owed: luck, and no fault.
    pub readings_delivered_beyond_owed: u64,
    /// Owed readings that are not in the store.
    pub lost: u64,
    /// Which.
    pub lost_readings: Vec<ListedReading>,
    /// Rows of the store beyond the first with the same event id, or device and counter, or device and reading number.
    pub duplicates: u64,
    /// Which.
    pub duplicate_rows: Vec<Duplicate>,
    /// Rows whose reading number or temperature is not what the mote sent under this counter, or was not decoded.
    pub wrong_values: u64,
    /// Rows for uplinks that no mote sent.
    pub unknown_readings: u64,
    /// Which of both.
    pub wrong_rows: Vec<WrongValue>,

    /// Largest time from the end on air of the first owed frame of a reading to the store.
    pub max_delivery_delay_ms: Option<u64>,
    /// Median of these times.
    pub p50_delivery_delay_ms: Option<u64>,
    /// 99th percentile of these times.
    pub p99_delivery_delay_ms: Option<u64>,
    /// Largest of these times among readings whose first owed frame lies within the hand-back.
    pub handback_max_delay_ms: Option<u64>,
    /// Owed readings that took longer than their bound (delivered all the same).
    pub late: u64,
    /// Which.
    pub late_readings: Vec<ListedReading>,
    /// Largest difference between the node's `heard_at` and the end on air of the nearest frame of that reading.
    pub heard_at_error_ms_max: Option<u64>,

    /// Kill to the store's receipt of the first live reading from the taker: one that its gateway first heard after the certificate
    /// (after the kill if no certificate was given), so that it cannot come from the buffer.
    pub takeover_ms: Option<u64>,
    /// Kill to the start on air of the first downlink in a mote's window by the taker's gateway.
    pub first_live_answer_ms: Option<u64>,
    /// Longest silence of the store that touches the time from the kill to the first live reading.
    pub outage_seen_by_store_ms: Option<u64>,

    /// Downlinks on air, by any gateway.
    pub downlinks_on_air: u64,
    /// Downlinks on air whose device and full counter were on air before, whatever the other bytes.
    pub downlink_counters_reused: u64,
    /// Which: device and counter.
    pub reused_counters: Vec<(Eui64, u32)>,
    /// Downlinks with a new counter below one that was on air before: no reuse, but the mote drops them.
    pub downlink_counters_backwards: u64,
    /// Counters never on air below the highest of their device, summed (blocks left behind by takeovers).
    pub downlink_counters_skipped: u64,
    /// Largest step between consecutive counters of one device, minus one.
    pub downlink_counter_gap_max: u32,
    /// Data downlinks for a known mote whose integrity code fits no plausible counter.
    pub downlinks_unauthentic: u64,
    /// Downlinks for no mote of the fleet, or no data downlinks at all.
    pub downlinks_unknown: u64,
    /// Downlinks for a mote that started outside its windows, or on a wrong channel or data rate.
    pub downlinks_outside_window: u64,
    /// Frames answered by more than one downlink.
    pub frames_answered_twice: u64,
    /// Frames answered by more than one gateway: two nodes transmitted for one device.
    pub frames_answered_by_two_gateways: u64,
    /// When the second answered, wall-clock milliseconds.
    pub frames_answered_by_two_gateways_ms: Vec<u64>,
    /// Downlinks of two gateways for one device so close together that they must be for the same window. No violation by itself: an answer may
    /// lie in the queue of a gateway whose node loses custody meanwhile; whoever knows the times of custody can tell.
    pub windows_used_by_two_gateways: u64,
    /// When, wall-clock milliseconds.
    pub windows_used_by_two_gateways_ms: Vec<u64>,
    /// Downlinks that motes dropped because their counter was not above the last one.
    pub mote_drops_replay: u64,
    /// Downlinks that motes dropped because their counter was more than 16,384 ahead.
    pub mote_drops_gap: u64,
    /// Downlinks that motes dropped for other reasons.
    pub mote_drops_other: u64,
    /// Downlink requests refused by gateways, by `TX_ACK` error.
    pub tx_rejected: BTreeMap<String, u64>,

    /// Confirmed uplinks sent.
    pub confirmed_sent: u64,
    /// Of these, acknowledged in RX1 or RX2 of some attempt, by the mote's own ledger.
    pub confirmed_acknowledged: u64,
    /// Of these, given up after eight attempts or answered without acknowledgement.
    pub confirmed_given_up: u64,
    /// Of these, under way when the ledgers ended.
    pub confirmed_unfinished: u64,
    /// Confirmed uplinks with a frame heard by a living node's gateway after the certificate of the takeover.
    pub confirmed_after_takeover: u64,
    /// Of these, acknowledged in RX1 or RX2 of some attempt.
    pub confirmed_acknowledged_in_window: u64,
    /// Frames of confirmed uplinks that ended on air during hand-back and were heard by a living node's gateway.
    pub handback_confirmed_frames: u64,
    /// Of these, answered on air in a window, whether the answer reached the mote or not.
    pub handback_confirmed_frames_answered: u64,
    /// Of these, heard by the gateways of all living nodes and not answered: the holder heard it, whoever that was.
    pub handback_confirmed_frames_unanswered_though_heard_by_all: u64,

    /// Join requests that left the air.
    pub join_requests: u64,
    /// Of these, heard by a gateway whose node was alive.
    pub join_requests_heard: u64,
    /// Of these, followed by an accept on air in a window of that request.
    pub join_requests_accepted: u64,
    /// Of these, by the gateway of the node that took over.
    pub join_requests_accepted_by_taker: u64,
    /// Sessions that motes began.
    pub joined: u64,
    /// Join accepts on air.
    pub accepts_on_air: u64,
    /// Join accepts whose `JoinNonce` is not above that of an earlier request of that device.
    pub join_nonces_not_risen: u64,
    /// Join requests that were accepted with more than one number.
    pub joins_answered_differently: u64,
    /// Downlinks with a payload, with commands, or in want of an acknowledgement that motes accepted.
    pub downlinks_received: u64,

    /// Contradictions between the ledgers themselves: the judge is at fault.
    pub ledger_faults: u64,
    /// Which.
    pub ledger_fault_texts: Vec<String>,
}

/// Something that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Violation {
    /// Owed readings are missing.
    Lost(u64),
    /// Rows are doubled.
    Duplicated(u64),
    /// Downlink counters were used twice.
    CountersReused(u64),
    /// Downlink counters went backwards.
    CountersBackwards(u64),
    /// Downlinks that no mote can authenticate.
    Unauthentic(u64),
    /// Two gateways answered one frame or one join request.
    TwoTransmitters(u64),
    /// A `JoinNonce` was used twice, or went backwards.
    JoinNonces(u64),
    /// Stored values are not what was sent.
    WrongValues(u64),
    /// Stored readings were never sent.
    Invented(u64),
    /// Owed readings came after their bound.
    Late(u64),
    /// The ledgers contradict themselves.
    LedgerFaults(u64),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(count) => write!(f, "{count} owed readings are not in the store"),
            Self::Duplicated(count) => write!(f, "{count} rows of the store are doubles"),
            Self::CountersReused(count) => write!(f, "{count} downlinks on air reused a counter"),
            Self::CountersBackwards(count) => write!(f, "{count} downlinks on air had a counter below an earlier one"),
            Self::Unauthentic(count) => write!(f, "{count} downlinks on air had a wrong integrity code"),
            Self::TwoTransmitters(count) => write!(f, "{count} frames were answered by two gateways"),
            Self::JoinNonces(count) => write!(f, "{count} join accepts on air had a JoinNonce not above an earlier one"),
            Self::WrongValues(count) => write!(f, "{count} rows of the store differ from what the mote sent"),
            Self::Invented(count) => write!(f, "{count} rows of the store were never sent"),
            Self::Late(count) => write!(f, "{count} owed readings came after their bound"),
            Self::LedgerFaults(count) => write!(f, "{count} contradictions between the ledgers"),
        }
    }
}

impl Report {
    /// Everything that must not be, most serious first; empty for a clean run.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        [
            Violation::Lost(self.lost),
            Violation::Duplicated(self.duplicates),
            Violation::CountersReused(self.downlink_counters_reused),
            Violation::CountersBackwards(self.downlink_counters_backwards),
            Violation::Unauthentic(self.downlinks_unauthentic),
            Violation::TwoTransmitters(self.frames_answered_by_two_gateways + self.joins_answered_differently),
            Violation::JoinNonces(self.join_nonces_not_risen),
            Violation::WrongValues(self.wrong_values),
            Violation::Invented(self.unknown_readings),
            Violation::Late(self.late),
            Violation::LedgerFaults(self.ledger_faults),
        ]
        .into_iter()
        .filter(|violation| violation.count() > 0)
        .collect()
    }
}

impl Violation {
    /// How many times.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Lost(count)
            | Self::Duplicated(count)
            | Self::CountersReused(count)
            | Self::CountersBackwards(count)
            | Self::Unauthentic(count)
            | Self::TwoTransmitters(count)
            | Self::JoinNonces(count)
            | Self::WrongValues(count)
            | Self::Invented(count)
            | Self::Late(count)
            | Self::LedgerFaults(count) => *count,
        }
    }
}

/// Adds to a list that ends after [`LIST_MAX`] entries.
pub(super) fn list<Item>(items: &mut Vec<Item>, item: Item) {
    if items.len() < LIST_MAX {
        items.push(item);
    }
}
