//! Events in the form of ChirpStack 4, downlinks, and brokers that come and go.

use std::net::{TcpListener, TcpStream};

use super::broker::{EUI, Listener, Mosquitto, configure, free_port, ids, up_topic, uplink};
use super::common::{APP_S_KEY, DEV_ADDR, F_CNT_FIRST, Node, PATIENCE, Place, Service, event_id, wait_for};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use lora_device_service::{
    decrypt::{Direction, apply_key_stream},
    mqtt::PACKET_BYTES_MAX,
};
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, QoS, SubAck, SubscribeReasonCode};
use serde_json::{Value, json};
use tenant::{DevEui, DeviceStatus, DownlinkEvent, DownlinkState, HexBytes, Reception, Uplink, UplinkKind};

fn event_topic(event: &str) -> String {
    format!("application/app-1/device/{EUI}/event/{event}")
}

#[test]
fn uplinks_become_events_as_chirpstack_has_them() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.hear([uplink(0)]);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let event = listener.wait(&up_topic(), |_| true);
    place.shared.wait_until("the reading too", |memory| memory.readings.len() == 1);
    let expected = json!({
        "deduplicationId": event_id(0).to_string(), "time": "2023-11-14T22:13:20.000Z", "devAddr": "26011bda", "dr": 5, "fCnt": 0, "fPort": 1,
        "confirmed": false, "data": STANDARD.encode([3, 103, 0, 235, 2, 100, 0, 0, 0, 0]),
        "object": {"temperature": 23.5, "count": 0, "door": false}, "regionConfigId": "eu868",
        "txInfo": {"frequency": 868_100_000, "modulation": {"lora": {"bandwidth": 125_000, "spreadingFactor": 7, "codeRate": "CR_4_5"}}},
        "deviceInfo": {"tenantId": "", "tenantName": "", "applicationId": "app-1", "applicationName": "app-1", "deviceProfileId": "thermometer",
            "deviceProfileName": "thermometer", "deviceName": "cellar", "devEui": EUI, "deviceClassEnabled": "CLASS_A", "tags": {"room": "cellar"}},
        "rxInfo": [{"gatewayId": "aa555a0000000000", "uplinkId": 0x1111_1111, "nsTime": "2023-11-14T22:13:20.000Z", "rssi": -57, "snr": 9.5,
            "crcStatus": "CRC_OK"}],
    });
    assert_eq!(event, expected);
    // What cannot be decoded goes on with its bytes, and why.
    place.shared.hear([Uplink { f_port: Some(9), ..uplink(1) }]);
    let warned = listener.wait(&event_topic("log"), |_| true);
    assert_eq!(
        (&warned["level"], &warned["code"], &warned["description"]),
        (&json!("WARNING"), &json!("UPLINK_CODEC"), &json!("port"))
    );
    // Downlinks, and one that is none.
    let command = format!("application/app-1/device/{EUI}/command/down");
    listener.publish(&command, &json!({"devEui": EUI, "confirmed": true, "fPort": 7, "data": STANDARD.encode([1, 2])}));
    listener.publish(&command, &json!({"devEui": EUI, "object": {"interval": 300}, "id": "mine"}));
    listener.publish(&command, &json!({"devEui": "0202020202020202", "data": ""}));
    place.shared.wait_until("two downlinks", |memory| memory.downlinks.len() == 2);
    listener.wait(&event_topic("log"), |event| event["code"] == "DOWNLINK_CODEC");
    place.shared.wait_until("two encrypted downlinks", |memory| memory.encrypted.len() == 2);
    let memory = place.shared.lock();
    let (at_rest, on_air) = (&memory.downlinks[0].payload.0, &memory.encrypted[0]);
    assert!(!at_rest.windows(2).any(|part| part == [1, 2]), "the node sees no payload: {at_rest:?}");
    for (f_cnt, payload) in (F_CNT_FIRST..).zip(&on_air.payloads) {
        let mut read = payload.0.clone();
        apply_key_stream(&APP_S_KEY, Direction::Down, DEV_ADDR, f_cnt, &mut read);
        assert_eq!(read, [1, 2]);
    }
    assert_eq!((on_air.f_cnt_first, on_air.payloads.len()), (F_CNT_FIRST, 2));
    let bytes = &memory.downlinks[0];
    assert_eq!((bytes.f_port, bytes.confirmed, bytes.dev_eui), (7, true, DevEui([1; 8])));
    let object = &memory.downlinks[1];
    assert_eq!((object.f_port, object.id.as_str(), object.confirmed), (10, "mine", false));
    assert!(memory.downlinks.iter().all(|downlink| downlink.delivery == tenant::Delivery::AtLeastOnce), "they outlast the node");
}

