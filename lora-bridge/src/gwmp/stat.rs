//! What a gateway says of itself: the `stat` object of a `PUSH_DATA`. Every field may be absent, null or odd.

use serde::{Deserialize, Serialize};

use super::number::Number;

/// Longest text of a time that is kept.
const TIME_BYTES_MAX: usize = 40;

/// A gateway's own counts since its last `stat`, and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stat {
    /// As the gateway writes it, usually `2014-01-12 08:59:28 GMT`.
    pub time: Option<String>,
    pub latitude_degrees: Option<f64>,
    pub longitude_degrees: Option<f64>,
    pub altitude_metres: Option<f64>,
    /// Packets received by radio, whatever their checksum.
    pub rxnb: Option<u32>,
    /// Of these, with a right checksum.
    pub rxok: Option<u32>,
    /// Packets forwarded.
    pub rxfw: Option<u32>,
    /// Percentage of datagrams that were acknowledged.
    pub ackr: Option<f64>,
    /// Downlink datagrams received.
    pub dwnb: Option<u32>,
    /// Packets emitted.
    pub txnb: Option<u32>,
    /// Degrees Celsius.
    pub temp: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Json {
    time: serde_json::Value,
    lati: Number,
    long: Number,
    alti: Number,
    rxnb: Number,
    rxok: Number,
    rxfw: Number,
    ackr: Number,
    dwnb: Number,
    txnb: Number,
    temp: Number,
}

/// Reads a `stat` object; `None` if it is no object.
pub(super) fn read(json: &str) -> Option<Stat> {
    let fields: Json = serde_json::from_str(json).ok()?;
    let within = |number: Number, limit: f64| number.0.filter(|value| value.abs() <= limit);
    let time = fields.time.as_str().filter(|text| text.len() <= TIME_BYTES_MAX && !text.is_empty()).map(str::to_owned);
    Some(Stat {
        time,
        latitude_degrees: within(fields.lati, 90.0),
        longitude_degrees: within(fields.long, 180.0),
        altitude_metres: fields.alti.0,
        rxnb: fields.rxnb.whole_u32(),
        rxok: fields.rxok.whole_u32(),
        rxfw: fields.rxfw.whole_u32(),
        ackr: fields.ackr.0,
        dwnb: fields.dwnb.whole_u32(),
        txnb: fields.txnb.whole_u32(),
        temp: fields.temp.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_one_and_odd_ones() {
        let documented = r#"{"time":"2014-01-12 08:59:28 GMT","lati":46.24000,"long":3.25230,"alti":145,"rxnb":2,"rxok":2,"rxfw":2,
            "ackr":100.0,"dwnb":2,"txnb":2}"#;
        let stat = read(documented).expect("an object");
        assert_eq!(stat.time.as_deref(), Some("2014-01-12 08:59:28 GMT"));
        assert_eq!(
            (stat.latitude_degrees, stat.longitude_degrees, stat.altitude_metres),
            (Some(46.24), Some(3.2523), Some(145.0))
        );
        assert_eq!(
            (stat.rxnb, stat.rxok, stat.rxfw, stat.ackr, stat.dwnb, stat.txnb),
            (Some(2), Some(2), Some(2), Some(100.0), Some(2), Some(2))
        );
        let odd = read(r#"{"ackr":null,"alti":12.5,"rxnb":"7","rxok":-1,"temp":[1,{"a":2}],"lati":1e300,"boot":"x","time":17}"#)
            .expect("an object");
        let expected = Stat { altitude_metres: Some(12.5), rxnb: Some(7), ..Stat::default() };
        assert_eq!(odd, expected);
        assert_eq!(read("{}"), Some(Stat::default()));
        assert_eq!(read("\"none\""), None);
    }
}
