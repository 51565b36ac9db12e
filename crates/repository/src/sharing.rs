//! The repository of a replica: the versions are shared, the folder is a cache
//! of their files, and the index follows the shared versions.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use charlstm_model::model_file::Contents;
use charlstm_store::session::Owner;

use super::file_cache::{CacheError, FileCache};
use super::index::{Entry, Index};
use super::shared::{NewVersion, SharedModels, SharedModelsError, SharedVersion};
use super::storage::{Staged, Storage};
use super::{
    DecodeDevices, ModelDescription, ModelId, Publisher, Quantisation, Repository, RepositoryError,
    lock, manifest,
};

/// Maximum bytes of cached files: some hundred models of the usual size.
const CACHED_BYTES: u64 = 10_000_000_000;

/// Where the versions of a replica are.
#[derive(Debug)]
pub(super) struct Sharing {
    models: Arc<dyn SharedModels>,
    files: FileCache,
    /// The revision that the index has. Held while the index is refreshed.
    revision: Mutex<u64>,
}

impl Repository {
    /// Opens the shared models of several replicas, with `folder` as the cache
    /// of this one; it is created if it does not exist. Blocks on the network.
    ///
    /// # Errors
    /// `Io` about the folder, `Unavailable`.
    pub fn open_shared(
        folder: &Path,
        devices: DecodeDevices,
        models: Arc<dyn SharedModels>,
    ) -> Result<Self, RepositoryError> {
        let storage = Storage::open(folder)?;
        let io = |error| RepositoryError::io(storage.folder(), error);
        let sharing = Sharing {
            models,
            files: FileCache::open(storage.folder(), CACHED_BYTES).map_err(io)?,
            revision: Mutex::new(0),
        };
        let repository = Self::with(storage, Index::default(), devices, Some(sharing));
        repository.refresh()?;
        Ok(repository)
    }

    /// Reads what other replicas have published and removed. Blocks on the
    /// network; does nothing if nothing is shared.
    ///
    /// # Errors
    /// `Unavailable`; the index stays as it is then.
    pub fn refresh(&self) -> Result<(), RepositoryError> {
        let Some(sharing) = &self.shared.sharing else {
            return Ok(());
        };
        let mut revision = lock(&sharing.revision);
        let changes = sharing.models.changes(*revision).map_err(unavailable)?;
        for version in changes.versions {
            self.follow(sharing, version);
        }
        *revision = changes.revision;
        Ok(())
    }

    /// Updates the index to a version as it is now.
    fn follow(&self, sharing: &Sharing, version: SharedVersion) {
        let SharedVersion { id, owner, texts } = version;
        self.index().record_owner(&id.name, owner);
        let Some((text, quantisation)) = texts else {
            self.index().record_last_version(&id.name, id.version);
            return self.forget(sharing, &id);
        };
        let entry = match manifest::parse(text.as_bytes(), &id) {
            Ok(mut description) => {
                description.quantisation = quantisation.and_then(|text| {
                    let read = Quantisation::from_text(text.as_bytes());
                    read.inspect_err(|error| {
                        tracing::warn!(model = %id, %error, "what int8 costs is measured again");
                    })
                    .unwrap_or_default()
                });
                Entry::Sound(Arc::new(description))
            }
            Err(reason) => {
                tracing::error!(model = %id, reason, "a shared model is damaged and is not served");
                Entry::Damaged(reason)
            }
        };
        self.index().insert(id, entry);
    }

    /// Drops a version that is no longer stored.
    fn forget(&self, sharing: &Sharing, id: &ModelId) {
        let known = self.describe(id);
        self.index().remove(id);
        self.shared.cache.forget(id);
        if let Ok(description) = known {
            sharing.files.remove(&description.digest);
        }
    }

    /// Opens the file of a version; fetches it first if it is shared and not in
    /// the cache.
    pub(super) fn open_model(
        &self,
        description: &ModelDescription,
    ) -> Result<File, RepositoryError> {
        let storage = &self.shared.storage;
        let Some(sharing) = &self.shared.sharing else {
            return storage.open_model(&description.id);
        };
        let id = &description.id;
        // Removed with its name, unless it was moved into the cache.
        let staged = storage.staged_file()?;
        let opened = sharing
            .files
            .open_or_fetch(&description.digest, &staged, |path| {
                sharing.models.fetch(id, path)
            });
        opened.map_err(|error| match error {
            CacheError::Fetch(SharedModelsError::NotFound) => {
                // Removed by another replica; the index follows soon.
                RepositoryError::NotFound {
                    reference: id.to_string(),
                    available: "it was deleted meanwhile".to_owned(),
                }
            }
            CacheError::Fetch(error) => self.shared_error(id, error),
            CacheError::OtherDigest => {
                let reason = "the shared file is not the one that was stored".to_owned();
                if self.index().mark_damaged(id, &reason) {
                    tracing::error!(model = %id, reason, "a shared model is damaged and is no longer served");
                }
                RepositoryError::Damaged {
                    id: id.clone(),
                    reason,
                }
            }
            CacheError::Io(source) => {
                RepositoryError::io(&sharing.files.path(&description.digest), source)
            }
        })
    }

