//! Named, versioned models on disk and in memory. The format of a model file
//! is defined in [`charlstm_model::model_file`].
//!
//! `models/NAME/VERSION/` holds `model.safetensors`, `manifest.json` and
//! `quantisation.json`. A version is written in another folder and renamed into
//! place, so it exists as a whole or not at all. It never changes, and its
//! number is never reused.
//!
//! If several replicas share their models ([`shared`]), the folder holds copies
//! of files that were fetched, and the index follows the shared versions.

mod cache;
mod copying;
mod decode_devices;
mod error;
mod file_cache;
mod index;
mod loading;
mod manifest;
mod publisher;
mod quantisation;
pub mod shared;
mod sharing;
mod storage;
mod upload;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::Precision;
use charlstm_model::model_file::{Contents, ModelFile, ModelMetadata};
use charlstm_model::model_id::{ModelReference, VersionReference, check_name};
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::session::Owner;
use charlstm_store::unix_time;

use self::cache::Cache;
pub use self::copying::{UsedName, VersionCopy};
pub use self::decode_devices::DecodeDevices;
pub use self::error::RepositoryError;
use self::index::{Entry, Index};
pub use self::loading::LoadedModel;
pub use self::publisher::Publisher;
pub use self::quantisation::{MAX_LOSS, Quantisation};
use self::sharing::Sharing;
use self::storage::{Staged, Storage};
pub use self::upload::Upload;
pub use charlstm_model::ModelId;

/// Maximum bytes of loaded models that stay in memory after their last use.
/// Models in use do not count.
const IDLE_MODEL_BYTES: usize = 1024 * 1024 * 1024;

/// Bytes of a file that are copied at a time.
const COPY_BYTES: usize = 1024 * 1024;

/// A model version without its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// Name and version.
    pub id: ModelId,
    /// SHA-256 of its file.
    pub digest: [u8; 32],
    /// Length of its file in bytes.
    pub bytes: u64,
    /// The shape of the network.
    pub architecture: Architecture,
    /// Its characters in the order of their token ids.
    pub vocabulary: String,
    /// How it was trained.
    pub metadata: ModelMetadata,
    /// What int8 costs it; `None` until that is measured when the version is
    /// first loaded, if an earlier version of this program has stored it.
    pub quantisation: Option<Quantisation>,
}

/// A damaged version on disk, which is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedModel {
    /// Name and version.
    pub id: ModelId,
    /// What is wrong with it.
    pub reason: String,
}

/// The models of one data folder. A cheap handle; clones share everything.
///
/// Methods block on the disk, except [`Self::resolve`], [`Self::describe`]
/// and the lists, which only read memory.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    storage: Storage,
    index: Mutex<Index>,
    /// Held while a version is stored or removed. Locked before `index`.
    changing: Mutex<()>,
    cache: Cache,
    /// Held while the cost of int8 is measured for a stored version.
    measuring: Mutex<()>,
    devices: DecodeDevices,
    /// Where the versions are if replicas share them; the folder is a cache
    /// then.
    sharing: Option<Sharing>,
}