#[test]
fn who_would_rather_lose_a_downlink_than_send_it_twice_says_so() {
    let parse = |more: &str| lora_device_service::config::parse(format!("{{\"devices\": []{more}}}").as_bytes());
    let delivery = |more| parse(more).expect("a configuration").downlink_delivery;
    assert_eq!(delivery(""), tenant::Delivery::AtLeastOnce);
    assert_eq!(delivery(r#", "downlink_delivery": "at_most_once""#), tenant::Delivery::AtMostOnce);
    assert!(parse(r#", "downlink_delivery": "twice""#).is_err());
}

#[test]
fn joins_become_events_and_all_gateways_are_named() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(
        &place,
        &json!({
            "devices": [],
            "joining": [{"dev_eui": EUI, "join_eui": "70b3d57ed0000001", "dev_addr": "26011bda", "app_key": "0f".repeat(16), "codec": "none", "name": "cellar"}],
            "chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"},
        }),
    );
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let of = |number: u32, session: &str, f_cnt| Uplink {
        session: session.to_owned(),
        joined: Some(tenant::Joined { join_nonce: 1, net_id: 0, dev_nonce: 5 }),
        f_cnt,
        ..uplink(number)
    };
    let heard = |n: u8| Reception { gateway: Some(format!("{n:016x}")), rssi_dbm: -100, ..uplink(0).rx };
    // The fullest line that a node sends.
    let wide = Uplink {
        others: (1..=15).map(heard).collect(),
        frm_payload: HexBytes(vec![7; tenant::PAYLOAD_BYTES_MAX]),
        status: Some(DeviceStatus { battery: 254, margin_db: -32 }),
        ..of(1, "a", 1)
    };
    assert!(serde_json::to_vec(&wide).expect("JSON").len() < tenant::LINE_BYTES_MAX);
    let late = Uplink { kind: UplinkKind::Late, ..of(3, "a", 2) };
    place.shared.hear([of(0, "a", 0), wide, of(2, "b", 3), late, of(4, "b", 4)]);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    wait_for("five uplinks", || (listener.all(&up_topic()).len() == 5).then_some(()));
    let joins = listener.all(&event_topic("join"));
    assert_eq!(ids(&joins), [event_id(0).to_string(), event_id(2).to_string()], "once for each session");
    assert_eq!((&joins[0]["devAddr"], &joins[0]["deviceInfo"]["deviceName"]), (&json!("26011bda"), &json!("cellar")));
    let named = listener.all(&up_topic())[1]["rxInfo"].as_array().expect("a list").clone();
    assert_eq!((named.len(), &named[0]["gatewayId"]), (16, &json!("aa555a0000000000")));
    assert_eq!((&named[15]["gatewayId"], &named[15]["rssi"]), (&json!("000000000000000f"), &json!(-100)));
}

#[test]
fn what_devices_tell_of_themselves_becomes_events() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let told = |number, battery, margin_db| Uplink { status: Some(DeviceStatus { battery, margin_db }), ..uplink(number) };
    place.shared.hear([uplink(0), told(1, 0, -20), told(2, 127, 9), told(3, 254, 31), told(4, 255, 0), uplink(5)]);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let last = listener.wait(&up_topic(), |event| event["fCnt"] == 5);
    let events = listener.all(&event_topic("status"));
    let expected: Vec<Value> =
        [(1, -20, true, false, 0.0), (2, 9, false, false, 50.0), (3, 31, false, false, 100.0), (4, 0, false, true, 0.0)]
            .into_iter()
            .map(|(number, margin, is_external, is_unknown, level): (u32, i8, bool, bool, f64)| {
                json!({"deduplicationId": event_id(number).to_string(), "time": format!("2023-11-14T22:13:20.00{number}Z"),
                "deviceInfo": last["deviceInfo"], "margin": margin, "externalPowerSource": is_external,
                "batteryLevelUnavailable": is_unknown, "batteryLevel": level})
            })
            .collect();
    assert_eq!(events, expected);
}

fn fate(cursor: u64, id: &str, state: DownlinkState) -> DownlinkEvent {
    DownlinkEvent { cursor, at_ms: 1_700_000_000_123, id: id.to_owned(), dev_eui: DevEui([1; 8]), state }
}

#[test]
fn the_fates_of_downlinks_become_events() {
    use DownlinkState::{Acked, Expired, Failed, Sent};
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let fates = vec![
        fate(101, "one", Sent { f_cnt: 7, gateway: "aa555a0000000000".to_owned() }),
        fate(102, "one", Acked { f_cnt: 7 }),
        fate(103, "two", Failed { reason: "not_acknowledged".to_owned() }),
        fate(104, "three", Expired),
        fate(105, "four", Failed { reason: "unknown".to_owned() }),
    ];
    place.shared.change(|memory| memory.fates = fates);
    let service = Service::start_with(&place.socket(), &["--direct"]);
    let txack = listener.wait(&event_topic("txack"), |_| true);
    let time = "2023-11-14T22:13:20.123Z";
    assert_eq!(
        (&txack["queueItemId"], &txack["fCntDown"], &txack["gatewayId"], &txack["time"]),
        (&json!("one"), &json!(7), &json!("aa555a0000000000"), &json!(time))
    );
    let acks = wait_for("two acks", || Some(listener.all(&event_topic("ack"))).filter(|acks| acks.len() == 2));
    let facts = |ack: &Value| (ack["queueItemId"].clone(), ack["acknowledged"].clone(), ack["fCntDown"].clone());
    assert_eq!(facts(&acks[0]), (json!("one"), json!(true), json!(7)));
    assert_eq!(facts(&acks[1]), (json!("two"), json!(false), Value::Null));
    let logs = wait_for("two logs", || Some(listener.all(&event_topic("log"))).filter(|logs| logs.len() == 2));
    assert_eq!((&logs[0]["code"], &logs[1]["code"]), (&json!("EXPIRED"), &json!("DOWNLINK_GATEWAY")));
    // A service that starts anew repeats nothing of what it noted.
    place.shared.wait_until("it is noted what was told", |memory| {
        memory.state.get("sink.chirpstack.fates").is_some_and(|told| told == "1700000000123 105")
    });
    drop(service);
    let after = fate(106, "five", Acked { f_cnt: 9 });
    place.shared.change(|memory| memory.fates.push(after));
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let acks = wait_for("one more ack", || Some(listener.all(&event_topic("ack"))).filter(|acks| acks.len() >= 3));
    assert_eq!((acks.len(), facts(&acks[2])), (3, (json!("five"), json!(true), json!(9))));
    assert_eq!(listener.all(&event_topic("txack")).len(), 1);
}

/// The broker's side of a connection, by hand.
struct Accepted {
    stream: TcpStream,
    input: BytesMut,
}

impl Accepted {
    /// Answers until somebody is connected and subscribed.
    fn from(listener: &TcpListener) -> Self {
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut accepted = Accepted { stream, input: BytesMut::new() };
        assert!(matches!(accepted.read(), Packet::Connect(_)));
        accepted.write(&Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)));
        let Packet::Subscribe(subscribe) = accepted.read() else { panic!("a subscription") };
        let granted = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); subscribe.filters.len()];
        accepted.write(&Packet::SubAck(SubAck::new(subscribe.pkid, granted)));
        accepted
    }

    fn read(&mut self) -> Packet {
        use std::io::Read as _;
        loop {
            match Packet::read(&mut self.input, PACKET_BYTES_MAX) {
                Ok(packet) => return packet,
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let mut bytes = [0; 4_096];
            let read = self.stream.read(&mut bytes).expect("bytes");
            assert!(read > 0, "the service hung up");
            self.input.extend_from_slice(&bytes[..read]);
        }
    }

    fn write(&mut self, packet: &Packet) {
        use std::io::Write as _;
        let mut output = BytesMut::new();
        packet.write(&mut output, PACKET_BYTES_MAX).expect("small enough");
        self.stream.write_all(&output).expect("sent");
    }

    /// The next that is published: number, topic, id of the downlink.
    fn published(&mut self) -> (u16, String, Value) {
        let Packet::Publish(publish) = self.read() else { panic!("something published") };
        let document: Value = serde_json::from_slice(&publish.payload).expect("JSON");
        (publish.pkid, publish.topic, document["queueItemId"].clone())
    }
}

