//! Named, versioned models on disk and in memory. The format of a model file
//! is defined in [`charlstm_model::model_file`].
//!
//! `models/NAME/VERSION/` holds `model.safetensors` and `manifest.json`. A
//! version is written in another folder and renamed into place, so it exists
//! as a whole or not at all. It never changes, and its number is never reused.

mod cache;
mod error;
mod index;
mod publisher;
mod storage;
mod upload;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::check::{DecodeCheck, check};
use charlstm_model::decode_step::{DecodeDevice, DecodeWeights, Processor};
use charlstm_model::model_file::{Contents, ModelFile, ModelFileError, ModelMetadata};
use charlstm_model::model_id::{ModelReference, VersionReference, check_name};
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::session::Owner;
use charlstm_store::unix_time;

use self::cache::Cache;
pub use self::error::RepositoryError;
use self::index::{Entry, Index};
pub use self::publisher::Publisher;
use self::storage::{Staged, Storage};
pub use self::upload::Upload;
pub use charlstm_model::ModelId;

/// Maximum bytes of loaded models that stay in memory after their last use.
/// Models in use do not count.
const IDLE_MODEL_BYTES: usize = 1024 * 1024 * 1024;

/// Bytes of a file that are copied at a time.
const COPY_BYTES: usize = 1024 * 1024;

/// A model version in memory, ready for decode steps.
#[derive(Debug)]
pub struct LoadedModel {
    /// Name and version.
    pub id: ModelId,
    /// SHA-256 of its file: another file of the same name is another model.
    pub digest: [u8; 32],
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// The character that stands in for unknown ones: the most frequent one of
    /// its corpus. If that is unknown, as for an imported model, a space, or
    /// the first character of the vocabulary if it has no space.
    pub replacement: char,
    /// Its weights.
    pub weights: Arc<DecodeWeights>,
    /// Result of the check of its decode step on this machine, made when it
    /// was loaded.
    pub check: DecodeCheck,
}

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
    /// The device that models are prepared for.
    device: Arc<dyn DecodeDevice>,
}

impl Repository {
    /// As [`Self::open_for`], with decode steps on the CPU.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open(folder: &Path) -> Result<Self, RepositoryError> {
        Self::open_for(folder, Arc::new(Processor))
    }

    /// Opens `folder/models`, and creates it if it does not exist. Models are
    /// loaded for decode steps on `device`. Leftovers of interrupted writes are
    /// removed; a damaged version is logged and not served. Only one process
    /// may have the folder open.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open_for(folder: &Path, device: Arc<dyn DecodeDevice>) -> Result<Self, RepositoryError> {
        let storage = Storage::open(folder)?;
        let index = storage.scan()?;
        for damaged in index.damaged() {
            tracing::error!(model = %damaged.id, reason = damaged.reason, "a stored model is damaged and is not served");
        }
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                index: Mutex::new(index),
                changing: Mutex::new(()),
                cache: Cache::new(IDLE_MODEL_BYTES),
                device,
            }),
        })
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

    /// Returns the versions that are in memory.
    pub fn loaded(&self) -> Vec<Arc<LoadedModel>> {
        self.shared.cache.loaded()
    }

    /// Returns a version if it is in memory, without blocking.
    pub fn get_loaded(&self, id: &ModelId) -> Option<Arc<LoadedModel>> {
        self.shared.cache.get(id, || self.describe(id).is_ok())
    }

    /// Loads a version, or returns it if it is loaded. Concurrent calls read it
    /// once. Takes some milliseconds per megabyte.
    ///
    /// # Errors
    /// `NotFound`, `Damaged` (also if its digest turns out to be wrong),
    /// `Device`, `Io`.
    pub fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, RepositoryError> {
        let description = self.describe(id)?;
        self.shared.cache.get_or_load(
            id,
            || self.load_weights(&description),
            || self.describe(id).is_ok(),
        )
    }

    /// Reads a whole version, to start a training from. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(&self, id: &ModelId) -> Result<ModelFile, RepositoryError> {
        self.read_described(&*self.describe(id)?)
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
        check_name(name)?;
        let mut staged = self.shared.storage.stage()?;
        staged.write(file)?;
        let contents = staged.check(None)?;
        self.publish_staged(publisher, name, staged, contents)
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
        self.publish_staged(publisher, name, staged, contents)
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
        let file = self.shared.storage.open_model(id)?;
        Ok((file, description))
    }

    /// Removes a version, sound or damaged. Works on a full disk. A caller that
    /// has loaded the version keeps it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn remove(&self, id: &ModelId) -> Result<(), RepositoryError> {
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
    /// stored. It is not served from now on. Does nothing if it was removed.
    pub fn mark_damaged(&self, id: &ModelId, reason: &str) {
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
    ) -> Result<ModelId, RepositoryError> {
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
        let description = ModelDescription {
            id: id.clone(),
            digest: contents.sha256,
            bytes: contents.bytes,
            architecture: contents.architecture,
            vocabulary: contents.vocabulary.characters().iter().collect(),
            metadata: contents.metadata,
        };
        self.index()
            .insert(id.clone(), Entry::Sound(Arc::new(description)));
        tracing::info!(model = %id, "a model version was published");
        Ok(id)
    }

    fn read_described(&self, description: &ModelDescription) -> Result<ModelFile, RepositoryError> {
        let id = &description.id;
        let damaged = |reason: String| {
            self.mark_damaged(id, &reason);
            RepositoryError::Damaged {
                id: id.clone(),
                reason,
            }
        };
        let path = self.shared.storage.model_path(id);
        let io = |source| RepositoryError::io(&path, source);
        let file = self.shared.storage.open_model(id)?;
        let length = file.metadata().map_err(io)?.len();
        let (model, contents) =
            ModelFile::read_from(file, length, None).map_err(|error| match error {
                // An error of the disk may be temporary.
                ModelFileError::Io(source) => io(source),
                error => damaged(error.to_string()),
            })?;
        if contents.sha256 != description.digest {
            return Err(damaged("its bytes are not those that were stored".into()));
        }
        Ok(model)
    }

    fn load_weights(&self, description: &ModelDescription) -> Result<LoadedModel, RepositoryError> {
        let id = &description.id;
        let model = self.read_described(description)?;
        let device = |source| RepositoryError::Device {
            id: id.clone(),
            source,
        };
        let weights = self
            .shared
            .device
            .prepare(&model.parameters)
            .map_err(device)?;
        let weights = Arc::new(weights);
        let check = check(&weights).map_err(device)?;
        if !check.row_invariant {
            tracing::error!(model = %id, "on this machine, generated text depends on the other requests in its batch");
        }
        Ok(LoadedModel {
            id: id.clone(),
            digest: description.digest,
            replacement: replacement(&model),
            vocabulary: model.vocabulary,
            weights,
            check,
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Each change of the index is one insertion or removal, so it is valid
        // even if the thread that held it panicked.
        self.shared
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.shared
            .changing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns [`LoadedModel::replacement`].
fn replacement(model: &ModelFile) -> char {
    let vocabulary = &model.vocabulary;
    let is_known = |character: &char| vocabulary.token_id(*character).is_some();
    let most_frequent = model.metadata.most_frequent.filter(is_known);
    most_frequent
        .or_else(|| Some(' ').filter(is_known))
        .unwrap_or_else(|| vocabulary.character(0))
}

#[cfg(test)]
mod tests;
