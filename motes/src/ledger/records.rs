//! What motes, radio and gateways write down.

use serde::{Deserialize, Serialize};

use crate::airtime::SpreadingFactor;
use crate::fleet::{DevAddr, Eui64};
use crate::mote::Window;

/// First line of every ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Seed of the run.
    pub seed: u64,
    /// Number of motes.
    pub motes: u32,
    /// Uplinks per 1,000 seconds in all.
    pub rate_milli: u64,
    /// Share of confirmed uplinks.
    pub confirmed_ppm: u32,
    /// Loss of each link from a mote to a gateway.
    pub uplink_loss_ppm: u32,
    /// Loss of each link from a gateway to a mote.
    pub downlink_loss_ppm: u32,
    /// The gateways.
    pub gateways: Vec<Eui64>,
    /// Start of the run.
    pub at_us: u64,
}

/// What a mote knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MoteRecord {
    /// Parameters of the run.
    Start(Start),
    /// A transmission began.
    Attempt(Attempt),
    /// Its windows are over, or it was answered.
    AttemptEnd(AttemptEnd),
    /// The uplink is over: sent, acknowledged or given up.
    UplinkEnd(UplinkEnd),
    /// A downlink in a window was not accepted.
    DownlinkDropped(DownlinkDropped),
    /// A downlink with a payload or with commands, or one that wants an acknowledgement, was accepted.
    DownlinkReceived(DownlinkReceived),
    /// A join request is sent.
    JoinAttempt(JoinAttempt),
    /// A join accept was received.
    Joined(Joined),
}

/// An accepted downlink with something in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownlinkReceived {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of its session.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// Full counter.
    pub f_cnt: u32,
    /// Wants an acknowledgement.
    pub confirmed: bool,
    /// Port of the payload, if it has one for the application.
    pub f_port: Option<u8>,
    /// That payload in the clear, hexadecimal.
    pub payload: String,
    /// Identifiers of the commands that the mote knew, hexadecimal.
    pub commands: String,
    /// In which window.
    pub window: Window,
    /// When.
    pub at_us: u64,
}

/// A join request, written when it begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAttempt {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Its nonce.
    pub dev_nonce: u16,
    /// Which request of this mote, from 0.
    pub request: u32,
    /// Start on air.
    pub start_us: u64,
    /// End on air.
    pub end_us: u64,
    /// Data rate.
    pub data_rate: SpreadingFactor,
    /// Frequency.
    pub frequency_hz: u32,
}

/// A session began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of the session.
    pub session: u32,
    /// Nonce of the request that was accepted.
    pub dev_nonce: u16,
    /// The server's number.
    pub join_nonce: u32,
    /// The new address.
    pub dev_addr: DevAddr,
    /// In which window the accept came.
    pub window: Window,
    /// When.
    pub at_us: u64,
}

/// One transmission of an uplink, written when it begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of the mote's session: 0 for a personalised mote, else which of its joins began it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// The mote's own number of the reading.
    pub reading: u32,
    /// The measured value in tenths of a degree Celsius.
    pub decicelsius: i16,
    /// Uplink counter, 32 bits.
    pub f_cnt: u32,
    /// Asks for an acknowledgement.
    pub confirmed: bool,
    /// MAC commands in it, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
    /// 1 to 8.
    pub attempt: u8,
    /// Start on air.
    pub start_us: u64,
    /// End on air; windows count from here.
    pub end_us: u64,
    /// Data rate.
    pub data_rate: SpreadingFactor,
    /// Frequency.
    pub frequency_hz: u32,
}

/// How a transmission ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of the mote's session: 0 for a personalised mote, else which of its joins began it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// The mote's own number of the reading.
    pub reading: u32,
    /// Uplink counter.
    pub f_cnt: u32,
    /// Which attempt.
    pub attempt: u8,
    /// Window in which a downlink was accepted; nothing if the windows stayed empty.
    pub answered: Option<Window>,
    /// Counter of that downlink.
    pub f_cnt_down: Option<u32>,
    /// Whether it acknowledged the uplink.
    pub ack: bool,
    /// When the mote knew.
    pub at_us: u64,
}

/// How an uplink ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkEnd {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of the mote's session: 0 for a personalised mote, else which of its joins began it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// The mote's own number of the reading.
    pub reading: u32,
    /// Uplink counter.
    pub f_cnt: u32,
    /// Asked for an acknowledgement.
    pub confirmed: bool,
    /// Transmissions used.
    pub attempts: u8,
    /// Window of the acknowledgement; only for confirmed uplinks.
    pub acknowledged: Option<Window>,
    /// When.
    pub at_us: u64,
}

/// Why a mote refused a downlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Not a data downlink.
    Malformed,
    /// For another mote.
    Address,
    /// Wrong integrity code.
    Mic,
    /// A counter below the next expected one.
    Replay,
    /// A counter more than 16,384 above the next expected one.
    Gap,
    /// A `JoinNonce` that is not above the last one.
    JoinNonce,
}

