//! Datagrams as a bridge gets them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_bridge::gwmp::{self, rxpk, txpk};

fuzz_target!(|bytes: &[u8]| {
    let mut frame = rxpk::Frame::default();
    if let Ok(packet) = gwmp::parse(bytes) {
        match packet.body {
            gwmp::Body::PushData(json) => {
                rxpk::read(json, &mut frame, |_, phy| assert!(phy.len() <= gwmp::PHY_BYTES_MAX));
            }
            gwmp::Body::TxAck(body) => {
                let _result = txpk::read_tx_ack(body);
            }
            gwmp::Body::PullData => {}
        }
    }
    // The JSON alone gets deeper than behind a header.
    rxpk::read(bytes, &mut frame, |_, phy| assert!(phy.len() <= gwmp::PHY_BYTES_MAX));
});
