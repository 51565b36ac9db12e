//! A connection that is used for one statement or transaction at a time.

use std::time::Duration;

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, PgRow};

use super::error::until;
use super::{DatabaseError, Statement};

/// A connection taken from the pool. It is returned only by
/// [`BusyConnection::release`]; otherwise it is closed when it is dropped: it
/// may wait for a response that never comes, or be inside of a transaction.
#[derive(Debug)]
pub(super) struct BusyConnection {
    /// `None` once it was released.
    connection: Option<PoolConnection<Postgres>>,
    timeout: Duration,
}

impl BusyConnection {
    pub(super) async fn acquire(pool: &PgPool, timeout: Duration) -> Result<Self, DatabaseError> {
        Ok(Self {
            connection: Some(pool.acquire().await.map_err(DatabaseError::Unreachable)?),
            timeout,
        })
    }

    pub(super) async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, DatabaseError> {
        let connection = self.connection.as_mut();
        let connection = connection.ok_or(sqlx::Error::PoolClosed)?;
        until(self.timeout, statement.fetch_all(&mut **connection)).await
    }

    pub(super) fn release(mut self) {
        drop(self.connection.take());
    }
}

impl Drop for BusyConnection {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // Without waiting: the socket is closed, and its place in the pool
            // is free.
            drop(connection.detach());
        }
    }
}
