//! The loop: connect, follow uplinks, hand in readings, start again when the node went away.

use std::{collections::VecDeque, path::PathBuf, pin::Pin, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tenant::{Backoff, Client, Error, Line, READINGS_MAX, Reading, ReadingBatch, Uplink, Uplinks};

use crate::{
    codec::scripts::Scripts,
    config::{self, Codec, Config},
    reading::{self, RAW, Step},
    sinks::Sinks,
};

/// Readings that wait while a batch is on its way. At the bound the stream is not read on: the node keeps the rest.
pub const PENDING_MAX: usize = 4 * READINGS_MAX;
/// Payloads that wait for the customer's code. At the bound the stream is not read on.
pub const DECODING_MAX: usize = 64;

/// Why the service ends by itself: going on would not help.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// There is no thread for the customer's codecs.
    #[error("the codecs cannot be started")]
    Codecs(#[source] std::io::Error),
    /// The node does not take the devices, or has no configuration, or is no node.
    #[error("{action} failed")]
    Node {
        /// What was asked of it.
        action: &'static str,
        /// Its answer.
        #[source]
        source: Error,
    },
}

/// How a connection to the node ended.
enum Ended {
    /// By something that passes.
    Interrupted(Error),
    Fatal(Fatal),
}

/// Told about what an operator should see, in one line without values or keys.
pub type Report<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// What the service does beside readings of the formats that it knows itself.
#[derive(Debug, Default)]
pub struct Options {
    /// Started once readings flow; they never hold them up.
    pub sinks: Option<Sinks>,
    /// The program that runs the customer's codecs, see [`crate::codec::worker`]; without it their readings carry the bytes.
    pub worker: Option<PathBuf>,
}

/// Serves until something cannot be mended by trying again; no sinks, no codecs of the customer's.
pub async fn run(client: &Client, report: Report<'_>) -> Fatal {
    run_with(client, Options::default(), report).await
}

/// Serves until something cannot be mended by trying again.
pub async fn run_with(client: &Client, mut options: Options, report: Report<'_>) -> Fatal {
    let mut backoff = Backoff::default();
    let mut faults = Faults::new(report);
    loop {
        match serve(client, &mut options, &mut backoff, &mut faults).await {
            Ended::Fatal(fatal) => return fatal,
            Ended::Interrupted(error) => faults.interrupted(&error),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// One connection, from the configuration to its end.
async fn serve(client: &Client, options: &mut Options, backoff: &mut Backoff, faults: &mut Faults<'_>) -> Ended {
    let opened = async {
        let json = client.config().await.map_err(|error| ended("reading the configuration", error))?;
        let config = config::parse(&json).map_err(|error| Ended::Fatal(error.into()))?;
        client.register(&config.registration).await.map_err(|error| ended("registering the devices", error))?;
        // Without a cursor: the node knows what has no reading yet, this process does not.
        let uplinks = client.uplinks(None).await.map_err(|error| ended("opening the stream of uplinks", error))?;
        let scripts = start_scripts(&config, options.worker.as_ref()).map_err(|error| Ended::Fatal(Fatal::Codecs(error)))?;
        Ok((json, Arc::new(config), scripts, uplinks))
    };
    match opened.await {
        Ok((json, config, scripts, uplinks)) => {
            if let Some(sinks) = &mut options.sinks {
                sinks.start(json, &config, &scripts);
            }
            Ended::Interrupted(follow(client, &config, &scripts, uplinks, backoff, faults).await)
        }
        Err(ended) => ended,
    }
}

/// Nothing is started where no codec needs it.
fn start_scripts(config: &Config, worker: Option<&PathBuf>) -> std::io::Result<Option<Scripts>> {
    let is_needed = config.devices.values().any(|device| matches!(device.codec, Codec::Script(_)));
    worker.filter(|_| is_needed).cloned().map(Scripts::start).transpose()
}

fn ended(action: &'static str, source: Error) -> Ended {
    // An answer that makes no sense is most likely an answer cut off by the node's end.
    if source.is_transient() || matches!(source, Error::Answer(_)) {
        Ended::Interrupted(source)
    } else {
        Ended::Fatal(Fatal::Node { action, source })
    }
}

type Delivery<'a> = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send + 'a>>;

/// Turns uplinks into readings until the connection ends. A reading goes out at once if none is on its way, else with the next batch.
/// What is pending at the end is dropped: the node has no reading for it and sends those uplinks again.
async fn follow(
    client: &Client,
    config: &Config,
    scripts: &Option<Scripts>,
    mut uplinks: Uplinks,
    backoff: &mut Backoff,
    faults: &mut Faults<'_>,
) -> Error {
    let mut pending = VecDeque::new();
    let mut decoding = FuturesUnordered::new();
    let mut delivery: Option<Delivery<'_>> = None;
    loop {
        // What came together goes together, not its first reading alone.
        let gathers = uplinks.is_ready() && pending.len() < READINGS_MAX && decoding.len() < DECODING_MAX;
        if delivery.is_none() && !pending.is_empty() && !gathers {
            let batch = pending.drain(..pending.len().min(READINGS_MAX)).collect();
            delivery = Some(Box::pin(deliver(client, batch)));
        }
        let under_way = delivery.is_some();
        tokio::select! {
            biased;
            delivered = async { if let Some(delivery) = &mut delivery { delivery.await } else { Ok(0) } }, if under_way => {
                delivery = None;
                match delivered {
                    Ok(refused) => {
                        // Only now: a node that takes connections but no readings is not to be asked ever again without a pause.
                        backoff.reset();
                        faults.refused(refused);
                    }
                    Err(error) => return error,
                }
            }
            Some(reading) = decoding.next(), if !decoding.is_empty() => pending.push_back(reading),
            line = uplinks.next(), if pending.len() < PENDING_MAX && decoding.len() < DECODING_MAX => match line {
                Ok(Some(Line::Uplink(uplink))) => match reading::open(&config.devices, &uplink) {
                    Step::Done(opened) => pending.push_back(reading::reading(&uplink, opened.decoded)),
                    Step::Run(..) => decoding.push(decode(config, scripts, uplink)),
                },
                Ok(Some(Line::Malformed(reason))) => faults.malformed(&reason),
                Ok(None) => return Error::Unreachable("the node ended the stream of uplinks".into()),
                Err(error) => return error,
            },
        }
    }
}

async fn decode(config: &Config, scripts: &Option<Scripts>, uplink: Box<Uplink>) -> Reading {
    let opened = reading::decode(&config.devices, scripts.as_ref(), &uplink).await;
    reading::reading(&uplink, opened.decoded)
}

/// Hands in a batch. If the node refuses it, each reading alone; if it refuses that too, the reading without its values. Gives the number of readings that were refused even so.
async fn deliver(client: &Client, readings: Vec<Reading>) -> Result<u64, Error> {
    let batch = ReadingBatch { readings };
    match client.publish(&batch).await {
        Ok(_) => return Ok(0),
        Err(error) if error.is_transient() || matches!(error, Error::Answer(_)) => return Err(error),
        Err(_) => {}
    }
    let mut refused = 0;
    for reading in batch.readings {
        refused += u64::from(!deliver_alone(client, reading).await?);
    }
    Ok(refused)
}

async fn deliver_alone(client: &Client, mut reading: Reading) -> Result<bool, Error> {
    for plain in [false, true] {
        if plain {
            reading.decoded.retain(|name, _| name == RAW);
            reading.error = Some("the node refused the decoded values".to_owned());
        }
        match client.publish(&ReadingBatch { readings: vec![reading.clone()] }).await {
            Ok(_) => return Ok(true),
            Err(error) if error.is_transient() || matches!(error, Error::Answer(_)) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(false)
}

/// An error and its causes in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Counts what goes wrong and reports it at the first time and then ever more rarely (at powers of two).
struct Faults<'a> {
    report: Report<'a>,
    interrupted: u64,
    malformed: u64,
    refused: u64,
}

impl<'a> Faults<'a> {
    fn new(report: Report<'a>) -> Self {
        Faults { report, interrupted: 0, malformed: 0, refused: 0 }
    }

    fn interrupted(&mut self, error: &Error) {
        self.interrupted += 1;
        if self.interrupted.is_power_of_two() {
            (self.report)(&format!("interrupted {} times: {}", self.interrupted, describe(error)));
        }
    }

    fn malformed(&mut self, reason: &str) {
        self.malformed += 1;
        if self.malformed.is_power_of_two() {
            (self.report)(&format!("{} malformed lines in the stream of uplinks: {reason}", self.malformed));
        }
    }

    fn refused(&mut self, readings: u64) {
        let before = self.refused;
        self.refused += readings;
        if self.refused.checked_ilog2() != before.checked_ilog2() {
            (self.report)(&format!("{} readings refused by the node", self.refused));
        }
    }
}
