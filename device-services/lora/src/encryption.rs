//! Downlinks under the application session key: at rest while the node keeps them, then for each counter that the node names
//! ([`tenant::Downlink`] and the question [`DownlinkState::Wanted`]).

use std::sync::Arc;

use tenant::{Backoff, COUNTERS_MAX, Client, DevAddr, DownlinkEvent, DownlinkState, Encrypted, Error, HexBytes, Key};

use crate::{
    config::Config,
    decrypt::{Direction, apply_key_stream},
};

/// In front of every payload at rest.
const NONCE_BYTES: usize = 8;

/// The payload in a form that the node may keep: `nonce | ciphertext` under the device's key for that ([`crate::keys::Secret::at_rest`]). It is
/// not authenticated, as the payload on air is not.
pub(crate) fn seal(at_rest: &Key, nonce: [u8; NONCE_BYTES], payload: &[u8]) -> Vec<u8> {
    let mut sealed = nonce.to_vec();
    sealed.extend_from_slice(payload);
    apply_at_rest(at_rest, nonce, &mut sealed[NONCE_BYTES..]);
    sealed
}

/// What [`seal`] took, or `None` if it is too short.
pub(crate) fn open(at_rest: &Key, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, payload) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let mut payload = payload.to_vec();
    apply_at_rest(at_rest, *nonce, &mut payload);
    Some(payload)
}

