//! What all sinks have in common: the node's log from a cursor on, to a broker, at least once.
//!
//! An uplink's messages are published, and the cursor passes it when the broker has acknowledged them. The cursor lies with the node
//! (`/v1/state/sink.<name>.cursor`), so a restart of any of the three goes on where it was; what was under way is published again, with the
//! same ids. What comes from no uplink is kept here until the broker has it. At most [`IN_FLIGHT_MAX`] messages are under way: behind a slow or
//! absent broker nothing piles up here, it waits in the log.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tenant::{Backoff, Client, Line, Uplink, Uplinks};
use tokio::sync::mpsc;

use super::{Heard, Message};
use crate::{
    codec::scripts::Scripts,
    config::Config,
    mqtt::{self, Event, Login, Session},
    outside::Outside,
    reading,
    service::describe,
};

/// Messages under way to the broker.
pub const IN_FLIGHT_MAX: usize = 64;
/// How often the cursor is kept, if it moved.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts: doubles from the first to the longest, until the broker says something.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What makes a form of readings.
pub trait Sink: Send + 'static {
    /// What it subscribes to.
    fn filters(&self) -> Vec<String>;

    /// What an uplink becomes.
    fn messages(&mut self, heard: &Heard<'_>) -> Vec<Message>;

    /// Answers a message of a subscription.
    fn incoming(&mut self, topic: &str, payload: &[u8]) -> impl Future<Output = Vec<Message>> + Send;

    /// Messages that do not come from uplinks; asked for once.
    fn others(&mut self) -> Option<mpsc::Receiver<Message>>;
}

/// Where a sink's uplinks come from and its messages go.
#[derive(Debug)]
pub struct Feed {
    /// Name of the cursor among the values kept with the node.
    pub cursor_key: String,
    /// The broker.
    pub address: String,
    /// To the broker.
    pub login: Login,
    /// The node.
    pub client: Arc<Client>,
    /// The way to the broker.
    pub outside: Outside,
    /// The devices.
    pub config: Arc<Config>,
    /// The customer's codecs.
    pub scripts: Option<Scripts>,
}

/// Why a connection of a sink ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the broker cannot be reached")]
    Connect(#[source] std::io::Error),
    #[error(transparent)]
    Broker(#[from] mqtt::Error),
    #[error("the node's log cannot be followed")]
    Node(#[from] tenant::Error),
    #[error("the node ended its log")]
    Ended,
}

/// Serves for ever.
pub async fn run<S: Sink>(mut sink: S, feed: Feed) {
    let others = Others { receiver: sink.others(), again: VecDeque::new() };
    let mut across = Across { backoff: Backoff::between(FIRST_WAIT, LONGEST_WAIT), others, left_out: 0 };
    let mut failures = 0_u64;
    loop {
        let Err(error) = serve(&mut sink, &feed, &mut across).await;
        failures += 1;
        if failures.is_power_of_two() {
            eprintln!("lora-device-service: {} interrupted {failures} times: {}", feed.cursor_key, describe(&error));
        }
        tokio::time::sleep(across.backoff.next_wait()).await;
    }
}

async fn serve<S: Sink>(sink: &mut S, feed: &Feed, across: &mut Across) -> Result<std::convert::Infallible, Error> {
    let stream = feed.outside.connect(&feed.address).await.map_err(Error::Connect)?;
    let session = Session::open(stream, &feed.login, sink.filters()).await?;
    let kept = feed.client.state(&feed.cursor_key).await?;
    let cursor = kept.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0);
    let uplinks = feed.client.uplinks(Some(cursor)).await?;
    let (under_way, acknowledged) = (VecDeque::new(), BTreeSet::new());
    let mut passage = Passage { across, session, under_way, acknowledged, cursor, kept: cursor };
    let ended = passage.serve(sink, feed, uplinks).await;
    passage.give_back();
    ended
}

/// What outlives a connection.
struct Across {
    backoff: Backoff,
    others: Others,
    /// Messages that were too large.
    left_out: u64,
}

/// Messages that do not come from uplinks: no log has them.
struct Others {
    receiver: Option<mpsc::Receiver<Message>>,
    /// Published over an earlier connection and not acknowledged there.
    again: VecDeque<Message>,
}

impl Others {
    /// The next one; never, if no more come. Dropping the future loses nothing.
    async fn next(&mut self) -> Message {
        if let Some(message) = self.again.pop_front() {
            return message;
        }
        if let Some(receiver) = &mut self.receiver
            && let Some(message) = receiver.recv().await
        {
            return message;
        }
        self.receiver = None;
        std::future::pending().await
    }
}

/// A message on its way.
struct UnderWay {
    number: u16,
    /// Reached with it.
    cursor: Option<u64>,
    /// What is to be published again if nobody acknowledges it; for others the log has it.
    again: Option<Message>,
}

/// Messages on their way over one connection.
struct Passage<'a> {
    across: &'a mut Across,
    session: Session,
    /// In the order in which they were published.
    under_way: VecDeque<UnderWay>,
    /// Of those, what the broker has out of turn.
    acknowledged: BTreeSet<u16>,
    cursor: u64,
    kept: u64,
}

