//! `/v1/estimate`: what the own service uses, what a demand would ask for, and what is free for others; with the reasons.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use contracts::contract::State as Life;
use contracts::ids::{ContractId, GroupId};
use contracts::resources::Resources;
use contracts::time::Millis;
use kit::problem::Problem;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, ProblemSchema, failed};
use crate::core::{Core, OwnService};
use crate::dmu::estimate::{self, Estimate, Usage};

/// CPU use is the difference of two counts, so far apart.
const MEASURE: Duration = Duration::from_millis(250);
/// Traffic is averaged over so long.
const TRAFFIC_WINDOW: Millis = Millis::from_secs(300);

/// What the own service uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OwnUse {
    #[schema(value_type = String)]
    pub group: GroupId,
    /// Thousandths of a core over `measured_ms`; absent if the engine does not count it or the service does not run.
    pub cpu_millis: Option<u64>,
    /// In use now; absent as above.
    pub memory_bytes: Option<u64>,
    pub image_bytes: u64,
    /// Bits per second of uplinks and readings, mean of five minutes.
    pub traffic_bps: u64,
    pub devices: u64,
    pub measured_ms: u64,
}

/// What can be promised to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Spare {
    /// What the owner's policy says this machine has.
    #[schema(value_type = Object)]
    pub capacity: Resources,
    /// Kept back of it, in thousandths.
    pub reserve_permille: u32,
    /// What the own service takes away.
    #[schema(value_type = Object)]
    pub own: Resources,
    /// What contracts promise to others.
    #[schema(value_type = Vec<Object>)]
    pub promised: Vec<(ContractId, Resources)>,
    /// Capacity less all of it; absent if more is used and promised than there is.
    #[schema(value_type = Option<Object>)]
    pub free: Option<Resources>,
    pub reasons: Vec<String>,
}

/// The estimates of this node. A part is absent if the node runs no service, buys or sells no insurance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EstimateView {
    pub own: Option<OwnUse>,
    /// What a demand would ask for: `needs`, and a reason for each figure.
    #[schema(value_type = Option<Object>)]
    pub demand: Option<Estimate>,
    pub spare: Option<Spare>,
}

/// Measures for a quarter of a second and answers from measurement, policy and contracts.
#[utoipa::path(get, path = "/v1/estimate", tag = "node", responses(
    (status = 200, body = EstimateView), (status = "5XX", body = ProblemSchema, content_type = "application/problem+json")
))]
pub(super) async fn get_estimate(State(app): State<Arc<App>>) -> Result<Json<EstimateView>, Problem> {
    let core = app.core();
    let own = match &core.own_service {
        Some(service) => Some(measure(core, service).await?),
        None => None,
    };
    // The agent's own estimate knows percentile and peak of the last hour; without an agent the measurement of now must do.
    let demand = match &app.agent {
        Some(agent) => agent.status().estimate,
        None => core.own_service.as_ref().zip(own.as_ref()).and_then(|(service, own)| demand(core, service, own)),
    };
    let spare = spare(core, own.as_ref());
    Ok(Json(EstimateView { own, demand, spare }))
}

async fn measure(core: &Core, service: &OwnService) -> Result<OwnUse, Problem> {
    let mut image_bytes = 0;
    for image in service.blueprint.services.iter().map(|s| &s.image) {
        let cid = storage::parse_cid(image).map_err(|e| failed("measure the own service", &e))?;
        let (bytes, _) = super::content::extent(&core.content, &cid).await.map_err(|e| failed("measure the own service", &e))?;
        image_bytes += bytes.unwrap_or(0);
    }
    let since = core.clock.wall() - TRAFFIC_WINDOW;
    let traffic = core.store.traffic_bytes(service.group, since).await.map_err(|e| failed("measure the own service", &e))?;
    let (cpu_millis, memory_bytes, measured_ms) = measure_containers(core, service.group).await;
    Ok(OwnUse {
        group: service.group,
        cpu_millis,
        memory_bytes,
        image_bytes,
        traffic_bps: traffic * 8 * 1_000 / TRAFFIC_WINDOW.0,
        devices: service.devices(),
        measured_ms,
    })
}

