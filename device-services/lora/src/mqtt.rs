//! A client of an MQTT 3.1.1 broker over any byte stream. Packets are read and written by `rumqttc`, whose own event loop opens its
//! connections itself and so cannot go through a node. There is no TLS here: a stream that speaks it can be handed in.
//!
//! A session keeps nothing over a broken connection: who publishes knows what is not acknowledged and begins there again, and subscribes
//! again ([`crate::sinks`] does, from the node's log).

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use rumqttc::{Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, Subscribe, SubscribeFilter, SubscribeReasonCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    time::Instant,
};

use crate::outside::Stream;

/// Largest packet in either direction.
pub const PACKET_BYTES_MAX: usize = 256 << 10;
/// The client is silent at most so long.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The broker has so long for the answers to a connection and to a ping.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Bytes that wait for the broker; beyond, nothing is published, and nothing read that would have to be answered.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream broke.
    #[error("the connection to the broker broke")]
    Stream(#[from] io::Error),
    /// No answer in time.
    #[error("the broker does not answer")]
    Silent,
    /// It does not want this client.
    #[error("the broker refused the connection: {0:?}")]
    Refused(ConnectReturnCode),
    /// It does not let this client subscribe.
    #[error("the broker refused a subscription")]
    Subscription,
    /// It sends something that is no MQTT.
    #[error("the broker sends nonsense")]
    Packet(#[source] rumqttc::mqttbytes::Error),
    /// A packet that makes no sense here, or is too large to send.
    #[error("unexpected packet")]
    Unexpected,
}

/// Who connects.
#[derive(Debug, Clone)]
pub struct Login {
    /// Unique at the broker.
    pub client_id: String,
    /// Name and password, if the broker wants them.
    pub user: Option<(String, String)>,
}

/// Something that came.
#[derive(Debug)]
pub enum Event {
    /// The broker has what was published under this number.
    Acknowledged(u16),
    /// A message of a subscription.
    Message {
        /// Its topic.
        topic: String,
        /// Its content.
        payload: Bytes,
    },
    /// Nothing came for a while and nothing is wrong.
    Quiet,
}

/// An open session.
pub struct Session {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
    input: BytesMut,
    output: BytesMut,
    next_number: u16,
    /// When something was sent last.
    sent_at: Instant,
    /// When a ping was sent that has no answer.
    pinged_at: Option<Instant>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("next_number", &self.next_number)
            .field("output", &self.output.len())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Connects and subscribes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(stream: Stream, login: &Login, filters: Vec<String>) -> Result<Self, Error> {
        let (reader, writer) = tokio::io::split(stream);
        let (input, output, sent_at) = (BytesMut::new(), BytesMut::new(), Instant::now());
        let mut session = Session { reader, writer, input, output, next_number: 0, sent_at, pinged_at: None };
        let opened = tokio::time::timeout(ANSWER_MAX, session.connect(login, filters));
        opened.await.map_err(|_| Error::Silent)??;
        Ok(session)
    }

    async fn connect(&mut self, login: &Login, filters: Vec<String>) -> Result<(), Error> {
        let mut connect = Connect::new(login.client_id.as_str());
        connect.keep_alive = u16::try_from(KEEP_ALIVE.as_secs() * 2).unwrap_or(u16::MAX);
        if let Some((name, password)) = &login.user {
            connect.set_login(name.as_str(), password.as_str());
        }
        self.queue(&Packet::Connect(connect))?;
        match self.packet().await? {
            Packet::ConnAck(answer) if answer.code == ConnectReturnCode::Success => {}
            Packet::ConnAck(answer) => return Err(Error::Refused(answer.code)),
            _ => return Err(Error::Unexpected),
        }
        if filters.is_empty() {
            return Ok(());
        }
        let wanted = filters.into_iter().map(|path| SubscribeFilter { path, qos: QoS::AtLeastOnce });
        let mut subscribe = Subscribe::new_many(wanted);
        subscribe.pkid = self.number();
        self.queue(&Packet::Subscribe(subscribe))?;
        match self.packet().await? {
            Packet::SubAck(answer) if !answer.return_codes.contains(&SubscribeReasonCode::Failure) => Ok(()),
            Packet::SubAck(_) => Err(Error::Subscription),
            _ => Err(Error::Unexpected),
        }
    }

    fn number(&mut self) -> u16 {
        self.next_number = self.next_number.checked_add(1).unwrap_or(1);
        self.next_number
    }

    fn queue(&mut self, packet: &Packet) -> Result<(), Error> {
        packet.write(&mut self.output, PACKET_BYTES_MAX).map_err(|_| Error::Unexpected)?;
        self.sent_at = Instant::now();
        Ok(())
    }

    /// Whether more may be published now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }

    /// Queues a message, at least once; its number comes back with [`Event::Acknowledged`].
    ///
    /// # Errors
    /// [`Error::Unexpected`]: it is too large.
    pub fn publish(&mut self, topic: &str, payload: Vec<u8>) -> Result<u16, Error> {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, payload);
        publish.pkid = self.number();
        let number = publish.pkid;
        self.queue(&Packet::Publish(publish))?;
        Ok(number)
    }

    /// The next event; sends meanwhile what is queued. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error`]; then the session is over.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let due = self.pinged_at.map_or(self.sent_at + KEEP_ALIVE, |pinged_at| pinged_at + ANSWER_MAX);
            let Ok(packet) = tokio::time::timeout_at(due, self.packet()).await else {
                if self.pinged_at.is_some() {
                    return Err(Error::Silent);
                }
                self.queue(&Packet::PingReq)?;
                self.pinged_at = Some(Instant::now());
                return Ok(Event::Quiet);
            };
            match packet? {
                Packet::PubAck(PubAck { pkid }) => return Ok(Event::Acknowledged(pkid)),
                Packet::PingResp => self.pinged_at = None,
                Packet::Publish(Publish { qos, pkid, topic, payload, .. }) => {
                    if qos == QoS::AtLeastOnce {
                        self.queue(&Packet::PubAck(PubAck { pkid }))?;
                    }
                    return Ok(Event::Message { topic, payload });
                }
                _ => return Err(Error::Unexpected),
            }
        }
    }

    /// Reads a whole packet and writes what is queued.
    async fn packet(&mut self) -> Result<Packet, Error> {
        loop {
            match Packet::read(&mut self.input, PACKET_BYTES_MAX) {
                Ok(packet) => return Ok(packet),
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(Error::Packet(error)),
            }
            let has_output = !self.output.is_empty();
            tokio::select! {
                biased;
                written = self.writer.write_buf(&mut self.output), if has_output => {
                    if written? == 0 {
                        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                    }
                    self.writer.flush().await?;
                }
                read = self.reader.read_buf(&mut self.input), if self.output.len() < OUTPUT_BYTES_MAX => {
                    if read? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
    }
}