fn apply_at_rest(at_rest: &Key, nonce: [u8; NONCE_BYTES], payload: &mut [u8]) {
    let [a, b, c, d, e, f, g, h] = nonce;
    apply_key_stream(at_rest, Direction::Down, DevAddr([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), payload);
}

/// The payloads that an event asks for; `None` if it asks for none, or for a device or session that this configuration does not know.
fn answer(config: &Config, event: &DownlinkEvent) -> Option<Encrypted> {
    let DownlinkState::Wanted { payload, dev_addr, session, joined, f_cnt_first, count, .. } = &event.state else { return None };
    let device = config.devices.get(&event.dev_eui)?;
    if device.dev_addr != *dev_addr || usize::from(*count) > COUNTERS_MAX {
        return None;
    }
    let key = device.secret.app_s_key(*joined).ok()?;
    let plain = open(&device.secret.at_rest(), &payload.0)?;
    let encrypted = |offset: u8| {
        let mut payload = plain.clone();
        let f_cnt = f_cnt_first.checked_add(u32::from(offset))?;
        apply_key_stream(&key, Direction::Down, *dev_addr, f_cnt, &mut payload);
        Some(HexBytes(payload))
    };
    let payloads = (0..*count).map_while(encrypted).collect();
    let (id, dev_eui, session) = (event.id.clone(), event.dev_eui, session.clone());
    Some(Encrypted { id, dev_eui, session, f_cnt_first: *f_cnt_first, payloads })
}

/// Answers the node's questions until it is aborted. Whatever goes wrong is asked again by the node.
pub(crate) async fn answer_node(client: Arc<Client>, config: Arc<Config>) {
    let mut backoff = Backoff::default();
    let mut after = None;
    loop {
        match follow(&client, &config, &mut after).await {
            Ok(()) => backoff.reset(),
            Err(_) => {
                // A node that started anew counts from the beginning, and asks what is open.
                after = None;
                tokio::time::sleep(backoff.next_wait()).await;
            }
        }
    }
}

async fn follow(client: &Client, config: &Config, after: &mut Option<u64>) -> Result<(), Error> {
    for event in client.downlink_events(*after).await?.events {
        if let Some(encrypted) = answer(config, &event) {
            match client.encrypted(&encrypted).await {
                // It changed its mind meanwhile: sent by an earlier run, expired, another session.
                Err(Error::Problem(problem)) if problem.status < 500 => {}
                handed_in => handed_in?,
            }
        }
        *after = Some(event.cursor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([0x2b; 16]);

    fn wanted(config: &Config, payload: &[u8], first: u32) -> DownlinkEvent {
        let (dev_eui, device) = config.devices.first_key_value().unwrap();
        DownlinkEvent {
            cursor: 1,
            at_ms: 0,
            id: "d1".to_owned(),
            dev_eui: *dev_eui,
            state: DownlinkState::Wanted {
                f_port: 2,
                payload: HexBytes(seal(&device.secret.at_rest(), [7; 8], payload)),
                dev_addr: device.dev_addr,
                session: "a1b2".to_owned(),
                joined: None,
                f_cnt_first: first,
                count: 8,
            },
        }
    }

    fn config() -> Config {
        let json = r#"{"devices":[{"dev_eui":"0102030405060708","dev_addr":"26011bda","nwk_s_key":"000102030405060708090a0b0c0d0e0f",
            "app_s_key":"2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b2b","codec":"none"}]}"#;
        crate::config::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_at_rest_shows_nothing_and_comes_back() {
        let sealed = seal(&KEY, [1, 2, 3, 4, 5, 6, 7, 8], b"open the valve");
        assert_eq!(open(&KEY, &sealed).unwrap(), b"open the valve");
        assert!(!sealed.windows(4).any(|part| part == b"open"));
        assert_ne!(seal(&KEY, [8; 8], b"open the valve")[8..], sealed[8..], "another nonce, another text");
        assert_eq!(open(&KEY, &sealed[..7]), None);
        assert_eq!(open(&KEY, &seal(&KEY, [0; 8], b"")).unwrap(), b"");
    }

    #[test]
    fn every_counter_has_a_payload_of_its_own_that_the_device_can_read() {
        let config = config();
        let answered = answer(&config, &wanted(&config, &[1, 2, 3], 70_000)).unwrap();
        assert_eq!((answered.payloads.len(), answered.f_cnt_first), (8, 70_000));
        for (f_cnt, payload) in (70_000..).zip(&answered.payloads) {
            let mut read = payload.0.clone();
            apply_key_stream(&KEY, Direction::Down, DevAddr([0x26, 0x01, 0x1b, 0xda]), f_cnt, &mut read);
            assert_eq!(read, [1, 2, 3]);
        }
        assert_ne!(answered.payloads[0], answered.payloads[1]);
    }

    /// The key stream of the device's block A_1 for counter 7, with AppSKey 2f48aaf6... (see `keys`), by `openssl enc -aes-128-ecb -nopad`.
    #[test]
    fn a_device_that_joined_gets_it_under_the_key_of_its_join() {
        let json = r#"{"joining":[{"dev_eui":"0102030405060709","join_eui":"70b3d57ed0000001","dev_addr":"26011bda",
            "app_key":"000102030405060708090a0b0c0d0e0f","codec":"none"}]}"#;
        let config = crate::config::parse(json.as_bytes()).unwrap();
        let mut event = wanted(&config, &[0; 16], 7);
        assert_eq!(answer(&config, &event), None, "without its join there is no key");
        if let DownlinkState::Wanted { joined, .. } = &mut event.state {
            *joined = Some(tenant::Joined { join_nonce: 0x01_0203, net_id: 0, dev_nonce: 0xbeef });
        }
        let answered = answer(&config, &event).unwrap();
        assert_eq!(hex::encode(&answered.payloads[0].0), "2e253d5a2a8768fa75ec56c620c15486");
        // At rest it is under a key that does not change when the device joins again.
        if let DownlinkState::Wanted { joined: Some(joined), .. } = &mut event.state {
            joined.join_nonce += 1;
        }
        let again = answer(&config, &event).unwrap();
        assert!(again.payloads.len() == 8 && again.payloads[0] != answered.payloads[0]);
    }

    #[test]
    fn hostile_questions_are_not_answered() {
        let config = config();
        let mut foreign = wanted(&config, &[1], 0);
        foreign.dev_eui = tenant::DevEui([9; 8]);
        assert_eq!(answer(&config, &foreign), None);
        let mut many = wanted(&config, &[1], 0);
        if let DownlinkState::Wanted { count, .. } = &mut many.state {
            *count = 255;
        }
        assert_eq!(answer(&config, &many), None);
        let mut other = wanted(&config, &[1], 0);
        if let DownlinkState::Wanted { dev_addr, .. } = &mut other.state {
            *dev_addr = DevAddr([0; 4]);
        }
        assert_eq!(answer(&config, &other), None, "the session is not the one that the key belongs to");
        let last = answer(&config, &wanted(&config, &[1], u32::MAX - 1)).unwrap();
        assert_eq!(last.payloads.len(), 2, "counters end");
    }
}
