//! What goes into the bridge and what comes out.

use std::net::SocketAddr;

use bytes::Bytes;
use contracts::ids::{DevAddr, DevEui, Epoch, EventId, GroupId, SessionId};
use contracts::time::{BootTime, WallTime};
use serde::{Deserialize, Serialize};

use crate::gwmp::GatewayEui;
use crate::gwmp::gateways::Routes;
use crate::gwmp::rxpk::RxMeta;
use crate::gwmp::taps::Tap;
use crate::mac::adr::{AdrMode, Margin};
use crate::mac::downlink::{CounterSource, Window};
use crate::mac::duty_cycle::AirTime;
use crate::mac::join::{DeviceRecord, JoiningDevice};
use crate::mac::link::LinkRecord;
use crate::mac::queue::{Encrypted, Outcome, Question, QueueState};
use crate::mac::registry::Refused;
use crate::mac::session::{Joined, Mark, Session, SessionState};
use crate::mac::uplink;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub boot: BootTime,
    pub wall: WallTime,
}

impl Now {
    /// What the wall clock of now says of an earlier moment.
    pub(crate) fn wall_at(self, earlier: BootTime) -> WallTime {
        self.wall - self.boot.since(earlier)
    }
}

/// What a node may do for a group of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It has custody: it receives, delivers and transmits.
    Serving {
        epoch: Epoch,
        /// Until then another node may have transmitted: what was heard before is answered in RX2 only.
        foreign_lease_end: Option<BootTime>,
    },
    /// It had custody and lost its majority: it receives and delivers, and transmits nothing.
    Fenced,
    /// Its own devices are in another's custody: as fenced.
    Following,
    /// Another's devices, in the other's custody: it buffers, offers what the other lacks, delivers nothing.
    Standby,
}

impl Mode {
    /// Whether uplinks go to this node's owner at once.
    #[must_use]
    pub const fn delivers(&self) -> bool {
        match self {
            Self::Serving { .. } | Self::Fenced | Self::Following => true,
            Self::Standby => false,
        }
    }

