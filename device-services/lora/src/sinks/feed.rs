//! What all sinks have in common: the node's log from a cursor on, to a broker, at least once.
//!
//! An uplink's messages are published, and the cursor passes it when the broker has acknowledged them. The cursor lies with the node
//! (`/v1/state/sink.<name>.cursor`), so a restart of any of the three goes on where it was; what was under way is published again, with the
//! same ids. At most [`IN_FLIGHT_MAX`] messages are under way: behind a slow or absent broker nothing piles up here, it waits in the log.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tenant::{Client, Line, Uplink, Uplinks};
use tokio::sync::mpsc;
use tokio::time::Instant;

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
/// Between two attempts: doubles from the first to the longest.
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
    let (mut wait, mut failures) = (FIRST_WAIT, 0_u64);
    let mut others = sink.others();
    loop {
        let begun = Instant::now();
        let Err(error) = serve(&mut sink, &feed, &mut others).await;
        failures += 1;
        if failures.is_power_of_two() {
            eprintln!("lora-device-service: {} interrupted {failures} times: {}", feed.cursor_key, describe(&error));
        }
        wait = if begun.elapsed() > LONGEST_WAIT { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        tokio::time::sleep(wait).await;
    }
}

async fn serve<S: Sink>(
    sink: &mut S,
    feed: &Feed,
    others: &mut Option<mpsc::Receiver<Message>>,
) -> Result<std::convert::Infallible, Error> {
    let stream = feed.outside.connect(&feed.address).await.map_err(Error::Connect)?;
    let session = Session::open(stream, &feed.login, sink.filters()).await?;
    let kept = feed.client.state(&feed.cursor_key).await?;
    let cursor = kept.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0);
    let uplinks = feed.client.uplinks(Some(cursor)).await?;
    let passage = Passage { session, under_way: VecDeque::new(), acknowledged: BTreeSet::new(), cursor, kept: cursor };
    passage.serve(sink, feed, uplinks, others).await
}

/// Messages on their way over one connection.
struct Passage {
    session: Session,
    /// In the order in which they were published: number, and the cursor that is reached with them.
    under_way: VecDeque<(u16, Option<u64>)>,
    /// Of those, what the broker has out of turn.
    acknowledged: BTreeSet<u16>,
    cursor: u64,
    kept: u64,
}

impl Passage {
    async fn serve<S: Sink>(
        mut self,
        sink: &mut S,
        feed: &Feed,
        mut uplinks: Uplinks,
        others: &mut Option<mpsc::Receiver<Message>>,
    ) -> Result<std::convert::Infallible, Error> {
        let mut keep = tokio::time::interval(KEEP_INTERVAL);
        loop {
            let has_room = self.under_way.len() < IN_FLIGHT_MAX && self.session.has_room();
            tokio::select! {
                biased;
                event = self.session.next() => match event? {
                    Event::Acknowledged(number) => self.acknowledge(number),
                    Event::Message { topic, payload } => {
                        for message in sink.incoming(&topic, &payload).await {
                            self.publish(message, None)?;
                        }
                    }
                    Event::Quiet => {}
                },
                _ = keep.tick() => self.keep(feed).await?,
                message = async { if let Some(others) = others { others.recv().await } else { None } }, if has_room && others.is_some() => {
                    match message {
                        Some(message) => self.publish(message, None)?,
                        None => *others = None,
                    }
                }
                line = uplinks.next(), if has_room => match line? {
                    Some(Line::Uplink(uplink)) => self.pass(sink, feed, &uplink).await?,
                    Some(Line::Malformed(_)) => {}
                    None => return Err(Error::Ended),
                },
            }
        }
    }

    async fn pass<S: Sink>(&mut self, sink: &mut S, feed: &Feed, uplink: &Uplink) -> Result<(), Error> {
        let mut messages = Vec::new();
        if let Some(device) = feed.config.devices.get(&uplink.dev_eui) {
            let opened = reading::decode(&feed.config.devices, feed.scripts.as_ref(), uplink).await;
            messages = sink.messages(&Heard { uplink, device, opened: &opened });
        }
        let last = messages.len().checked_sub(1);
        for (index, message) in messages.into_iter().enumerate() {
            self.publish(message, (Some(index) == last).then_some(uplink.cursor))?;
        }
        if last.is_none() {
            match self.under_way.back_mut() {
                Some((_, cursor)) => *cursor = Some(uplink.cursor),
                None => self.cursor = uplink.cursor,
            }
        }
        Ok(())
    }

    /// A message that is too large for the broker's protocol is left out; what it would have passed is passed with the next one.
    fn publish(&mut self, message: Message, cursor: Option<u64>) -> Result<(), Error> {
        let number = self.session.publish(&message.topic, message.payload)?;
        self.under_way.push_back((number, cursor));
        Ok(())
    }

    fn acknowledge(&mut self, number: u16) {
        self.acknowledged.insert(number);
        while let Some((first, cursor)) = self.under_way.front()
            && self.acknowledged.remove(first)
        {
            self.cursor = cursor.unwrap_or(self.cursor);
            self.under_way.pop_front();
        }
        if self.under_way.is_empty() {
            self.acknowledged.clear();
        }
    }

    async fn keep(&mut self, feed: &Feed) -> Result<(), Error> {
        if self.cursor != self.kept {
            feed.client.put_state(&feed.cursor_key, self.cursor.to_string().into()).await?;
            self.kept = self.cursor;
        }
        Ok(())
    }
}
