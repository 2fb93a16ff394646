//! A real Mosquitto, somebody who listens to it, and what sinks are tried with.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use super::common::{self, PATIENCE, Place, wait_for};
use lora_device_service::mqtt::{Event, Login, Session};
use serde_json::{Value, json};
use tenant::{Reception, Uplink};
use tokio::net::TcpStream;

/// A broker on a port of its own; killed when dropped.
pub struct Mosquitto {
    child: Child,
    port: u16,
}

impl Mosquitto {
    /// `None`, said aloud: it is not installed.
    pub fn start(directory: &Path, port: u16) -> Option<Self> {
        let file = directory.join(format!("mosquitto-{port}.conf"));
        std::fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).expect("a file");
        let program = ["mosquitto", "/usr/sbin/mosquitto"];
        let start =
            |program: &str| Command::new(program).arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok();
        let Some(child) = program.into_iter().find_map(start) else {
            println!("SKIPPED: mosquitto is not installed; `cargo xtask test --install` installs it");
            return None;
        };
        let broker = Mosquitto { child, port };
        wait_for("the broker", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Some(broker)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

type Messages = Arc<Mutex<Vec<(String, Value)>>>;

/// Somebody who listens to everything and may publish, in a runtime of its own.
pub struct Listener {
    messages: Messages,
    publish: tokio::sync::mpsc::UnboundedSender<(String, Vec<u8>)>,
    _runtime: tokio::runtime::Runtime,
}

impl Listener {
    pub fn start(broker: &Mosquitto) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let messages = Messages::default();
        let (publish, mut queue) = tokio::sync::mpsc::unbounded_channel::<(String, Vec<u8>)>();
        let (address, kept) = (broker.address(), Arc::clone(&messages));
        let (ready, subscribed) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("the broker");
            let login = Login { client_id: "listener".to_owned(), user: None };
            let mut session = Session::open(Box::new(stream), &login, vec!["#".to_owned()]).await.expect("a session");
            ready.send(()).expect("the test waits");
            loop {
                tokio::select! {
                    biased;
                    event = session.next() => match event {
                        Ok(Event::Message { topic, payload }) => {
                            let document = serde_json::from_slice(&payload).expect("JSON");
                            kept.lock().expect("no panic").push((topic, document));
                        }
                        Ok(Event::Acknowledged(_) | Event::Quiet) => {}
                        Err(_) => return,
                    },
                    Some((topic, payload)) = queue.recv() => { session.publish(&topic, payload).expect("small enough"); }
                }
            }
        });
        subscribed.recv_timeout(PATIENCE).expect("subscribed");
        Listener { messages, publish, _runtime: runtime }
    }

    pub fn all(&self, topic: &str) -> Vec<Value> {
        let messages = self.messages.lock().expect("no panic");
        messages.iter().filter(|(known, _)| known == topic).map(|(_, document)| document.clone()).collect()
    }

    /// The first message of a topic that is as it should be.
    pub fn wait(&self, topic: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        wait_for(topic, || self.all(topic).into_iter().find(&is_right))
    }

    pub fn publish(&self, topic: &str, document: &Value) {
        self.publish.send((topic.to_owned(), document.to_string().into_bytes())).expect("it listens");
    }
}

pub const EUI: &str = "0101010101010101";

pub fn up_topic() -> String {
    format!("application/app-1/device/{EUI}/event/up")
}

pub fn uplink(number: u32) -> Uplink {
    let payload = [&[3, 103, 0, 235, 2, 100][..], &number.to_be_bytes()].concat();
    let rx = Reception {
        gateway: Some("aa555a0000000000".to_owned()),
        frequency_hz: 868_100_000,
        data_rate: "SF7BW125".to_owned(),
        rssi_dbm: -57,
        snr_tenths_db: 95,
    };
    Uplink { confirmed: number == 1, rx, ..common::uplink(number, &payload) }
}

const CODEC: &str = "function decodeUplink(input) {
        const b = input.bytes, n = b.length;
        return {data: {temperature: (b[2] << 8 | b[3]) / 10, count: b[n - 1] | b[n - 2] << 8, door: false}, warnings: input.fPort === 1 ? [] : ['port']};
    }
    function encodeDownlink(input) { return {fPort: 10, bytes: [input.data.interval >> 8, input.data.interval & 255]}; }";

pub fn configure(place: &Place, more: &Value) {
    let mut config = json!({
        "devices": [{"dev_eui": EUI, "dev_addr": "26011bda", "nwk_s_key": "0f".repeat(16), "app_s_key": "000102030405060708090a0b0c0d0e0f",
            "codec": "own", "name": "cellar", "profile": "thermometer", "tags": {"room": "cellar"}}],
        "codecs": {"own": {"javascript": CODEC}},
    });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    place.shared.change(|memory| memory.config = config.to_string().into_bytes());
}

pub fn ids(messages: &[Value]) -> Vec<String> {
    messages.iter().map(|event| event["deduplicationId"].as_str().expect("an id").to_owned()).collect()
}
