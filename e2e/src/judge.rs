//! The audit: the ledgers of motes, radio and gateways against the cloud's store, and nothing else.

use contracts::ids::NodeId;
use contracts::time::WallTime;
use edge_node::api::ReceivedReading;
use motes::audit::{Alive, Delivered, Input, Limits, NodeLife, Report, Timeline, audit};
use motes::ledger::Ledgers;

use crate::world::{PATRAS_GATEWAY, RIO_GATEWAY, World};

/// The moments of one kill and return.
#[derive(Debug, Clone, Copy)]
pub struct Marks {
    pub kill: WallTime,
    pub certificate: WallTime,
    pub handback_begin: WallTime,
    pub handback_end: WallTime,
}

fn delivered(world: &World, reading: &ReceivedReading) -> anyhow::Result<Delivered> {
    let name = |node: NodeId| {
        world.places.iter().find(|(_, place)| place.node == node).map_or_else(|| node.to_string(), |(name, _)| (*name).to_owned())
    };
    let decoded = &reading.decoded;
    Ok(Delivered {
        device: reading.device.parse().map_err(|_| anyhow::anyhow!("device {}", reading.device))?,
        session: reading.session.clone(),
        f_cnt: reading.f_cnt,
        reading: decoded["generic_1"].as_u64().and_then(|n| u32::try_from(n).ok()),
        decicelsius: decicelsius(&decoded["temperature_2"]),
        heard_at_ms: reading.heard_at.0,
        received_at_ms: reading.received_at.0,
        delivered_by: name(reading.delivered_by),
        event_id: reading.event.to_string(),
    })
}

/// `"23.5"`, `"-0.4"` or a whole number, in tenths.
fn decicelsius(value: &serde_json::Value) -> Option<i32> {
    let text = value.as_str().map_or_else(|| value.as_i64().map(|n| n.to_string()), |text| Some(text.to_owned()))?;
    let (whole, tenths) = text.split_once('.').unwrap_or((&text, "0"));
    let negative = whole.starts_with('-');
    let whole: i32 = whole.parse().ok()?;
    let tenths: i32 = tenths.get(..1)?.parse().ok()?;
    Some(whole * 10 + if negative { -tenths } else { tenths })
}

/// Judges what was recorded so far.
pub async fn judge(world: &World, marks: Marks) -> anyhow::Result<Report> {
    let readings = world.all_readings().await?;
    let delivered = readings.iter().map(|r| delivered(world, r)).collect::<anyhow::Result<Vec<_>>>()?;
    let life = |name: &str, gateway: &str| -> anyhow::Result<NodeLife> {
        let alive = world
            .lives
            .get(name)
            .into_iter()
            .flatten()
            .map(|(from, to)| Alive { from_ms: from.0, to_ms: to.map(|t| t.0) })
            .collect();
        Ok(NodeLife { node: name.to_owned(), gateway: gateway.parse().map_err(|_| anyhow::anyhow!("gateway EUI"))?, alive })
    };
    let nodes = [life("rio", RIO_GATEWAY)?, life("patras", PATRAS_GATEWAY)?];
    let timeline = Timeline {
        kill_ms: Some(marks.kill.0),
        taker: Some("patras".to_owned()),
        takeover_certificate_ms: Some(marks.certificate.0),
        handback_begin_ms: Some(marks.handback_begin.0),
        handback_end_ms: Some(marks.handback_end.0),
    };
    let ledgers = Ledgers::read(&world.ledgers)?;
    Ok(audit(&Input { ledgers: &ledgers, nodes: &nodes, delivered: &delivered, timeline: &timeline, limits: Limits::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperatures_are_read_exactly() {
        for (value, tenths) in [("\"23.5\"", 235), ("\"-0.4\"", -4), ("\"-12.0\"", -120), ("7", 70), ("\"7\"", 70)] {
            assert_eq!(decicelsius(&serde_json::from_str(value).expect("JSON")), Some(tenths), "{value}");
        }
        assert_eq!(decicelsius(&serde_json::Value::Null), None);
    }
}
