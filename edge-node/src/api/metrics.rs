//! What a node counts, in the Prometheus (OpenMetrics) text format. Values are read from the parts when they are asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use engine::ContainerState;
use kit::problem::Problem;
use lora_bridge::stats::Stats;
use peering::{custody, transport};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::status::role_name;
use super::{App, CHECK_TIMEOUT, failed};
use crate::lora::standby;
use crate::orchestrator::LABEL_GROUP;

/// Name (the format adds `_total` to counters) and description.
pub type Described = (&'static str, &'static str);
/// A metric that is one number of a snapshot.
pub type Column<T> = (&'static str, &'static str, fn(&T) -> u64);

pub const REQUESTS: Described = ("node_api_requests", "Requests to the operator API by method and status");
pub const READINGS_UNSETTLED: Described =
    ("node_readings_unsettled", "Readings that the customer's cloud has not acknowledged, by group");
pub const UPLINKS_UNDECODED: Described = ("node_uplinks_undecoded", "Uplinks that the tenant has not decoded, by group");
pub const UPLINKS_GIVEN_UP: Described =
    ("node_uplinks_given_up", "Uplinks that no service took in time, on a node whose readings end in its own log");
pub const READINGS_RECEIVED: Described = ("node_readings_received", "Readings that this node, as a cloud, received");
pub const CONTAINERS: Described = ("node_containers", "Containers by state");
pub const TENANTS: Described = ("node_tenants", "Groups of devices whose tenant has a container, by the state of the tenant");
pub const ENGINE_UP: Described = ("node_engine_up", "1 if the container engine answers");
pub const BRIDGE_UP: Described = ("node_bridge_up", "1 if the LoRa bridge answers");
pub const STANDBY_WAITING: Described = ("node_standby_waiting", "Frames heard in standby that are in memory only");
pub const CUSTODY_ROLE: Described = ("node_custody_role", "1 for the part that this node has in the custody of a group");
pub const CUSTODY_EPOCH: Described = ("node_custody_epoch", "Epoch for which this node last voted, by group");
pub const CUSTODY_MISSING: Described = ("node_custody_members_missing", "Members that do not answer, by group");
pub const CONTRACTS: Described = ("node_contracts", "Contracts by state");
pub const CONTENT_BLOCKS: Described = ("node_content_blocks", "Blocks in the content store");
pub const CONTENT_BYTES: Described = ("node_content_bytes", "Bytes in the content store");
pub const CONTENT_LIMIT_BYTES: Described = ("node_content_limit_bytes", "Bytes that the content store may hold");
pub const CONTENT_PINS: Described = ("node_content_pins", "Reasons to keep content");
pub const EVENT_STREAMS: Described = ("node_event_streams", "Event streams that are open");
pub const BRIDGE_DROPS: Described = ("node_bridge_drops", "Datagrams, packets and frames that went no further, by reason");
pub const BRIDGE_MISSED: Described = ("node_bridge_answers_missed", "Answers that were asked for and not sent, by reason");
pub const BRIDGE_TX_ACKS: Described = ("node_bridge_tx_acks", "TX_ACK by result");

