//! The thread that has JavaScript codecs run by a [`Worker`], so that a slow one holds up neither readings of other formats nor connections.
//!
//! A codec that does not return costs what one call may cost (at most [`super::worker::KILL_AFTER`] of processor time and a look), and then has to
//! wait [`PAUSE_FACTOR`] times as long as it took: meanwhile its payloads are answered at once with an error, and its readings carry the
//! bytes. So it never gets more than a fiftieth of one processor.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

use super::javascript::{self, Payload};
use super::worker::Worker;
use super::{Decoded, Encoded};

/// After a call that timed out or ended its process, its codec pauses for so many times the time it took.
pub const PAUSE_FACTOR: u32 = 50;
/// Calls that wait; beyond, callers wait.
const QUEUE_MAX: usize = 64;
/// Codecs of one configuration.
pub const SCRIPTS_MAX: usize = 16;
const PAUSED: &str = "the codec pauses: it took too long before";
const STOPPED: &str = "the codecs have stopped";

/// A codec of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    /// Its name there.
    pub name: String,
    /// Its place there, below [`SCRIPTS_MAX`].
    pub index: usize,
    /// Its code.
    pub source: String,
}

enum Work {
    Decode {
        payload: Payload,
        reply: oneshot::Sender<Decoded>,
    },
    Encode {
        data: Map<String, Value>,
        f_port: Option<u8>,
        variables: Map<String, Value>,
        reply: oneshot::Sender<Result<Encoded, String>>,
    },
}

/// The way to the thread; it ends when every handle is gone.
#[derive(Debug, Clone)]
pub struct Scripts {
    work: mpsc::Sender<(Arc<Script>, Work)>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work(..)")
    }
}

impl Scripts {
    /// Starts the thread, for a [`Worker`] of that program.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn start(program: PathBuf) -> io::Result<Self> {
        let (work, queue) = mpsc::channel(QUEUE_MAX);
        std::thread::Builder::new().name("codecs".to_owned()).spawn(move || serve(queue, Worker::new(program)))?;
        Ok(Scripts { work })
    }

    /// Decodes; never fails, as a reading is due in any case.
    pub async fn decode(&self, script: Arc<Script>, payload: Payload) -> Decoded {
        let (reply, answer) = oneshot::channel();
        if self.work.send((script, Work::Decode { payload, reply })).await.is_err() {
            return Decoded::failed(STOPPED);
        }
        answer.await.unwrap_or_else(|_| Decoded::failed(STOPPED))
    }

    /// Encodes.
    ///
    /// # Errors
    /// In words.
    pub async fn encode(
        &self,
        script: Arc<Script>,
        data: Map<String, Value>,
        f_port: Option<u8>,
        variables: Map<String, Value>,
    ) -> Result<Encoded, String> {
        let (reply, answer) = oneshot::channel();
        let work = Work::Encode { data, f_port, variables, reply };
        self.work.send((script, work)).await.map_err(|_| STOPPED.to_owned())?;
        answer.await.map_err(|_| STOPPED.to_owned())?
    }
}

fn serve(mut queue: mpsc::Receiver<(Arc<Script>, Work)>, mut worker: Worker) {
    let mut paused_until: [Option<Instant>; SCRIPTS_MAX] = [None; SCRIPTS_MAX];
    while let Some((script, work)) = queue.blocking_recv() {
        let begun = Instant::now();
        let is_paused = paused_until.get(script.index).is_some_and(|until| until.is_some_and(|until| begun < until));
        let was_costly = do_work(&mut worker, &script.source, work, is_paused);
        if was_costly && let Some(until) = paused_until.get_mut(script.index) {
            *until = Some(begun + pause(begun.elapsed()));
        }
    }
}

fn pause(took: Duration) -> Duration {
    took.max(javascript::CPU_MAX) * PAUSE_FACTOR
}

const fn is_costly(error: &javascript::Error) -> bool {
    match error {
        javascript::Error::TimedOut | javascript::Error::Lost(_) => true,
        javascript::Error::Threw(_) | javascript::Error::TooLarge | javascript::Error::Form(_) | javascript::Error::Input => {
            false
        }
    }
}

/// Says whether the codec took too long.
fn do_work(worker: &mut Worker, source: &str, work: Work, is_paused: bool) -> bool {
    // Whoever asked may have gone.
    match work {
        Work::Decode { reply, .. } if is_paused => {
            let _gone = reply.send(Decoded::failed(PAUSED));
            false
        }
        Work::Encode { reply, .. } if is_paused => {
            let _gone = reply.send(Err(PAUSED.to_owned()));
            false
        }
        Work::Decode { payload, reply } => {
            let done = worker.decode(source, payload);
            let was_costly = done.as_ref().is_err_and(is_costly);
            let _gone = reply.send(done.unwrap_or_else(|error| Decoded::failed(error.to_string())));
            was_costly
        }
        Work::Encode { data, f_port, variables, reply } => {
            let done = worker.encode(source, data, f_port, variables);
            let was_costly = done.as_ref().is_err_and(is_costly);
            let _gone = reply.send(done.map_err(|error| error.to_string()));
            was_costly
        }
    }
}