/// A downlink that reached a mote and was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownlinkDropped {
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Why.
    pub reason: DropReason,
    /// Lower half of the counter, if there was one.
    pub f_cnt_low: Option<u16>,
    /// Counter that the mote expected.
    pub f_cnt_down_next: u32,
    /// In which window.
    pub window: Window,
    /// When.
    pub at_us: u64,
}

/// What the radio knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RadioRecord {
    /// Parameters of the run.
    Start(Start),
    /// An uplink left the air.
    Frame(Frame),
    /// A gateway put bytes on the air.
    Downlink(Downlink),
    /// A join request left the air.
    JoinFrame(JoinFrame),
}

/// One uplink frame, written at its end on air.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Number of the frame in this run, from 0.
    pub frame: u64,
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Number of the mote's session: 0 for a personalised mote, else which of its joins began it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// Uplink counter.
    pub f_cnt: u32,
    /// Which attempt.
    pub attempt: u8,
    /// Asks for an acknowledgement.
    pub confirmed: bool,
    /// End on air.
    pub end_us: u64,
    /// Gateways that heard it.
    pub gateways: Vec<Eui64>,
}

/// One join request, written at its end on air.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinFrame {
    /// Number of the frame in this run; data frames and these count together.
    pub frame: u64,
    /// Index of the mote.
    pub mote: u32,
    /// Its identifier.
    pub dev_eui: Eui64,
    /// Its nonce.
    pub dev_nonce: u16,
    /// End on air.
    pub end_us: u64,
    /// Gateways that heard it.
    pub gateways: Vec<Eui64>,
}

/// What a join accept says, to who has the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptOnAir {
    /// The server's number of this join.
    pub join_nonce: u32,
    /// The address that it gives.
    pub dev_addr: DevAddr,
}

fn default_data_rate() -> SpreadingFactor {
    SpreadingFactor::SF7
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One downlink, written when it starts on air; whatever bytes a gateway was told to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downlink {
    /// The gateway that transmits.
    pub gateway: Eui64,
    /// Start on air.
    pub start_us: u64,
    /// End on air.
    pub end_us: u64,
    /// The bytes on air, hexadecimal.
    pub bytes: String,
    /// Address in the bytes, if they are a data downlink.
    pub dev_addr: Option<DevAddr>,
    /// Lower half of the counter in the bytes.
    pub f_cnt_low: Option<u16>,
    /// Full counter: the one near the mote's highest so far under which the integrity code is right.
    pub f_cnt: Option<u32>,
    /// Acknowledges an uplink.
    pub ack: bool,
    /// Index of the mote with that address, or whose key opens the join accept.
    pub mote: Option<u32>,
    /// Its identifier.
    pub dev_eui: Option<Eui64>,
    /// Number of the mote's session: 0 for a personalised mote, else which of its joins began it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session: u32,
    /// What a join accept says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<AcceptOnAir>,
    /// Data rate.
    #[serde(default = "default_data_rate")]
    pub data_rate: SpreadingFactor,
    /// Frequency; 0 in ledgers that do not have it.
    #[serde(default)]
    pub frequency_hz: u32,
    /// The window of the mote that it started in.
    pub window: Option<Window>,
    /// The uplink that this window belongs to.
    pub frame: Option<u64>,
    /// Whether it reached the mote.
    pub reached: bool,
}

/// What a gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GatewayRecord {
    /// Parameters of the run.
    Start(Start),
    /// A downlink was refused with a `TX_ACK` error.
    Rejected {
        /// Which gateway.
        gateway: Eui64,
        /// When.
        at_us: u64,
        /// Error text as sent, e.g. `TOO_LATE`.
        error: String,
        /// Counter value at which it should have been sent.
        tmst: u32,
        /// Counter value when the request came.
        counter: u32,
        /// The bytes that were not sent, hexadecimal.
        bytes: String,
    },
    /// A downlink was queued.
    Queued {
        /// Which gateway.
        gateway: Eui64,
        /// When.
        at_us: u64,
        /// From then to its start on air.
        lead_us: u32,
    },
    /// A datagram from the server was no request that a forwarder understands; dropped without answer.
    Malformed {
        /// Which gateway.
        gateway: Eui64,
        /// When.
        at_us: u64,
        /// What is wrong.
        reason: String,
    },
    /// The gateway's server was changed, or cut off (no address).
    Server {
        /// Which gateway.
        gateway: Eui64,
        /// When.
        at_us: u64,
        /// Address from now on.
        server: Option<std::net::SocketAddr>,
    },
    /// Totals at the end of the run.
    Totals {
        /// Which gateway.
        gateway: Eui64,
        /// When.
        at_us: u64,
        /// The numbers.
        counts: crate::gateway::Counts,
    },
}