impl Repository {
    /// As [`Self::open_for`], with decode steps on the CPU, in int8.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open(folder: &Path) -> Result<Self, RepositoryError> {
        Self::open_for(folder, DecodeDevices::default())
    }

    /// Opens `folder/models`, and creates it if it does not exist. Models are
    /// loaded for decode steps on `devices`. Leftovers of interrupted writes are
    /// removed; a damaged version is logged and not served. Only one process
    /// may have the folder open.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open_for(folder: &Path, devices: DecodeDevices) -> Result<Self, RepositoryError> {
        let storage = Storage::open(folder)?;
        let index = storage.scan()?;
        for damaged in index.damaged() {
            tracing::error!(model = %damaged.id, reason = damaged.reason, "a stored model is damaged and is not served");
        }
        Ok(Self::with(storage, index, devices, None))
    }

    fn with(
        storage: Storage,
        index: Index,
        devices: DecodeDevices,
        sharing: Option<Sharing>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                storage,
                index: Mutex::new(index),
                changing: Mutex::new(()),
                cache: Cache::new(IDLE_MODEL_BYTES),
                measuring: Mutex::new(()),
                devices,
                sharing,
            }),
        }
    }

    /// Returns the version that a reference means: `name` or `name@latest` is
    /// the newest sound version, `name@3` that version, and the empty text the
    /// only model. A damaged model is a model: it is not skipped in favour of
    /// another one.
    ///
    /// # Errors
    /// `BadName`, `BadReference`, `NotFound` (which lists what is available),
    /// `NoModels`, `Ambiguous`, `Damaged`.
    pub fn resolve(&self, reference: &str) -> Result<ModelId, RepositoryError> {
        let index = self.index();
        if reference.is_empty() {
            return index.only();
        }
        let ModelReference { name, version } = ModelReference::parse(reference)?;
        match version {
            VersionReference::Latest => index.latest(name),
            VersionReference::Version(version) => index.get(name, version),
        }
        .map(|description| description.id.clone())
    }

    /// Describes a version.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub fn describe(&self, id: &ModelId) -> Result<Arc<ModelDescription>, RepositoryError> {
        self.index().get(&id.name, id.version)
    }

    /// Returns the newest sound version of every model, ordered by name.
    pub fn list(&self) -> Vec<Arc<ModelDescription>> {
        self.index().list()
    }

    /// Returns the sound versions of a model, ascending; none if there is no
    /// such model.
    pub fn versions(&self, name: &str) -> Vec<u64> {
        self.index().versions(name)
    }

    /// Returns the versions on disk that a reference names, including damaged
    /// ones: all versions of a name, or the one of `name@3` or `name@latest`.
    ///
    /// # Errors
    /// `BadName`, `BadReference`, `NotFound`.
    pub fn stored(&self, reference: &str) -> Result<Vec<ModelId>, RepositoryError> {
        let index = self.index();
        let ModelReference { name, version } = ModelReference::parse(reference)?;
        match version {
            VersionReference::Latest if reference == name => index.stored(name),
            VersionReference::Latest => Ok(vec![index.latest(name)?.id.clone()]),
            VersionReference::Version(version) => {
                let id = ModelId {
                    name: name.to_owned(),
                    version,
                };
                index.contains(&id)?;
                Ok(vec![id])
            }
        }
    }

    /// Returns the number of models; each name counts once.
    pub fn count(&self) -> usize {
        self.index().count()
    }

    /// Returns the damaged versions.
    pub fn damaged(&self) -> Vec<DamagedModel> {
        self.index().damaged()
    }

    /// Returns the versions that are in memory, once for each precision in
    /// which they are loaded.
    pub fn loaded(&self) -> Vec<Arc<LoadedModel>> {
        self.shared.cache.loaded()
    }

    /// Returns the precision in which a version generates if none is
    /// requested; `None` if that depends on the cost of int8, which is not
    /// known yet.
    pub fn precision(&self, description: &ModelDescription) -> Option<Precision> {
        match self.shared.devices.precision {
            Precision::Float32 => Some(Precision::Float32),
            Precision::Int8 => {
                let quantisation = description.quantisation.as_ref()?;
                Some(match quantisation.objection() {
                    None => Precision::Int8,
                    Some(_) => Precision::Float32,
                })
            }
        }
    }

    /// Returns the owner of a name, which is the principal that first published
    /// a model under it; `None` if nobody ever has.
    pub fn owner(&self, name: &str) -> Option<Owner> {
        self.index().owner(name)
    }

    /// Checks that a principal may publish and delete models under a name.
    ///
    /// # Errors
    /// `BadName`, `OtherOwner`.
    pub fn check_publisher(
        &self,
        name: &str,
        publisher: &Publisher,
    ) -> Result<(), RepositoryError> {
        check_name(name)?;
        match self.owner(name) {
            Some(owner) if !publisher.may_change(&owner) => Err(RepositoryError::OtherOwner {
                name: name.to_owned(),
                owner,
            }),
            _ => Ok(()),
        }
    }

    /// Stores a model as the next version of `name`, which belongs to the
    /// publisher from then on if it has no owner yet.
    ///
    /// # Errors
    /// `BadName`, `OtherOwner`, `VersionsUnknown`, `Io`, or `NotAModel` if the
    /// model cannot be read back. Nothing is left of it then.
    pub fn publish(
        &self,
        publisher: &Publisher,
        name: &str,
        file: &ModelFile,
    ) -> Result<ModelId, RepositoryError> {
        // Before the work, which takes seconds for a large model.
        self.check_publisher(name, publisher)?;
        let mut staged = self.shared.storage.stage()?;
        staged.write(file)?;
        let contents = staged.check(None)?;
        let quantisation = Quantisation::measure(&file.parameters);
        self.publish_staged(publisher, name, staged, contents, Some(quantisation))
    }

    /// Begins to store a file whose bytes arrive in pieces.
    ///
    /// # Errors
    /// `Io`.
    pub fn upload(&self) -> Result<Upload, RepositoryError> {
        Ok(Upload {
            staged: self.shared.storage.stage()?,
            bytes: 0,
            first: Vec::new(),
        })
    }

    /// Checks an uploaded file and stores it as the next version of `name`.
    /// `vocabulary` is needed for a file that contains none. For the publisher
    /// see [`Self::publish`].
    ///
    /// # Errors
    /// `BadName`, `NotAModel`, `OtherOwner`, `VersionsUnknown`, `Io`. Nothing is
    /// left of it then.
    pub fn import(
        &self,
        publisher: &Publisher,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let staged = upload.staged;
        let mut contents = staged.check(vocabulary)?;
        if !contents.has_metadata {
            // A stored file describes itself, so this one is rewritten.
            let mut model = torch_checkpoint::sorted(staged.read(vocabulary)?);
            drop(staged);
            model.metadata.created_unix_ms = unix_time::now_ms();
            return self.publish(publisher, name, &model);
        }
        // The training was on another server.
        contents.metadata.training_id.clear();
        // What int8 costs is measured when the model is first used: an import needs
        // little memory, whatever the size of the model.
        self.publish_staged(publisher, name, staged, contents, None)
    }

    /// Checks an uploaded PyTorch checkpoint of the notebook and stores it as
    /// the next version of `name`. Its form is recognised by its first bytes.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_torch_checkpoint(
        &self,
        publisher: &Publisher,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let mut model = upload.staged.read_torch_checkpoint(vocabulary)?;
        // Frees its space before the model is written.
        drop(upload);
        model.metadata.created_unix_ms = unix_time::now_ms();
        self.publish(publisher, name, &model)
    }

    /// Copies a file into the repository, as [`Self::import`].
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_file(
        &self,
        publisher: &Publisher,
        name: &str,
        path: &Path,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        let io = |source| RepositoryError::io(path, source);
        let mut upload = self.upload()?;
        let mut source = File::open(path).map_err(io)?;
        let mut chunk = vec![0; COPY_BYTES];
        loop {
            let count = source.read(&mut chunk).map_err(io)?;
            if count == 0 {
                break;
            }
            upload.append(&chunk[..count])?;
        }
        self.import(publisher, name, upload, vocabulary)
    }

    /// Opens the file of a version for reading. It stays readable if the
    /// version is removed.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub fn open_file(
        &self,
        id: &ModelId,
    ) -> Result<(File, Arc<ModelDescription>), RepositoryError> {
        let description = self.describe(id)?;
        let file = self.open_model(&description)?;
        Ok((file, description))
    }

    /// Removes a version, sound or damaged. Works on a full disk. A caller that
    /// has loaded the version keeps it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn remove(&self, id: &ModelId) -> Result<(), RepositoryError> {
        if let Some(sharing) = &self.shared.sharing {
            return self.remove_shared(sharing, id);
        }
        let _changing = self.changing();
        let last_version = {
            let index = self.index();
            index.contains(id)?;
            index.last_version(&id.name).ok()
        };
        let removed = self.shared.storage.remove(id, last_version)?;
        self.index().remove(id);
        self.shared.cache.forget(id);
        removed.free();
        Ok(())
    }

    /// Marks a version as damaged, because its bytes are not those that were
    /// stored. It is not served from now on; if it is a copy of a shared
    /// version, it is fetched again. Does nothing if it was removed.
    pub fn mark_damaged(&self, id: &ModelId, reason: &str) {
        if self.drop_cached_file(id, reason) {
            return;
        }
        if self.index().mark_damaged(id, reason) {
            tracing::error!(model = %id, reason, "a stored model is damaged and is no longer served");
            self.shared.cache.forget(id);
        }
    }

    /// Assigns the next version number to a checked file and moves it into
    /// place.
    fn publish_staged(
        &self,
        publisher: &Publisher,
        name: &str,
        staged: Staged,
        contents: Contents,
        quantisation: Option<Quantisation>,
    ) -> Result<ModelId, RepositoryError> {
        if let Some(sharing) = &self.shared.sharing {
            return self.publish_shared(sharing, publisher, name, staged, contents, quantisation);
        }
        if let Some(quantisation) = &quantisation {
            staged.write_quantisation(quantisation)?;
        }
        staged.write_manifest(&contents)?;
        let _changing = self.changing();
        // Again, now that nobody else can publish: the upload took its time.
        self.check_publisher(name, publisher)?;
        let next = self.index().last_version(name)? + 1;
        let owner = &publisher.owner;
        if self.owner(name).is_none() && self.index().recorded_owner(name) != *owner {
            self.shared.storage.write_owner(name, owner)?;
            self.index().record_owner(name, owner.clone());
        }
        let id = self.shared.storage.publish_staged(name, next, staged)?;
        self.insert_published(&id, contents, quantisation);
        Ok(id)
    }

    /// Adds a version that was published to the index.
    fn insert_published(
        &self,
        id: &ModelId,
        contents: Contents,
        quantisation: Option<Quantisation>,
    ) {
        tracing::info!(model = %id, "a model version was published");
        if let Some(quantisation) = &quantisation {
            quantisation.report(id);
        }
        let description = ModelDescription {
            id: id.clone(),
            digest: contents.sha256,
            bytes: contents.bytes,
            architecture: contents.architecture,
            vocabulary: contents.vocabulary.characters().iter().collect(),
            metadata: contents.metadata,
            quantisation,
        };
        self.index()
            .insert(id.clone(), Entry::Sound(Arc::new(description)));
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Each change of the index is one insertion or removal, so it is valid
        // even if the thread that held it panicked.
        lock(&self.shared.index)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        lock(&self.shared.changing)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
