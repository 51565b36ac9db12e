//! Named, versioned models on disk, and those that are loaded. What a model
//! file looks like inside is `model::checkpoint`'s business.
//!
//! `models/NAME/VERSION/` holds `model.safetensors` and `manifest.json`. A
//! version is written aside and renamed into place, so it is there whole or
//! not at all; it never changes, and its number is never given again.

mod cache;
mod error;
mod index;
mod name;
mod storage;
mod upload;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::check::{DecodeCheck, check};
use charlstm_model::decode_step::{DecodeDevice, DecodeWeights, Processor};
use charlstm_model::model_file::{CheckpointError, Contents, ModelFile, ModelMetadata};
use charlstm_model::torch_checkpoint;
use charlstm_model::vocabulary::Vocabulary;

use self::cache::Cache;
pub use self::error::RepositoryError;
use self::index::{Entry, Index};
pub use self::name::check_name;
use self::name::{Reference, Version};
use self::storage::{Staged, Storage};
pub use self::upload::Upload;
pub use charlstm_model::ModelId;

/// Bytes of loaded models that stay in memory after their last use. Those in
/// use stay in any case.
const IDLE_MODEL_BYTES: usize = 1024 * 1024 * 1024;

/// Bytes that a file is copied in with at a time.
const COPY_BYTES: usize = 1024 * 1024;

/// A model version in memory, ready to be stepped.
#[derive(Debug)]
pub struct LoadedModel {
    /// What it is.
    pub id: ModelId,
    /// SHA-256 of its file: another file of the same name is another model.
    pub digest: [u8; 32],
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// Its weights.
    pub weights: Arc<DecodeWeights>,
    /// What stepping it looked like on this machine, when it was loaded.
    pub check: DecodeCheck,
}

/// What is known of a model version without opening its file.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// What it is.
    pub id: ModelId,
    /// SHA-256 of its file.
    pub digest: [u8; 32],
    /// Length of its file in bytes.
    pub bytes: u64,
    /// The shape of the network.
    pub architecture: Architecture,
    /// Its characters in the order of their numbers.
    pub vocabulary: String,
    /// How it came to be.
    pub facts: ModelMetadata,
}

/// A version on disk that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedModel {
    /// What it should be.
    pub id: ModelId,
    /// What is wrong with it.
    pub reason: String,
}

/// The models of one data folder. A cheap handle; clones share everything.
///
/// Methods block on the disk, except [`Self::resolve`], [`Self::describe`]
/// and the lists, which answer from memory.
#[derive(Clone, Debug)]
pub struct Repository {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    storage: Storage,
    index: Mutex<Index>,
    /// Held while a version number is taken or a version is removed.
    moving: Mutex<()>,
    cache: Cache,
    /// The device that models are prepared for.
    device: Arc<dyn DecodeDevice>,
}

