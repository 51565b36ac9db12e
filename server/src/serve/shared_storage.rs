//! Opens what a replica shares with others: models and trainings are in the
//! database and the object store, and the data folder has copies only.

use std::path::Path;
use std::sync::Arc;

use charlstm_replicas::changes::Changes;
use charlstm_replicas::database::Database;
use charlstm_replicas::models::{ReplicaModels, follow};
use charlstm_replicas::object_store::Objects;
use charlstm_replicas::trainings::ReplicaTrainings;
use charlstm_repository::{DecodeDevices, Repository};
use tokio_util::sync::CancellationToken;

use super::ServeError;
use crate::config::Config;
use crate::data_folder::{MODELS, SESSIONS, TRAININGS};

/// In the data folder: copies of what is shared.
pub(super) const CACHE: &str = "cache";

/// Folders of a data folder that is not a cache.
const OWN_DATA: [&str; 3] = [MODELS, TRAININGS, SESSIONS];

/// Database and object store of a replica.
#[derive(Clone, Debug)]
pub(crate) struct SharedStorage {
    database: Database,
    objects: Objects,
}

impl SharedStorage {
    /// Opens the object store that belongs to a database.
    ///
    /// # Errors
    /// `ObjectStore`.
    pub(crate) async fn open(object_store: &str, database: Database) -> Result<Self, ServeError> {
        let objects = Objects::open(object_store).await?;
        tracing::info!(database = %database.url(), object_store = %objects, "opened the shared storage");
        Ok(Self { database, objects })
    }

    /// Returns the shared models.
    pub(crate) fn models(&self) -> ReplicaModels {
        ReplicaModels::new(self.database.clone(), self.objects.clone())
    }

    /// Returns the shared trainings, as the replica with that name sees them.
    pub(crate) fn trainings(&self, replica: &str) -> ReplicaTrainings {
        ReplicaTrainings::new(
            replica.to_owned(),
            self.database.clone(),
            self.objects.clone(),
        )
    }

    /// Opens the models, and follows what other replicas publish and remove.
    /// Blocks on the network.
    pub(super) fn repository(
        &self,
        config: &Config,
        devices: DecodeDevices,
        changes: &Changes,
        stopping: &CancellationToken,
    ) -> Result<Repository, ServeError> {
        let models = Arc::new(self.models());
        let sweeping = Arc::clone(&models);
        let repository = Repository::open_shared(&config.data_dir.join(CACHE), devices, models)?;
        tokio::spawn(follow(
            repository.clone(),
            changes.clone(),
            stopping.clone(),
        ));
        tokio::spawn(async move {
            if let Err(error) = sweeping.sweep().await {
                tracing::warn!(%error, "files that no model version needs stay in the object store for now");
            }
        });
        Ok(repository)
    }
}

/// Rejects a data folder with data of its own: nobody would see it.
pub(super) fn check_folder(folder: &Path) -> Result<(), ServeError> {
    for name in OWN_DATA {
        let path = folder.join(name);
        let is_empty = match std::fs::read_dir(&path) {
            Ok(entries) => entries
                .flatten()
                .all(|entry| entry.file_name().to_string_lossy().starts_with('.')),
            Err(_) => true,
        };
        if !is_empty {
            return Err(ServeError::OwnData(path));
        }
    }
    Ok(())
}

/// The data folder of a replica has data of its own.
pub(super) fn own_data(path: &Path) -> String {
    format!(
        "{} has data of its own, which --database and --object-store would hide: copy it with \
         `charlstm-server migrate` and the same settings, and then choose another --data-dir",
        path.display()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_with_data_of_its_own_is_never_used_as_a_cache() {
        for name in OWN_DATA {
            let folder = tempfile::tempdir().unwrap();
            check_folder(folder.path()).unwrap();
            // What a server leaves that was stopped before it had any data.
            fs::create_dir_all(folder.path().join(name).join(".staging")).unwrap();
            fs::create_dir_all(folder.path().join(CACHE).join("models/m")).unwrap();
            check_folder(folder.path()).unwrap();
            fs::write(folder.path().join(name).join("something"), "").unwrap();
            let error = check_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains("`charlstm-server migrate`"), "{error}");
        }
    }
}
