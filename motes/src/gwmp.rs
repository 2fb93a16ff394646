//! The gateway's side of the Semtech UDP protocol, version 2 (pure): what a packet forwarder writes and reads.
//!
//! Source: Lora-net/packet_forwarder `PROTOCOL.TXT`. A forwarder without GPS sends no `time`, neither do we.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::airtime::SpreadingFactor;
use crate::fleet::Eui64;
use crate::frame::FRAME_BYTES_MAX;
use crate::jit::{Packet, Rejected};
use crate::radio::Reception;

/// Packets in one `PUSH_DATA` (`NB_PKT_MAX`).
pub const PACKETS_PER_DATAGRAM_MAX: usize = 8;
/// Largest datagram that is read.
pub const DATAGRAM_BYTES_MAX: usize = 4_096;
const VERSION: u8 = 2;
const PUSH_DATA: u8 = 0;
const PUSH_ACK: u8 = 1;
const PULL_DATA: u8 = 2;
const PULL_RESP: u8 = 3;
const PULL_ACK: u8 = 4;
const TX_ACK: u8 = 5;

/// Two bytes that pair a datagram with its answer.
pub type Token = [u8; 2];

/// Why a datagram from the server is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header.
    #[error("{0} bytes are no datagram")]
    Length(usize),
    /// Another protocol version.
    #[error("version {0} is not 2")]
    Version(u8),
    /// A type that no server sends.
    #[error("type {0} is not for a gateway")]
    Kind(u8),
    /// The request is no JSON of the documented form.
    #[error("request: {0}")]
    Json(String),
    /// A field has a value that this gateway cannot send with.
    #[error("field {0}")]
    Field(&'static str),
}

#[derive(Serialize)]
struct RxPacket {
    tmst: u32,
    chan: u8,
    rfch: u8,
    freq: f64,
    stat: i8,
    modu: &'static str,
    datr: SpreadingFactor,
    codr: &'static str,
    lsnr: f64,
    rssi: i32,
    size: usize,
    data: String,
}

/// Counters of a `stat` report since the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Wall clock, microseconds since 1970.
    pub at_us: u64,
    /// Packets received and forwarded.
    pub received: u64,
    /// Datagrams with packets.
    pub pushed: u64,
    /// Of these, acknowledged.
    pub acknowledged: u64,
    /// Downlink requests received.
    pub requested: u64,
    /// Packets transmitted.
    pub transmitted: u64,
}

#[derive(Serialize)]
struct StatReport {
    time: String,
    rxnb: u64,
    rxok: u64,
    rxfw: u64,
    ackr: f64,
    dwnb: u64,
    txnb: u64,
}

#[derive(Serialize)]
struct PushData {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rxpk: Vec<RxPacket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stat: Option<StatReport>,
}

/// `PUSH_DATA` with uplinks (`tmst` and reception each) and now and then a report.
///
/// # Panics
/// Never: all values are finite numbers and strings.
#[must_use]
pub fn push_data(token: Token, gateway: Eui64, uplinks: &[(u32, Reception)], stat: Option<Stat>) -> Vec<u8> {
    let rxpk = uplinks.iter().map(|(tmst, reception)| to_rx_packet(*tmst, reception)).collect();
    let mut datagram = header(PUSH_DATA, token, Some(gateway));
    serde_json::to_writer(&mut datagram, &PushData { rxpk, stat: stat.map(to_report) })
        .expect("finite numbers and strings are JSON");
    datagram
}

/// `PULL_DATA`: keeps the way for downlinks open.
#[must_use]
pub fn pull_data(token: Token, gateway: Eui64) -> Vec<u8> {
    header(PULL_DATA, token, Some(gateway))
}

/// `TX_ACK`: without JSON when the packet was queued.
#[must_use]
pub fn tx_ack(token: Token, gateway: Eui64, error: Option<Rejected>) -> Vec<u8> {
    let mut datagram = header(TX_ACK, token, Some(gateway));
    if let Some(error) = error {
        datagram.extend_from_slice(format!("{{\"txpk_ack\":{{\"error\":\"{error}\"}}}}").as_bytes());
    }
    datagram
}

fn header(kind: u8, token: Token, gateway: Option<Eui64>) -> Vec<u8> {
    let mut datagram = vec![VERSION, token[0], token[1], kind];
    if let Some(gateway) = gateway {
        datagram.extend_from_slice(&gateway.0.to_be_bytes());
    }
    datagram
}