/// Counters of the LoRa bridge.
pub const BRIDGE_COUNTERS: &[Column<Stats>] = &[
    ("node_bridge_datagrams", "Datagrams from packet forwarders", |s| s.datagrams),
    ("node_bridge_push_data", "PUSH_DATA", |s| s.push_data),
    ("node_bridge_pull_data", "PULL_DATA", |s| s.pull_data),
    ("node_bridge_packets", "Packets heard by gateways and readable", |s| s.packets),
    ("node_bridge_verified", "Packets with a right integrity code of a registered session", |s| s.verified),
    ("node_bridge_uplinks_live", "Uplinks served in order", |s| s.uplinks_live),
    ("node_bridge_uplinks_late", "Uplinks below the newest counter", |s| s.uplinks_late),
    ("node_bridge_uplinks_buffered", "Uplinks of others that were buffered", |s| s.uplinks_buffered),
    ("node_bridge_copies", "The same transmission by another gateway", |s| s.copies),
    ("node_bridge_copies_late", "Copies that came after their uplink had gone on", |s| s.copies_late),
    ("node_bridge_copies_waited", "Uplinks that waited for copies", |s| s.copies_waited),
    ("node_bridge_trials", "Integrity codes computed", |s| s.trials),
    ("node_bridge_resets", "Devices that began their counters anew", |s| s.resets),
    ("node_bridge_tap_sent", "PUSH_DATA sent on to servers for which is tapped", |s| s.tap_sent),
    ("node_bridge_repeated", "The same counter transmitted again", |s| s.repeated),
    ("node_bridge_offers_known", "Frames offered by the peer though known", |s| s.offers_known),
    ("node_bridge_offers_made", "Frames offered to the peer", |s| s.offers_made),
    ("node_bridge_committed", "Uplinks that are on disk", |s| s.committed),
    ("node_bridge_commit_failed", "Uplinks that could not be written", |s| s.commit_failed),
    ("node_bridge_unknown_names", "Events, devices and marks that the bridge does not know", |s| s.unknown_names),
    ("node_bridge_refused", "Sessions or groups that were not taken", |s| s.refused),
    ("node_bridge_stale_custody", "Custody of an older epoch than known", |s| s.stale_custody),
    ("node_bridge_answers_rx1", "Answers in the first receive window", |s| s.answers_rx1),
    ("node_bridge_answers_rx2", "Answers in the second receive window", |s| s.answers_rx2),
    ("node_bridge_answers_retried", "Second attempts after the gateway refused the first window", |s| s.answers_retried),
    ("node_bridge_tx_ack_unmatched", "TX_ACK without a downlink that waits for it", |s| s.tx_ack_unmatched),
    ("node_bridge_tx_ack_missing", "Downlinks that no gateway acknowledged in time", |s| s.tx_ack_missing),
    ("node_bridge_buffer_lost", "Frames thrown away unserved at the buffer's bound", |s| s.buffer_lost),
    ("node_bridge_buffer_evicted_served", "Served frames thrown away at the buffer's bound", |s| s.buffer_evicted_served),
    ("node_bridge_consumer_lagging", "Datagrams not looked at because outputs were not taken", |s| s.server.consumer_lagging),
    ("node_bridge_lease_withheld", "Downlinks not sent because the lease did not hold", |s| s.server.lease_withheld),
    ("node_bridge_send_failed", "Datagrams that the socket refused to send", |s| s.server.send_failed),
    ("node_bridge_receive_failed", "Reads from the socket that failed", |s| s.server.receive_failed),
];

/// The bridge's buffer on disk.
pub const STANDBY_COUNTERS: &[Column<standby::Counts>] = &[
    ("node_standby_written", "Frames heard in standby that were written to disk", |c| c.written),
    ("node_standby_spared", "Frames heard in standby that needed no write", |c| c.spared),
    ("node_standby_failed", "Writes of frames heard in standby that the disk refused", |c| c.failed),
];

/// Sizes of the LoRa bridge.
pub const BRIDGE_GAUGES: &[Column<Stats>] = &[
    ("node_bridge_buffer_frames", "Frames in the buffer", |s| s.buffer_frames as u64),
    ("node_bridge_awaited_frames", "Frames of sessions that are not known here yet", |s| s.awaited_frames as u64),
    ("node_bridge_buffer_bytes", "Bytes in the buffer", |s| s.buffer_bytes as u64),
    ("node_bridge_sessions", "Registered sessions", |s| s.sessions as u64),
    ("node_bridge_gateways", "Gateways that pull", |s| s.gateways as u64),
    ("node_bridge_in_flight", "Uplinks on their way to disk", |s| s.in_flight as u64),
    ("node_bridge_f_cnt_down_skipped_max", "Most downlink counters left out for one device", |s| {
        u64::from(s.f_cnt_down_skipped_max)
    }),
];

