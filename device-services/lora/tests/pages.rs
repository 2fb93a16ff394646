//! The configurations that the pages show are ones that this service takes.

use lora_device_service::config::{self, Config};
use serde_json::{Map, Value, json};

/// Below the repository's root.
fn read(path: &str) -> String {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    std::fs::read_to_string(format!("{root}/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between the fences of a page's JSON blocks.
fn blocks(page: &str) -> Vec<String> {
    let text = read(page);
    text.split("```json\n").skip(1).map(|rest| rest.split("```").next().expect("an end").to_owned()).collect()
}

/// What a page leaves to its reader, filled in.
fn fill_in(block: &str) -> String {
    let key = format!("{:?}", "0f".repeat(16));
    let rest = format!(r#""dev_addr": "26011bda", "nwk_s_key": {key}, "app_s_key": {key}, "codec": "none""#);
    block.replace(r#""...": "...""#, &rest).replace(r#""...""#, &key).replace("[...]", "[]").replace("{...}", "{}")
}

/// The blocks of a page are parts of one configuration; a device that stands alone is one of its devices.
fn configuration(page: &str) -> Config {
    let mut whole = Map::new();
    for block in blocks(page) {
        let part: Value = serde_json::from_str(&fill_in(&block)).unwrap_or_else(|error| panic!("{page}: {error}: {block}"));
        let part = if part["dev_eui"].is_string() { json!({"devices": [part]}) } else { part };
        let Value::Object(part) = part else { panic!("{page}: no object: {block}") };
        for (name, value) in part {
            let twice = whole.insert(name.clone(), value);
            assert!(twice.is_none(), "{page} shows {name} twice");
        }
    }
    assert!(!whole.is_empty(), "{page} shows no configuration");
    config::parse(Value::Object(whole).to_string().as_bytes()).unwrap_or_else(|error| panic!("{page}: {error}"))
}

#[test]
fn what_the_pages_show_is_taken() {
    let chirpstack = configuration("docs/coming-from-chirpstack.md");
    assert_eq!((chirpstack.registration.devices.len(), chirpstack.registration.joining.len()), (1, 1));
    assert!(chirpstack.chirpstack.is_some() && chirpstack.devices.values().all(|device| device.codec.name() == "meter"));
    assert!(configuration("docs/edgex.md").edgex.is_some());
    let moved = configuration("docs/lora-downlink.md");
    let desired = moved.registration.devices[0].desired.as_ref().expect("the page is about it");
    assert_eq!((desired.status_interval_s, desired.channels.len()), (Some(86_400), 1));
}

/// Who flashes a sketch as it is and copies the page's configuration has motes that are heard.
#[test]
fn the_keys_of_the_sketches_are_those_of_their_page() {
    let page = "docs/arduino.md";
    let config = configuration(page);
    assert_eq!((config.registration.devices.len(), config.registration.joining.len()), (1, 1));
    let shown = blocks(page).concat();
    for (sketch, keys) in [("antirio-abp", 3), ("antirio-otaa", 3)] {
        let text = read(&format!("arduino/{sketch}/keys.h"));
        let values: Vec<&str> =
            text.lines().filter(|line| line.contains("PROGMEM")).filter_map(|line| line.split('"').nth(1)).collect();
        assert_eq!(values.len(), keys, "{sketch}");
        assert!(values.iter().all(|value| shown.contains(&format!("{value:?}"))), "{sketch}: {values:?}");
    }
}