    /// The epoch in which this node may transmit.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Serving { epoch, .. } => Some(*epoch),
            Self::Fenced | Self::Following | Self::Standby => None,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// A datagram on the packet forwarders' port.
    Datagram { from: SocketAddr, bytes: &'a [u8] },
    /// Sessions of a group: new ones are added, known ones merged (union of sets, maximum of counters).
    Register { group: GroupId, sessions: Vec<Session> },
    /// The contract ended: sessions, keys and buffered frames are forgotten.
    Remove { group: GroupId },
    /// Custody of a group; [`Mode::Standby`] before the first.
    Custody { group: GroupId, mode: Mode },
    /// These uplinks are on this node's disk. To be told before the peer is told of the progress.
    Committed { events: Vec<EventId> },
    /// These could not be stored, and the owner gives up. Frames that came from the buffer are replayed; a live one is taken as new when
    /// the device repeats it or the other node offers it, else it is lost.
    CommitFailed { events: Vec<EventId> },
    /// Downlink counters below the given ones are on the disks of a majority.
    Reserved { entries: Vec<(DevEui, u32)> },
    /// These devices began their counters anew, so often in all; that is on the disks of a majority. Answers [`Output::ResetWanted`].
    Reset { entries: Vec<(DevEui, u32)> },
    /// Sessions that are written ahead somewhere: who knows an earlier life of such a device follows. To be told before
    /// [`Input::CountersFrom`], and when another member's record arrives.
    WrittenAhead { sessions: Vec<(DevEui, SessionId)> },
    /// Lower bounds of the next downlink counters. To be told before custody begins.
    CountersFrom { entries: Vec<(DevEui, u32)>, source: CounterSource },
    /// What the other node has on disk, and what the customer's store acknowledged to it.
    PeerProgress { served: Vec<Mark>, settled: Vec<Mark> },
    /// The customer's store acknowledged these to this node.
    Settled { marks: Vec<Mark> },
    /// A frame that the other node heard.
    Offered { frame: OfferedFrame },
    /// States streamed by the other node.
    Import { states: Vec<SessionState> },
    /// What an earlier process of this node stored of [`Output::Keep`] and was never told to forget. To be told after the registration.
    Kept { group: GroupId, frames: Vec<KeptFrame> },
    /// What an earlier process of this node stored of [`Output::Await`] and was never told to forget. To be told after the registration.
    Awaited { frames: Vec<OfferedFrame> },
    /// Servers that get the uplinks of some gateways too, from now on.
    Taps { taps: Vec<Tap> },
    /// How far devices' data rates are managed; not at first.
    Adr { group: GroupId, mode: AdrMode },
    /// How the other node hears devices.
    PeerMargins { margins: Vec<Margin> },
    /// Devices of a group that join over the air.
    RegisterJoining { group: GroupId, devices: Vec<JoiningDevice> },
    /// A record is on the disks of a majority.
    Recorded { record: Box<DeviceRecord> },
    /// Records that other members or this node's own disk know. To be told before custody begins.
    Records { records: Vec<DeviceRecord> },
    /// The same for [`Output::LinkRecordWanted`].
    LinkRecorded { record: Box<LinkRecord> },
    /// The same for records of links. After [`Input::Records`].
    LinkRecords { records: Vec<LinkRecord> },
    /// What was owed to devices when this node last ended.
    RestoreQueues { queues: Vec<(DevEui, QueueState)> },
    /// A tenant encrypted a payload, as asked for by [`Output::EncryptWanted`].
    Encrypted { answer: Encrypted },
    /// Time on air that an earlier process of this node stored. To be told before custody begins.
    AirTime { spent: Box<AirTime> },
    /// Where gateways were reached by an earlier process of this node. To be told before any datagram.
    Routes { routes: Routes },
    /// Time passed; due at [`super::Bridge::next_due`] or at any other time.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// An acknowledgement to a gateway; needs no custody.
    Send { to: SocketAddr, bytes: Vec<u8> },
    /// A downlink. The lease is to be checked directly before sending, without waiting in between.
    Transmit(Transmit),
    /// To be stored on disk, in order, then named in [`Input::Committed`].
    Uplink(Uplink),
    /// Heard in standby. To be stored too, so that it survives this process, until [`Output::Forget`] names it or it comes as
    /// [`Output::Uplink`]; nothing waits for that.
    Keep(Uplink),
    /// A frame of a session that is not known here. To be stored like what is kept, until [`Output::Forget`] names it; after a restart it is
    /// given back with [`Input::Awaited`].
    Await { group: GroupId, event: EventId, dev_addr: DevAddr, frame: OfferedFrame },
    /// These were kept, or would have been, or waited, and are needed no more: settled, stored in another form, or thrown away at a bound.
    Forget { events: Vec<EventId> },
    /// The node that serves did not name this frame in time: it is to be offered to it.
    OfferDue(Offer),
    /// An offered frame is on this node's disk already: the other node may stop offering it, and forget it if it is settled.
    OfferKnown { group: GroupId, mark: Mark, is_settled: bool },
    /// Downlink counters to be written ahead: then named in [`Input::Reserved`].
    ReserveWanted { group: GroupId, entries: Vec<(DevEui, u32)> },
    /// A device that may do so began its counters anew, for the `reset_ordinal`-th time. To be written ahead, then told with
    /// [`Input::Reset`]; its frames wait for that, and it is asked again until then.
    ResetWanted(Reset),
    /// A device's session is another one from now on.
    SessionChanged { group: GroupId, device: DevEui, session: SessionId },
    /// All that was buffered for the group has been given out.
    Replayed { group: GroupId, frames: u64 },
    /// A downlink is next for its device and has to be encrypted for the counters that come next.
    EncryptWanted { group: GroupId, device: DevEui, dev_addr: DevAddr, question: Question },
    /// What became of a downlink.
    Downlink { group: GroupId, device: DevEui, id: String, outcome: Outcome },
    /// A join's result, secret, to be written ahead on a majority, with [`BLOCK`](crate::mac::downlink::BLOCK) counters of its session; then
    /// given back in [`Input::Recorded`].
    RecordWanted { group: GroupId, epoch: Epoch, record: Box<DeviceRecord> },
    /// A device that joins sent something in a session that is not known here: other members may have its record, for [`Input::Records`].
    RecordsMissing { group: GroupId },
    /// Where a device listens, or will: to be written ahead on a majority, then given back in [`Input::LinkRecorded`]. What does not get
    /// through is wanted again at a later uplink.
    LinkRecordWanted { group: GroupId, epoch: Epoch, record: Box<LinkRecord> },
    /// A join-accept. The lease is to be checked directly before sending, without waiting in between.
    Accept(Accept),
    /// Something changed in a session that the other node must know.
    StateDue { group: GroupId, state: Box<SessionState> },
    /// A session was not taken.
    Refused { group: GroupId, device: DevEui, reason: Refused },
}

/// A device began its counters anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    pub group: GroupId,
    pub device: DevEui,
    pub reset_ordinal: u32,
    /// The session that begins.
    pub session: SessionId,
    /// Downlink counters go on: below this they are written ahead for the session that ends.
    pub f_cnt_down_reserved: u32,
}

