//! Packets heard: the `rxpk` array of a `PUSH_DATA`, read packet by packet.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::PHY_BYTES_MAX;
use super::data_rate::DataRate;
use super::number::Number;
use super::stat::{self, Stat};

/// More packets than this in one datagram are not looked at.
pub const PACKETS_PER_DATAGRAM_MAX: usize = 128;

/// Longest base64 text of a frame, padding included.
const DATA_TEXT_BYTES_MAX: usize = PHY_BYTES_MAX.div_ceil(3) * 4;

/// Forwarders send base64 with and without padding; bits behind the last byte are of no interest.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// Why one packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the packet is no JSON object with a text `data`")]
    Malformed,
    #[error("the gateway says that the checksum failed or that there was none")]
    Checksum,
    #[error("`data` is not base64")]
    Base64,
    #[error("the frame is longer than {PHY_BYTES_MAX} bytes")]
    Oversize,
    #[error("more than {PACKETS_PER_DATAGRAM_MAX} packets in one datagram")]
    TooMany,
}

/// How a frame was heard. Numbers are integers, so that the record can be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxMeta {
    /// End of reception on the concentrator's own counter, microseconds, wrapping; meaningful at this gateway only.
    pub tmst: Option<u32>,
    pub frequency_hz: Option<u32>,
    pub data_rate: DataRate,
    pub rssi_dbm: Option<i16>,
    pub snr_decibel_tenths: Option<i16>,
}

/// The PHY payload of a packet in a buffer of its own size: nothing is allocated for copies that are dropped.
#[derive(Clone)]
pub struct Frame {
    bytes: [u8; PHY_BYTES_MAX],
    len: usize,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self { bytes: [0; PHY_BYTES_MAX], len: 0 }
    }
}

impl Frame {
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn fill(&mut self, text: &str) -> Result<(), Error> {
        if text.len() > DATA_TEXT_BYTES_MAX {
            return Err(Error::Oversize);
        }
        self.len = 0;
        self.len = BASE64.decode_slice(text, &mut self.bytes).map_err(|_| Error::Base64)?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Push<'a> {
    #[serde(borrow, default)]
    rxpk: Option<Vec<Rxpk<'a>>>,
    #[serde(borrow, default)]
    stat: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Rxpk<'a> {
    #[serde(default)]
    tmst: Number,
    #[serde(default)]
    freq: Number,
    #[serde(default)]
    stat: Number,
    datr: Option<Datr>,
    #[serde(default)]
    rssi: Number,
    #[serde(default)]
    lsnr: Number,
    #[serde(borrow)]
    data: Text<'a>,
    rsig: Option<Vec<Rsig>>,
}

/// One antenna's signal (version 2 of the gateway hardware).
#[derive(Deserialize)]
struct Rsig {
    #[serde(default)]
    rssic: Number,
    #[serde(default)]
    lsnr: Number,
}

/// A text, borrowed unless it holds an escape (`\/`).
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// `datr` is a text for LoRa and a number for FSK.
struct Datr(DataRate);

impl<'de> Deserialize<'de> for Datr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = DataRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a data rate: text for LoRa, number for FSK")
            }

            fn visit_str<E>(self, text: &str) -> Result<DataRate, E> {
                Ok(DataRate::from_datr(text))
            }

            fn visit_u64<E>(self, bits: u64) -> Result<DataRate, E> {
                Ok(u32::try_from(bits).map_or(DataRate::Other, |bits_per_second| DataRate::Fsk { bits_per_second }))
            }

            fn visit_f64<E>(self, bits: f64) -> Result<DataRate, E> {
                Ok(Number(Some(bits)).whole_u32().map_or(DataRate::Other, |bits_per_second| DataRate::Fsk { bits_per_second }))
            }

            fn visit_i64<E>(self, _: i64) -> Result<DataRate, E> {
                Ok(DataRate::Other)
            }
        }
        deserializer.deserialize_any(Reader).map(Datr)
    }
}

