//! `charlstm-server migrate`: copies the data folder of a server into the
//! database and the object store that replicas share. Can be repeated, and
//! deletes nothing.

use std::fmt;
use std::path::Path;

use charlstm_replicas::copying::{Copied, CopyError};
use charlstm_repository::{ModelId, Repository, RepositoryError};
use charlstm_store::session::{ImportRequest, ListRequest, SessionError, SessionStorage};
use charlstm_training::copying as training_copies;
use thiserror::Error;

use crate::data_folder::{DataFolderError, TRAININGS, check_has_data, lock, open_sessions_to_copy};
use crate::serve::SharedStorage;

/// Sessions that are read at a time.
const PAGE: usize = 1000;

/// A data folder could not be copied as a whole. What was copied stays, and is
/// skipped when the command is repeated.
#[derive(Debug, Error)]
pub enum MigrateError {
    /// There is no data folder.
    #[error(transparent)]
    DataFolder(DataFolderError),
    /// It is not said where to copy it.
    #[error("name the target with --database (or --database-file) and --object-store")]
    NoTarget,
    /// A server uses the data folder.
    #[error("{0}; stop it first")]
    InUse(String),
    /// The models cannot be read.
    #[error(transparent)]
    Models(#[from] RepositoryError),
    /// Something else could not be read or copied.
    #[error("{0}")]
    Failed(String),
    /// Single parts could not be copied.
    #[error("{copied}, but not everything could be copied:\n{}", parts.join("\n"))]
    Incomplete {
        /// What was copied.
        copied: Box<Migrated>,
        /// What was not, and why.
        parts: Vec<String>,
    },
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    models: Counts,
    trainings: Counts,
    sessions: Counts,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    now: u64,
    before: u64,
}

impl Counts {
    fn add(&mut self, copied: Copied) {
        match copied {
            Copied::Now => self.now += 1,
            Copied::Before => self.before += 1,
        }
    }
}

impl fmt::Display for Migrated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (&self.models, "model versions"),
            (&self.trainings, "trainings"),
            (&self.sessions, "sessions"),
        ];
        let texts = parts.map(|(counts, name)| match counts.before {
            0 => format!("{} {name}", counts.now),
            before => format!("{} {name} ({before} were there)", counts.now),
        });
        write!(out, "copied {}", texts.join(", "))
    }
}

/// What is copied, and what was not.
struct Migration<'a> {
    storage: &'a SharedStorage,
    done: Migrated,
    failed: Vec<String>,
}

/// Copies `data` into the shared storage and its sessions into `sessions`.
///
/// # Errors
/// [`MigrateError`].
pub(crate) async fn migrate(
    data: &Path,
    storage: &SharedStorage,
    sessions: &dyn SessionStorage,
) -> Result<Migrated, MigrateError> {
    check_has_data(data).map_err(MigrateError::DataFolder)?;
    let _lock = lock(data).map_err(|error| MigrateError::InUse(error.to_string()))?;
    let mut migration = Migration {
        storage,
        done: Migrated::default(),
        failed: Vec::new(),
    };
    // A model is there before what needs it.
    migration.models(data).await?;
    migration.trainings(data).await?;
    migration.sessions(data, sessions).await?;
    match migration.failed.is_empty() {
        true => Ok(migration.done),
        false => Err(MigrateError::Incomplete {
            copied: Box::new(migration.done),
            parts: migration.failed,
        }),
    }
}

impl Migration<'_> {
    /// Counts a copy, or what prevents it. Without the storage, nothing else can
    /// be copied either.
    fn record(
        &mut self,
        name: &str,
        copied: Result<Copied, CopyError>,
        counts: impl FnOnce(&mut Migrated) -> &mut Counts,
    ) -> Result<(), MigrateError> {
        match copied {
            Ok(copied) => counts(&mut self.done).add(copied),
            Err(CopyError::Conflict(reason)) => self.failed.push(format!("{name}: {reason}")),
            Err(CopyError::Unavailable(reason)) => return Err(MigrateError::Failed(reason)),
        }
        Ok(())
    }

    async fn models(&mut self, data: &Path) -> Result<(), MigrateError> {
        let repository = Repository::open(data)?;
        let models = self.storage.models();
        for damaged in repository.damaged() {
            let text = format!("model {}: {}", damaged.id, damaged.reason);
            self.failed.push(text);
        }
        for used in repository.used_names()? {
            match models.copy_name(&used).await {
                Ok(()) => {}
                Err(CopyError::Conflict(reason)) => {
                    self.failed.push(reason);
                    continue;
                }
                Err(CopyError::Unavailable(reason)) => return Err(MigrateError::Failed(reason)),
            }
            for version in repository.versions(&used.name) {
                let id = ModelId {
                    name: used.name.clone(),
                    version,
                };
                match repository.copy_of(&id) {
                    Ok(copy) => {
                        let copied = models.copy_version(&id, &copy).await;
                        self.record(&format!("model {id}"), copied, |done| &mut done.models)?;
                    }
                    Err(error) => self.failed.push(error.to_string()),
                }
            }
        }
        Ok(())
    }

    async fn trainings(&mut self, data: &Path) -> Result<(), MigrateError> {
        let folder = data.join(TRAININGS);
        let read = training_copies::read_all(&folder);
        let (trainings, unreadable) =
            read.map_err(|error| MigrateError::Failed(format!("{}: {error}", folder.display())))?;
        let unreadable = unreadable.into_iter();
        self.failed
            .extend(unreadable.map(|id| format!("training {id}: see the log")));
        // Nothing is claimed, so no replica has a name.
        let storage = self.storage.trainings("");
        for training in trainings {
            let copied = storage.copy(&training).await;
            let name = format!("training {}", training.id);
            self.record(&name, copied, |done| &mut done.trainings)?;
        }
        Ok(())
    }

    async fn sessions(
        &mut self,
        data: &Path,
        target: &dyn SessionStorage,
    ) -> Result<(), MigrateError> {
        let failed = |error: &dyn fmt::Display| MigrateError::Failed(error.to_string());
        let source = open_sessions_to_copy(data).map_err(|error| failed(&error))?;
        let mut after = None;
        loop {
            let request = ListRequest {
                owner: None,
                max_sessions: PAGE,
                after,
            };
            let page = source.list(request).await.map_err(|error| failed(&error))?;
            for info in page.sessions {
                let name = format!("session {} of {}", info.key.id, info.key.owner);
                let record = match source.export(&info.key).await {
                    Ok(record) => record,
                    Err(error) => {
                        self.failed.push(format!("{name}: {error}"));
                        continue;
                    }
                };
                let imported = target.import(ImportRequest {
                    record,
                    owner_limit: None,
                });
                match imported.await {
                    Ok(_) => self.done.sessions.add(Copied::Now),
                    Err(SessionError::Exists) => self.done.sessions.add(Copied::Before),
                    Err(error @ SessionError::Unavailable(_)) => return Err(failed(&error)),
                    Err(error) => self.failed.push(format!("{name}: {error}")),
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        source.shutdown().await.map_err(|error| failed(&error))
    }
}