impl Repository {
    /// As [`Self::open_for`], with models that are stepped on the processor.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open(folder: &Path) -> Result<Self, RepositoryError> {
        Self::open_for(folder, Arc::new(Processor))
    }

    /// Opens `folder/models`, and makes it where it is not there yet; models
    /// are loaded to be stepped in `place`. What an interrupted write left
    /// behind is removed; a version that is not whole is logged and not
    /// served. Only one process may have it open.
    ///
    /// # Errors
    /// [`RepositoryError::Io`].
    pub fn open_for(folder: &Path, device: Arc<dyn DecodeDevice>) -> Result<Self, RepositoryError> {
        let storage = Storage::open(folder)?;
        let index = storage.scan()?;
        for damaged in index.damaged() {
            tracing::error!(model = %damaged.id, reason = damaged.reason, "a stored model is damaged; it is not served");
        }
        Ok(Self {
            shared: Arc::new(Shared {
                storage,
                index: Mutex::new(index),
                moving: Mutex::new(()),
                cache: Cache::new(IDLE_MODEL_BYTES),
                device,
            }),
        })
    }

    /// The version that a reference means: `name` or `name@latest` is the
    /// newest sound version, `name@3` that one, and the empty text the only
    /// model there is.
    ///
    /// # Errors
    /// `BadReference`, `NotFound` (with what there is), `NoModels`,
    /// `Ambiguous`, `Damaged`.
    pub fn resolve(&self, reference: &str) -> Result<ModelId, RepositoryError> {
        let index = self.index();
        if reference.is_empty() {
            return index.only();
        }
        let Reference { name, version } = Reference::parse(reference)?;
        match version {
            Version::Latest => index.latest(name),
            Version::Number(number) => index.get(name, number),
        }
        .map(|description| description.id.clone())
    }

    /// What is known of a version.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`.
    pub fn describe(&self, id: &ModelId) -> Result<Arc<ModelDescription>, RepositoryError> {
        self.index().get(&id.name, id.version)
    }

    /// The newest sound version of every model, by name.
    pub fn list(&self) -> Vec<Arc<ModelDescription>> {
        self.index().list()
    }

    /// The sound versions of a model, ascending; none where there is no such
    /// model.
    pub fn versions(&self, name: &str) -> Vec<u64> {
        self.index().versions(name)
    }

    /// Everything on disk that a reference names, damaged versions too: all
    /// versions of a name, or the one of `name@3` or `name@latest`.
    ///
    /// # Errors
    /// `BadName`, `BadReference`, `NotFound`.
    pub fn stored(&self, reference: &str) -> Result<Vec<ModelId>, RepositoryError> {
        let index = self.index();
        let Reference { name, version } = Reference::parse(reference)?;
        match version {
            Version::Latest if reference == name => index.stored(name),
            Version::Latest => Ok(vec![index.latest(name)?.id.clone()]),
            Version::Number(version) => {
                let id = ModelId {
                    name: name.to_owned(),
                    version,
                };
                index.contains(&id)?;
                Ok(vec![id])
            }
        }
    }

    /// The number of models, each name once.
    pub fn count(&self) -> usize {
        self.index().count()
    }

    /// The versions that are on disk and not served.
    pub fn damaged(&self) -> Vec<DamagedModel> {
        self.index().damaged()
    }

    /// The versions that are in memory.
    pub fn loaded(&self) -> Vec<Arc<LoadedModel>> {
        self.shared.cache.loaded()
    }

    /// Loads a version, or returns the one that is loaded. However many ask
    /// at once, it is read once. Takes some milliseconds a megabyte.
    ///
    /// # Errors
    /// `NotFound`, `Damaged` (also where its digest is found wrong now),
    /// `Device`, `Io`.
    pub fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, RepositoryError> {
        let description = self.describe(id)?;
        self.shared
            .cache
            .get_or_load(id, || self.load_weights(&description))
    }

    /// Reads a version whole, to begin a training with. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(&self, id: &ModelId) -> Result<ModelFile, RepositoryError> {
        self.read_described(&*self.describe(id)?)
    }

    /// Stores a model as the next version of `name`.
    ///
    /// # Errors
    /// `BadName`, `Io`, or `NotAModel` where the model could not be read
    /// again.
    pub fn publish(&self, name: &str, file: &ModelFile) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let mut staged = self.shared.storage.stage()?;
        staged.write(file)?;
        let contents = staged.check(None)?;
        self.publish_staged(name, staged, contents)
    }

    /// Begins to store a file whose bytes come one after the other.
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
    /// `vocabulary` is needed for a file that holds none.
    ///
    /// # Errors
    /// `BadName`, `NotAModel`, `Io`. Nothing is left behind then.
    pub fn import(
        &self,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let staged = upload.staged;
        let mut contents = staged.check(vocabulary)?;
        if !contents.has_metadata {
            // What is stored describes itself: it is written anew.
            let mut model = torch_checkpoint::sorted(staged.read(vocabulary)?);
            model.facts.created_unix_ms = now_unix_ms();
            return self.publish(name, &model);
        }
        // That training is one of another server.
        contents.facts.training_id.clear();
        self.publish_staged(name, staged, contents)
    }

    /// Checks an uploaded checkpoint of the notebook and stores it as the next
    /// version of `name`. Its form is found out from its first bytes.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_notebook(
        &self,
        name: &str,
        upload: Upload,
        vocabulary: Option<&Vocabulary>,
    ) -> Result<ModelId, RepositoryError> {
        check_name(name)?;
        let mut model = upload.staged.read_notebook(vocabulary)?;
        // Its space is not needed any more while the model is written.
        drop(upload);
        model.facts.created_unix_ms = now_unix_ms();
        self.publish(name, &model)
    }

    /// Copies a file in and stores it, as [`Self::import`].
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_file(
        &self,
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
        self.import(name, upload, vocabulary)
    }

    /// Opens the file of a version for reading. It stays readable when the
    /// version is removed meanwhile.
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

    /// Removes a version, sound or damaged. Those who have it loaded keep it.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn remove(&self, id: &ModelId) -> Result<(), RepositoryError> {
        let moving = self.moving();
        let last_version = {
            let index = self.index();
            index.contains(id)?;
            index.last_version(&id.name)
        };
        let trash = self.shared.storage.remove(id, last_version)?;
        self.index().remove(id);
        self.shared.cache.forget(id);
        drop(moving);
        trash.empty();
        Ok(())
    }

    /// Marks a version as damaged after its bytes were found altered: from
    /// now on it is not served.
    pub fn mark_damaged(&self, id: &ModelId, reason: &str) {
        tracing::error!(model = %id, reason, "a stored model is damaged; it is not served any more");
        self.index()
            .insert(id.clone(), Entry::Damaged(reason.to_owned()));
        self.shared.cache.forget(id);
    }

    /// Gives a checked file its number and moves it into place.
    fn publish_staged(
        &self,
        name: &str,
        staged: Staged,
        contents: Contents,
    ) -> Result<ModelId, RepositoryError> {
        staged.write_manifest(&contents)?;
        let _moving = self.moving();
        let next = self.index().last_version(name) + 1;
        let id = self.shared.storage.publish_staged(name, next, staged)?;
        let description = ModelDescription {
            id: id.clone(),
            digest: contents.sha256,
            bytes: contents.bytes,
            architecture: contents.architecture,
            vocabulary: contents.vocabulary.characters().iter().collect(),
            facts: contents.facts,
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
                // The disk may do better the next time.
                CheckpointError::Io(source) => io(source),
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
            tracing::error!(model = %id, "on this machine a text depends on the others in its batch");
        }
        Ok(LoadedModel {
            id: id.clone(),
            digest: description.digest,
            vocabulary: model.vocabulary,
            weights,
            check,
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Each change of the index is one insertion or removal: it is whole
        // whatever happened to the thread that held it.
        self.shared
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn moving(&self) -> MutexGuard<'_, ()> {
        self.shared
            .moving
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn now_unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests;
