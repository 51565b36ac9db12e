//! Why a statement failed.

use std::future::Future;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use thiserror::Error;

/// The database cannot be used, or rejected something.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// The URL is not one of a PostgreSQL database.
    #[error("invalid database URL: {0}; expected postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
    Url(String),
    /// There is no connection to the database. Nothing was sent.
    #[error("the database cannot be reached: {0}")]
    Unreachable(#[source] sqlx::Error),
    /// The connection broke, or the database cannot accept changes at the
    /// moment. Whether the statement was carried out is not known.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// The database did not answer in time.
    #[error("the database is unavailable: no response within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The schema cannot be brought up to date.
    #[error("the database cannot be migrated: {0}")]
    Migration(#[source] MigrateError),
    /// The database rejected a statement, or answered with something that was
    /// not expected.
    #[error("the database rejected a statement: {0}")]
    Statement(#[source] sqlx::Error),
}

impl DatabaseError {
    /// Whether the database may accept the same statement later.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Unavailable(_) | Self::Timeout(_)
        )
    }

    /// Whether a statement was sent whose outcome is not known.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout(_))
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        if means_unavailable(&error) {
            Self::Unavailable(error)
        } else {
            Self::Statement(error)
        }
    }
}

impl From<MigrateError> for DatabaseError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => error.into(),
            other => Self::Migration(other),
        }
    }
}

fn means_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| is_passing(&code)),
        _ => false,
    }
}

/// Whether an SQLSTATE says that the same statement may succeed later.
fn is_passing(code: &str) -> bool {
    // Connection exceptions, insufficient resources (disk full, too many
    // connections), operator intervention (restart, cancelled, not yet ready).
    ["08", "53", "57"].iter().any(|class| code.starts_with(class))
        // Serialization failure, deadlock, lock not available, input/output
        // error, and a standby that was not promoted yet.
        || ["40001", "40P01", "55P03", "58030", "25006"].contains(&code)
}

/// Waits for a statement, at most for a time.
pub(super) async fn until<T>(
    time: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DatabaseError> {
    match tokio::time::timeout(time, statement).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(DatabaseError::Timeout(time)),
    }
}
