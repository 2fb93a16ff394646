//! Packets to send (`txpk`), and what the gateway says about them (`TX_ACK`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::data_rate::DataRate;
use super::rxpk::trimmed;

/// A downlink at an exact time of the gateway's counter.
///
/// `ant` and `brd` are left out: some gateways refuse them. `ncrc` is set, else neighbouring gateways forward it as if it were an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Txpk<'a> {
    /// Start of transmission on the concentrator's counter, microseconds.
    pub tmst: u32,
    pub frequency_hz: u32,
    pub data_rate: DataRate,
    pub power_dbm: i8,
    pub phy: &'a [u8],
}

#[derive(Serialize)]
struct Json<'a> {
    txpk: Fields<'a>,
}

#[derive(Serialize)]
struct Fields<'a> {
    imme: bool,
    tmst: u32,
    freq: f64,
    rfch: u8,
    powe: i8,
    modu: &'a str,
    datr: Datr,
    #[serde(skip_serializing_if = "Option::is_none")]
    codr: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fdev: Option<u32>,
    ipol: bool,
    ncrc: bool,
    size: usize,
    data: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Datr {
    Lora(String),
    Fsk(u32),
}

impl Txpk<'_> {
    /// Appends `{"txpk":{...}}`.
    pub(super) fn write_json(&self, bytes: &mut Vec<u8>) {
        let (modu, datr, codr, fdev) = match self.data_rate {
            DataRate::Fsk { bits_per_second } => ("FSK", Datr::Fsk(bits_per_second), None, Some(bits_per_second / 2)),
            rate @ (DataRate::Lora { .. } | DataRate::Other) => ("LORA", Datr::Lora(rate.to_string()), Some("4/5"), None),
        };
        let json = Json {
            txpk: Fields {
                imme: false,
                tmst: self.tmst,
                freq: f64::from(self.frequency_hz) / 1e6,
                rfch: 0,
                powe: self.power_dbm,
                modu,
                datr,
                codr,
                fdev,
                ipol: true,
                ncrc: true,
                size: self.phy.len(),
                data: STANDARD.encode(self.phy),
            },
        };
        // Writing plain fields into memory has no way to fail.
        let written = serde_json::to_writer(&mut *bytes, &json);
        debug_assert!(written.is_ok());
    }
}

/// What became of a downlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TxResult {
    Queued,
    /// Queued, at another power than asked for.
    Warned,
    TooLate,
    TooEarly,
    CollisionPacket,
    CollisionBeacon,
    Frequency,
    Power,
    GpsUnlocked,
    /// Listen before talk found the channel busy.
    ChannelBusy,
    /// A refusal for a reason that has no name here.
    Other,
    /// Not to be understood: the gateway may have sent the packet or not.
    Unreadable,
}

impl TxResult {
    pub const ALL: [Self; 12] = [
        Self::Queued,
        Self::Warned,
        Self::TooLate,
        Self::TooEarly,
        Self::CollisionPacket,
        Self::CollisionBeacon,
        Self::Frequency,
        Self::Power,
        Self::GpsUnlocked,
        Self::ChannelBusy,
        Self::Other,
        Self::Unreadable,
    ];

    /// For counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Warned => "warned",
            Self::TooLate => "too_late",
            Self::TooEarly => "too_early",
            Self::CollisionPacket => "collision_packet",
            Self::CollisionBeacon => "collision_beacon",
            Self::Frequency => "frequency",
            Self::Power => "power",
            Self::GpsUnlocked => "gps_unlocked",
            Self::ChannelBusy => "channel_busy",
            Self::Other => "other",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether the gateway took the packet.
    #[must_use]
    pub const fn is_accepted(self) -> bool {
        matches!(self, Self::Queued | Self::Warned)
    }
}

#[derive(Deserialize)]
struct AckJson {
    txpk_ack: Option<AckFields>,
}

#[derive(Deserialize)]
struct AckFields {
    error: Option<String>,
    warn: Option<String>,
}

/// Reads the body of a `TX_ACK`: empty, one zero byte and no error field all mean success.
#[must_use]
pub fn read_tx_ack(body: &[u8]) -> TxResult {
    let json = trimmed(body);
    if json.is_empty() {
        return TxResult::Queued;
    }
    let Ok(AckJson { txpk_ack }) = serde_json::from_slice(json) else {
        return TxResult::Unreadable;
    };
    let Some(AckFields { error, warn }) = txpk_ack else {
        return TxResult::Queued;
    };
    match error.as_deref() {
        None | Some("" | "NONE") if warn.is_none() => TxResult::Queued,
        None | Some("" | "NONE") => TxResult::Warned,
        Some("TOO_LATE") => TxResult::TooLate,
        Some("TOO_EARLY") => TxResult::TooEarly,
        Some("COLLISION_PACKET") => TxResult::CollisionPacket,
        Some("COLLISION_BEACON") => TxResult::CollisionBeacon,
        Some("TX_FREQ") => TxResult::Frequency,
        Some("TX_POWER") => TxResult::Power,
        Some("GPS_UNLOCKED") => TxResult::GpsUnlocked,
        Some("SEND_LBT") => TxResult::ChannelBusy,
        Some(_) => TxResult::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lora_and_an_fsk_downlink() {
        let lora = DataRate::Lora { spreading_factor: 12, bandwidth_khz: 125 };
        let mut txpk = Txpk { tmst: 7, frequency_hz: 869_525_000, data_rate: lora, power_dbm: 14, phy: &[0x60, 1] };
        let mut bytes = Vec::new();
        txpk.write_json(&mut bytes);
        let expected = r#"{"txpk":{"imme":false,"tmst":7,"freq":869.525,"rfch":0,"powe":14,"modu":"LORA","datr":"SF12BW125","codr":"4/5","ipol":true,"ncrc":true,"size":2,"data":"YAE="}}"#;
        assert_eq!(std::str::from_utf8(&bytes), Ok(expected));
        txpk.data_rate = DataRate::Fsk { bits_per_second: 50_000 };
        bytes.clear();
        txpk.write_json(&mut bytes);
        let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(json["txpk"]["datr"], 50_000);
        assert_eq!(json["txpk"]["fdev"], 25_000);
        assert_eq!(json["txpk"].get("codr"), None);
    }

    #[test]
    fn acknowledgements_by_table() {
        for (body, result) in [
            (&b""[..], TxResult::Queued),
            (b"\0", TxResult::Queued),
            (b"{}", TxResult::Queued),
            (b"{\"txpk_ack\":{}}", TxResult::Queued),
            (b"{\"txpk_ack\":{\"error\":\"\"}}", TxResult::Queued),
            (b"{\"txpk_ack\":{\"error\":\"NONE\"}}\0", TxResult::Queued),
            (b"{\"txpk_ack\":{\"warn\":\"TX_POWER\",\"value\":27}}", TxResult::Warned),
            (b"{\"txpk_ack\":{\"error\":\"TOO_LATE\"}}\0\0", TxResult::TooLate),
            (b"{\"txpk_ack\":{\"error\":\"SEND_LBT\"}}", TxResult::ChannelBusy),
            (b"{\"txpk_ack\":{\"error\":\"OH NO\"}}", TxResult::Other),
            (b"{\"txpk_ack\"", TxResult::Unreadable),
            (b"{\"txpk_ack\":{\"error\":7}}", TxResult::Unreadable),
            (b"[]", TxResult::Unreadable),
        ] {
            assert_eq!(read_tx_ack(body), result, "{:?}", String::from_utf8_lossy(body));
        }
    }
}