impl Rxpk<'_> {
    fn meta(&self) -> RxMeta {
        let best = self.rsig.iter().flatten().max_by(|a, b| {
            let snr = |antenna: &Rsig| antenna.lsnr.0.unwrap_or(f64::NEG_INFINITY);
            snr(a).total_cmp(&snr(b))
        });
        let rssi = self.rssi.or(|| best.map(|antenna| antenna.rssic).unwrap_or_default());
        let snr = self.lsnr.or(|| best.map(|antenna| antenna.lsnr).unwrap_or_default());
        RxMeta {
            tmst: self.tmst.whole_u32(),
            frequency_hz: self.freq.times(1e6).whole_u32(),
            data_rate: self.datr.as_ref().map_or(DataRate::Other, |datr| datr.0),
            rssi_dbm: rssi.whole_i16(),
            snr_decibel_tenths: snr.times(10.0).whole_i16(),
        }
    }

    fn read(&self, frame: &mut Frame) -> Result<RxMeta, Error> {
        // Some forwarders leave `stat` out; the frame's own integrity code decides then.
        if self.stat.0.is_some_and(|stat| (stat - 1.0).abs() > f64::EPSILON) {
            return Err(Error::Checksum);
        }
        frame.fill(&self.data.0)?;
        Ok(self.meta())
    }
}

/// Calls `each` for every packet of the JSON body of a `PUSH_DATA`, in order, with the frame in `frame`.
///
/// The usual datagram is read in one pass; if that fails anywhere, its packets are cut apart by their braces and read one by one. What the
/// gateway says of itself is returned, from well-formed datagrams only.
pub fn read(json: &[u8], frame: &mut Frame, mut each: impl FnMut(Result<RxMeta, Error>, &[u8])) -> Option<Stat> {
    let json = trimmed(json);
    if let Ok(text) = std::str::from_utf8(json)
        && let Ok(push) = serde_json::from_str::<Push<'_>>(text)
    {
        for (index, packet) in push.rxpk.iter().flatten().enumerate() {
            if index == PACKETS_PER_DATAGRAM_MAX {
                each(Err(Error::TooMany), &[]);
                break;
            }
            let result = packet.read(frame);
            each(result, frame.as_slice());
        }
        return push.stat.and_then(|stat| stat::read(stat.get()));
    }
    let Some(array) = array_after(json, b"\"rxpk\"") else {
        if !json.is_empty() {
            each(Err(Error::Malformed), &[]);
        }
        return None;
    };
    for (index, piece) in Elements(array).enumerate() {
        if index == PACKETS_PER_DATAGRAM_MAX {
            each(Err(Error::TooMany), &[]);
            break;
        }
        let result = match serde_json::from_slice::<Rxpk<'_>>(piece) {
            Ok(packet) => packet.read(frame),
            Err(_) => Err(Error::Malformed),
        };
        each(result, frame.as_slice());
    }
    None
}

/// Without the white space and zero bytes that some forwarders append.
pub(super) fn trimmed(mut json: &[u8]) -> &[u8] {
    while let [rest @ .., 0 | b' ' | b'\r' | b'\n' | b'\t'] = json {
        json = rest;
    }
    json
}

/// What follows the bracket that opens the array behind `key`.
fn array_after<'a>(json: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = json.windows(key.len()).position(|window| window == key)?;
    let mut rest = &json[at + key.len()..];
    loop {
        match rest {
            [b'[', rest @ ..] => return Some(rest),
            [b':' | b' ' | b'\t' | b'\r' | b'\n', more @ ..] => rest = more,
            _ => return None,
        }
    }
}

