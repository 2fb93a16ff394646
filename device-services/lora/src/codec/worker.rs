//! A process of its own for the customer's code, so that whatever it does can be ended.
//!
//! The interpreter looks at its limits between its steps. One step, such as an operation on huge integers, is not interrupted, and no thread
//! can be ended from outside; a process can. It is this same program, started with [`ARGUMENT`]: it reads calls from its standard input,
//! makes them and writes what came of each to its standard output. It has no key, no connection and no file, and ends with its parent.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::javascript::{self, Error, Payload};
use super::{Decoded, Encoded};

/// The program's only argument when it is such a process.
pub const ARGUMENT: &str = "--codec-worker";
/// A call that took so much processor time is ended with its process: the interpreter should have ended it at [`javascript::CPU_MAX`].
pub const KILL_AFTER: Duration = Duration::from_millis(300);
/// A call that took so long by the clock is ended too, whatever it did meanwhile.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Between looks at a call that does not return.
const LOOK: Duration = Duration::from_millis(20);
/// Address space of the process; the interpreter has [`javascript::MEMORY_BYTES_MAX`] of it.
const ADDRESS_SPACE_BYTES: u64 = 256 << 20;
/// Longest call: its source, and values as JSON.
const CALL_BYTES_MAX: usize = 6 * javascript::SOURCE_BYTES_MAX;
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// USER_HZ, the unit of `/proc/PID/stat`, is a hundredth of a second wherever this runs.
const TICK: Duration = Duration::from_millis(10);

/// What is asked of the process.
#[derive(Debug, Serialize, Deserialize)]
enum Call {
    Decode { source: String, payload: Payload },
    Encode { source: String, data: Map<String, Value>, f_port: Option<u8>, variables: Map<String, Value> },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Decoded(Result<Decoded, Error>),
    Encoded(Result<Encoded, Error>),
}

