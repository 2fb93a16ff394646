//! What the marketplace counts, in the Prometheus text format.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Names (the format adds `_total` to counters) and descriptions.
pub const REQUESTS: (&str, &str) = ("marketplace_requests", "HTTP requests by method and status");
pub const PROBLEMS: (&str, &str) = ("marketplace_problems", "Requests answered with a problem document, by problem");
pub const STATEMENTS: (&str, &str) = ("marketplace_statements", "Signed statements accepted for the first time, by kind");
pub const MATCHES: (&str, &str) = ("marketplace_matches", "Matches made");
pub const ROUNDS: (&str, &str) = ("marketplace_clearing_rounds", "Clearing rounds that looked at the book");
pub const ROUND_FAILURES: (&str, &str) = ("marketplace_clearing_failures", "Clearing rounds that failed");
pub const ROUND_SECONDS: (&str, &str) = ("marketplace_clearing_seconds", "Duration of a clearing round");
pub const EVENT_STREAMS: (&str, &str) = ("marketplace_event_streams", "Event streams that are open");
pub const CONNECTIONS: (&str, &str) = ("marketplace_connections", "Connections that are open");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub method: &'static str,
    pub status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NameLabel {
    pub name: String,
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub requests: Family<RequestLabels, Counter>,
    pub problems: Family<NameLabel, Counter>,
    pub statements: Family<NameLabel, Counter>,
    pub matches: Counter,
    pub rounds: Counter,
    pub round_failures: Counter,
    pub round_seconds: Histogram,
    pub event_streams: Gauge,
    pub connections: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            problems: Family::default(),
            statements: Family::default(),
            matches: Counter::default(),
            rounds: Counter::default(),
            round_failures: Counter::default(),
            round_seconds: Histogram::new(exponential_buckets(0.000_1, 4.0, 10)),
            event_streams: Gauge::default(),
            connections: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(REQUESTS.0, REQUESTS.1, metrics.requests.clone());
        registry.register(PROBLEMS.0, PROBLEMS.1, metrics.problems.clone());
        registry.register(STATEMENTS.0, STATEMENTS.1, metrics.statements.clone());
        registry.register(MATCHES.0, MATCHES.1, metrics.matches.clone());
        registry.register(ROUNDS.0, ROUNDS.1, metrics.rounds.clone());
        registry.register(ROUND_FAILURES.0, ROUND_FAILURES.1, metrics.round_failures.clone());
        registry.register(ROUND_SECONDS.0, ROUND_SECONDS.1, metrics.round_seconds.clone());
        registry.register(EVENT_STREAMS.0, EVENT_STREAMS.1, metrics.event_streams.clone());
        registry.register(CONNECTIONS.0, CONNECTIONS.1, metrics.connections.clone());
        metrics
    }
}

impl Metrics {
    /// The OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(std::fmt::Error) => String::new(), // writing to a string does not fail
        }
    }

    pub fn count_statement(&self, kind: &str) {
        self.statements.get_or_create(&NameLabel { name: kind.to_owned() }).inc();
    }
}
