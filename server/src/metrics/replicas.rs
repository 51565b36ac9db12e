//! Metrics of a server that shares its sessions with others.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use charlstm_replicas::sessions::LeaseCounters;

/// Adds the metrics of the leases of sessions.
pub(super) fn register(registry: &mut Registry, leases: &LeaseCounters) {
    let counters = [
        (
            "session_lease_conflicts",
            "Calls rejected because another replica held the session",
            leases.conflicts,
        ),
        (
            "session_fences",
            "Calls that lost their session to another replica",
            leases.fenced,
        ),
        (
            "session_cache_hits",
            "Sessions opened whose state was in memory",
            leases.cache_hits,
        ),
        (
            "session_cache_misses",
            "Sessions opened whose state was read from the database",
            leases.cache_misses,
        ),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
}
