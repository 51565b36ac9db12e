//! The models that replicas share: a row for each version in the database, and
//! its files in the object store.
//!
//! A version is published in three steps: a row reserves its number, which
//! nobody else ever gets; its files are created; and the row is marked as
//! published. Only the last step makes it visible, so no version is seen in
//! part, and a replica that dies in between leaves nothing but a number that is
//! never used.

mod copying;
mod rows;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use charlstm_repository::shared::{NewVersion, SharedChanges, SharedModels, SharedModelsError};
use charlstm_repository::{ModelId, Repository};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::rows::{ModelRows, Publication};
use crate::blocking::Blocking;
use crate::changes::Changes;
use crate::database::{Database, DatabaseError};
use crate::object_store::{ObjectStoreError, Objects};

/// Time between two looks at what other replicas have changed: a change is seen
/// within two seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum number of version numbers that are tried: files of later versions
/// remain if an older state of the database was restored.
const MAX_NUMBERS: usize = 100;

/// How often the last step of a publication is repeated if its outcome is not
/// known.
const PUBLISH_ATTEMPTS: usize = 5;

/// Time between two attempts.
const PUBLISH_PAUSE: Duration = Duration::from_secs(1);

/// The models that replicas share.
#[derive(Debug)]
pub struct ReplicaModels {
    rows: ModelRows,
    objects: Objects,
    blocking: Blocking,
}

impl ReplicaModels {
    /// Must be called in a runtime with several threads, which the methods use
    /// from threads that may block.
    pub fn new(database: Database, objects: Objects) -> Self {
        Self {
            rows: ModelRows::new(database),
            objects,
            blocking: Blocking::current(),
        }
    }

    async fn store(&self, version: &NewVersion<'_>) -> Result<ModelId, SharedModelsError> {
        for _ in 0..MAX_NUMBERS {
            let id = self.rows.reserve(version).await?;
            match self.create_files(&id, version).await {
                Ok(()) => {}
                Err(ObjectStoreError::Exists { key, .. }) => {
                    tracing::warn!(model = %id, key, "there are other files of this version; the next number is used");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            return match self.publish_row(&id, version).await? {
                Publication::Published => Ok(id),
                Publication::Before(earlier) => {
                    self.delete_files(&id).await;
                    Err(SharedModelsError::PublishedBefore(earlier))
                }
            };
        }
        Err(SharedModelsError::Unavailable(format!(
            "{MAX_NUMBERS} version numbers of {:?} in a row have files in {}, but no rows in the \
             database: it seems to be another database than that of these files",
            version.name, self.objects
        )))
    }

    async fn create_files(
        &self,
        id: &ModelId,
        version: &NewVersion<'_>,
    ) -> Result<(), ObjectStoreError> {
        let file = model_key(id);
        self.objects.create_from_file(&file, version.file).await?;
        let manifest = version.manifest.to_owned();
        self.objects.create(&manifest_key(id), manifest).await
    }

    /// Makes a version visible. If the outcome of an attempt is not known, it
    /// is looked up by the next one.
    async fn publish_row(
        &self,
        id: &ModelId,
        version: &NewVersion<'_>,
    ) -> Result<Publication, SharedModelsError> {
        let mut attempt = 1;
        loop {
            match self.rows.publish(id, version).await {
                Err(SharedModelsError::Unavailable(error)) if attempt < PUBLISH_ATTEMPTS => {
                    tracing::warn!(model = %id, error, "a model version could not be published; trying again");
                    tokio::time::sleep(PUBLISH_PAUSE).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Deletes the files of a version that is not visible. What remains is
    /// deleted by [`Self::sweep`].
    async fn delete_files(&self, id: &ModelId) {
        let deleted = self.objects.delete_folder(&folder(id)).await;
        let recorded = match deleted {
            Ok(()) => self.rows.record_files_deleted(id).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = recorded {
            tracing::warn!(model = %id, %error, "the files of a removed model version stay in the object store for now");
        }
    }

    /// Deletes files that removed versions and interrupted publications have
    /// left in the object store.
    ///
    /// # Errors
    /// The database is not available.
    pub async fn sweep(&self) -> Result<(), SharedModelsError> {
        for id in self.rows.unneeded().await? {
            self.delete_files(&id).await;
        }
        Ok(())
    }
}

/// Keeps the index of a repository up to date with what other replicas publish
/// and remove, until `stopping`. Asks the database only if something has changed or
/// that is not known. Logs if it fails, and when it succeeds again.
pub async fn follow(repository: Repository, changes: Changes, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_failed = false;
    // Known before the last look that has succeeded.
    let mut seen = None;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let newest = changes.models();
        if newest.is_some() && newest == seen {
            continue;
        }
        let repository = repository.clone();
        let refreshed = tokio::task::spawn_blocking(move || repository.refresh()).await;
        match refreshed {
            Ok(Ok(())) => {
                seen = newest;
                if std::mem::take(&mut has_failed) {
                    tracing::info!("the shared models can be read again");
                }
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::warn!(%error, "changes of the shared models are not seen at the moment");
                }
            }
            Err(error) => {
                tracing::error!(%error, "reading the shared models failed");
            }
        }
    }
}

impl SharedModels for ReplicaModels {
    fn changes(&self, revision: u64) -> Result<SharedChanges, SharedModelsError> {
        self.blocking.wait(self.rows.changes(revision))
    }

    fn publish(&self, version: &NewVersion<'_>) -> Result<ModelId, SharedModelsError> {
        self.blocking.wait(self.store(version))
    }

    fn fetch(&self, id: &ModelId, path: &Path) -> Result<(), SharedModelsError> {
        let key = model_key(id);
        Ok(self.blocking.wait(self.objects.download(&key, path))?)
    }

    fn remove(&self, id: &ModelId) -> Result<(), SharedModelsError> {
        self.blocking.wait(async {
            self.rows.remove(id).await?;
            self.delete_files(id).await;
            Ok(())
        })
    }

    fn record_quantisation(&self, id: &ModelId, text: &str) -> Result<(), SharedModelsError> {
        self.blocking.wait(self.rows.record_quantisation(id, text))
    }
}

fn folder(id: &ModelId) -> String {
    format!("models/{}/{}", id.name, id.version)
}

fn model_key(id: &ModelId) -> String {
    format!("{}/model.safetensors", folder(id))
}

fn manifest_key(id: &ModelId) -> String {
    format!("{}/manifest.json", folder(id))
}

impl From<ObjectStoreError> for SharedModelsError {
    fn from(error: ObjectStoreError) -> Self {
        match error {
            ObjectStoreError::Local { source, .. } => Self::Local(source),
            ObjectStoreError::NotFound { .. } => Self::NotFound,
            error => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<DatabaseError> for SharedModelsError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(error.to_string())
    }
}