impl Passage<'_> {
    async fn serve<S: Sink>(
        &mut self,
        sink: &mut S,
        feed: &Feed,
        mut uplinks: Uplinks,
    ) -> Result<std::convert::Infallible, Error> {
        let mut keep = tokio::time::interval(KEEP_INTERVAL);
        loop {
            let has_room = self.under_way.len() < IN_FLIGHT_MAX && self.session.has_room();
            tokio::select! {
                biased;
                event = self.session.next() => {
                    match event? {
                        Event::Acknowledged(number) => self.acknowledge(number),
                        Event::Message { topic, payload } => {
                            for message in sink.incoming(&topic, &payload).await {
                                self.publish(message, None);
                            }
                        }
                        Event::Quiet => {}
                    }
                    // Only now: a broker that takes connections and nothing else is not to be asked ever again without a pause.
                    self.across.backoff.reset();
                }
                _ = keep.tick() => self.keep(feed).await?,
                message = self.across.others.next(), if has_room => self.publish(message.clone(), Some(message)),
                line = uplinks.next(), if has_room => match line? {
                    Some(Line::Uplink(uplink)) => self.pass(sink, feed, &uplink).await,
                    Some(Line::Malformed(_)) => {}
                    None => return Err(Error::Ended),
                },
            }
        }
    }

    async fn pass<S: Sink>(&mut self, sink: &mut S, feed: &Feed, uplink: &Uplink) {
        let mut messages = Vec::new();
        if let Some(device) = feed.config.devices.get(&uplink.dev_eui) {
            let opened = reading::decode(&feed.config.devices, feed.scripts.as_ref(), uplink).await;
            messages = sink.messages(&Heard { uplink, device, opened: &opened });
        }
        for message in messages {
            self.publish(message, None);
        }
        match self.under_way.back_mut() {
            Some(last) => last.cursor = Some(uplink.cursor),
            None => self.cursor = uplink.cursor,
        }
    }

    /// A message that is too large for the broker's protocol is left out: it would be the next time, too.
    fn publish(&mut self, message: Message, again: Option<Message>) {
        match self.session.publish(&message.topic, message.payload) {
            Ok(number) => self.under_way.push_back(UnderWay { number, cursor: None, again }),
            Err(_) => {
                self.across.left_out += 1;
                if self.across.left_out.is_power_of_two() {
                    eprintln!(
                        "lora-device-service: {} messages were too large, the last for {}",
                        self.across.left_out, message.topic
                    );
                }
            }
        }
    }

    fn acknowledge(&mut self, number: u16) {
        self.acknowledged.insert(number);
        while let Some(first) = self.under_way.front()
            && self.acknowledged.remove(&first.number)
        {
            self.cursor = first.cursor.unwrap_or(self.cursor);
            self.under_way.pop_front();
        }
        if self.under_way.is_empty() {
            self.acknowledged.clear();
        }
    }

    /// The connection is over: what has to be published again over the next one.
    fn give_back(self) {
        let Passage { across, under_way, acknowledged, .. } = self;
        let lost = under_way.into_iter().rev().filter(|sent| !acknowledged.contains(&sent.number));
        lost.filter_map(|sent| sent.again).for_each(|message| across.others.again.push_front(message));
    }

    async fn keep(&mut self, feed: &Feed) -> Result<(), Error> {
        if self.cursor != self.kept {
            feed.client.put_state(&feed.cursor_key, self.cursor.to_string().into()).await?;
            self.kept = self.cursor;
        }
        Ok(())
    }
}
