//! One failure and recovery: rio is killed, patras serves, rio comes back.

use std::time::Duration;

use contracts::time::{Millis, WallTime};
use edge_node::timeline::Event;
use serde::Serialize;

use crate::judge::Marks;
use crate::observe::Observer;
use crate::world::World;

/// Custody must have moved within this time, whatever the profile.
const MOVE_MAX: Duration = Duration::from_secs(30);

/// What one cycle measured, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Kill to the first live reading of the insurer at the cloud.
    pub takeover_ms: u64,
    /// Of that: kill to the insurer's first ask (the rest of the lease).
    pub lease_ms: u64,
    /// First ask to certificate.
    pub ask_and_vote_ms: u64,
    /// Certificate to the tenant's first request.
    pub start_ms: f64,
    /// Certificate to all buffered frames settled.
    pub replay_ms: u64,
    /// Buffered frames that were replayed.
    pub replayed: u64,
}

/// How long patras serves.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    pub at_least: Duration,
    /// And until a sensor has joined at it over the air.
    pub until_join: bool,
}

/// Kills rio, waits for the takeover, lets patras serve for a while, brings rio back and waits for the hand-back.
pub async fn run(world: &mut World, observer: &mut Observer, served: Served) -> anyhow::Result<(Marks, Measured)> {
    observer.catch_up();
    let from = observer.seen.len();
    let cursor = world.all_readings().await?.last().map_or(0, |r| r.seq);
    let kill = world.kill("rio").await?;
    observer.say(kill, "rio is KILLED (SIGKILL)");
    let gained = observer
        .wait(world, "custody by patras", from, MOVE_MAX, |s| {
            s.by == "patras" && matches!(s.entry.event, Event::CustodyGained { .. })
        })
        .await?;
    let certificate = gained.entry.at;
    let asked = if let Event::CustodyGained { asked_at: Some(at), .. } = gained.entry.event { at } else { certificate };
    let patras = world.places["patras"].node;
    let live = |r: &edge_node::api::ReceivedReading| r.delivered_by == patras && r.heard_at > certificate && r.kind == "live";
    let (first, _) = world.wait_reading("a live reading by patras", cursor, MOVE_MAX, live).await?;
    observer.say(
        first.received_at,
        &format!("the cloud has the first live reading by patras, {} after the kill", first.received_at.since(kill)),
    );
    let taken = observer
        .wait(world, "the takeover", from, MOVE_MAX, |s| s.by == "patras" && matches!(s.entry.event, Event::TakenOver { .. }))
        .await?;
    let replay =
        observer.wait(world, "the replay", from, MOVE_MAX, |s| matches!(s.entry.event, Event::ReplaySettled { .. })).await?;
    tokio::time::sleep(served.at_least).await;
    if served.until_join {
        let joins = world.wait_joins("patras", MOVE_MAX).await?;
        observer.say(world.clock.wall(), &format!("patras has let {joins} sensors join anew over the air"));
    }
    observer.say(world.clock.wall(), "rio is started again");
    world.start_node("rio").await?;
    observer.follow(world, "rio");
    let level = observer
        .wait(world, "rio level", from, MOVE_MAX, |s| s.by == "rio" && matches!(s.entry.event, Event::Level { .. }))
        .await?;
    let back = observer
        .wait(world, "the hand-back", from, MOVE_MAX, |s| s.by == "rio" && matches!(s.entry.event, Event::HandedBack { .. }))
        .await?;
    let start_us = if let Event::TakenOver { start_us, .. } = taken.entry.event { start_us } else { 0 };
    let (replayed, replay_ms) =
        if let Event::ReplaySettled { frames, elapsed_ms, .. } = replay.entry.event { (frames, elapsed_ms) } else { (0, 0) };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 microseconds")]
    let measured = Measured {
        takeover_ms: first.received_at.since(kill).0,
        lease_ms: asked.since(kill).0,
        ask_and_vote_ms: certificate.since(asked).0,
        start_ms: start_us as f64 / 1_000.0,
        replay_ms,
        replayed,
    };
    // What was under way at the hand-back is settled well within a second.
    let handback_end = WallTime(back.entry.at.0) + Millis(1_000);
    Ok((Marks { kill, certificate, handback_begin: level.entry.at, handback_end }, measured))
}

/// Planned maintenance of rio: it releases custody to patras before it ends, comes back, and is handed custody.
pub async fn maintain(world: &mut World, observer: &mut Observer) -> anyhow::Result<()> {
    observer.catch_up();
    let from = observer.seen.len();
    observer.say(world.clock.wall(), "rio goes down for maintenance (SIGTERM)");
    let told = world.clock.wall();
    world.end("rio").await?;
    let gained = observer
        .wait(world, "custody by patras", from, MOVE_MAX, |s| {
            s.by == "patras" && matches!(s.entry.event, Event::CustodyGained { .. })
        })
        .await?;
    observer.say(
        gained.entry.at,
        &format!("patras holds custody {} after rio was told to end: no lease was waited for", gained.entry.at.since(told)),
    );
    world.start_node("rio").await?;
    observer.follow(world, "rio");
    observer
        .wait(world, "the hand-back", from, MOVE_MAX, |s| s.by == "rio" && matches!(s.entry.event, Event::HandedBack { .. }))
        .await?;
    Ok(())
}