/// Counters of the custody protocol.
pub const CUSTODY_COUNTERS: &[Column<custody::Counts>] = &[
    ("node_custody_received", "Readable custody messages for one group each", |c| c.received),
    ("node_custody_dropped_malformed", "Custody messages that cannot be read", |c| c.dropped_malformed),
    ("node_custody_dropped_strangers", "Custody messages of nodes that are no members", |c| c.dropped_strangers),
    ("node_custody_dropped_unknown_group", "Custody messages for groups that are not driven here", |c| c.dropped_unknown_group),
    ("node_custody_dropped_forged", "Custody messages that do not verify", |c| c.dropped_forged),
    ("node_custody_dropped_rate", "Custody messages above a member's rate", |c| c.dropped_rate),
    ("node_custody_dropped_busy", "Custody messages while too many waited", |c| c.dropped_busy),
    ("node_custody_dropped_by_machine", "Custody messages late, repeated or out of turn", |c| c.dropped_by_machine),
    ("node_custody_datagrams_sent", "Custody messages sent as datagrams", |c| c.datagrams_sent),
    ("node_custody_streams_sent", "Custody messages sent as requests", |c| c.streams_sent),
    ("node_custody_sends_dropped", "Custody messages that could not be sent", |c| c.sends_dropped),
    ("node_custody_persist_failed", "Votes that could not be written", |c| c.persist_failed),
];

/// Counters of the peering transport.
pub const PEERING_COUNTERS: &[Column<transport::Counts>] = &[
    ("node_peering_datagrams_sent", "Datagrams to peers", |c| c.datagrams_sent),
    ("node_peering_datagrams_received", "Datagrams from peers", |c| c.datagrams_received),
    ("node_peering_datagrams_dropped_not_connected", "Datagrams without a connection", |c| c.datagrams_dropped_not_connected),
    ("node_peering_datagrams_dropped_too_long", "Datagrams longer than the connection carries", |c| c.datagrams_dropped_too_long),
    ("node_peering_datagrams_dropped_rate", "Datagrams above a peer's rate", |c| c.datagrams_dropped_rate),
    ("node_peering_datagrams_dropped_queue_full", "Datagrams that nobody took in time", |c| c.datagrams_dropped_queue_full),
    ("node_peering_datagrams_dropped_malformed", "Datagrams that cannot be read", |c| c.datagrams_dropped_malformed),
    ("node_peering_requests_sent", "Requests to peers", |c| c.requests_sent),
    ("node_peering_requests_served", "Requests of peers that were served", |c| c.requests_served),
    ("node_peering_requests_refused_rate", "Requests above a peer's rate", |c| c.requests_refused_rate),
    ("node_peering_connections_refused", "Connections of peers that were refused", |c| c.connections_refused),
    ("node_peering_dials_failed", "Dials that failed", |c| c.dials_failed),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabel {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabels {
    group: String,
    role: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Requests served so far; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Family<RequestLabels, Counter>);

impl Requests {
    pub(super) fn count(&self, method: &'static str, status: StatusCode) {
        self.0.get_or_create(&RequestLabels { method, status: status.as_u16() }).inc();
    }
}

fn add(registry: &mut Registry, described: Described, metric: impl prometheus_client::registry::Metric) {
    registry.register(described.0, described.1, metric);
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(as_gauge(value))
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn add_counters<T>(registry: &mut Registry, columns: &[Column<T>], snapshot: &T) {
    for (name, help, value) in columns {
        registry.register(*name, *help, ConstCounter::new(value(snapshot)));
    }
}

/// Counters of the bridge, of custody, of peering and of this API; sizes of everything that is kept or waits.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, body = String, content_type = "application/openmetrics-text")
))]
pub(super) async fn read_metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Problem> {
    let mut registry = Registry::default();
    add(&mut registry, REQUESTS, app.requests.0.clone());
    add(&mut registry, EVENT_STREAMS, gauge((super::EVENT_STREAMS_MAX - app.streams.available_permits()) as u64));
    add_custody(&mut registry, &app);
    add_counters(&mut registry, PEERING_COUNTERS, &app.core().transport().counts());
    add_bridge(&mut registry, &app).await;
    add_containers(&mut registry, &app).await;
    add_content(&mut registry, &app);
    add_readings(&mut registry, &app).await.map_err(|e| failed("count readings", &e))?;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|std::fmt::Error| Problem::internal())?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