/// The elements of an array, cut at commas and brackets outside of texts and inner brackets.
struct Elements<'a>(&'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (mut depth, mut in_text, mut escaped) = (0_u32, false, false);
            let end = self.0.iter().position(|byte| {
                if in_text {
                    in_text = escaped || *byte != b'"';
                    escaped = !escaped && *byte == b'\\';
                    return false;
                }
                match byte {
                    b'"' => in_text = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => depth -= 1,
                    b',' | b']' => return depth == 0,
                    _ => {}
                }
                false
            });
            let (piece, rest) = match end {
                Some(at) if self.0[at] == b',' => (&self.0[..at], &self.0[at + 1..]),
                Some(at) => (&self.0[..at], &[][..]),
                None => (self.0, &[][..]),
            };
            if self.0.is_empty() {
                return None;
            }
            self.0 = rest;
            if !piece.trim_ascii().is_empty() {
                return Some(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(json: &str) -> Vec<Result<(RxMeta, Vec<u8>), Error>> {
        let mut all = Vec::new();
        read(json.as_bytes(), &mut Frame::default(), |meta, phy| all.push(meta.map(|meta| (meta, phy.to_vec()))));
        all
    }

    fn one(json: &str) -> (RxMeta, Vec<u8>) {
        let all = packets(json);
        assert_eq!(all.len(), 1, "{json}");
        all[0].clone().expect("a good packet")
    }

    const FULL: &str = r#"{"rxpk":[{"jver":1,"tmst":3512348611,"time":"2026-01-01T00:00:00.000000Z","tmms":1,"chan":2,"rfch":0,"freq":866.349812,
        "mid":8,"stat":1,"modu":"LORA","datr":"SF7BW125","codr":"4/6","rssi":-35,"lsnr":5.1,"foff":12,"size":3,"data":"AQID"}],
        "stat":{"time":"2014-01-12 08:59:28 GMT","rxnb":2,"ackr":null}}"#;

    #[test]
    fn the_documented_packet() {
        let (meta, phy) = one(FULL);
        assert_eq!(phy, [1, 2, 3]);
        assert_eq!(meta.tmst, Some(3_512_348_611));
        assert_eq!(meta.frequency_hz, Some(866_349_812));
        assert_eq!(meta.data_rate, DataRate::Lora { spreading_factor: 7, bandwidth_khz: 125 });
        assert_eq!((meta.rssi_dbm, meta.snr_decibel_tenths), (Some(-35), Some(51)));
    }

    #[test]
    fn oddities_of_the_field_by_table() {
        let fsk =
            one(r#"{"rxpk":[{"tmst":1,"freq":868.8,"stat":1,"modu":"FSK","datr":50000,"rssi":-75,"size":3,"data":"AQID"}]}"#).0;
        assert_eq!(fsk.data_rate, DataRate::Fsk { bits_per_second: 50_000 });
        assert_eq!((fsk.frequency_hz, fsk.snr_decibel_tenths), (Some(868_800_000), None));
        assert_eq!(one(r#"{"rxpk":[{"data":"AQ=="}]}"#).1, [1], "missing fields");
        assert_eq!(one(r#"{"rxpk":[{"data":"AQ"}]}"#).1, [1], "no padding");
        assert_eq!(one(r#"{"rxpk":[{"data":"\/\/\/\/"}]}"#).1, [255; 3], "escaped slash");
        assert_eq!(one(r#"{"rxpk":[{"rssi":-35.6,"lsnr":-5,"data":"AQID"}]}"#).0.rssi_dbm, Some(-36), "float rssi");
        assert_eq!(one("{\"rxpk\":[{\"data\":\"AQID\"}]}\0").1, [1, 2, 3], "zero byte at the end");
        assert_eq!(one(r#"{"rxpk":[{"tmst":-4,"freq":1e99,"rssi":1e9,"data":"AQID"}]}"#).0.tmst, None, "values out of range");
        assert_eq!(one(r#"{"rxpk":[{"datr":"M0CW137","modu":"LR-FHSS","data":"AQID"}]}"#).0.data_rate, DataRate::Other);
        let antennas =
            one(r#"{"rxpk":[{"data":"AQID","rsig":[{"ant":0,"rssic":-90,"lsnr":1.0},{"ant":1,"rssic":-80,"lsnr":7.5}]}]}"#).0;
        assert_eq!((antennas.rssi_dbm, antennas.snr_decibel_tenths), (Some(-80), Some(75)));
        let odd = one(r#"{"rxpk":[{"tmst":"4000000000","freq":"868.1","rssi":"loud","lsnr":null,"stat":1.0,"data":"AQID"}]}"#).0;
        assert_eq!((odd.tmst, odd.frequency_hz, odd.rssi_dbm), (Some(4_000_000_000), Some(868_100_000), None), "numbers as text");
        let both = one(r#"{"rxpk":[{"rssi":-71,"lsnr":9.2,"rsig":[{"ant":0,"rssic":-90,"lsnr":1}],"data":"AQID"}]}"#).0;
        assert_eq!((both.rssi_dbm, both.snr_decibel_tenths), (Some(-71), Some(92)), "what stands at the packet goes first");
        assert!(packets(r#"{"stat":{"rxnb":0}}"#).is_empty());
        assert!(packets(r#"{"rxpk":null,"stat":null}"#).is_empty());
        assert!(packets("").is_empty());
    }

    #[test]
    fn what_the_gateway_says_of_itself_is_read_beside_the_packets() {
        let stat = |json: &str| read(json.as_bytes(), &mut Frame::default(), |_, _| ());
        assert_eq!(stat(FULL).and_then(|stat| stat.rxnb), Some(2));
        let odd = stat("{\"stat\":{\"rxnb\":3,\"ackr\":null,\"extra\":{\"stat\":[]}}}\0").expect("a stat");
        assert_eq!((odd.rxnb, odd.time, odd.ackr), (Some(3), None, None));
        assert_eq!(stat(r#"{"rxpk":[{"data":"AQID"}],"stat":"none"}"#), None);
    }

    #[test]
    fn a_bad_packet_is_dropped_alone() {
        let good = r#"{"data":"AQID"}"#;
        for (bad, why) in [
            (r#"{"data":17}"#, Error::Malformed),
            (r"{}", Error::Malformed),
            ("null", Error::Malformed),
            (r#"{"data":"AQID","rsig":[7]}"#, Error::Malformed),
            (r#"{"data":"AQID","tmst":}"#, Error::Malformed),
            (r#"{"data":"A,]}\"QID","x":[{}]"x"}"#, Error::Malformed),
            ("{\"data\":\"\u{1}\"}", Error::Malformed),
            (r#"{"data":"%%%%"}"#, Error::Base64),
            (r#"{"data":"AQID","stat":-1}"#, Error::Checksum),
            (r#"{"data":"AQID","stat":0}"#, Error::Checksum),
        ] {
            let all = packets(&format!(r#"{{"rxpk":[{good},{bad},{good}]}}"#));
            let kinds: Vec<_> = all.iter().map(|packet| packet.as_ref().map(|p| p.1.len()).map_err(|e| *e)).collect();
            assert_eq!(kinds, [Ok(3), Err(why), Ok(3)], "{bad}");
        }
        let cut = r#"{"rxpk":[{"data":"AQID"},{"data":"AQ"#;
        assert_eq!(packets(cut).iter().filter(|p| p.is_ok()).count(), 1, "what came before the cut");
        assert_eq!(packets("[1,2"), [Err(Error::Malformed)]);
        assert_eq!(packets(r#"{"rxpk":{"data":"AQID"}}"#), [Err(Error::Malformed)]);
    }

    #[test]
    fn sizes_at_the_limit() {
        let frame = |len: usize| format!(r#"{{"rxpk":[{{"data":"{}"}}]}}"#, BASE64.encode(vec![7; len]));
        assert_eq!(one(&frame(255)).1.len(), 255);
        assert!(packets(&frame(256))[0].is_err());
        assert_eq!(packets(&frame(300)), [Err(Error::Oversize)]);
        let many = format!(r#"{{"rxpk":[{}]}}"#, vec![r#"{"data":"AQID"}"#; 130].join(","));
        let all = packets(&many);
        assert_eq!((all.len(), all[128].clone()), (129, Err(Error::TooMany)));
    }
}
