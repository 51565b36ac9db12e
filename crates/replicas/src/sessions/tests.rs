//! The rules of session storage, and what only several replicas can get wrong.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use charlstm_store::session::testing::fixture::{Controls, Fixture, StartFuture};
use charlstm_store::session::{SessionLimits, SessionStorage, StorageFuture};
use charlstm_store::session_storage_rules;

use super::{PostgresSessions, PostgresSettings};
use crate::database::Database;
use crate::registry::{Registry, ReplicaInfo};
use crate::testing::{is_postgres_installed, test_database};

mod lossy_link;
mod several_replicas;
mod unknown_outcomes;

session_storage_rules!(postgres, start_in_database, if is_postgres_installed);

/// Controls a replica's storage, whose clock only the test moves.
struct ReplicaControls {
    sessions: Arc<PostgresSessions>,
}

impl Controls for ReplicaControls {
    fn advance(&self, time: Duration) -> StorageFuture<'_, ()> {
        Box::pin(async move {
            let milliseconds = i64::try_from(time.as_millis()).unwrap();
            let statement = sqlx::query("UPDATE session_clock SET running_ms = running_ms + $1");
            let shared = &self.sessions.shared;
            let moved = shared.database.fetch_all(statement.bind(milliseconds));
            moved.await.unwrap();
            self.settle().await;
        })
    }

    fn settle(&self) -> StorageFuture<'_, ()> {
        Box::pin(async move {
            let shared = &self.sessions.shared;
            shared.commits.wait_until_empty().await;
            shared.maintain().await.unwrap();
            shared.refresh_stats().await.unwrap();
        })
    }
}

async fn stop_clock(database: &Database) {
    let statement = sqlx::query("UPDATE session_clock SET seen = NULL");
    database.fetch_all(statement).await.unwrap();
}

async fn replica(database: Database, name: &str, limits: SessionLimits) -> Arc<PostgresSessions> {
    let info = ReplicaInfo {
        name: name.into(),
        address: String::new(),
        version: String::new(),
        precision: String::new(),
    };
    let settings = PostgresSettings {
        limits,
        cache_bytes: 1 << 20,
        registry: Registry::register(database.clone(), info).await.unwrap(),
    };
    Arc::new(PostgresSessions::start(database, settings).await.unwrap())
}

fn fixture(sessions: &Arc<PostgresSessions>) -> Fixture {
    let storage = Arc::clone(sessions) as Arc<dyn SessionStorage>;
    let sessions = Arc::clone(sessions);
    Fixture::new(storage, ReplicaControls { sessions })
}

fn start_in_database(limits: SessionLimits) -> StartFuture {
    Box::pin(async move {
        let database = test_database().await.unwrap();
        stop_clock(&database).await;
        fixture(&replica(database, "one", limits).await)
    })
}

/// Ends all leases in the database, as if their replicas had not renewed them.
async fn expire_leases(database: &Database) {
    let statement =
        sqlx::query("UPDATE session_leases SET until = clock_timestamp() - interval '1 second'");
    database.fetch_all(statement).await.unwrap();
}
