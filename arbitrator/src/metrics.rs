//! What the arbitrator counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Name {
    pub name: String,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Statements taken, by kind.
    pub statements: Family<Name, Counter>,
    /// Requests refused, by problem.
    pub problems: Family<Name, Counter>,
    /// Verdicts given, by outcome.
    pub verdicts: Family<Name, Counter>,
    pub requests: Counter,
    pub records_stored: Counter,
    pub event_streams: Gauge,
    pub groups_witnessed: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("antirio_arbitrator");
        let metrics = Self {
            registry: Registry::default(),
            statements: Family::default(),
            problems: Family::default(),
            verdicts: Family::default(),
            requests: Counter::default(),
            records_stored: Counter::default(),
            event_streams: Gauge::default(),
            groups_witnessed: Gauge::default(),
        };
        registry.register("statements_taken", "Signed statements taken, by kind", metrics.statements.clone());
        registry.register("problems", "Requests refused, by problem type", metrics.problems.clone());
        registry.register("verdicts", "Verdicts given, by outcome", metrics.verdicts.clone());
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register("records_stored", "Write-ahead records stored for holders", metrics.records_stored.clone());
        registry.register("event_streams", "Open event streams", metrics.event_streams.clone());
        registry.register("groups_witnessed", "Groups this arbitrator votes in", metrics.groups_witnessed.clone());
        Self { registry, ..metrics }
    }
}

impl Metrics {
    pub fn count(family: &Family<Name, Counter>, name: &str) {
        family.get_or_create(&Name { name: name.to_owned() }).inc();
    }

    /// Prometheus text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
