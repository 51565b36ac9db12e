//! The replicas that use the database.

mod heartbeat;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub(crate) use self::heartbeat::Leases;

use crate::changes::{self, Changes};
use crate::database::{Database, DatabaseError};

/// How often a replica reports that it runs. A lease may miss two heartbeats before
/// its call has to stop.
pub const HEARTBEAT: Duration = Duration::from_secs(3);

/// A replica whose heartbeat is older is taken to be gone: it has missed three.
const PRESENT: Duration = Duration::from_secs(10);

/// For how long a replica that is gone is listed, so that an operator sees it.
const LISTED: Duration = Duration::from_secs(10 * 60);

/// What does not change while a replica runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Its name, for people.
    pub name: Arc<str>,
    /// Where clients reach it, for people.
    pub address: String,
    /// Version of the program.
    pub version: String,
    /// Its default precision of generation.
    pub precision: String,
}

/// What a replica does at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaLoad {
    /// Number of generations in the batch.
    pub generations_running: u32,
    /// Id of the training that it runs.
    pub training: Option<String>,
}

/// A replica, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// What does not change.
    pub info: ReplicaInfo,
    /// What it did at its last heartbeat.
    pub load: ReplicaLoad,
    /// Time since its last heartbeat, by the clock of the database.
    pub heartbeat_age: Duration,
    /// Whether it is this process.
    pub is_this: bool,
}

impl Replica {
    /// Whether it is taken to be running.
    pub fn is_present(&self) -> bool {
        self.heartbeat_age < PRESENT
    }
}

/// Returns what this process does at the moment.
type LoadSource = dyn Fn() -> ReplicaLoad + Send + Sync;

/// The list of replicas, with this process in it. Clones share it.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    database: Database,
    info: ReplicaInfo,
    process: Uuid,
    changes: Changes,
    /// `None` before this process serves, and after it has left.
    load: Mutex<Option<Box<LoadSource>>>,
    /// Number of heartbeats so far.
    heartbeats: AtomicU64,
    _listener: AbortOnDropHandle<()>,
}

