//! Counters: every drop has a reason, every answer that did not go out too.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::gwmp::txpk::TxResult;
use crate::gwmp::{self, rxpk};
use crate::mac::uplink;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The label of the counter.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Why a datagram, a packet or a frame went no further.
    DropReason {
        DatagramShort => "datagram_short",
        DatagramLong => "datagram_long",
        Version => "version",
        Kind => "kind",
        /// The source address brings more than it may.
        SourceLimit => "source_limit",
        /// More gateways pull than the bridge may remember.
        GatewaysFull => "gateways_full",
        PacketMalformed => "packet_malformed",
        PacketChecksum => "packet_checksum",
        PacketBase64 => "packet_base64",
        PacketOversize => "packet_oversize",
        PacketsTooMany => "packets_too_many",
        FrameMalformed => "frame_malformed",
        FrameDownlink => "frame_downlink",
        FrameJoin => "frame_join",
        /// The device's nonce was used before.
        JoinReplayed => "join_replayed",
        /// Before the device's last join was over, or too often without an uplink in between.
        JoinTooSoon => "join_too_soon",
        /// The device's nonces, or the records of the epoch, are used up.
        JoinLimit => "join_limit",
        /// In standby: the device, the gateway that heard it, or all together have as many requests kept as they may.
        JoinsKeptFull => "joins_kept_full",
        FrameProprietary => "frame_proprietary",
        UnknownAddress => "unknown_address",
        IntegrityCode => "integrity_code",
        OldCounter => "old_counter",
        CounterGap => "counter_gap",
        /// So many devices have the address that trying them all would cost the others too much now.
        TrialsExhausted => "trials_exhausted",
        /// More frames of devices that began anew than may wait for the decision.
        ResetsFull => "resets_full",
        /// Nobody decided in time that the device began anew.
        ResetUndecided => "reset_undecided",
        /// The owner has not committed what it was given.
        InFlightFull => "in_flight_full",
        /// The owner does not take outputs; the datagram was not looked at.
        ConsumerLagging => "consumer_lagging",
    }
}

reasons! {
    /// Why an answer that was asked for was not sent.
    MissedReason {
        TooLate => "too_late",
        /// The gateway does not pull.
        NoRoute => "no_route",
        NoTimestamp => "no_timestamp",
        /// No counter was written ahead in time.
        NoCounter => "no_counter",
        /// This node had no custody.
        NoCustody => "no_custody",
        /// The gateway refused it, and there is no later window.
        Refused => "refused",
        Unbuildable => "unbuildable",
        // Of several reasons why no gateway takes a frame in any window the last one in this order is told.
        /// The frame is too long for the data rate of the windows that can be reached.
        TooLong => "too_long",
        /// The gateway has spent its share of the hour in the sub-bands of both windows.
        DutyCycle => "duty_cycle",
        /// The gateways transmit something else in both windows.
        Busy => "busy",
        /// A join's result, or the device's answer to a change of its windows, was not written ahead in time.
        NotRecorded => "not_recorded",
        /// The payload was not encrypted in time.
        NotEncrypted => "not_encrypted",
    }
}

impl From<gwmp::Error> for DropReason {
    fn from(error: gwmp::Error) -> Self {
        match error {
            gwmp::Error::Short(_) => Self::DatagramShort,
            gwmp::Error::Long(_) => Self::DatagramLong,
            gwmp::Error::Version(_) => Self::Version,
            gwmp::Error::Kind(_) => Self::Kind,
        }
    }
}

impl From<rxpk::Error> for DropReason {
    fn from(error: rxpk::Error) -> Self {
        match error {
            rxpk::Error::Malformed => Self::PacketMalformed,
            rxpk::Error::Checksum => Self::PacketChecksum,
            rxpk::Error::Base64 => Self::PacketBase64,
            rxpk::Error::Oversize => Self::PacketOversize,
            rxpk::Error::TooMany => Self::PacketsTooMany,
        }
    }
}

impl From<uplink::Error> for DropReason {
    fn from(error: uplink::Error) -> Self {
        match error {
            uplink::Error::Malformed => Self::FrameMalformed,
            uplink::Error::Downlink => Self::FrameDownlink,
            uplink::Error::Join => Self::FrameJoin,
            uplink::Error::Proprietary => Self::FrameProprietary,
            uplink::Error::UnknownAddress => Self::UnknownAddress,
            uplink::Error::IntegrityCode => Self::IntegrityCode,
            uplink::Error::OldCounter => Self::OldCounter,
            uplink::Error::CounterGap => Self::CounterGap,
            uplink::Error::TrialsExhausted => Self::TrialsExhausted,
        }
    }
}

