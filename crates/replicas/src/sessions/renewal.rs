//! What is done regularly: leases are renewed, sessions evicted, counters read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use charlstm_store::session::{BootTime, EvictionReason, LeaseState, LeaseStatus, SessionError};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::counters::Counters;
use super::rows::{rejected, to_i64, to_uuid, u64_of};
use super::{LEASE, MAX_EVICTIONS, RENEWAL, Shared};
use crate::database::DatabaseError;

/// How often the database is tried while it is unavailable.
const PROBE: Duration = Duration::from_millis(500);

/// How long a renewal may take: then there is time for another one before the
/// leases end.
const RENEWAL_TIMEOUT: Duration = Duration::from_millis(2500);

/// How often sessions are evicted and counters are read.
const MAINTENANCE: Duration = Duration::from_secs(10);

/// Renews the leases of all calls until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let is_available = shared.availability.check().is_ok();
        tokio::time::sleep(if is_available { RENEWAL } else { PROBE }).await;
        shared.renew().await;
    }
}

/// Evicts sessions and reads counters until it is aborted.
pub(super) async fn maintain_regularly(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(MAINTENANCE).await;
        // Errors are logged where they occur, and it is tried again.
        if shared.availability.check().is_ok() && shared.maintain().await.is_ok() {
            let stats = shared.refresh_stats().await;
            shared.availability.observe(&stats);
        }
    }
}

impl Shared {
    /// Renews the leases of all calls with one statement, and ends the calls
    /// whose leases are gone.
    pub(super) async fn renew(&self) {
        let leases = self.held.renewable();
        if leases.is_empty() {
            if self.availability.check().is_err() {
                let probe = self.database.fetch_all(sqlx::query("SELECT 1")).await;
                self.availability.observe(&probe);
            }
            return;
        }
        let owners: Vec<&str> = leases.iter().map(|l| l.key().owner.as_str()).collect();
        let ids: Vec<&str> = leases.iter().map(|l| l.key().id.as_str()).collect();
        let tokens: Vec<Uuid> = leases.iter().map(|l| to_uuid(l.token())).collect();
        let statement = sqlx::query("SELECT * FROM session_renew($1, $2, $3, $4)")
            .bind(owners)
            .bind(ids)
            .bind(tokens)
            .bind(LEASE);
        let end = Self::lease_end();
        let renewed = tokio::time::timeout(RENEWAL_TIMEOUT, self.database.fetch_all(statement));
        let renewed = renewed
            .await
            .unwrap_or(Err(DatabaseError::Timeout(RENEWAL_TIMEOUT)));
        self.availability.observe(&renewed);
        let rows = match renewed {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, sessions = leases.len(), "leases could not be renewed");
                return;
            }
        };
        let leases: HashMap<Uuid, &Arc<LeaseState>> = leases
            .iter()
            .map(|lease| (to_uuid(lease.token()), lease))
            .collect();
        for row in &rows {
            let token: Result<Uuid, _> = row.try_get("o_token");
            if let Some(lease) = token.ok().and_then(|token| leases.get(&token)) {
                self.held.update(lease, |lease| self.apply(lease, row, end));
            }
        }
    }

    fn apply(&self, lease: &LeaseState, row: &PgRow, end: BootTime) {
        match row.try_get("o_state").unwrap_or_default() {
            "renewed" => lease.expire_at(end),
            "fenced" => {
                let replica: Option<String> = row.try_get("o_replica").unwrap_or_default();
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