/// Makes calls until there are no more. The other end of [`Worker`].
#[must_use]
pub fn run() -> ExitCode {
    // What cannot be had is done without: these are second lines of defence.
    let _own_end = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let limit = Rlimit { current: Some(ADDRESS_SPACE_BYTES), maximum: Some(ADDRESS_SPACE_BYTES) };
    let _unlimited = rustix::process::setrlimit(Resource::As, limit);
    match serve(&mut io::stdin().lock(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve(calls: &mut impl Read, answers: &mut impl Write) -> io::Result<()> {
    loop {
        let bytes = match read(calls, CALL_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            bytes => bytes?,
        };
        let answer = match serde_json::from_slice(&bytes)? {
            Call::Decode { source, payload } => Answer::Decoded(javascript::decode(&source, &payload)),
            Call::Encode { source, data, f_port, variables } => {
                Answer::Encoded(javascript::encode(&source, &data, f_port, &variables))
            }
        };
        answers.write_all(&message(&serde_json::to_vec(&answer)?)?)?;
        answers.flush()?;
    }
}

/// Length in four bytes, then JSON.
fn message(json: &[u8]) -> io::Result<Vec<u8>> {
    let len = u32::try_from(json.len()).map_err(io::Error::other)?;
    Ok([&len.to_be_bytes(), json].concat())
}

fn read(from: &mut impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
    if len > max {
        return Err(io::Error::other("too long"));
    }
    let mut json = vec![0; len];
    from.read_exact(&mut json)?;
    Ok(json)
}

/// The way to such a process. It is started at the first call, and anew after one that had to be ended.
#[derive(Debug)]
pub struct Worker {
    program: PathBuf,
    running: Option<Running>,
}

impl Worker {
    /// With the path of a program that calls [`run`] when [`ARGUMENT`] is its only argument.
    #[must_use]
    pub const fn new(program: PathBuf) -> Self {
        Worker { program, running: None }
    }

    /// The process that waits for the next call, if one does.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// As [`javascript::decode`], there.
    ///
    /// # Errors
    /// As there, and [`Error::Lost`].
    pub fn decode(&mut self, source: &str, payload: Payload) -> Result<Decoded, Error> {
        match self.call(&Call::Decode { source: source.to_owned(), payload })? {
            Answer::Decoded(decoded) => decoded,
            Answer::Encoded(_) => Err(Error::Lost("it answered something else".to_owned())),
        }
    }

    /// As [`javascript::encode`], there.
    ///
    /// # Errors
    /// As there, and [`Error::Lost`].
    pub fn encode(
        &mut self,
        source: &str,
        data: Map<String, Value>,
        f_port: Option<u8>,
        variables: Map<String, Value>,
    ) -> Result<Encoded, Error> {
        match self.call(&Call::Encode { source: source.to_owned(), data, f_port, variables })? {
            Answer::Encoded(encoded) => encoded,
            Answer::Decoded(_) => Err(Error::Lost("it answered something else".to_owned())),
        }
    }

    fn call(&mut self, call: &Call) -> Result<Answer, Error> {
        let lost = |error: io::Error| Error::Lost(error.to_string());
        let bytes = serde_json::to_vec(call).map_err(|error| Error::Lost(error.to_string()))?;
        if bytes.len() > CALL_BYTES_MAX {
            return Err(Error::Input);
        }
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(&self.program).map_err(lost)?,
        };
        let answer = running.call(&message(&bytes).map_err(lost)?)?;
        let answer = serde_json::from_slice(&answer).map_err(|error| Error::Lost(error.to_string()))?;
        // After anything odd it is not used again, but ended.
        self.running = Some(running);
        Ok(answer)
    }
}

/// One process; killed when dropped.
#[derive(Debug)]
struct Running {
    child: Child,
    socket: UnixStream,
}

impl Running {
    fn start(program: &std::path::Path) -> io::Result<Self> {
        let (socket, other) = UnixStream::pair()?;
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(WAIT_MAX))?;
        let output = OwnedFd::from(other.try_clone()?);
        let mut command = Command::new(program);
        command.arg(ARGUMENT).env_clear().stdin(Stdio::from(OwnedFd::from(other))).stdout(Stdio::from(output));
        Ok(Running { child: command.spawn()?, socket })
    }

    fn call(&mut self, call: &[u8]) -> Result<Vec<u8>, Error> {
        self.socket.write_all(call).map_err(|error| self.lost(&error))?;
        let mut patience = Patience::new(self.child.id());
        let mut len = [0; 4];
        self.read(&mut len, &mut patience)?;
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > ANSWER_BYTES_MAX {
            return Err(Error::Lost("its answer is too long".to_owned()));
        }
        let mut answer = vec![0; len];
        self.read(&mut answer, &mut patience)?;
        Ok(answer)
    }

    fn read(&mut self, buffer: &mut [u8], patience: &mut Patience) -> Result<(), Error> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.socket.read(rest) {
                Ok(0) => return Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => filled += read,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if patience.lasts() => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Err(Error::TimedOut),
                    _ => return Err(self.lost(&error)),
                },
            }
        }
        Ok(())
    }

    /// Why it does not answer: by its end, if it has ended.
    fn lost(&mut self, error: &io::Error) -> Error {
        match self.child.try_wait() {
            Ok(Some(status)) => Error::Lost(status.to_string()),
            Ok(None) | Err(_) => Error::Lost(error.to_string()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// How much longer a call is waited for.
struct Patience {
    process: u32,
    begun: Instant,
    /// The process's time at the first look.
    spent: Option<Duration>,
}

impl Patience {
    fn new(process: u32) -> Self {
        Patience { process, begun: Instant::now(), spent: None }
    }

    fn lasts(&mut self) -> bool {
        let waited = self.begun.elapsed();
        // Where the system does not tell, the clock has to do.
        let now = processor_time(self.process).unwrap_or(waited);
        now.saturating_sub(*self.spent.get_or_insert(now)) < KILL_AFTER && waited < WAIT_MAX
    }
}

/// What a process has used so far (proc(5): `utime` and `stime` of `/proc/PID/stat`).
fn processor_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name stands in parentheses and may contain anything; the state behind it is field 3, the times are 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let (user, system) = (times.next()?.ok()?, times.next()?.ok()?);
    TICK.checked_mul(user.checked_add(system)?)
}
