//! The statement that a replica sends regularly.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use charlstm_store::session::LeaseState;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::{LISTED, PRESENT, Registry};
use crate::changes::Found;
use crate::database::DatabaseError;
use crate::sessions::LEASE;

/// How long a heartbeat may take: then there is time for another one before the
/// leases end.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// How often sessions are to be evicted and the clock of idle time moves.
const MAINTENANCE: Duration = Duration::from_secs(10);

/// The leases that a heartbeat renews.
#[derive(Debug, Default)]
pub(crate) struct Leases(pub(crate) Vec<Arc<LeaseState>>);

impl Registry {
    /// Reports that this process runs and what it does, renews leases, and records
    /// what others have changed. Called every [`super::HEARTBEAT`]. Returns what the
    /// function of the database returns.
    ///
    /// # Errors
    /// As `Database::fetch_all`.
    pub(crate) async fn send_heartbeat(&self, leases: &Leases) -> Result<PgRow, DatabaseError> {
        let shared = &self.0;
        let number = 1 + shared.heartbeats.fetch_add(1, Ordering::AcqRel);
        shared.changes.begin_heartbeat(number);
        let sent = tokio::time::timeout(TIMEOUT, self.fetch_heartbeat(number, leases)).await;
        let sent = sent.unwrap_or(Err(DatabaseError::Timeout(TIMEOUT)));
        let read = sent.and_then(|row| Ok((found(&row)?, row)));
        let found = read.as_ref().ok().map(|(found, _)| *found);
        shared.changes.end_heartbeat(number, found);
        read.map(|(_, row)| row)
    }

    async fn fetch_heartbeat(&self, number: u64, leases: &Leases) -> Result<PgRow, DatabaseError> {
        let info = self.info();
        let load = self.load_source().as_ref().map(|load| load());
        let load = load.unwrap_or_default();
        let leases = &leases.0;
        let owners: Vec<&str> = leases.iter().map(|l| l.key().owner.as_str()).collect();
        let ids: Vec<&str> = leases.iter().map(|l| l.key().id.as_str()).collect();
        let tokens = leases.iter().map(|l| Uuid::from_u128(l.token().0));
        let statement = sqlx::query(
            "SELECT * FROM replica_heartbeat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
             $13, $14, $15, $16)",
        )
        .bind(self.process())
        .bind(&*info.name)
        .bind(&info.address)
        .bind(&info.version)
        .bind(&info.precision)
        .bind(i32::try_from(load.generations_running).unwrap_or(i32::MAX))
        .bind(load.training)
        .bind(PRESENT)
        .bind(LISTED)
        .bind(self.changes().channel())
        .bind(i64::try_from(number).unwrap_or(i64::MAX))
        .bind(owners)
        .bind(ids)
        .bind(tokens.collect::<Vec<_>>())
        .bind(LEASE)
        .bind(MAINTENANCE);
        self.0.database.fetch_one(statement).await
    }
}

fn found(row: &PgRow) -> Result<Found, sqlx::Error> {
    let revision = |column| -> Result<u64, sqlx::Error> {
        let revision: i64 = row.try_get(column)?;
        Ok(u64::try_from(revision).unwrap_or(0))
    };
    Ok(Found {
        models: revision("o_models")?,
        trainings: revision("o_trainings")?,
        is_training_waiting: row.try_get("o_is_training_waiting")?,
    })
}
