//! The way to a running bridge: what others may ask of it.

use std::net::SocketAddr;

use contracts::ids::{DevEui, EventId, GroupId, SessionId};
use tokio::sync::{mpsc, oneshot};

use super::Error;
use crate::bridge::DutyCycle;
use crate::bridge::adapting::{Coverage, DeviceView, RadioSigns};
use crate::bridge::io::{Input, KeptFrame, Mode, OfferedFrame};
use crate::gwmp::gateways::{GatewayStatus, Routes};
use crate::mac::adr::{AdrMode, Margin};
use crate::mac::downlink::CounterSource;
use crate::mac::duty_cycle::AirTime;
use crate::mac::join::{DeviceRecord, JoiningDevice};
use crate::mac::link::LinkRecord;
use crate::mac::queue::{Downlink, Encrypted, QueueState, Refused};
use crate::mac::session::{Mark, Session, SessionState};
use crate::stats::Stats;

#[derive(Debug)]
pub(super) enum Command {
    Apply { input: Input<'static>, applied: Option<oneshot::Sender<()>> },
    Listen,
    Release { group: GroupId, mode: Mode, reply: oneshot::Sender<Vec<(DevEui, u32)>> },
    Export { group: GroupId, cursor: u32, max: usize, reply: oneshot::Sender<(Vec<SessionState>, Option<u32>)> },
    Stats { reply: oneshot::Sender<Stats> },
    Gateways { reply: oneshot::Sender<Vec<GatewayStatus>> },
    RadioSigns { group: GroupId, reply: oneshot::Sender<RadioSigns> },
    TakeMargins { group: GroupId, max: usize, reply: oneshot::Sender<Vec<Margin>> },
    Devices { cursor: u32, max: usize, reply: oneshot::Sender<(Vec<DeviceView>, Option<u32>)> },
    Coverage { group: GroupId, reply: oneshot::Sender<Coverage> },
    Gaps { min: u32, max: usize, reply: oneshot::Sender<Vec<(GroupId, DevEui, u32)>> },
    DutyCycle { reply: oneshot::Sender<Vec<DutyCycle>> },
    AirTime { reply: oneshot::Sender<AirTime> },
    Routes { reply: oneshot::Sender<Routes> },
    Queue { group: GroupId, device: DevEui, downlink: Downlink, reply: oneshot::Sender<Result<(), Refused>> },
}

/// The way to a running bridge. When the last one is dropped, the bridge stops.
///
/// Inputs are applied in the order of the calls of one task. Take outputs in another task, or at least never wait here while not taking them.
#[derive(Debug, Clone)]
pub struct BridgeHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) address: Option<SocketAddr>,
}

