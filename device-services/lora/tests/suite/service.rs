//! The real program against a node on a real socket: normal service, restarts, floods, nonsense, unusable configurations.

use std::time::Duration;

use super::common::{self, Node, Place, Service, Shared};
use serde_json::json;
use tenant::{DevEui, EventId, HexBytes, Joined, Key, READINGS_MAX, Uplink};

/// Uplink number `number` of the configured device: generic sensor 2 with that number.
fn uplink(number: u32) -> Uplink {
    common::uplink(number, &[&[2, 100][..], &number.to_be_bytes()].concat())
}

fn assert_values(shared: &Shared, numbers: std::ops::Range<u32>) {
    let memory = shared.lock();
    for number in numbers {
        let reading = &memory.readings[&uplink(number).event_id];
        assert_eq!((&reading.decoded["generic_2"], &reading.error, reading.f_cnt), (&json!(number), &None, number));
    }
}

#[test]
fn devices_are_registered_and_uplinks_become_readings() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.hear((0..3).map(uplink));
    let mut service = Service::start(&place.socket());
    place.shared.wait_until("readings of what was heard before", |memory| memory.readings.len() == 3);
    place.shared.hear((3..6).map(uplink));
    place.shared.wait_until("readings of what is heard now", |memory| memory.readings.len() == 6);
    assert_values(&place.shared, 0..6);
    {
        let memory = place.shared.lock();
        assert_eq!(memory.stream_queries, [""]);
        let device = &memory.registrations[0].devices[0];
        assert_eq!((device.rx1_delay_s, device.supports_reset, device.f_cnt_width), (5, true, 32));
        assert_eq!(device.nwk_s_key, Key([15; 16]));
    }
    service.terminate();
    let (status, lines) = service.end();
    assert!(status.success() && lines.is_empty(), "{status} {lines:?}");
}

#[test]
fn a_reading_goes_out_at_once_and_the_next_ones_together() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.change(|memory| memory.hold_batches = true);
    let _service = Service::start(&place.socket());
    place.shared.hear([uplink(0)]);
    place.shared.wait_until("the first reading by itself", |memory| memory.waiting_batches == 1);
    place.shared.hear((1..600).map(uplink));
    place.shared.change(|memory| memory.hold_batches = false);
    place.shared.wait_until("all readings", |memory| memory.readings.len() == 600);
    assert_values(&place.shared, 0..600);
    let batches = place.shared.lock().batches.clone();
    assert_eq!(batches[0], 1);
    assert!(batches.iter().all(|size| *size <= READINGS_MAX), "{batches:?}");
    assert!(batches.len() < 60, "600 readings in {} requests", batches.len());
}

#[test]
fn a_node_that_crashes_loses_nothing() {
    let place = Place::new();
    let mut node = Node::start(&place.socket(), &place.shared);
    let _service = Service::start(&place.socket());
    for round in 0..5_u32 {
        let (first, behind) = (round * 200, round * 200 + 200);
        // Crash with a batch in the node's hands that it has not stored and more on the way.
        place.shared.change(|memory| memory.hold_batches = true);
        place.shared.hear((first..behind).map(uplink));
        place.shared.wait_until("a batch", |memory| memory.waiting_batches > 0);
        drop(node);
        place.shared.change(|memory| (memory.hold_batches, memory.waiting_batches) = (false, 0));
        node = Node::start(&place.socket(), &place.shared);
        place.shared.wait_until("all readings", |memory| memory.readings.len() as u64 == u64::from(behind));
    }
    assert_values(&place.shared, 0..1000);
    let memory = place.shared.lock();
    assert!(memory.registrations.len() >= 6, "registered anew after each crash");
    assert!(memory.stream_queries.iter().all(String::is_empty));
}

#[test]
fn the_service_may_start_before_the_node() {
    let place = Place::new();
    place.shared.hear([uplink(0)]);
    let mut service = Service::start(&place.socket());
    let line = {
        use std::io::{BufRead as _, BufReader};
        let mut line = String::new();
        BufReader::new(service.child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    };
    assert!(line.contains("cannot be reached"), "{line}");
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.wait_until("a reading", |memory| memory.readings.len() == 1);
}

#[test]
fn a_flood_is_served_in_bounded_memory() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.change(|memory| memory.hold_batches = true);
    place.shared.hear((0..30_000).map(uplink));
    let service = Service::start(&place.socket());
    place.shared.wait_until("a batch", |memory| memory.waiting_batches > 0);
    // While its batch is not taken it stops reading: what it holds and what fits into the socket's buffers, no more.
    let taken = place.shared.wait_until_still(|memory| memory.lines_taken);
    assert!(taken < 10_000, "{taken} lines taken ahead");
    place.shared.change(|memory| memory.hold_batches = false);
    place.shared.wait_until("all readings", |memory| memory.readings.len() == 30_000);
    assert_values(&place.shared, 0..30_000);
    let peak = service.resident_kib();
    println!("{taken} lines taken ahead, peak resident size {peak} KiB");
    assert!(peak < 16 * 1024, "{peak} KiB");
}