/// Counts since the bridge began, and some sizes of now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub datagrams: u64,
    pub push_data: u64,
    pub pull_data: u64,
    /// `PUSH_DATA` sent on to servers for which is tapped, and acknowledged by them.
    pub tap_sent: u64,
    pub tap_acknowledged: u64,
    /// Packets heard by gateways and readable.
    pub packets: u64,
    /// Packets whose integrity code is right for a registered session.
    pub verified: u64,
    /// Integrity codes computed. Far above [`Self::verified`]: many devices share an address, or somebody sends rubbish to one.
    pub trials: u64,
    /// Devices that began their counters anew.
    pub resets: u64,
    pub uplinks_live: u64,
    pub uplinks_late: u64,
    pub uplinks_buffered: u64,
    /// The same transmission by another gateway.
    pub copies: u64,
    /// Of these, those that came after their uplink had gone on: their metadata is not in it.
    pub copies_late: u64,
    /// Uplinks that waited for copies.
    pub copies_waited: u64,
    /// The same counter transmitted again.
    pub repeated: u64,
    /// Offered by the peer though known.
    pub offers_known: u64,
    pub offers_made: u64,
    pub committed: u64,
    pub commit_failed: u64,
    /// Events, devices and marks named by the owner or the peer that this bridge does not know.
    pub unknown_names: u64,
    /// Sessions or groups that were not taken.
    pub refused: u64,
    /// Custody of an older epoch than known.
    pub stale_custody: u64,
    pub answers_rx1: u64,
    pub answers_rx2: u64,
    /// Of these, further attempts after a gateway refused.
    pub answers_retried: u64,
    /// Of these, by another gateway than the one that heard the device best.
    pub answers_rerouted: u64,
    /// Changes of receive windows and channels: requests sent, changes that devices took, and that they refused.
    pub link_asked: u64,
    pub link_taken: u64,
    pub link_refused: u64,
    /// Devices that told battery and margin.
    pub statuses: u64,
    /// `TX_ACK` without a downlink that waits for it.
    pub tx_ack_unmatched: u64,
    /// Joins: written ahead, answered, and kept in standby for a takeover.
    pub joins_begun: u64,
    pub joins_accepted: u64,
    pub joins_kept: u64,
    /// Downlinks of tenants: handed to a gateway, acknowledged by their device, and those that wait now.
    pub payloads_sent: u64,
    pub payloads_acked: u64,
    pub payloads_expired: u64,
    pub payloads_failed: u64,
    pub payloads_waiting: usize,
    /// Answers that went out in RX2 because RX1's sub-band had less left.
    pub rx2_by_duty_cycle: u64,
    /// Downlinks that no gateway acknowledged in time.
    pub tx_ack_missing: u64,
    /// `TX_ACK` by result.
    pub tx_results: BTreeMap<&'static str, u64>,
    pub drops: BTreeMap<&'static str, u64>,
    pub missed: BTreeMap<&'static str, u64>,
    /// Frames thrown away unserved at the buffer's bound.
    pub buffer_lost: u64,
    pub buffer_evicted_served: u64,
    pub buffer_frames: usize,
    /// Frames of sessions that are not known here yet.
    pub awaited_frames: usize,
    pub buffer_bytes: usize,
    pub sessions: usize,
    pub gateways: usize,
    pub in_flight: usize,
    /// The most downlink counters left out for one device since it last received one; see [`crate::SKIPPED_ALARM`].
    pub f_cnt_down_skipped_max: u32,
    /// Counted by the socket's owner.
    pub server: ServerStats,
}

/// What the owner of the socket counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ServerStats {
    /// Datagrams not looked at because outputs were not taken.
    pub consumer_lagging: u64,
    /// Downlinks not sent because the lease did not hold at that moment.
    pub lease_withheld: u64,
    /// Datagrams that the socket refused to send.
    pub send_failed: u64,
    pub receive_failed: u64,
}

impl Stats {
    pub(crate) fn drop(&mut self, reason: impl Into<DropReason>) {
        *self.drops.entry(reason.into().name()).or_default() += 1;
    }

    pub(crate) fn miss(&mut self, reason: MissedReason) {
        *self.missed.entry(reason.name()).or_default() += 1;
    }

    pub(crate) fn tx_result(&mut self, result: TxResult) {
        *self.tx_results.entry(result.name()).or_default() += 1;
    }

    /// How often something was dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.name()).copied().unwrap_or(0)
    }

    /// How often an answer was missed for this reason.
    #[must_use]
    pub fn missed(&self, reason: MissedReason) -> u64 {
        self.missed.get(reason.name()).copied().unwrap_or(0)
    }
}
