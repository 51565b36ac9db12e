//! The connection to PostgreSQL.

mod connection;
mod error;
mod migrations;
mod transaction;
mod url;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions, Connection, Postgres, Row};

pub use self::error::DatabaseError;
pub use self::transaction::Transaction;
pub use self::url::DatabaseUrl;

use self::connection::BusyConnection;
use self::error::until;

/// A statement with its arguments.
pub type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// A connection that was idle for longer is tested before it is used: the
/// database may have been restarted in between. Under load nothing is tested.
const TESTED_AFTER: Duration = Duration::from_secs(1);

/// Number of probes for a pooler in transaction mode: one may miss it if others begin
/// transactions at the same moment.
const POOLER_PROBES: u32 = 4;

/// Returns the statement that asks for the process of PostgreSQL that serves a connection.
fn ask_for_process<'q>() -> Statement<'q> {
    sqlx::query("SELECT pg_backend_pid()")
}

fn process_id(rows: &[PgRow]) -> Result<i32, sqlx::Error> {
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

/// How the database is used.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Where it is.
    pub url: DatabaseUrl,
    /// Maximum number of connections of this process, besides the one on which it
    /// listens for notifications. PostgreSQL accepts 100 by default, which the
    /// replicas share.
    pub max_connections: u32,
    /// How long to wait for a free connection, including a new one.
    pub acquire_timeout: Duration,
    /// How long to wait for the response to one statement. Then its connection
    /// is closed, and whether the statement was carried out is not known.
    pub statement_timeout: Duration,
}

impl DatabaseSettings {
    /// 16 connections, 2 s for a connection and 4 s for a statement: both
    /// together are shorter than a lease.
    pub fn new(url: DatabaseUrl) -> Self {
        Self {
            url,
            max_connections: 16,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(4),
        }
    }

    fn options(&self) -> PgConnectOptions {
        // Statements are logged by the code that sends them, with their meaning.
        self.url.options().clone().disable_statement_logging()
    }
}

/// A pool of connections. Clones share it.
///
/// Every method ends after at most the acquire and the statement timeout. A
/// connection whose statement timed out or was dropped half-way is closed and
/// not used again. Dropping a future is safe; its statement may still be
/// carried out.
#[derive(Clone, Debug)]
pub struct Database {
    pool: PgPool,
    settings: Arc<DatabaseSettings>,
}

impl Database {
    /// Connects, and applies the migrations that are missing. Several programs
    /// may do so at the same time: they take turns.
    ///
    /// # Errors
    /// `Unreachable` if there is no connection, `Migration` if the schema cannot
    /// be brought up to date.
    pub async fn connect(settings: DatabaseSettings) -> Result<Self, DatabaseError> {
        let options = settings.options();
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, usage| {
                Box::pin(async move {
                    if usage.idle_for > TESTED_AFTER {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(options)
            .await
            .map_err(DatabaseError::Unreachable)?;
        migrations::apply(&pool).await?;
        Ok(Self {
            pool,
            settings: Arc::new(settings),
        })
    }

    /// Where the database is; the password is masked when it is printed.
    pub fn url(&self) -> &DatabaseUrl {
        &self.settings.url
    }

    /// Runs one statement and returns its rows.
    ///
    /// # Errors
    /// `Unreachable` if it was not sent, `Unavailable` or `Timeout` if it is not
    /// known whether it was carried out, `Statement` if the database rejects it.
    pub async fn fetch_all(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, DatabaseError> {
        let mut connection = self.acquire().await?;
        let result = connection.fetch_all(statement).await;
        if !result.as_ref().is_err_and(DatabaseError::is_unavailable) {
            connection.release();
        }
        result
    }

    /// As [`Self::fetch_all`], for a statement that returns exactly one row.
    ///
    /// # Errors
    /// As [`Self::fetch_all`].
    pub async fn fetch_one(&self, statement: Statement<'_>) -> Result<PgRow, DatabaseError> {
        let mut rows = self.fetch_all(statement).await?;
        match rows.len() {
            1 => Ok(rows.remove(0)),
            _ => Err(sqlx::Error::RowNotFound.into()),
        }
    }

    /// Begins a transaction. It is rolled back if it is dropped.
    ///
    /// # Errors
    /// As [`Self::fetch_all`].
    pub async fn begin(&self) -> Result<Transaction, DatabaseError> {
        Transaction::begin(self.acquire().await?).await
    }

    /// Opens a connection for notifications, which reports when it is lost.
    ///
    /// # Errors
    /// `Unreachable`.
    pub(crate) async fn listener(&self) -> Result<PgListener, DatabaseError> {
        // A pool of its own: one whose connection hangs keeps its place for long.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.settings.acquire_timeout);
        let connect = async {
            let pool = pool.connect_with(self.settings.options()).await?;
            PgListener::connect_with(&pool).await
        };
        let mut listener = connect.await.map_err(DatabaseError::Unreachable)?;
        listener.eager_reconnect(false);
        Ok(listener)
    }

    /// Returns whether a connection is always served by the same process of PostgreSQL. If
    /// not, a pooler in transaction mode is in between: then `LISTEN` must not be used,
    /// because the notifications would arrive on the connections of others, which fail.
    ///
    /// A pooler gives itself away by what it does with the process of an idle connection: it
    /// serves the next transaction, or each statement is served by the next process in turn.
    ///
    /// # Errors
    /// As [`Self::fetch_all`].
    pub(crate) async fn has_own_process(
        &self,
        listener: &mut PgListener,
    ) -> Result<bool, DatabaseError> {
        let timeout = self.settings.statement_timeout;
        for _ in 0..POOLER_PROBES {
            let before = until(timeout, ask_for_process().fetch_all(&mut *listener)).await?;
            let mut transaction = self.begin().await?;
            let other = transaction.fetch_all(ask_for_process()).await?;
            let after = until(timeout, ask_for_process().fetch_all(&mut *listener)).await?;
            transaction.commit().await?;
            let own = process_id(&before)?;
            if process_id(&after)? != own || process_id(&other)? == own {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn acquire(&self) -> Result<BusyConnection, DatabaseError> {
        BusyConnection::acquire(&self.pool, self.settings.statement_timeout).await
    }

    /// Closes all connections, after the statements that run.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
