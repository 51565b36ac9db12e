//! The replicas that use the database.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::database::{Database, DatabaseError};

/// How often a replica reports that it runs.
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

/// The list of replicas, with this process in it. Clones share it.
#[derive(Clone, Debug)]
pub struct Registry {
    database: Database,
    info: Arc<ReplicaInfo>,
    process: Uuid,
}

impl Registry {
    /// Enters this process. Rows of replicas that are long gone are removed, and
    /// those of earlier processes of the same name.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn register(database: Database, info: ReplicaInfo) -> Result<Self, DatabaseError> {
        let registry = Self {
            database,
            info: Arc::new(info),
            process: Uuid::new_v4(),
        };
        registry.heartbeat(&ReplicaLoad::default()).await?;
        Ok(registry)
    }

    /// Returns the random name of this process, which no other process has, even
    /// if it is a replica with the same name.
    pub fn process(&self) -> Uuid {
        self.process
    }

    /// Returns what this process is.
    pub fn info(&self) -> &ReplicaInfo {
        &self.info
    }

    /// Reports that this process runs and what it does. Called every
    /// [`HEARTBEAT`].
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn heartbeat(&self, load: &ReplicaLoad) -> Result<(), DatabaseError> {
        let info = &self.info;
        let statement = sqlx::query(
            "WITH gone AS (
                DELETE FROM replicas WHERE process <> $1 AND heartbeat < clock_timestamp() -
                    CASE WHEN name = $2 THEN $8::interval ELSE $9::interval END
            )
            INSERT INTO replicas
                (process, name, address, version, precision, generations_running, training)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (process) DO UPDATE SET heartbeat = clock_timestamp(),
                generations_running = excluded.generations_running, training = excluded.training",
        )
        .bind(self.process)
        .bind(&*info.name)
        .bind(&info.address)
        .bind(&info.version)
        .bind(&info.precision)
        .bind(i32::try_from(load.generations_running).unwrap_or(i32::MAX))
        .bind(&load.training)
        .bind(PRESENT)
        .bind(LISTED);
        self.database.fetch_all(statement).await?;
        Ok(())
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
        let rows = self.database.fetch_all(statement).await?;
        let replicas = rows.iter().map(|row| self.replica(row));
        Ok(replicas.collect::<Result<_, sqlx::Error>>()?)
    }

    /// Removes this process from the list. Called when it ends.
    ///
    /// # Errors
    /// As [`Database::fetch_all`].
    pub async fn unregister(&self) -> Result<(), DatabaseError> {
        let statement = sqlx::query("DELETE FROM replicas WHERE process = $1").bind(self.process);
        self.database.fetch_all(statement).await?;
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
            is_this: process == self.process,
        })
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
        two.heartbeat(&load).await.unwrap();
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
        new.heartbeat(&ReplicaLoad::default()).await.unwrap();
        assert_eq!(new.list().await.unwrap().len(), 1);
    }
}
