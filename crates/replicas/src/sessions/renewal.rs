//! What is done regularly: heartbeats, which renew leases, and evictions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use charlstm_store::session::{BootTime, EvictionReason, LeaseState, LeaseStatus, SessionError};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::counters::Counters;
use super::rows::{rejected, to_i64, to_uuid, u64_of};
use super::{MAX_EVICTIONS, Shared};
use crate::registry::{HEARTBEAT, Leases};

/// How often the database is tried while it is unavailable.
const PROBE: Duration = Duration::from_millis(500);

/// Sends heartbeats until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let is_available = shared.availability.check().is_ok();
        tokio::time::sleep(if is_available { HEARTBEAT } else { PROBE }).await;
        shared.renew().await;
    }
}

/// Evicts sessions whenever a heartbeat finds that it is time, until it is aborted.
pub(super) async fn maintain_regularly(shared: Arc<Shared>) {
    loop {
        shared.maintenance_due.notified().await;
        // Errors are logged where they occur, and the next heartbeat asks for it again.
        let _ = shared.maintain().await;
    }
}

impl Shared {
    /// Renews the leases of all calls with the heartbeat of this process, and ends
    /// the calls whose leases are gone.
    pub(super) async fn renew(&self) {
        let leases = Leases(self.held.renewable());
        let end = Self::lease_end();
        let sent = self.settings.registry.send_heartbeat(&leases).await;
        let read = sent.and_then(|row| Ok(self.read_heartbeat(&row, &leases, end)?));
        self.availability.observe(&read);
        if let Err(error) = read
            && !leases.0.is_empty()
        {
            tracing::warn!(%error, sessions = leases.0.len(), "leases could not be renewed");
        }
    }

    fn read_heartbeat(
        &self,
        row: &PgRow,
        leases: &Leases,
        end: BootTime,
    ) -> Result<(), sqlx::Error> {
        let by_token: HashMap<Uuid, &Arc<LeaseState>> = leases
            .0
            .iter()
            .map(|lease| (to_uuid(lease.token()), lease))
            .collect();
        let tokens: Option<Vec<Uuid>> = row.try_get("o_tokens")?;
        let states: Option<Vec<String>> = row.try_get("o_states")?;
        let replicas: Option<Vec<Option<String>>> = row.try_get("o_replicas")?;
        let states = states.unwrap_or_default().into_iter();
        let states = states.zip(replicas.unwrap_or_default());
        for (token, (state, replica)) in tokens.unwrap_or_default().iter().zip(states) {
            if let Some(lease) = by_token.get(token) {
                self.held
                    .update(lease, |lease| self.apply(lease, &state, replica, end));
            }
        }
        self.counters.set_stats(super::rows::counts(row, "o_")?);
        if row.try_get("o_is_maintenance_due")? {
            self.maintenance_due.notify_one();
        }
        Ok(())
    }

    fn apply(&self, lease: &LeaseState, state: &str, replica: Option<String>, end: BootTime) {
        match state {
            "renewed" => lease.expire_at(end),
            "fenced" => {
                let replica = replica.map(Into::into);
                Counters::add(&self.counters.fenced);
                lease.revoke(LeaseStatus::Fenced { replica });
            }
            "deleted" => lease.revoke(LeaseStatus::Deleted),
            // Something else is happening to the row: the next renewal sees it.
            _ => {}
        }
    }

    /// Advances the clock of idle time, and evicts sessions until the limits
    /// hold, unless another replica is doing so.
    pub(super) async fn maintain(&self) -> Result<(), SessionError> {
        let limits = &self.settings.limits;
        let max_tombstones = i64::try_from(limits.max_tombstones).unwrap_or(i64::MAX);
        loop {
            let statement = sqlx::query("SELECT * FROM session_maintain($1, $2, $3, $4, $5)")
                .bind(to_i64(limits.max_sessions))
                .bind(to_i64(limits.max_bytes))
                .bind(self.max_idle_ms())
                .bind(max_tombstones)
                .bind(MAX_EVICTIONS);
            let row = self.observe(self.database.fetch_one(statement).await)?;
            let read = |column| u64_of(&row, column).map_err(rejected);
            let (idle, capacity) = (read("o_idle")?, read("o_capacity")?);
            self.counters.add_evicted(EvictionReason::Idle, idle);
            self.counters
                .add_evicted(EvictionReason::Capacity, capacity);
            if idle + capacity == 0 {
                return Ok(());
            }
        }
    }
}