#[test]
fn a_stream_that_the_node_ends_is_opened_again() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    let _service = Service::start(&place.socket());
    for number in 0..5 {
        place.shared.hear([uplink(number)]);
        place.shared.wait_until("a reading", |memory| memory.readings.len() as u64 == u64::from(number) + 1);
        place.shared.end_streams();
    }
    assert_values(&place.shared, 0..5);
}

#[test]
fn nonsense_in_the_stream_is_skipped_and_counted() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    let mut service = Service::start(&place.socket());
    place.shared.hear([uplink(0)]);
    place.shared.wait_until("the stream is open", |memory| memory.readings.len() == 1);
    place.shared.send_raw(b"\n\r\n  \n");
    place.shared.send_raw(b"not json\n{}\n[1,2]\n\xff\xfe\n");
    place.shared.send_raw(&[b'x'; 100_000]);
    place.shared.send_raw(
        &[b"\n", serde_json::to_string(&uplink(7)).unwrap().replace("\"f_cnt\":7", "\"f_cnt\":-7").as_bytes(), b"\n"].concat(),
    );
    place.shared.hear([uplink(1)]);
    place.shared.wait_until("the uplink behind it", |memory| memory.readings.len() == 2);
    assert_values(&place.shared, 0..2);
    service.terminate();
    let (_, lines) = service.end();
    // Reported at 1, 2 and 4 of the six.
    assert_eq!(lines.iter().filter(|line| line.contains("malformed lines")).count(), 3, "{lines:?}");
}

#[test]
fn uplinks_that_make_no_sense_get_a_reading_with_an_error() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    let _service = Service::start(&place.socket());
    let stranger = Uplink { dev_eui: DevEui([7; 8]), ..uplink(0) };
    let commands = Uplink { f_port: Some(0), ..uplink(1) };
    let cut = Uplink { frm_payload: HexBytes(uplink(2).frm_payload.0[..3].to_vec()), ..uplink(2) };
    place.shared.hear([stranger, commands, cut, uplink(3)]);
    place.shared.wait_until("four readings", |memory| memory.readings.len() == 4);
    let memory = place.shared.lock();
    let errors: Vec<_> = memory.readings.values().map(|reading| reading.error.is_some()).collect();
    assert_eq!(errors, [true, true, true, false]);
    assert_eq!(memory.readings[&uplink(2).event_id].decoded["raw"], "026400");
}

#[test]
fn a_reading_that_the_node_refuses_does_not_hold_up_the_others() {
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    place.shared.change(|memory| {
        memory.refuse_values.insert(uplink(3).event_id);
        memory.refuse.insert(uplink(5).event_id);
    });
    place.shared.hear((0..10).map(uplink));
    let _service = Service::start(&place.socket());
    place.shared.wait_until("all that are taken", |memory| memory.readings.len() == 9);
    place.shared.hear([uplink(10)]);
    place.shared.wait_until("one more", |memory| memory.readings.len() == 10);
    let memory = place.shared.lock();
    let plain = &memory.readings[&uplink(3).event_id];
    assert!(plain.error.is_some() && plain.decoded.is_empty(), "{plain:?}");
    assert!(!memory.readings.contains_key(&uplink(5).event_id));
}