fn add_custody(registry: &mut Registry, app: &App) {
    add_counters(registry, CUSTODY_COUNTERS, &app.context.custody.counts());
    let roles = Family::<RoleLabels, Gauge>::default();
    let (epochs, missing, states) =
        (Family::<GroupLabel, Gauge>::default(), Family::<GroupLabel, Gauge>::default(), Family::<StateLabel, Gauge>::default());
    for agreement in app.core().agreements.list() {
        states.get_or_create(&StateLabel { state: state_name(agreement.state) }).inc();
        let Some(view) = app.context.custody.subscribe(agreement.contract.group) else { continue };
        let view = view.borrow();
        let group = agreement.contract.group.to_string();
        roles.get_or_create(&RoleLabels { group: group.clone(), role: role_name(view.role) }).set(1);
        epochs.get_or_create(&GroupLabel { group: group.clone() }).set(as_gauge(view.voted_epoch.0));
        missing.get_or_create(&GroupLabel { group }).set(as_gauge(view.missing.len() as u64));
    }
    add(registry, CONTRACTS, states);
    add(registry, CUSTODY_ROLE, roles);
    add(registry, CUSTODY_EPOCH, epochs);
    add(registry, CUSTODY_MISSING, missing);
}

/// A contract's state in one word.
pub(super) const fn state_name(state: contracts::contract::State) -> &'static str {
    use contracts::contract::State as S;
    match state {
        S::Proposed => "proposed",
        S::Agreed => "agreed",
        S::Preparing => "preparing",
        S::Standby { .. } => "standby",
        S::TakenOver { .. } => "taken_over",
        S::HandingBack { .. } => "handing_back",
        S::Disputed { .. } => "disputed",
        S::Ended { .. } => "ended",
    }
}

async fn add_bridge(registry: &mut Registry, app: &App) {
    let Some(parts) = &app.context.parts else { return };
    let stats = tokio::time::timeout(CHECK_TIMEOUT, parts.bridge.stats()).await.ok().and_then(Result::ok);
    add(registry, BRIDGE_UP, gauge(u64::from(stats.is_some())));
    let Some(stats) = stats else { return };
    add_counters(registry, BRIDGE_COUNTERS, &stats);
    for (name, help, value) in BRIDGE_GAUGES {
        add(registry, (name, help), gauge(value(&stats)));
    }
    let kept = parts.standby.counts();
    add_counters(registry, STANDBY_COUNTERS, &kept);
    add(registry, STANDBY_WAITING, gauge(kept.waiting));
    for (described, counts) in [(BRIDGE_DROPS, &stats.drops), (BRIDGE_MISSED, &stats.missed), (BRIDGE_TX_ACKS, &stats.tx_results)]
    {
        let family = Family::<ReasonLabel, Counter>::default();
        for (reason, count) in counts {
            family.get_or_create(&ReasonLabel { reason }).inc_by(*count);
        }
        add(registry, described, family);
    }
}

