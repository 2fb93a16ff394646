//! The audit: the ledgers of motes, radio and gateways against the cloud's store, and nothing else.

use contracts::ids::NodeId;
use contracts::time::WallTime;
use edge_node::api::ReceivedReading;
use motes::audit::{Alive, Delivered, Input, Limits, NodeLife, Report, Timeline, audit, decicelsius};
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

/// Judges what was recorded so far.
pub async fn judge(world: &World, marks: Marks) -> anyhow::Result<Report> {
    let readings = world.all_readings().await?;
    let timeline = Timeline {
        kill_ms: Some(marks.kill.0),
        taker: Some("patras".to_owned()),
        takeover_certificate_ms: Some(marks.certificate.0),
        handback_begin_ms: Some(marks.handback_begin.0),
        handback_end_ms: Some(marks.handback_end.0),
    };
    judge_readings(world, &readings, &timeline, Limits::default())
}

/// Judges these rows of the cloud's store.
pub fn judge_readings(
    world: &World,
    readings: &[ReceivedReading],
    timeline: &Timeline,
    limits: Limits,
) -> anyhow::Result<Report> {
    let delivered = readings.iter().map(|r| delivered(world, r)).collect::<anyhow::Result<Vec<_>>>()?;
    let nodes = node_lives(world)?;
    let ledgers = Ledgers::read(&world.ledgers)?;
    Ok(audit(&Input { ledgers: &ledgers, nodes: &nodes, delivered: &delivered, timeline, limits }))
}

/// When each edge was alive, and its gateway.
pub fn node_lives(world: &World) -> anyhow::Result<[NodeLife; 2]> {
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
    Ok([life("rio", RIO_GATEWAY)?, life("patras", PATRAS_GATEWAY)?])
}