/// A downlink, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    pub group: GroupId,
    /// The epoch whose lease must hold.
    pub epoch: Epoch,
    pub device: DevEui,
    /// The uplink that is answered.
    pub event: EventId,
    pub f_cnt_down: u32,
    pub window: Window,
    pub gateway: GatewayEui,
    /// The gateway's socket for downlinks.
    pub to: SocketAddr,
    /// `PULL_RESP`.
    pub bytes: Vec<u8>,
}

/// A join-accept, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    pub group: GroupId,
    /// The epoch whose lease must hold.
    pub epoch: Epoch,
    pub device: DevEui,
    pub joined: Joined,
    pub window: Window,
    pub gateway: GatewayEui,
    /// The gateway's socket for downlinks.
    pub to: SocketAddr,
    /// `PULL_RESP`.
    pub bytes: Vec<u8>,
}

/// How an uplink came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkKind {
    /// Heard just now, newest of its device.
    Live,
    /// Offered by the other node, or older than its successor: never answered.
    Late,
    /// Heard while in standby.
    Buffered,
}

/// At most so many gateways are named in one uplink; further ones are counted only.
pub const RECEPTIONS_MAX: usize = 16;

/// How one gateway heard a transmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reception {
    pub gateway: GatewayEui,
    pub rx: RxMeta,
}

/// A verified, de-duplicated uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    pub event: EventId,
    pub group: GroupId,
    pub device: DevEui,
    pub session: SessionId,
    /// The join that the session comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// All 32 bits.
    pub f_cnt: u32,
    pub f_port: Option<u8>,
    pub confirmed: bool,
    /// Still encrypted, with the application session key (with the network session key on port 0).
    #[serde(with = "base64_bytes")]
    pub frm_payload: Bytes,
    /// The whole frame as heard.
    #[serde(with = "base64_bytes")]
    pub phy: Bytes,
    /// The gateway that heard it best, of those whose copy came in time.
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    /// The other gateways whose copies came in time, in the order of their arrival; at most [`RECEPTIONS_MAX`] - 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Reception>,
    /// When the first copy arrived.
    pub heard_at: WallTime,
    /// The same on the clock of leases; of the newest transmission. Meaningful on this machine only.
    pub heard_boot: BootTime,
    pub kind: UplinkKind,
}

impl Uplink {
    /// Its name for [`Input::Settled`] and [`Input::PeerProgress`].
    #[must_use]
    pub const fn mark(&self) -> Mark {
        Mark { device: self.device, session: self.session, f_cnt: self.f_cnt }
    }

    /// The address that the device used, as it stands in the frame.
    #[must_use]
    pub fn dev_addr(&self) -> DevAddr {
        uplink::header(&self.phy).map_or(DevAddr::from_u32(0), |header| header.dev_addr)
    }
}

/// A frame that the peer seems to lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub group: GroupId,
    pub event: EventId,
    pub mark: Mark,
    pub frame: OfferedFrame,
}

/// A frame on its way to the other node, which verifies it like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedFrame {
    #[serde(with = "base64_bytes")]
    pub phy: Bytes,
    pub gateway: GatewayEui,
    pub rx: RxMeta,
    pub heard_at: WallTime,
}

/// A frame of the buffer as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFrame {
    pub mark: Mark,
    /// The join that its session comes from.
    pub joined: Option<Joined>,
    pub frame: OfferedFrame,
}

pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}
