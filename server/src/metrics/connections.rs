//! Metrics of connections.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What a client did not complete in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The TLS handshake.
    Tls,
    /// The beginning of HTTP.
    Http,
}

impl Phase {
    fn labels(self) -> PhaseLabels {
        let phase = match self {
            Self::Tls => "tls",
            Self::Http => "http",
        };
        PhaseLabels { phase }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

/// Counts connections. Clones share their values.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionMetrics {
    open: Gauge,
    accepted: Counter,
    rejected: Counter,
    expired: Family<PhaseLabels, Counter>,
}

impl ConnectionMetrics {
    /// Adds the metrics to `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Open connections", self.open.clone());
        registry.register(
            "connections_accepted",
            "Connections that were accepted",
            self.accepted.clone(),
        );
        registry.register(
            "connections_rejected",
            "Connections closed because there were too many",
            self.rejected.clone(),
        );
        for phase in [Phase::Tls, Phase::Http] {
            // Also on the page before the first one.
            drop(self.expired.get_or_create(&phase.labels()));
        }
        registry.register(
            "connections_expired",
            "Connections closed because their client did not begin in time",
            self.expired.clone(),
        );
    }

    /// Counts a connection as accepted, and as open until the returned guard
    /// is dropped.
    pub(crate) fn opened(&self) -> OpenConnection {
        self.accepted.inc();
        self.open.inc();
        OpenConnection(self.open.clone())
    }

    /// Counts a connection that was closed because there were too many.
    pub(crate) fn rejected(&self) {
        self.rejected.inc();
    }

    /// Counts a connection whose client did not begin in time.
    pub(crate) fn expired(&self, phase: Phase) {
        self.expired.get_or_create(&phase.labels()).inc();
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