impl BridgeHandle {
    /// Where gateways reach the bridge.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Queues an input and returns when there is room for it.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn send(&self, input: Input<'static>) -> Result<(), Error> {
        self.commands.send(Command::Apply { input, applied: None }).await.map_err(|_| Error::Stopped)
    }

    /// Queues an input and returns when it has been applied, and with it all that was queued before.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn apply(&self, input: Input<'static>) -> Result<(), Error> {
        self.ask(|reply| Command::Apply { input, applied: Some(reply) }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// [`Input::Register`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn register(&self, group: GroupId, sessions: Vec<Session>) -> Result<(), Error> {
        self.apply(Input::Register { group, sessions }).await
    }

    /// [`Input::Remove`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn remove(&self, group: GroupId) -> Result<(), Error> {
        self.apply(Input::Remove { group }).await
    }

    /// [`Input::Custody`], applied: after it returns, nothing is sent that the new mode forbids.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn custody(&self, group: GroupId, mode: Mode) -> Result<(), Error> {
        self.apply(Input::Custody { group, mode }).await
    }

    /// Ends custody and returns the exact next downlink counters, in one step.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn release(&self, group: GroupId, mode: Mode) -> Result<Vec<(DevEui, u32)>, Error> {
        self.ask(|reply| Command::Release { group, mode, reply }).await
    }

    /// [`Input::Committed`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn committed(&self, events: Vec<EventId>) -> Result<(), Error> {
        self.send(Input::Committed { events }).await
    }

    /// [`Input::CommitFailed`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn commit_failed(&self, events: Vec<EventId>) -> Result<(), Error> {
        self.send(Input::CommitFailed { events }).await
    }

    /// [`Input::Reserved`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn reserved(&self, entries: Vec<(DevEui, u32)>) -> Result<(), Error> {
        self.send(Input::Reserved { entries }).await
    }

    /// [`Input::Reset`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn reset(&self, entries: Vec<(DevEui, u32)>) -> Result<(), Error> {
        self.send(Input::Reset { entries }).await
    }

    /// [`Input::WrittenAhead`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn written_ahead(&self, sessions: Vec<(DevEui, SessionId)>) -> Result<(), Error> {
        self.apply(Input::WrittenAhead { sessions }).await
    }

    /// [`Input::CountersFrom`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn counters_from(&self, entries: Vec<(DevEui, u32)>, source: CounterSource) -> Result<(), Error> {
        self.apply(Input::CountersFrom { entries, source }).await
    }

    /// [`Input::PeerProgress`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn peer_progress(&self, served: Vec<Mark>, settled: Vec<Mark>) -> Result<(), Error> {
        self.send(Input::PeerProgress { served, settled }).await
    }

    /// [`Input::Settled`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn settled(&self, marks: Vec<Mark>) -> Result<(), Error> {
        self.send(Input::Settled { marks }).await
    }

    /// [`Input::Offered`], queued.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn offered(&self, frame: OfferedFrame) -> Result<(), Error> {
        self.send(Input::Offered { frame }).await
    }

    /// [`Bridge::queue_downlink`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`]; within, why it was not queued.
    pub async fn queue_downlink(&self, group: GroupId, device: DevEui, downlink: Downlink) -> Result<Result<(), Refused>, Error> {
        self.ask(|reply| Command::Queue { group, device, downlink, reply }).await
    }

    /// [`Input::Adr`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn set_adr(&self, group: GroupId, mode: AdrMode) -> Result<(), Error> {
        self.apply(Input::Adr { group, mode }).await
    }

    /// [`Input::PeerMargins`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn peer_margins(&self, margins: Vec<Margin>) -> Result<(), Error> {
        self.apply(Input::PeerMargins { margins }).await
    }

    /// [`Bridge::take_margins`](crate::Bridge::take_margins).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn take_margins(&self, group: GroupId, max: usize) -> Result<Vec<Margin>, Error> {
        self.ask(|reply| Command::TakeMargins { group, max, reply }).await
    }

    /// [`Bridge::devices`](crate::Bridge::devices).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn devices(&self, cursor: u32, max: usize) -> Result<(Vec<DeviceView>, Option<u32>), Error> {
        self.ask(|reply| Command::Devices { cursor, max, reply }).await
    }

    /// [`Bridge::coverage`](crate::Bridge::coverage).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn coverage(&self, group: GroupId) -> Result<Coverage, Error> {
        self.ask(|reply| Command::Coverage { group, reply }).await
    }

    /// [`Bridge::gaps`](crate::Bridge::gaps).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn gaps(&self, min: u32, max: usize) -> Result<Vec<(GroupId, DevEui, u32)>, Error> {
        self.ask(|reply| Command::Gaps { min, max, reply }).await
    }

    /// [`Bridge::duty_cycle`](crate::Bridge::duty_cycle).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn duty_cycle(&self) -> Result<Vec<DutyCycle>, Error> {
        self.ask(|reply| Command::DutyCycle { reply }).await
    }

    /// [`Bridge::air_time`](crate::Bridge::air_time).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn air_time(&self) -> Result<AirTime, Error> {
        self.ask(|reply| Command::AirTime { reply }).await
    }

    /// [`Bridge::routes`](crate::Bridge::routes).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn routes(&self) -> Result<Routes, Error> {
        self.ask(|reply| Command::Routes { reply }).await
    }

    /// [`Input::RegisterJoining`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn register_joining(&self, group: GroupId, devices: Vec<JoiningDevice>) -> Result<(), Error> {
        self.apply(Input::RegisterJoining { group, devices }).await
    }

    /// [`Input::Recorded`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn recorded(&self, record: Box<DeviceRecord>) -> Result<(), Error> {
        self.apply(Input::Recorded { record }).await
    }

    /// [`Input::Records`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn records(&self, records: Vec<DeviceRecord>) -> Result<(), Error> {
        self.apply(Input::Records { records }).await
    }

    /// [`Input::LinkRecorded`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn link_recorded(&self, record: Box<LinkRecord>) -> Result<(), Error> {
        self.apply(Input::LinkRecorded { record }).await
    }

    /// [`Input::LinkRecords`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn link_records(&self, records: Vec<LinkRecord>) -> Result<(), Error> {
        self.apply(Input::LinkRecords { records }).await
    }

    /// [`Input::RestoreQueues`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn restore_queues(&self, queues: Vec<(DevEui, QueueState)>) -> Result<(), Error> {
        self.apply(Input::RestoreQueues { queues }).await
    }

    /// [`Input::Encrypted`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn encrypted(&self, answer: Encrypted) -> Result<(), Error> {
        self.apply(Input::Encrypted { answer }).await
    }

    /// [`Input::Import`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn import(&self, states: Vec<SessionState>) -> Result<(), Error> {
        self.apply(Input::Import { states }).await
    }

    /// [`Input::Kept`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn kept(&self, group: GroupId, frames: Vec<KeptFrame>) -> Result<(), Error> {
        self.apply(Input::Kept { group, frames }).await
    }

    /// [`Input::Awaited`], applied.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn awaited(&self, frames: Vec<OfferedFrame>) -> Result<(), Error> {
        self.apply(Input::Awaited { frames }).await
    }

    /// A page of session states, see [`Bridge::export`].
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn export(&self, group: GroupId, cursor: u32, max: usize) -> Result<(Vec<SessionState>, Option<u32>), Error> {
        self.ask(|reply| Command::Export { group, cursor, max, reply }).await
    }

    /// Counters and sizes.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.ask(|reply| Command::Stats { reply }).await
    }

    /// The socket is looked at from now on; nothing if it was before.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn listen(&self) -> Result<(), Error> {
        self.commands.send(Command::Listen).await.map_err(|_| Error::Stopped)
    }

    /// The gateways of now, by EUI.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn gateways(&self) -> Result<Vec<GatewayStatus>, Error> {
        self.ask(|reply| Command::Gateways { reply }).await
    }

    /// [`Bridge::radio_signs`](crate::Bridge::radio_signs).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub async fn radio_signs(&self, group: GroupId) -> Result<RadioSigns, Error> {
        self.ask(|reply| Command::RadioSigns { group, reply }).await
    }
}