#[test]
fn a_device_that_joined_is_read_under_the_key_of_each_of_its_joins() {
    let place = Place::new();
    let config = json!({"joining": [{"dev_eui": "0101010101010101", "join_eui": "70b3d57ed0000001", "dev_addr": "26011bda", "dev_nonces": "rising",
        "app_key": "000102030405060708090a0b0c0d0e0f", "codec": "cayenne-lpp", "rx1_delay_s": 5}]});
    place.shared.change(|memory| memory.config = config.to_string().into_bytes());
    let _node = Node::start(&place.socket(), &place.shared);
    // By openssl: AppSKey 2f48aaf6ecf2c19c82f0189d3951bdfe, and its key stream for counter 5 begins with a93f58f8.
    let first = Joined { join_nonce: 0x01_0203, net_id: 0, dev_nonce: 0xbeef };
    let encrypted: Vec<u8> = [1, 0x67, 0, 0xeb].iter().zip([0xa9, 0x3f, 0x58, 0xf8]).map(|(plain, key)| plain ^ key).collect();
    let joined = |joined| Uplink { joined, frm_payload: HexBytes(encrypted.clone()), ..uplink(5) };
    let later = Joined { join_nonce: 0x01_0204, ..first };
    let other_session = Uplink { event_id: EventId([5; 16]), ..joined(Some(later)) };
    let unknown = Uplink { event_id: EventId([6; 16]), ..joined(None) };
    place.shared.hear([joined(Some(first)), other_session, unknown]);
    let _service = Service::start(&place.socket());
    place.shared.wait_until("three readings", |memory| memory.readings.len() == 3);
    let memory = place.shared.lock();
    let registered = &memory.registrations[0];
    assert_eq!((registered.devices.len(), registered.joining.len()), (0, 1));
    let device = &registered.joining[0];
    assert_eq!((device.rx1_delay_s, device.dev_nonces, device.app_key.is_some()), (5, tenant::DevNonces::Rising, true));
    let reading = &memory.readings[&uplink(5).event_id];
    assert_eq!((&reading.decoded["temperature_1"], &reading.error), (&json!("23.5"), &None));
    assert_ne!(memory.readings[&EventId([5; 16])].decoded.get("temperature_1"), Some(&json!("23.5")), "the key of another join");
    let unknown = &memory.readings[&EventId([6; 16])];
    assert!(unknown.error.as_ref().is_some_and(|error| error.contains("join")), "{unknown:?}");
    assert_eq!(unknown.decoded["raw"], hex::encode(&encrypted));
}

#[test]
fn an_unusable_configuration_ends_the_program_with_a_clear_message() {
    let secret = "5ec4e700".repeat(4);
    let device = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut device = json!({"dev_eui": "0101010101010101", "dev_addr": "26011bda", "nwk_s_key": secret, "app_s_key": secret, "codec": "cayenne-lpp"});
        change(device.as_object_mut().unwrap());
        json!({"devices": [{"dev_eui": "0202020202020202", "dev_addr": "26011bda", "nwk_s_key": secret, "app_s_key": secret, "codec": "cayenne-lpp"}, device]}).to_string()
    };
    let set =
        |name: &'static str, value: serde_json::Value| device(&|fields| drop(fields.insert(name.to_owned(), value.clone())));
    let joining = |name: &str, value: Option<serde_json::Value>| {
        let abp = json!({"dev_eui": "0202020202020202", "dev_addr": "26011bda", "nwk_s_key": secret, "app_s_key": secret, "codec": "none"});
        let mut device = json!({"dev_eui": "0101010101010101", "join_eui": "70b3d57ed0000001", "dev_addr": "26011bda", "app_key": secret, "codec": "none"});
        let fields = device.as_object_mut().unwrap();
        fields.remove(name);
        fields.extend(value.map(|value| (name.to_owned(), value)));
        json!({"devices": [abp], "joining": [device]}).to_string()
    };
    let cases = [
        ("not json".to_owned(), "configuration: expected"),
        ("{}".to_owned(), "missing field `devices`"),
        (json!({"devices": [], "device": 1}).to_string(), "unknown field `device`"),
        (device(&|fields| drop(fields.remove("app_s_key"))), "devices[1]: missing field `app_s_key`"),
        (device(&|fields| drop(fields.remove("dev_eui"))), "devices[1]: missing field `dev_eui`"),
        (set("app_s_key", json!("5ec4e700")), "devices[1]: expected a key of 32 hexadecimal digits"),
        (set("nwk_s_key", json!("5ec4e7zz".repeat(4))), "devices[1]: expected a key of 32 hexadecimal digits"),
        (set("dev_addr", json!(5)), "devices[1]: invalid type: integer `5`, expected a DevAddr"),
        (set("codec", json!("protobuf")), "devices[1]: codec: neither none, cayenne-lpp nor one of codecs"),
        (set("rx1_delay", json!(1)), "devices[1]: unknown field `rx1_delay`"),
        (set("rx1_delay_s", json!(16)), "devices[1].rx1_delay_s: not in 1..=15"),
        (set("f_cnt_width", json!(16)), "devices[1].f_cnt_width: not 32: devices that count in 16 bits are not served"),
        (set("rx2_data_rate", json!(8)), "devices[1].rx2_data_rate: not in 0..=7"),
        (set("dev_eui", json!("0202020202020202")), "devices[1].dev_eui: the same device twice"),
        (joining("app_key", None), "joining[0]: missing field `app_key`"),
        (joining("app_key", Some(json!("5ec4e700"))), "joining[0]: expected a key of 32 hexadecimal digits"),
        (joining("join_eui", None), "joining[0]: missing field `join_eui`"),
        (joining("nwk_s_key", Some(json!(secret))), "joining[0]: unknown field `nwk_s_key`"),
        (joining("app_s_key", Some(json!(secret))), "joining[0]: unknown field `app_s_key`"),
        (joining("dev_nonces", Some(json!("1.0.4"))), "joining[0]: unknown variant `1.0.4`, expected `random` or `rising`"),
        (joining("rx1_delay_s", Some(json!(0))), "joining[0].rx1_delay_s: not in 1..=15"),
        (joining("dev_eui", Some(json!("0202020202020202"))), "joining[0].dev_eui: the same device twice"),
        (joining("name", Some(json!("0202020202020202"))), "joining[0]: name: another device has it"),
    ];
    let place = Place::new();
    let _node = Node::start(&place.socket(), &place.shared);
    for (config, expected) in cases {
        place.shared.change(|memory| memory.config = config.clone().into_bytes());
        let (status, lines) = Service::start(&place.socket()).end();
        assert_eq!(status.code(), Some(78), "{config}");
        assert!(lines.len() == 1 && lines[0].contains(expected), "{config}: {lines:?}");
        assert!(!lines[0].contains("5ec4e7"), "a key in a message: {lines:?}");
    }
    assert!(place.shared.lock().registrations.is_empty());
}