impl Registry {
    /// Enters this process, and begins to listen for notifications. Rows of replicas
    /// that are long gone are removed, and those of earlier processes of the same
    /// name. Must be called in a runtime.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn register(database: Database, info: ReplicaInfo) -> Result<Self, DatabaseError> {
        let process = Uuid::new_v4();
        let changes = Changes::new(process);
        let listening = changes::listen(database.clone(), changes.clone());
        let registry = Self(Arc::new(Shared {
            database,
            info,
            process,
            changes,
            load: Mutex::default(),
            heartbeats: AtomicU64::new(0),
            _listener: AbortOnDropHandle::new(tokio::spawn(listening)),
        }));
        registry.send_heartbeat(&Leases::default()).await?;
        Ok(registry)
    }

    /// Returns the random name of this process, which no other process has, even
    /// if it is a replica with the same name.
    pub fn process(&self) -> Uuid {
        self.0.process
    }

    /// Returns what this process is.
    pub fn info(&self) -> &ReplicaInfo {
        &self.0.info
    }

    /// Returns what is known of the changes of others.
    pub fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// Sets where heartbeats find out what this process does.
    pub fn report_load(&self, load: impl Fn() -> ReplicaLoad + Send + Sync + 'static) {
        *self.load_source() = Some(Box::new(load));
    }

    fn load_source(&self) -> MutexGuard<'_, Option<Box<LoadSource>>> {
        self.0.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all replicas by name, including those that have been gone for a few
    /// minutes.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn list(&self) -> Result<Vec<Replica>, DatabaseError> {
        let statement = sqlx::query(
            "SELECT *, greatest(extract(epoch FROM clock_timestamp() - heartbeat), 0)::float8 AS age
            FROM replicas ORDER BY name, started",
        );
        let rows = self.0.database.fetch_all(statement).await?;
        let replicas = rows.iter().map(|row| self.replica(row));
        Ok(replicas.collect::<Result<_, sqlx::Error>>()?)
    }

    /// Removes this process from the list. Called when it ends, after its last
    /// heartbeat.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn unregister(&self) -> Result<(), DatabaseError> {
        // What it refers to may refer to this.
        self.load_source().take();
        let statement = sqlx::query("DELETE FROM replicas WHERE process = $1").bind(self.process());
        self.0.database.fetch_all(statement).await?;
        Ok(())
    }

    fn replica(&self, row: &PgRow) -> Result<Replica, sqlx::Error> {
        let running: i32 = row.try_get("generations_running")?;
        let process: Uuid = row.try_get("process")?;
        Ok(Replica {
            info: ReplicaInfo {
                name: row.try_get::<String, _>("name")?.into(),
                address: row.try_get("address")?,
                version: row.try_get("version")?,
                precision: row.try_get("precision")?,
            },
            load: ReplicaLoad {
                generations_running: u32::try_from(running).unwrap_or(0),
                training: row.try_get("training")?,
            },
            heartbeat_age: Duration::from_secs_f64(row.try_get("age")?),
            is_this: process == self.process(),
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("info", self.info())
            .field("process", &self.process())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::test_database;

    fn info(name: &str) -> ReplicaInfo {
        ReplicaInfo {
            name: name.into(),
            address: "127.0.0.1:50051".to_owned(),
            version: "0.1.0".to_owned(),
            precision: "int8".to_owned(),
        }
    }

    #[tokio::test]
    async fn replicas_see_each_other_until_they_leave() {
        let Some(database) = test_database().await else {
            return;
        };
        let one = Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        let two = Registry::register(database, info("two")).await.unwrap();
        let load = ReplicaLoad {
            generations_running: 3,
            training: Some("t1".to_owned()),
        };
        let reported = load.clone();
        two.report_load(move || reported.clone());
        two.send_heartbeat(&Leases::default()).await.unwrap();
        let replicas = one.list().await.unwrap();
        let names: Vec<&str> = replicas.iter().map(|r| &*r.info.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(replicas[0].is_this && !replicas[1].is_this);
        assert_eq!(replicas[1].load, load);
        assert!(replicas.iter().all(Replica::is_present));
        two.unregister().await.unwrap();
        assert_eq!(one.list().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_process_replaces_an_earlier_one_of_its_name() {
        let Some(database) = test_database().await else {
            return;
        };
        let age = |seconds: u32| {
            let statement =
                format!("UPDATE replicas SET heartbeat = heartbeat - interval '{seconds} seconds'");
            let database = database.clone();
            async move {
                let statement = sqlx::query(sqlx::AssertSqlSafe(statement));
                database.fetch_all(statement).await.unwrap();
            }
        };
        Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        Registry::register(database.clone(), info("two"))
            .await
            .unwrap();
        age(20).await;
        let new = Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        let replicas = new.list().await.unwrap();
        let present: Vec<bool> = replicas.iter().map(Replica::is_present).collect();
        assert_eq!(present, [true, false]);
        age(1_000).await;
        new.send_heartbeat(&Leases::default()).await.unwrap();
        assert_eq!(new.list().await.unwrap().len(), 1);
    }

    /// Sends heartbeats until what is known of the models meets a condition.
    async fn heartbeats_until(registry: &Registry, condition: impl Fn(Option<u64>) -> bool) {
        while !condition(registry.changes().models()) {
            registry.send_heartbeat(&Leases::default()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_change_is_announced_between_heartbeats() {
        let Some(database) = test_database().await else {
            return;
        };
        let registry = Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        heartbeats_until(&registry, |known| known == Some(0)).await;
        for revision in 1..4 {
            let change = sqlx::query("UPDATE model_revision SET revision = revision + 1");
            database.fetch_all(change).await.unwrap();
            while registry.changes().models() != Some(revision) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn changes_have_to_be_asked_for_while_notifications_do_not_arrive() {
        let Some(database) = test_database().await else {
            return;
        };
        let registry = Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        heartbeats_until(&registry, |known| known.is_some()).await;
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE query LIKE 'LISTEN %' AND datname = current_database()";
        let ended = database.fetch_all(sqlx::query(end)).await.unwrap();
        assert_eq!(ended.len(), 1);
        heartbeats_until(&registry, |known| known.is_none()).await;
        let change = sqlx::query("UPDATE model_revision SET revision = revision + 1");
        database.fetch_all(change).await.unwrap();
        heartbeats_until(&registry, |known| known == Some(1)).await;
    }

    #[tokio::test]
    async fn nothing_lasts_longer_after_the_clock_was_set_back() {
        let Some(database) = test_database().await else {
            return;
        };
        let registry = Registry::register(database.clone(), info("one"))
            .await
            .unwrap();
        // As a clock writes that is an hour ahead.
        for statement in [
            "INSERT INTO session_leases VALUES ('o', 's', gen_random_uuid(), gen_random_uuid(),
                'gone', clock_timestamp() + interval '1 hour', false)",
            "INSERT INTO trainings (id, owner, metadata, state, lease_until, revision)
                VALUES ('t', 'o', '', 'running', clock_timestamp() + interval '1 hour', 1)",
            "INSERT INTO replicas (process, name, address, version, precision, heartbeat,
                generations_running) VALUES (gen_random_uuid(), 'gone', '', '', '',
                clock_timestamp() + interval '1 hour', 0)",
        ] {
            database.fetch_all(sqlx::query(statement)).await.unwrap();
        }
        registry.send_heartbeat(&Leases::default()).await.unwrap();
        let ahead = sqlx::query(
            "SELECT greatest((SELECT max(until) FROM session_leases),
                (SELECT max(lease_until) FROM trainings), (SELECT max(heartbeat) FROM replicas))
                > clock_timestamp() + interval '10 s' AS any",
        );
        let row = database.fetch_one(ahead).await.unwrap();
        assert!(!row.try_get::<bool, _>("any").unwrap());
    }
}
