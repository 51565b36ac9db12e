//! What principals use, and their quotas.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What one principal uses at the moment. `None`: no limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrincipalStats {
    /// Its name.
    pub(crate) name: String,
    /// Generations, and their maximum number.
    pub(crate) streams: (u64, Option<u64>),
    /// Sessions, and their maximum number.
    pub(crate) sessions: (u64, Option<u64>),
    /// Waiting and running trainings, and their maximum number.
    pub(crate) trainings: (u64, Option<u64>),
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PrincipalLabels {
    principal: String,
}

/// Adds the values to `registry`. There are as many as the file of
/// `--principals` has principals.
pub(super) fn register(registry: &mut Registry, principals: &[PrincipalStats]) {
    let mut add = |name: &str, help: &str, of: fn(&PrincipalStats) -> Option<u64>| {
        let gauges = Family::<PrincipalLabels, Gauge>::default();
        for principal in principals {
            if let Some(value) = of(principal) {
                let labels = PrincipalLabels {
                    principal: principal.name.clone(),
                };
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                gauges.get_or_create(&labels).set(value);
            }
        }
        registry.register(name, help, gauges);
    };
    add("principal_streams", "Generations of a principal", |p| {
        Some(p.streams.0)
    });
    add(
        "principal_streams_limit",
        "Maximum number of generations of a principal at a time",
        |p| p.streams.1,
    );
    add("principal_sessions", "Sessions of a principal", |p| {
        Some(p.sessions.0)
    });
    add(
        "principal_sessions_limit",
        "Maximum number of sessions of a principal",
        |p| p.sessions.1,
    );
    add(
        "principal_trainings",
        "Waiting and running trainings of a principal",
        |p| Some(p.trainings.0),
    );
    add(
        "principal_trainings_limit",
        "Maximum number of waiting and running trainings of a principal",
        |p| p.trainings.1,
    );
}