/// CPU in thousandths of a core, memory in bytes, and over how many milliseconds.
async fn measure_containers(core: &Core, group: GroupId) -> (Option<u64>, Option<u64>, u64) {
    let Some(orchestrator) = &core.orchestrator else { return (None, None, 0) };
    let begun = core.clock.boot_micros();
    let first = orchestrator.usage(group).await;
    tokio::time::sleep(MEASURE).await;
    let elapsed_us = core.clock.boot_micros() - begun;
    match (first, orchestrator.usage(group).await) {
        (Ok(first), Ok(second)) => {
            // Nanoseconds per microsecond are thousandths of a core, rounded up. A count that fell is of a new container.
            let spent_ns = first.cpu_ns.zip(second.cpu_ns).and_then(|(first, second)| second.checked_sub(first));
            let cpu_millis = spent_ns.filter(|_| elapsed_us > 0).map(|ns| ns.div_ceil(elapsed_us));
            (cpu_millis, second.memory_bytes, elapsed_us / 1_000)
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "the own service was not measured");
            (None, None, 0)
        }
    }
}

fn usage(own: &OwnUse) -> Usage {
    Usage {
        cpu_millis: own.cpu_millis.unwrap_or(0),
        memory_peak_bytes: own.memory_bytes.unwrap_or(0),
        image_bytes: own.image_bytes,
        traffic_bps: own.traffic_bps,
        devices: own.devices,
    }
}

fn demand(core: &Core, service: &OwnService, own: &OwnUse) -> Option<Estimate> {
    let rules = core.policy.as_ref()?.customer.as_ref()?;
    Some(estimate::needs(
        &usage(own),
        rules.margin_permille,
        rules.days,
        estimate::radio(&service.blueprint.capabilities),
        rules.terms.ttl,
    ))
}

fn spare(core: &Core, own: Option<&OwnUse>) -> Option<Spare> {
    let rules = core.policy.as_ref()?.provider.as_ref()?;
    let (me, capacity) = (core.me(), &rules.capacity);
    let counts = |state: Life| state == Life::Agreed || state.is_in_force();
    let agreements = core.agreements.list().into_iter().filter(|a| a.contract.provider.node == me && counts(a.state));
    let promised: Vec<_> = agreements.map(|a| (a.id, a.contract.blueprint.needs.clone())).collect();
    let own = own.map_or_else(Resources::default, |own| own_resources(core, own, capacity));
    let needs: Vec<_> = promised.iter().map(|(_, needs)| needs.clone()).collect();
    let free = estimate::free(capacity, &own, &needs, rules.reserve_permille);
    let mut reasons = vec![
        format!(
            "capacity, by the owner's policy: {} millis of CPU, {} bytes of memory",
            capacity.cpu_millis, capacity.memory_bytes
        ),
        format!("kept back: {} permille", rules.reserve_permille),
        format!("the own service: {} millis of CPU, {} bytes of memory", own.cpu_millis, own.memory_bytes),
    ];
    let line = |(id, needs): &(ContractId, Resources)| {
        format!("promised in {id}: {} millis of CPU, {} bytes of memory", needs.cpu_millis, needs.memory_bytes)
    };
    reasons.extend(promised.iter().map(line));
    if free.is_none() {
        reasons.push("more is used and promised than there is".to_owned());
    }
    Some(Spare { capacity: capacity.clone(), reserve_permille: rules.reserve_permille, own, promised, free, reasons })
}

/// What the own service takes; a radio that the owner does not offer is not shared, so its use takes nothing away.
fn own_resources(core: &Core, own: &OwnUse, capacity: &Resources) -> Resources {
    let usage = usage(own);
    let capabilities = core.own_service.as_ref().map(|service| &service.blueprint.capabilities);
    let radio = capabilities.and_then(estimate::radio).map(|radio| estimate::slots(radio, usage.devices));
    let offered = |slots: &contracts::resources::Interface| {
        capacity.interfaces.iter().any(|i| (&i.kind, &i.region) == (&slots.kind, &slots.region))
    };
    Resources {
        cpu_millis: usage.cpu_millis,
        memory_bytes: usage.memory_peak_bytes,
        storage_bytes: usage.image_bytes,
        bandwidth_bps: usage.traffic_bps,
        interfaces: radio.into_iter().filter(offered).collect(),
        ..Resources::default()
    }
}