/// Not a limit of the promise (the machine that runs the tests may be busy), but far below what any heavy start would take.
#[test]
fn it_connects_right_after_its_start() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut waits = Vec::new();
    for _ in 0..20 {
        let started = std::time::Instant::now();
        let _service = Service::start(&place.socket());
        listener.accept().unwrap();
        waits.push(started.elapsed());
    }
    waits.sort();
    println!("start of the process to its connection: p50 {:?}, max {:?}", waits[10], waits[19]);
    assert!(waits[10] < Duration::from_millis(50));
}

/// Processes that the service started and that still run.
fn children(service: &Service) -> Vec<u32> {
    let id = service.child.id();
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

fn has_ended(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Gone, or nobody has asked for its status yet.
    stat.rsplit_once(')').is_none_or(|(_, fields)| fields.trim_start().starts_with('Z'))
}

/// Whatever two bad codecs do, every uplink gets its reading, and those of other devices get their values.
#[test]
fn codecs_that_never_return_hold_up_nobody_else() {
    let place = Place::new();
    let device = |n: u8, codec: &str| {
        let key = "000102030405060708090a0b0c0d0e0f";
        json!({"dev_eui": format!("{:02x}", n).repeat(8), "dev_addr": "26011bda", "nwk_s_key": "0f".repeat(16), "app_s_key": key, "codec": codec})
    };
    let codecs = json!({
        "endless": {"javascript": "function decodeUplink() { for (;;) {} }"},
        "huge": {"javascript": "function decodeUplink() { const a = 3n ** 600000n; return {data: {n: [a, a, a, a, a, a, a, a, a, a].join().length}} }"},
        "good": {"javascript": "function decodeUplink(input) { return {data: {n: input.bytes[5]}} }"},
    });
    let devices = [device(1, "cayenne-lpp"), device(2, "endless"), device(3, "huge"), device(4, "good")];
    let config = json!({"devices": devices, "codecs": codecs});
    place.shared.change(|memory| memory.config = config.to_string().into_bytes());
    let _node = Node::start(&place.socket(), &place.shared);
    let mut service = Service::start(&place.socket());
    for round in 0..25 {
        place.shared.hear((0..4).map(|n| Uplink { dev_eui: DevEui([n + 1; 8]), ..uplink(4 * round + u32::from(n)) }));
    }
    place.shared.wait_until("a reading of each", |memory| memory.readings.len() == 100);
    let memory = place.shared.lock();
    for number in 0..100_u32 {
        let reading = &memory.readings[&uplink(number).event_id];
        match number % 4 {
            0 => assert_eq!((&reading.decoded["generic_2"], &reading.error), (&json!(number), &None)),
            3 => assert_eq!((&reading.decoded["n"], &reading.error), (&json!(number), &None)),
            _ => {
                let error = reading.error.as_deref().expect("an error");
                assert!(error.contains("longer than") || error.contains("pauses"), "{number}: {error}");
                assert!(reading.decoded.contains_key("raw"), "the bytes are kept");
            }
        }
    }
    drop(memory);
    place.shared.hear([Uplink { dev_eui: DevEui([4; 8]), ..uplink(103) }]);
    place.shared.wait_until("one more", |memory| memory.readings.len() == 101);
    let workers = children(&service);
    assert_eq!(workers.len(), 1, "{workers:?}");
    drop(service.child.kill());
    drop(service.child.wait());
    common::wait_for("the workers' end", || workers.iter().all(|worker| has_ended(*worker)).then_some(()));
}