    /// Removes the cached file of a shared version, because it is damaged.
    /// Returns whether the version is shared.
    pub(super) fn drop_cached_file(&self, id: &ModelId, reason: &str) -> bool {
        let Some(sharing) = &self.shared.sharing else {
            return false;
        };
        if let Ok(description) = self.describe(id) {
            tracing::error!(model = %id, reason, "the cached file of a model is damaged; it is fetched again");
            sharing.files.remove(&description.digest);
        }
        true
    }

    /// Publishes a checked file for all replicas.
    pub(super) fn publish_shared(
        &self,
        sharing: &Sharing,
        publisher: &Publisher,
        name: &str,
        staged: Staged,
        contents: Contents,
        quantisation: Option<Quantisation>,
    ) -> Result<ModelId, RepositoryError> {
        let text = |text: Result<Vec<u8>, serde_json::Error>| {
            text.map_err(io::Error::from)
                .and_then(|text| String::from_utf8(text).map_err(io::Error::other))
                .map_err(|error| RepositoryError::io(&staged.path(), error))
        };
        let manifest = text(manifest::to_text(&contents))?;
        let stored = quantisation.as_ref().map(Quantisation::to_text);
        let stored = stored.map(text).transpose()?;
        let published = sharing.models.publish(&NewVersion {
            publisher,
            name,
            file: &staged.path(),
            digest: contents.sha256,
            bytes: contents.bytes,
            manifest: &manifest,
            quantisation: stored.as_deref(),
            training_id: &contents.metadata.training_id,
        });
        let id = published.map_err(|error| match error {
            SharedModelsError::OtherOwner(owner) => RepositoryError::OtherOwner {
                name: name.to_owned(),
                owner,
            },
            SharedModelsError::PublishedBefore(version) => {
                RepositoryError::PublishedBefore { version }
            }
            SharedModelsError::Local(source) => RepositoryError::io(&staged.path(), source),
            error => unavailable(error),
        })?;
        if let Err(error) = sharing.files.insert(&contents.sha256, &staged.path()) {
            // It can be fetched.
            tracing::warn!(model = %id, %error, "a published model could not be cached");
        }
        self.record_first_owner(name, &publisher.owner);
        self.insert_published(&id, contents, quantisation);
        Ok(id)
    }

    fn record_first_owner(&self, name: &str, owner: &Owner) {
        let mut index = self.index();
        if index.owner(name).is_none() {
            index.record_owner(name, owner.clone());
        }
    }

    pub(super) fn remove_shared(
        &self,
        sharing: &Sharing,
        id: &ModelId,
    ) -> Result<(), RepositoryError> {
        self.index().contains(id)?;
        match sharing.models.remove(id) {
            // Another replica has removed it.
            Ok(()) | Err(SharedModelsError::NotFound) => {}
            Err(error) => return Err(self.shared_error(id, error)),
        }
        self.forget(sharing, id);
        Ok(())
    }

    fn shared_error(&self, id: &ModelId, error: SharedModelsError) -> RepositoryError {
        match error {
            SharedModelsError::Local(source) => {
                RepositoryError::io(&self.shared.storage.folder().join(id.to_string()), source)
            }
            error => unavailable(error),
        }
    }
}

impl Sharing {
    pub(super) fn record_quantisation(
        &self,
        id: &ModelId,
        quantisation: &Quantisation,
    ) -> Result<(), RepositoryError> {
        let text = quantisation.to_text().map_err(io::Error::from);
        let text = text.and_then(|text| String::from_utf8(text).map_err(io::Error::other));
        let text = text.map_err(|error| RepositoryError::Unavailable {
            reason: error.to_string(),
        })?;
        let recorded = self.models.record_quantisation(id, &text);
        recorded.map_err(unavailable)
    }
}

fn unavailable(error: SharedModelsError) -> RepositoryError {
    RepositoryError::Unavailable {
        reason: error.to_string(),
    }
}