#[test]
fn what_a_broker_did_not_acknowledge_is_told_again() {
    use DownlinkState::{Acked, Sent};
    let place = Place::new();
    let broker = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = broker.local_addr().expect("bound").to_string();
    configure(&place, &json!({"chirpstack": {"broker": {"address": address}, "application_id": "app-1"}}));
    let _node = Node::start(&place.socket(), &place.shared);
    let sent = |cursor, id: &str| fate(cursor, id, Sent { f_cnt: 1, gateway: "aa555a0000000000".to_owned() });
    place.shared.change(|memory| memory.fates = vec![sent(101, "one"), fate(102, "one", Acked { f_cnt: 1 }), sent(103, "two")]);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    let expected = [("txack", "one"), ("ack", "one"), ("txack", "two")].map(|(event, id)| (event_topic(event), json!(id)));
    let told = |connection: &mut Accepted, count: usize| -> Vec<(u16, (String, Value))> {
        (0..count).map(|_| connection.published()).map(|(number, topic, id)| (number, (topic, id))).collect()
    };
    let mut first = Accepted::from(&broker);
    let published = told(&mut first, 3);
    assert_eq!(published.iter().map(|(_, what)| what).collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
    // It was noted with the node that these were told.
    place.shared.wait_until("the note", |memory| {
        memory.state.get("sink.chirpstack.fates").is_some_and(|told| told == "1700000000123 103")
    });
    drop(first);
    let mut second = Accepted::from(&broker);
    let published = told(&mut second, 3);
    assert_eq!(
        published.iter().map(|(_, what)| what).collect::<Vec<_>>(),
        expected.iter().collect::<Vec<_>>(),
        "again, in order"
    );
    // Out of turn; what comes after it says that it was taken.
    second.write(&Packet::PubAck(PubAck::new(published[1].0)));
    place.shared.hear([uplink(0)]);
    assert_eq!(second.published().1, up_topic());
    place.shared.change(|memory| memory.fates.push(fate(104, "two", Acked { f_cnt: 2 })));
    assert_eq!(second.published().1, event_topic("ack"));
    drop(second);
    let mut third = Accepted::from(&broker);
    let mut again = told(&mut third, 4).into_iter().map(|(_, what)| what).collect::<Vec<_>>();
    again.sort_by_key(|(topic, id)| (topic.clone(), id.to_string()));
    let mut left = vec![expected[0].clone(), expected[2].clone(), (event_topic("ack"), json!("two")), (up_topic(), Value::Null)];
    left.sort_by_key(|(topic, id)| (topic.clone(), id.to_string()));
    assert_eq!(again, left, "all but what was acknowledged");
}

#[test]
fn a_message_that_no_broker_takes_holds_up_nothing() {
    let place = Place::new();
    let Some(broker) = Mosquitto::start(place.directory.path(), free_port()) else { return };
    let device = |eui: &str, tag: String| {
        json!({"dev_eui": eui, "dev_addr": "26011bda", "nwk_s_key": "0f".repeat(16), "app_s_key": "000102030405060708090a0b0c0d0e0f",
            "codec": "none", "tags": {"room": tag}})
    };
    let devices = [device(EUI, "x".repeat(PACKET_BYTES_MAX)), device("0202020202020202", "cellar".to_owned())];
    configure(
        &place,
        &json!({"devices": devices, "chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}),
    );
    let listener = Listener::start(&broker);
    let _node = Node::start(&place.socket(), &place.shared);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear([uplink(0), Uplink { dev_eui: DevEui([2; 8]), ..uplink(1) }, uplink(2)]);
    let topic = up_topic().replace(EUI, "0202020202020202");
    listener.wait(&topic, |event| event["deviceInfo"]["tags"]["room"] == "cellar");
    let passed = |memory: &super::common::Memory| memory.state.get("sink.chirpstack.cursor").is_some_and(|cursor| cursor == "3");
    place.shared.wait_until("the cursor passes all three", passed);
    assert_eq!((listener.all(&topic).len(), listener.all(&up_topic()).len()), (1, 0));
}

#[test]
fn a_broker_that_comes_and_goes_holds_up_no_reading_and_misses_no_event() {
    let place = Place::new();
    let port = free_port();
    let Some(broker) = Mosquitto::start(place.directory.path(), port) else { return };
    configure(&place, &json!({"chirpstack": {"broker": {"address": broker.address()}, "application_id": "app-1"}}));
    let _node = Node::start(&place.socket(), &place.shared);
    drop(broker);
    let service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear((0..500).map(uplink));
    place.shared.wait_until("readings without a broker", |memory| memory.readings.len() == 500);
    let broker = Mosquitto::start(place.directory.path(), port).expect("it is installed");
    let listener = Listener::start(&broker);
    let wait_for_event = |listener: &Listener, number: u32| {
        listener.wait(&up_topic(), |event| event["fCnt"] == number);
    };
    place.shared.hear((500..520).map(uplink));
    wait_for_event(&listener, 519);
    // The listener may have come after the service: what it did not hear is what was published before.
    let heard = listener.all(&up_topic());
    let unique: std::collections::BTreeSet<_> = ids(&heard).into_iter().collect();
    assert_eq!(unique.len(), heard.len(), "nothing was interrupted, so nothing was repeated");
    place
        .shared
        .wait_until("the cursor", |memory| memory.state.get("sink.chirpstack.cursor").is_some_and(|cursor| cursor == "520"));
    // A new process goes on where the old one was.
    drop(service);
    let _service = Service::start_with(&place.socket(), &["--direct"]);
    place.shared.hear((520..530).map(uplink));
    wait_for_event(&listener, 529);
    assert_eq!(listener.all(&up_topic()).len(), heard.len() + 10);
    // Killed with events under way: all of them come, some perhaps twice, under the same ids.
    drop(listener);
    drop(broker);
    place.shared.hear((530..800).map(uplink));
    place.shared.wait_until("readings without a broker", |memory| memory.readings.len() == 800);
    let broker = Mosquitto::start(place.directory.path(), port).expect("it is installed");
    let listener = Listener::start(&broker);
    place.shared.hear([uplink(800)]);
    wait_for_event(&listener, 800);
    place
        .shared
        .wait_until("the cursor", |memory| memory.state.get("sink.chirpstack.cursor").is_some_and(|cursor| cursor == "801"));
}