fn to_rx_packet(tmst: u32, reception: &Reception) -> RxPacket {
    let chan = match reception.frequency_hz {
        868_100_000 => 0,
        868_300_000 => 1,
        _ => 2,
    };
    RxPacket {
        tmst,
        chan,
        rfch: 0,
        freq: f64::from(reception.frequency_hz) / 1e6,
        stat: 1,
        modu: "LORA",
        datr: reception.data_rate,
        codr: "4/5",
        lsnr: f64::from(reception.snr_decibel_tenths) / 10.0,
        rssi: reception.rssi_dbm,
        size: reception.bytes.len(),
        data: STANDARD.encode(&reception.bytes),
    }
}

fn to_report(stat: Stat) -> StatReport {
    // Percent with one decimal, as the forwarder prints it.
    let per_mille = (stat.acknowledged * 1_000).checked_div(stat.pushed).unwrap_or(0);
    StatReport {
        time: to_utc(stat.at_us / 1_000_000),
        rxnb: stat.received,
        rxok: stat.received,
        rxfw: stat.received,
        ackr: f64::from(u32::try_from(per_mille).unwrap_or(u32::MAX)) / 10.0,
        dwnb: stat.requested,
        txnb: stat.transmitted,
    }
}

/// `2014-01-12 08:59:28 GMT` (days to civil date after Howard Hinnant, `chrono`-compatible low-level date algorithms).
fn to_utc(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let of_day = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} GMT", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// When a packet shall be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// At this value of the gateway's microsecond counter.
    Counter(u32),
    /// As soon as possible.
    Immediately,
}

/// A request to transmit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxRequest {
    /// When.
    pub when: When,
    /// What.
    pub packet: Packet,
}

/// A datagram from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerDatagram {
    /// Answer to `PUSH_DATA`.
    PushAck(Token),
    /// Answer to `PULL_DATA`.
    PullAck(Token),
    /// Send a packet.
    PullResp(Token, TxRequest),
}

#[derive(Deserialize)]
struct PullResp {
    txpk: TxPacket,
}

#[derive(Deserialize)]
struct TxPacket {
    #[serde(default)]
    imme: bool,
    tmst: Option<u32>,
    freq: f64,
    modu: String,
    datr: serde_json::Value,
    #[serde(default)]
    ipol: bool,
    data: String,
}

/// Reads a datagram from the server.
///
/// # Errors
/// [`Malformed`]; no input panics. A forwarder drops such a request without an answer.
pub fn parse(datagram: &[u8]) -> Result<ServerDatagram, Malformed> {
    let [version, first, second, kind, rest @ ..] = datagram else { return Err(Malformed::Length(datagram.len())) };
    if *version != VERSION {
        return Err(Malformed::Version(*version));
    }
    let token = [*first, *second];
    match *kind {
        PUSH_ACK => Ok(ServerDatagram::PushAck(token)),
        PULL_ACK => Ok(ServerDatagram::PullAck(token)),
        PULL_RESP => parse_request(rest).map(|request| ServerDatagram::PullResp(token, request)),
        other => Err(Malformed::Kind(other)),
    }
}