async fn add_containers(registry: &mut Registry, app: &App) {
    let Some(orchestrator) = &app.core().orchestrator else { return };
    let listed = tokio::time::timeout(CHECK_TIMEOUT, orchestrator.engine().list()).await.ok().and_then(Result::ok);
    add(registry, ENGINE_UP, gauge(u64::from(listed.is_some())));
    let Some(listed) = listed else { return };
    let mut by_state = BTreeMap::from([("created", 0), ("running", 0), ("exited", 0)]);
    // A tenant runs if all its containers do.
    let mut tenants: BTreeMap<&str, bool> = BTreeMap::new();
    for container in &listed {
        let state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited { .. } => "exited",
        };
        *by_state.entry(state).or_default() += 1;
        if let Some(group) = container.labels.get(LABEL_GROUP) {
            *tenants.entry(group).or_insert(true) &= state == "running";
        }
    }
    let containers = Family::<StateLabel, Gauge>::default();
    for (state, count) in by_state {
        containers.get_or_create(&StateLabel { state }).set(count);
    }
    add(registry, CONTAINERS, containers);
    let by_tenant = Family::<StateLabel, Gauge>::default();
    for (state, runs) in [("running", true), ("prepared", false)] {
        let count = tenants.values().filter(|running| **running == runs).count();
        by_tenant.get_or_create(&StateLabel { state }).set(as_gauge(count as u64));
    }
    add(registry, TENANTS, by_tenant);
}

fn add_content(registry: &mut Registry, app: &App) {
    let store = &app.core().content;
    let usage = store.usage();
    add(registry, CONTENT_BLOCKS, gauge(usage.blocks));
    add(registry, CONTENT_BYTES, gauge(usage.bytes));
    add(registry, CONTENT_LIMIT_BYTES, gauge(usage.limit_bytes));
    add(registry, CONTENT_PINS, gauge(store.pins().len() as u64));
}

async fn add_readings(registry: &mut Registry, app: &App) -> crate::store::Result<()> {
    let (unsettled, undecoded) = (Family::<GroupLabel, Gauge>::default(), Family::<GroupLabel, Gauge>::default());
    let mut waiting = app.core().store.count_waiting().await?;
    // Groups for which nothing waits show 0 instead of nothing.
    let known = app.core().own_service.as_ref().map(|service| service.group).into_iter();
    for group in known.chain(app.core().agreements.list().iter().map(|a| a.contract.group)) {
        waiting.entry(group).or_default();
    }
    for (group, waiting) in waiting {
        let label = GroupLabel { group: group.to_string() };
        unsettled.get_or_create(&label).set(as_gauge(waiting.unsettled));
        undecoded.get_or_create(&label).set(as_gauge(waiting.undecoded));
    }
    add(registry, READINGS_UNSETTLED, unsettled);
    add(registry, UPLINKS_UNDECODED, undecoded);
    add(registry, UPLINKS_GIVEN_UP, ConstCounter::new(app.core().log.given_up()));
    if app.context.inbox.is_some() {
        add(registry, READINGS_RECEIVED, ConstCounter::new(app.core().store.count_received().await?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_and_a_description() {
        let single = [
            REQUESTS,
            READINGS_UNSETTLED,
            UPLINKS_UNDECODED,
            UPLINKS_GIVEN_UP,
            READINGS_RECEIVED,
            CONTAINERS,
            TENANTS,
            ENGINE_UP,
            BRIDGE_UP,
            STANDBY_WAITING,
            CUSTODY_ROLE,
            CUSTODY_EPOCH,
            CUSTODY_MISSING,
            CONTRACTS,
            CONTENT_BLOCKS,
            CONTENT_BYTES,
            CONTENT_LIMIT_BYTES,
            CONTENT_PINS,
            EVENT_STREAMS,
            BRIDGE_DROPS,
            BRIDGE_MISSED,
            BRIDGE_TX_ACKS,
        ];
        let columns = BRIDGE_COUNTERS.iter().chain(BRIDGE_GAUGES).map(|c| (c.0, c.1));
        let columns = columns
            .chain(STANDBY_COUNTERS.iter().map(|c| (c.0, c.1)))
            .chain(CUSTODY_COUNTERS.iter().map(|c| (c.0, c.1)))
            .chain(PEERING_COUNTERS.iter().map(|c| (c.0, c.1)));
        let all: Vec<Described> = single.into_iter().chain(columns).collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|(name, help)| name.starts_with("node_") && !name.ends_with("_total") && !help.is_empty()));
    }
}
