//! Semtech's packet-forwarder protocol (GWMP, "Semtech UDP"), versions 1 and 2: `PROTOCOL.TXT` in Lora-net/packet_forwarder.
//!
//! Hand-written and tolerant, because forwarders in the field are not uniform: one odd packet is dropped and counted alone, never the good
//! ones beside it.
//!
//! # Layout
//! - this module — the four-byte header, the acknowledgements
//! - [`rxpk`] — packets heard
//! - [`txpk`] — packets to send, and what the gateway says about them
//! - [`data_rate`] — `datr` in both its forms
//! - [`stat`] — what gateways say of themselves
//! - [`gateways`] — where each gateway is reached, and how it fares
//! - [`sources`] — how much each source address may bring
//! - [`taps`] — uplinks for further servers
//! - `number` — numbers as forwarders write them

pub mod data_rate;
pub mod gateways;
mod number;
pub mod rxpk;
pub mod sources;
pub mod stat;
pub mod taps;
pub mod txpk;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest datagram that is looked at. Eight packets of 255 bytes with all extras stay below 8 KiB; some forwarders send more per datagram.
pub const DATAGRAM_BYTES_MAX: usize = 32 * 1024;

/// A LoRaWAN PHY payload is at most this long (the LoRa modem's length field has one byte).
pub const PHY_BYTES_MAX: usize = 255;

const PUSH_DATA: u8 = 0x00;
const PUSH_ACK: u8 = 0x01;
const PULL_DATA: u8 = 0x02;
const PULL_RESP: u8 = 0x03;
const PULL_ACK: u8 = 0x04;
const TX_ACK: u8 = 0x05;

/// Why a datagram is not one of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("datagram of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("datagram of {0} bytes is longer than {DATAGRAM_BYTES_MAX}")]
    Long(usize),
    #[error("protocol version {0} is neither 1 nor 2")]
    Version(u8),
    #[error("packet kind {0} is not one that a gateway sends")]
    Kind(u8),
}

/// A gateway's EUI-64, in text 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayEui(pub u64);

impl fmt::Display for GatewayEui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for GatewayEui {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a gateway EUI has 16 hexadecimal digits")]
pub struct NotAnEui;

impl FromStr for GatewayEui {
    type Err = NotAnEui;

    fn from_str(text: &str) -> Result<Self, NotAnEui> {
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NotAnEui);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| NotAnEui)
    }
}

impl Serialize for GatewayEui {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GatewayEui {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// First byte of every datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No token in `PULL_RESP`, no `TX_ACK`.
    V1,
    V2,
}

impl Version {
    pub(crate) const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// Two opaque bytes, echoed.
pub type Token = [u8; 2];

/// What a gateway sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    pub version: Version,
    pub token: Token,
    pub gateway: GatewayEui,
    pub body: Body<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Packets heard and statistics, as JSON.
    PushData(&'a [u8]),
    /// The keepalive that opens the way down.
    PullData,
    /// How a downlink went: nothing, one zero byte, or JSON, perhaps with a zero byte at its end.
    TxAck(&'a [u8]),
}

/// Reads the header; the JSON stays unread.
///
/// # Errors
/// [`Error`] says what is wrong with the header.
pub fn parse(bytes: &[u8]) -> Result<Packet<'_>, Error> {
    if bytes.len() > DATAGRAM_BYTES_MAX {
        return Err(Error::Long(bytes.len()));
    }
    let [version, t0, t1, kind, rest @ ..] = bytes else {
        return Err(Error::Short(bytes.len()));
    };
    let version = Version::of(*version).ok_or(Error::Version(*version))?;
    if !matches!(*kind, PUSH_DATA | PULL_DATA | TX_ACK) {
        return Err(Error::Kind(*kind));
    }
    let Some((eui, json)) = rest.split_first_chunk::<8>() else {
        return Err(Error::Short(bytes.len()));
    };
    let body = match *kind {
        PUSH_DATA => Body::PushData(json),
        PULL_DATA => Body::PullData,
        _ => Body::TxAck(json),
    };
    Ok(Packet { version, token: [*t0, *t1], gateway: GatewayEui(u64::from_be_bytes(*eui)), body })
}

/// Whether a datagram claims to be a `PUSH_DATA`; for those who must shed load before parsing.
#[must_use]
pub fn is_push_data(bytes: &[u8]) -> bool {
    bytes.get(3) == Some(&PUSH_DATA)
}

/// Whether a datagram is a server's answer to a `PUSH_DATA`.
#[must_use]
pub fn is_push_ack(bytes: &[u8]) -> bool {
    matches!(bytes, [1 | 2, _, _, PUSH_ACK])
}

/// The answer to `PUSH_DATA`: "received", nothing more.
#[must_use]
pub fn push_ack(version: Version, token: Token) -> Vec<u8> {
    vec![version.byte(), token[0], token[1], PUSH_ACK]
}

/// The answer to `PULL_DATA`.
#[must_use]
pub fn pull_ack(version: Version, token: Token) -> Vec<u8> {
    vec![version.byte(), token[0], token[1], PULL_ACK]
}

/// A downlink. Version 1 has no token here.
#[must_use]
pub fn pull_resp(version: Version, token: Token, txpk: &txpk::Txpk<'_>) -> Vec<u8> {
    let token = match version {
        Version::V1 => [0, 0],
        Version::V2 => token,
    };
    let mut bytes = vec![version.byte(), token[0], token[1], PULL_RESP];
    txpk.write_json(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_by_table() {
        let eui = [0xaa, 0x55, 0x5a, 0, 0, 0, 1, 1];
        let with = |head: [u8; 4], tail: &[u8]| [&head[..], &eui[..], tail].concat();
        let ok = parse(&with([2, 7, 9, 0], b"{}")).map(|p| (p.version, p.token, p.gateway, p.body == Body::PushData(b"{}")));
        assert_eq!(ok, Ok((Version::V2, [7, 9], GatewayEui(0xaa55_5a00_0000_0101), true)));
        assert_eq!(parse(&with([1, 0, 0, 2], b"")).map(|p| (p.version, p.body)), Ok((Version::V1, Body::PullData)));
        assert_eq!(parse(&with([2, 0, 0, 5], b"\0")).map(|p| p.body), Ok(Body::TxAck(b"\0")));
        assert_eq!(parse(&[2, 0, 0]), Err(Error::Short(3)));
        assert_eq!(parse(&[2, 0, 0, 0, 1, 2, 3]), Err(Error::Short(7)));
        assert_eq!(parse(&with([3, 0, 0, 0], b"")), Err(Error::Version(3)));
        assert_eq!(parse(&with([2, 0, 0, 1], b"")), Err(Error::Kind(1)));
        assert_eq!(parse(&with([2, 0, 0, 3], b"")), Err(Error::Kind(3)));
        assert_eq!(parse(&vec![2; DATAGRAM_BYTES_MAX + 1]), Err(Error::Long(DATAGRAM_BYTES_MAX + 1)));
        assert_eq!(push_ack(Version::V1, [1, 2]), [1, 1, 2, 1]);
        assert_eq!(pull_ack(Version::V2, [1, 2]), [2, 1, 2, 4]);
    }
}
