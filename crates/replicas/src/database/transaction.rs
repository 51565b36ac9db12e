//! A transaction whose statements always end.

use sqlx::postgres::PgRow;

use super::connection::BusyConnection;
use super::{DatabaseError, Statement};

/// A transaction. If it is dropped before [`Transaction::commit`], its
/// connection is closed and the database rolls it back.
#[derive(Debug)]
pub struct Transaction {
    connection: BusyConnection,
}

impl Transaction {
    pub(super) async fn begin(mut connection: BusyConnection) -> Result<Self, DatabaseError> {
        connection.fetch_all(sqlx::query("BEGIN")).await?;
        Ok(Self { connection })
    }

    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// As `Database::fetch_all`. After an error the transaction can only be
    /// dropped.
    pub async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, DatabaseError> {
        self.connection.fetch_all(statement).await
    }

    /// Commits. If the error is `Unavailable` or `Timeout`, the outcome is not
    /// known.
    ///
    /// # Errors
    /// As `Database::fetch_all`.
    pub async fn commit(mut self) -> Result<(), DatabaseError> {
        self.connection.fetch_all(sqlx::query("COMMIT")).await?;
        self.connection.release();
        Ok(())
    }
}