fn parse_request(json: &[u8]) -> Result<TxRequest, Malformed> {
    let trimmed = json.strip_suffix(&[0]).unwrap_or(json);
    let PullResp { txpk } = serde_json::from_slice(trimmed).map_err(|error| Malformed::Json(error.to_string()))?;
    if txpk.modu != "LORA" {
        return Err(Malformed::Field("modu"));
    }
    let data_rate = txpk.datr.as_str().and_then(|text| text.parse().ok()).ok_or(Malformed::Field("datr"))?;
    let frequency_hz = format!("{:.0}", txpk.freq * 1e6).parse().map_err(|_| Malformed::Field("freq"))?;
    let bytes = STANDARD_NO_PAD.decode(txpk.data.trim_end_matches('=')).map_err(|_| Malformed::Field("data"))?;
    if bytes.is_empty() || bytes.len() > FRAME_BYTES_MAX {
        return Err(Malformed::Field("data"));
    }
    let when = match (txpk.imme, txpk.tmst) {
        (true, _) => When::Immediately,
        (false, Some(tmst)) => When::Counter(tmst),
        (false, None) => return Err(Malformed::Field("tmst")),
    };
    Ok(TxRequest { when, packet: Packet { bytes, data_rate, frequency_hz, inverted: txpk.ipol } })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn push_data_has_the_documented_form() {
        let reception = Reception {
            bytes: vec![1, 2, 3, 4],
            end_us: 0,
            data_rate: SpreadingFactor::SF9,
            frequency_hz: 868_300_000,
            rssi_dbm: -101,
            snr_decibel_tenths: -75,
        };
        let stat = Stat { at_us: 1_389_517_168_000_000, received: 2, pushed: 3, acknowledged: 2, requested: 1, transmitted: 1 };
        let datagram = push_data([7, 8], Eui64(0x0102_0304_0506_0708), &[(99, reception)], Some(stat));
        assert_eq!(datagram[..12], [2, 7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let json: serde_json::Value = serde_json::from_slice(&datagram[12..]).expect("JSON");
        let expected = serde_json::json!({
            "rxpk": [{"tmst": 99, "chan": 1, "rfch": 0, "freq": 868.3, "stat": 1, "modu": "LORA", "datr": "SF9BW125", "codr": "4/5",
                "lsnr": -7.5, "rssi": -101, "size": 4, "data": "AQIDBA=="}],
            "stat": {"time": "2014-01-12 08:59:28 GMT", "rxnb": 2, "rxok": 2, "rxfw": 2, "ackr": 66.6, "dwnb": 1, "txnb": 1}
        });
        assert_eq!(json, expected);
        assert_eq!(push_data([0, 0], Eui64(1), &[], None)[12..], *b"{}");
        assert_eq!(to_utc(951_868_799), "2000-02-29 23:59:59 GMT");
        assert_eq!(pull_data([1, 2], Eui64(3)), [2, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(tx_ack([1, 2], Eui64(3), None), [2, 1, 2, 5, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(tx_ack([1, 2], Eui64(3), Some(Rejected::TooLate))[12..], *br#"{"txpk_ack":{"error":"TOO_LATE"}}"#);
    }

    #[test]
    fn requests_are_read() {
        let datagram = |json: &str| [&[2, 5, 6, 3], json.as_bytes()].concat();
        let base = r#"{"txpk":{"imme":false,"tmst":5,"freq":869.525,"rfch":0,"powe":14,"modu":"LORA","datr":"SF12BW125","codr":"4/5","ipol":true,"size":3,"data":"AQID","ncrc":true}}"#;
        let packet = Packet { bytes: vec![1, 2, 3], data_rate: SpreadingFactor::SF12, frequency_hz: 869_525_000, inverted: true };
        let expected = ServerDatagram::PullResp([5, 6], TxRequest { when: When::Counter(5), packet });
        assert_eq!(parse(&datagram(base)), Ok(expected));
        assert_eq!(parse(&[2, 1, 2, 1]), Ok(ServerDatagram::PushAck([1, 2])));
        assert_eq!(parse(&[2, 1, 2, 4]), Ok(ServerDatagram::PullAck([1, 2])));
        let refused = [
            (datagram(&base.replace("LORA", "FSK")), Malformed::Field("modu")),
            (datagram(&base.replace("\"SF12BW125\"", "50000")), Malformed::Field("datr")),
            (datagram(&base.replace("\"tmst\":5,", "")), Malformed::Field("tmst")),
            (datagram(&base.replace("AQID", "")), Malformed::Field("data")),
            (datagram(&base.replace("AQID", "A?ID")), Malformed::Field("data")),
            (datagram(&base.replace("869.525", "-1")), Malformed::Field("freq")),
            (vec![2, 1, 2, 9], Malformed::Kind(9)),
            (vec![1, 1, 2, 1], Malformed::Version(1)),
            (vec![2, 1], Malformed::Length(2)),
        ];
        for (bytes, expected) in refused {
            assert_eq!(parse(&bytes), Err(expected));
        }
        assert!(matches!(parse(&datagram("{}")), Err(Malformed::Json(_))));
        let now = parse(&datagram(&base.replace("\"imme\":false", "\"imme\":true")));
        assert!(matches!(now, Ok(ServerDatagram::PullResp(_, TxRequest { when: When::Immediately, .. }))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[&[2, 0, 0, 3], bytes.as_slice()].concat());
        }
    }
}
