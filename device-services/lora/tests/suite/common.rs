//! A node for the tests: a real server on a real socket that follows the protocol and remembers; and the real program against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path as UrlPath, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use lora_device_service::decrypt::{Direction, apply_key_stream};
use serde_json::json;
use tenant::{
    Accepted, DevEui, EventId, HexBytes, Problem, Reading, ReadingBatch, Reception, Registered, Registration, Uplink, UplinkKind,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Of the device in the tests' configurations.
pub const DEV_ADDR: tenant::DevAddr = tenant::DevAddr([0x26, 0x01, 0x1b, 0xda]);
pub const APP_S_KEY: tenant::Key = tenant::Key([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
/// Of the uplink with this counter.
pub fn event_id(number: u32) -> EventId {
    let mut id = [0x11; 16];
    id[12..].copy_from_slice(&number.to_be_bytes());
    EventId(id)
}

/// Uplink number `number` of the configured device, with this payload in clear.
pub fn uplink(number: u32, payload: &[u8]) -> Uplink {
    let mut payload = payload.to_vec();
    apply_key_stream(&APP_S_KEY, Direction::Up, DEV_ADDR, number, &mut payload);
    Uplink {
        cursor: u64::from(number) + 1,
        event_id: event_id(number),
        dev_eui: DevEui([1; 8]),
        dev_addr: DEV_ADDR,
        session: "session".to_owned(),
        joined: None,
        f_cnt: number,
        f_port: Some(1),
        confirmed: false,
        frm_payload: HexBytes(payload),
        heard_at_ms: 1_700_000_000_000 + u64::from(number),
        kind: UplinkKind::Live,
        epoch: 1,
        rx: Reception { frequency_hz: 868_100_000, data_rate: "SF7BW125".to_owned(), ..Reception::default() },
        others: Vec::new(),
        status: None,
    }
}

/// The first counter for which the node wants downlinks.
pub const F_CNT_FIRST: u32 = 70_000;

#[expect(clippy::disallowed_methods, reason = "another process tells nobody that it is ready, or over; bounded")]
pub fn wait_for<T>(what: &str, attempt: impl Fn() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[derive(Default)]
pub struct Memory {
    pub config: Vec<u8>,
    pub registrations: Vec<Registration>,
    pub uplinks: Vec<Uplink>,
    pub readings: BTreeMap<EventId, Reading>,
    pub batches: Vec<usize>,
    /// Requests for the stream of uplinks, with their queries.
    pub stream_queries: Vec<String>,
    /// Batches wait while this holds.
    pub hold_batches: bool,
    pub waiting_batches: usize,
    /// Readings of these events are refused while they have values.
    pub refuse_values: BTreeSet<EventId>,
    /// Readings of these events are refused always.
    pub refuse: BTreeSet<EventId>,
    pub refused: usize,
    /// Small values of the service.
    pub state: BTreeMap<String, Bytes>,
    pub downlinks: Vec<tenant::Downlink>,
    pub encrypted: Vec<tenant::Encrypted>,
    /// What became of downlinks; cursors above those of the questions.
    pub fates: Vec<tenant::DownlinkEvent>,
    /// Lines that went from the node towards the service.
    pub lines_taken: usize,
    streams: Vec<UnboundedSender<Bytes>>,
}

/// What survives a restart of the node, and the means to wait for changes of it.
#[derive(Clone, Default)]
pub struct Shared(Arc<(Mutex<Memory>, Condvar, tokio::sync::Notify)>);

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.0.lock().expect("no test thread panicked")
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.1.notify_all();
        self.0.2.notify_waiters();
        result
    }

    pub fn wait_until(&self, what: &str, condition: impl Fn(&Memory) -> bool) {
        let (_memory, timeout) =
            self.0.1.wait_timeout_while(self.lock(), PATIENCE, |memory| !condition(memory)).expect("no test thread panicked");
        assert!(!timeout.timed_out(), "waited in vain: {what}");
    }

    /// Waits until a number has not changed for a while.
    pub fn wait_until_still(&self, number: impl Fn(&Memory) -> usize) -> usize {
        let mut last = number(&self.lock());
        loop {
            let changed = |memory: &mut Memory| number(memory) == last;
            let waited = self.0.1.wait_timeout_while(self.lock(), Duration::from_millis(300), changed);
            let now = number(&waited.expect("no test thread panicked").0);
            if now == last {
                return now;
            }
            last = now;
        }
    }

    /// Ends the open streams of uplinks as a node does that stops in good order, but goes on answering.
    pub fn end_streams(&self) {
        self.change(|memory| memory.streams.clear());
    }

    pub fn hear(&self, uplinks: impl IntoIterator<Item = Uplink>) {
        self.change(|memory| {
            for uplink in uplinks {
                let line = line(&uplink);
                memory.streams.retain(|stream| stream.send(line.clone()).is_ok());
                memory.uplinks.push(uplink);
            }
        });
    }

    pub fn send_raw(&self, bytes: &[u8]) {
        self.change(|memory| memory.streams.retain(|stream| stream.send(Bytes::copy_from_slice(bytes)).is_ok()));
    }
}

fn line(uplink: &Uplink) -> Bytes {
    let mut line = serde_json::to_vec(uplink).expect("an uplink is JSON");
    line.push(b'\n');
    Bytes::from(line)
}

/// A running node; dropping it is its crash.
pub struct Node {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    pub fn start(socket: &Path, shared: &Shared) -> Self {
        drop(std::fs::remove_file(socket));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = {
            let _context = runtime.enter();
            tokio::net::UnixListener::bind(socket).expect("a socket")
        };
        let router = Router::new()
            .route(tenant::CONFIG, get(config))
            .route(tenant::DEVICES, put(devices))
            .route(tenant::UPLINKS, get(uplinks))
            .route(tenant::READINGS, post(readings))
            .route(tenant::DOWNLINKS, post(downlinks).get(downlink_events).put(encrypted))
            .route(&format!("{}/{{key}}", tenant::STATE), get(get_state).put(put_state))
            .with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Node { runtime: Some(runtime) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

async fn config(State(shared): State<Shared>) -> Vec<u8> {
    shared.lock().config.clone()
}

async fn devices(State(shared): State<Shared>, Json(registration): Json<Registration>) -> Json<Registered> {
    let registered = registration.devices.len() + registration.joining.len();
    shared.change(|memory| memory.registrations.push(registration));
    Json(Registered { registered })
}

async fn downlinks(State(shared): State<Shared>, Json(downlink): Json<tenant::Downlink>) -> Json<tenant::Queued> {
    let id = downlink.id.clone();
    shared.change(|memory| memory.downlinks.push(downlink));
    Json(tenant::Queued { id })
}

/// Asks for every downlink once, for the counters from 70,000 on; then the fates.
async fn downlink_events(
    State(shared): State<Shared>,
    Query(query): Query<BTreeMap<String, u64>>,
) -> Json<tenant::DownlinkEvents> {
    let after = query.get(tenant::AFTER).copied().unwrap_or(0);
    let wanted = |(cursor, downlink): (u64, &tenant::Downlink)| tenant::DownlinkEvent {
        cursor,
        at_ms: 0,
        id: downlink.id.clone(),
        dev_eui: downlink.dev_eui,
        state: tenant::DownlinkState::Wanted {
            f_port: downlink.f_port,
            payload: downlink.payload.clone(),
            dev_addr: DEV_ADDR,
            session: "a1b2".to_owned(),
            joined: None,
            f_cnt_first: F_CNT_FIRST,
            count: 2,
        },
    };
    let pending = || -> Vec<_> {
        let memory = shared.lock();
        let fates = memory.fates.iter().filter(|fate| fate.cursor > after).cloned();
        (1..).zip(&memory.downlinks).filter(|(cursor, _)| *cursor > after).map(wanted).chain(fates).collect()
    };
    let begun = std::time::Instant::now();
    while pending().is_empty() && begun.elapsed().as_millis() < u128::from(tenant::DOWNLINK_WAIT_MS_MAX) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Json(tenant::DownlinkEvents { events: pending() })
}

async fn encrypted(State(shared): State<Shared>, Json(encrypted): Json<tenant::Encrypted>) {
    shared.change(|memory| memory.encrypted.push(encrypted));
}

async fn get_state(State(shared): State<Shared>, UrlPath(key): UrlPath<String>) -> Response {
    let value = shared.lock().state.get(&key).cloned();
    value.map_or(StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
}

async fn put_state(State(shared): State<Shared>, UrlPath(key): UrlPath<String>, value: Bytes) -> StatusCode {
    shared.change(|memory| memory.state.insert(key, value));
    StatusCode::NO_CONTENT
}

async fn uplinks(State(shared): State<Shared>, Query(query): Query<BTreeMap<String, u64>>, uri: axum::http::Uri) -> Response {
    let after = query.get(tenant::AFTER).copied();
    let receiver = shared.change(|memory| {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let is_due = |uplink: &&Uplink| match after {
            Some(cursor) => uplink.cursor > cursor,
            None => !memory.readings.contains_key(&uplink.event_id),
        };
        for uplink in memory.uplinks.iter().filter(is_due) {
            drop(sender.send(line(uplink)));
        }
        memory.streams.push(sender);
        memory.stream_queries.push(uri.query().unwrap_or_default().to_owned());
        receiver
    });
    let lines = UnboundedReceiverStream::new(receiver).map(move |line| {
        shared.change(|memory| memory.lines_taken += 1);
        Ok::<_, std::convert::Infallible>(line)
    });
    ([(CONTENT_TYPE, tenant::NDJSON)], Body::from_stream(lines)).into_response()
}

async fn readings(State(shared): State<Shared>, Json(batch): Json<ReadingBatch>) -> Response {
    shared.change(|memory| {
        memory.batches.push(batch.readings.len());
        memory.waiting_batches += 1;
    });
    loop {
        let changed = shared.0.2.notified();
        if !shared.lock().hold_batches {
            break;
        }
        changed.await;
    }
    shared.change(|memory| {
        memory.waiting_batches -= 1;
        let refused = batch.readings.iter().any(|reading| {
            let values = reading.error.is_none() && memory.refuse_values.contains(&reading.event_id);
            values || memory.refuse.contains(&reading.event_id)
        });
        if refused {
            memory.refused += 1;
            let problem = Problem { title: "Unacceptable reading".to_owned(), status: 422, ..Problem::default() };
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(problem)).into_response();
        }
        let accepted = batch.readings.len();
        memory.readings.extend(batch.readings.into_iter().map(|reading| (reading.event_id, reading)));
        Json(Accepted { accepted }).into_response()
    })
}

/// A test's directory, node memory and devices.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub shared: Shared,
}

impl Place {
    /// With one device under `KEY`.
    pub fn new() -> Self {
        let place = Place { directory: tempfile::tempdir().expect("a directory"), shared: Shared::default() };
        let config = json!({"devices": [{"dev_eui": "0101010101010101", "dev_addr": "26011bda", "nwk_s_key": "0f".repeat(16),
            "app_s_key": "000102030405060708090a0b0c0d0e0f", "codec": "cayenne-lpp", "rx1_delay_s": 5, "supports_reset": true}]});
        place.shared.change(|memory| memory.config = config.to_string().into_bytes());
        place
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("node.sock")
    }
}

/// The program itself; killed when dropped.
pub struct Service {
    pub child: Child,
}

impl Service {
    pub fn start(socket: &Path) -> Self {
        Self::start_with(socket, &[])
    }

    pub fn start_with(socket: &Path, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lora-device-service"));
        Service { child: command.args(flags).arg(socket).stderr(Stdio::piped()).spawn().expect("the program starts") }
    }

    /// Waits for its end; gives its status and what it wrote.
    pub fn end(&mut self) -> (ExitStatus, Vec<String>) {
        let lines = BufReader::new(self.child.stderr.take().expect("piped")).lines().map_while(Result::ok).collect();
        (self.child.wait().expect("a child of this process"), lines)
    }

    pub fn terminate(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM).expect("it runs");
    }

    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of the kernel");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
