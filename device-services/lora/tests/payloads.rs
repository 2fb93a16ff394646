//! From bytes on air to values: tables and properties. The encrypted vectors were computed with OpenSSL's AES through another language.

use std::collections::BTreeMap;

use lora_device_service::{
    codec::cayenne_lpp,
    config::{Codec, DeviceSecrets},
    decrypt::{Direction, apply_key_stream},
    keys::Secret,
    reading::{self, Step},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use tenant::{DevAddr, DevEui, EventId, HexBytes, Key, READING_BYTES_MAX, Reception, Uplink, UplinkKind};

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

fn counting(length: u8) -> Vec<u8> {
    (0..length).collect()
}

#[test]
fn payloads_decrypt_to_the_vectors() {
    let counted = hex::encode(counting(40));
    let counted_33 = hex::encode(counting(33));
    let vectors = [
        (KEY, Direction::Up, "26011bda", 1, "016700eb", "d394a477"),
        (KEY, Direction::Up, "26011bda", 0x0001_2345, "016700eb0264000012670367ff9c", "eaab8a90b6d759156e8d2a70516d"),
        (
            KEY,
            Direction::Down,
            "26011bda",
            7,
            &counted,
            "d8c03f0f40f8e83ce9dc937a4854598a3b3ecc99af73e199f9dcacb3214b6d19e57315fda25d25d0",
        ),
        (
            "ffeeddccbbaa99887766554433221100",
            Direction::Up,
            "01020304",
            u32::MAX,
            &counted_33,
            "4424f7704e5de75f21ad40a12871bddb444e3369096c7ccff64d4f72f87cb4c76e",
        ),
        (KEY, Direction::Up, "26011bda", 1, "", ""),
    ];
    for (key, direction, dev_addr, f_cnt, plain, encrypted) in vectors {
        let (key, dev_addr): (Key, DevAddr) = (key.parse().unwrap(), dev_addr.parse().unwrap());
        let mut payload = hex::decode(encrypted).unwrap();
        apply_key_stream(&key, direction, dev_addr, f_cnt, &mut payload);
        assert_eq!(hex::encode(&payload), plain);
        apply_key_stream(&key, direction, dev_addr, f_cnt, &mut payload);
        assert_eq!(hex::encode(&payload), encrypted);
    }
}

#[test]
fn every_type_decodes() {
    let table = [
        ("0500ff", json!({"digital_input_5": 255})),
        ("000101", json!({"digital_output_0": 1})),
        ("0102fffe", json!({"analog_input_1": "-0.02"})),
        ("01037fff", json!({"analog_output_1": "327.67"})),
        ("026400001267", json!({"generic_2": 4711})),
        ("0264ffffffff", json!({"generic_2": 4_294_967_295_u32})),
        ("0165ffff", json!({"illuminance_1": 65535})),
        ("016601", json!({"presence_1": 1})),
        ("016700eb", json!({"temperature_1": "23.5"})),
        ("0167ffff", json!({"temperature_1": "-0.1"})),
        ("01678000", json!({"temperature_1": "-3276.8"})),
        ("01670000", json!({"temperature_1": "0.0"})),
        ("01685b", json!({"humidity_1": "45.5"})),
        ("0168ff", json!({"humidity_1": "127.5"})),
        ("067104d2fb2e0000", json!({"accelerometer_6": {"x": "1.234", "y": "-1.234", "z": "0.000"}})),
        ("017327a1", json!({"barometer_1": "1014.5"})),
        ("0174014a", json!({"voltage_1": "3.30"})),
        ("0175ffff", json!({"current_1": "65.535"})),
        ("017633cfa1a8", json!({"frequency_1": 869_245_352})),
        ("017864", json!({"percentage_1": 100})),
        ("0179ffff", json!({"altitude_1": -1})),
        ("017d0190", json!({"concentration_1": 400})),
        ("01800bb8", json!({"power_1": 3000})),
        ("0182000003e9", json!({"distance_1": "1.001"})),
        ("0183ffffffff", json!({"energy_1": "4294967.295"})),
        ("01840167", json!({"direction_1": 359})),
        ("018565535f00", json!({"unix_time_1": 1_699_962_624})),
        ("018600010002ff9c", json!({"gyrometer_1": {"x": "0.01", "y": "0.02", "z": "-1.00"}})),
        ("0187010203", json!({"colour_1": {"red": 1, "green": 2, "blue": 3}})),
        ("018806765ff2960a0003e8", json!({"gps_1": {"latitude": "42.3519", "longitude": "-87.9094", "altitude": "10.00"}})),
        ("018e01", json!({"switch_1": 1})),
        ("", json!({})),
        ("036701100567 00ff", json!({"temperature_3": "27.2", "temperature_5": "25.5"})),
        ("010001010100020001", json!({"digital_input_1": 1, "digital_output_1": 0, "digital_input_2": 1})),
        ("016700010167000201670003", json!({"temperature_1": "0.1", "temperature_1#2": "0.2", "temperature_1#3": "0.3"})),
    ];
    for (payload, expected) in table {
        let decoded = cayenne_lpp::decode(&hex::decode(payload.replace(' ', "")).unwrap());
        assert_eq!(decoded.error, None, "{payload}");
        assert_eq!(Value::Object(decoded.values), expected, "{payload}");
    }
}

#[test]
fn what_cannot_be_decoded_is_named_and_what_came_before_is_kept() {
    let table = [
        ("01", json!({}), "byte 0: a channel without a type"),
        ("0167", json!({}), "byte 0: the value of temperature is cut off"),
        ("016700", json!({}), "byte 0: the value of temperature is cut off"),
        ("016700eb0299aabb", json!({"temperature_1": "23.5"}), "byte 4: unknown type 153"),
        ("016700eb0188067654f2960a00", json!({"temperature_1": "23.5"}), "byte 4: the value of gps is cut off"),
        ("016700eb00", json!({"temperature_1": "23.5"}), "byte 4: a channel without a type"),
    ];
    for (payload, values, error) in table {
        let decoded = cayenne_lpp::decode(&hex::decode(payload).unwrap());
        assert_eq!((Value::Object(decoded.values), decoded.error.as_deref()), (values, Some(error)), "{payload}");
    }
}

fn devices() -> BTreeMap<DevEui, DeviceSecrets> {
    let secrets = DeviceSecrets {
        dev_addr: DevAddr([0x26, 0x01, 0x1b, 0xda]),
        secret: Secret::Session(KEY.parse().expect("a key")),
        codec: Codec::CayenneLpp,
        name: "mote".to_owned(),
        profile: "lora".to_owned(),
        tags: BTreeMap::new(),
        variables: serde_json::Map::new(),
    };
    BTreeMap::from([(DevEui([1; 8]), secrets)])
}

fn reading_of(devices: &BTreeMap<DevEui, DeviceSecrets>, uplink: &Uplink) -> tenant::Reading {
    let Step::Done(opened) = reading::open(devices, uplink) else { panic!("no customer's code is needed") };
    reading::reading(uplink, opened.decoded)
}

fn uplink(payload: &[u8]) -> Uplink {
    Uplink {
        cursor: 1,
        event_id: EventId([9; 16]),
        dev_eui: DevEui([1; 8]),
        dev_addr: DevAddr([0x26, 0x01, 0x1b, 0xda]),
        session: "s".to_owned(),
        joined: None,
        f_cnt: 1,
        f_port: Some(1),
        confirmed: false,
        frm_payload: HexBytes(payload.to_vec()),
        heard_at_ms: 1_700_000_000_000,
        kind: UplinkKind::Live,
        epoch: 1,
        rx: Reception::default(),
        others: Vec::new(),
        status: None,
    }
}

#[test]
fn every_uplink_gives_a_reading() {
    let good = uplink(&hex::decode("d394a477").unwrap());
    let reading = reading_of(&devices(), &good);
    assert_eq!((Value::Object(reading.decoded), reading.error), (json!({"temperature_1": "23.5"}), None));
    assert_eq!(
        (reading.event_id, reading.dev_eui, reading.f_cnt, reading.heard_at_ms),
        (good.event_id, good.dev_eui, 1, good.heard_at_ms)
    );
    let nothing = reading_of(&devices(), &Uplink { f_port: None, ..uplink(&[]) });
    assert_eq!((nothing.decoded.len(), nothing.error), (0, None));
    let cases = [
        (Uplink { dev_eui: DevEui([2; 8]), ..good.clone() }, "not in the configuration", "d394a477"),
        (Uplink { dev_addr: DevAddr([0; 4]), ..good.clone() }, "does not use this address", "d394a477"),
        (Uplink { f_port: Some(0), ..good.clone() }, "port 0", "d394a477"),
        (Uplink { f_port: None, ..good.clone() }, "without a port", "d394a477"),
        // Cut off after decryption: the bytes that are kept are the decrypted ones.
        (uplink(&hex::decode("d394a4").unwrap()), "cut off", "016700"),
    ];
    for (uplink, error, raw) in cases {
        let reading = reading_of(&devices(), &uplink);
        assert!(reading.error.as_ref().is_some_and(|text| text.contains(error)), "{error}: {reading:?}");
        assert_eq!(reading.decoded["raw"], raw, "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_payload_gives_a_reading_of_bounded_size(payload in prop::collection::vec(any::<u8>(), 0..=242), port: Option<u8>, f_cnt: u32) {
        let reading = reading_of(&devices(), &Uplink { f_port: port, f_cnt, ..uplink(&payload) });
        prop_assert!(serde_json::to_vec(&reading).unwrap().len() <= READING_BYTES_MAX);
    }

    /// The longest names with the shortest values.
    #[test]
    fn the_densest_payload_stays_within_the_limit(code in prop::sample::select(vec![0_u8, 1, 102, 104, 120, 142]), same_channel: bool) {
        let plain: Vec<u8> = (0..80_u8).flat_map(|index| [if same_channel { 255 } else { 255 - index }, code, 255]).collect();
        let decoded = cayenne_lpp::decode(&plain);
        prop_assert_eq!((decoded.values.len(), decoded.error), (80, None));
        prop_assert!(serde_json::to_vec(&decoded.values).unwrap().len() < READING_BYTES_MAX - 1024);
    }

    /// Fractions are exact: the digits of the text are the digits of the raw number.
    #[test]
    fn temperatures_are_exact(raw: i16, channel: u8) {
        let [high, low] = raw.to_be_bytes();
        let decoded = cayenne_lpp::decode(&[channel, 103, high, low]);
        let text = decoded.values[&format!("temperature_{channel}")].as_str().unwrap().to_owned();
        prop_assert_eq!(text.replace('.', "").parse::<i64>().unwrap(), i64::from(raw));
        prop_assert_eq!(text.len() - text.find('.').unwrap(), 2);
    }

    #[test]
    fn decryption_undoes_encryption(payload in prop::collection::vec(any::<u8>(), 0..=242), f_cnt: u32, key: [u8; 16], addr: [u8; 4]) {
        let mut changed = payload.clone();
        apply_key_stream(&Key(key), Direction::Up, DevAddr(addr), f_cnt, &mut changed);
        prop_assert!(payload.len() < 4 || changed != payload);
        apply_key_stream(&Key(key), Direction::Up, DevAddr(addr), f_cnt, &mut changed);
        prop_assert_eq!(changed, payload);
    }
}
