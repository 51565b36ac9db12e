//! The schema of the database, as a list of changes that are applied in order.
//!
//! A migration that was released never changes, and adds only: programs of two
//! versions use one database during an upgrade. A program ignores migrations
//! that it does not know.

use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgPool;
use sqlx::{Connection, SqlSafeStr};

use super::DatabaseError;

/// All migrations: number, name, statements.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "replicas",
        include_str!("../../migrations/0001_replicas.sql"),
    ),
    (
        2,
        "sessions",
        include_str!("../../migrations/0002_sessions.sql"),
    ),
    (
        100,
        "models",
        include_str!("../../migrations/0100_models.sql"),
    ),
    (
        101,
        "trainings",
        include_str!("../../migrations/0101_trainings.sql"),
    ),
    (
        200,
        "heartbeat",
        include_str!("../../migrations/0200_heartbeat.sql"),
    ),
];

/// Number of the advisory lock under which migrations are applied: the first
/// bytes of "charlstm".
const MIGRATION_LOCK: i64 = 0x6368_6172_6c73_746d;

/// How long to wait for another program that applies migrations.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Applies the migrations that are missing, all in one transaction.
pub(super) async fn apply(pool: &PgPool) -> Result<(), DatabaseError> {
    let migrations = MIGRATIONS.iter().map(|&(version, name, statements)| {
        let statements = statements.into_sql_str();
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            statements,
            false,
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // The lock of the library belongs to the connection, which may not be one
    // for a whole session behind a pooler. This one belongs to a transaction.
    migrator.set_locking(false);
    migrator.set_ignore_missing(true);
    let applied = async {
        let mut connection = pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await?;
        migrator.run_direct(None, &mut *transaction, false).await?;
        transaction.commit().await?;
        Ok(())
    };
    let timeout = tokio::time::timeout(MAX_WAIT, applied).await;
    timeout.unwrap_or(Err(DatabaseError::Timeout(MAX_WAIT)))
}
