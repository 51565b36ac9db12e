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
mod publishing;
mod quantisation;
mod removal;
pub mod shared;
mod sharing;
mod storage;
mod upload;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::Precision;
use charlstm_model::model_file::ModelMetadata;
use charlstm_model::model_id::{ModelReference, VersionReference, check_name};
use charlstm_store::session::Owner;

use self::cache::Cache;
pub use self::copying::{UsedName, VersionCopy};
pub use self::decode_devices::DecodeDevices;
pub use self::error::RepositoryError;
use self::index::Index;
pub use self::loading::LoadedModel;
pub use self::publisher::Publisher;
pub use self::quantisation::{MAX_LOSS, Quantisation};
use self::sharing::Sharing;
use self::storage::Storage;
pub use self::upload::Upload;
pub use charlstm_model::ModelId;

/// Maximum bytes of loaded models that stay in memory after their last use.
/// Models in use do not count.
const IDLE_MODEL_BYTES: usize = 1024 * 1024 * 1024;

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
