//! Loads models: from a checked file on disk to weights that are ready for decode
//! steps, in the precision that the cost of int8 allows.

use std::sync::Arc;

use charlstm_model::decode_step::check::{DecodeCheck, check};
use charlstm_model::decode_step::{DecodeWeights, Precision};
use charlstm_model::model_file::{ModelFile, ModelFileError};
use charlstm_model::vocabulary::Vocabulary;

use super::quantisation::Quantisation;
use super::{ModelDescription, ModelId, Repository, RepositoryError, lock};

/// A model version in memory in one precision, ready for decode steps.
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

impl LoadedModel {
    /// Returns the precision of its decode steps.
    pub fn precision(&self) -> Precision {
        self.weights.arithmetic().precision
    }
}

impl Repository {
    /// Returns a version if it is in memory in a precision, as in
    /// [`Self::load`], without blocking.
    pub fn get_loaded(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Option<Arc<LoadedModel>> {
        let precision = match precision {
            Some(precision) => precision,
            None => self.precision(&*self.describe(id).ok()?)?,
        };
        let key = (id.clone(), precision);
        self.shared.cache.get(&key, || self.describe(id).is_ok())
    }

    /// Loads a version for decode steps in a precision, or returns it if it is
    /// loaded; without a precision, in its own ([`Self::precision`]).
    /// Concurrent calls read it once. Takes some milliseconds per megabyte,
    /// and longer if the cost of int8 has to be measured.
    ///
    /// # Errors
    /// `NotFound`, `Damaged` (also if its digest turns out to be wrong),
    /// `NoInt8`, `Device`, `Io`, `Unavailable`.
    pub fn load(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, RepositoryError> {
        if self.describe(id).is_err() {
            // Another replica may have published it a moment ago.
            self.refresh()?;
        }
        let precision = self.choose_precision(id, precision)?;
        let description = self.describe(id)?;
        self.shared.cache.get_or_load(
            &(id.clone(), precision),
            || self.load_weights(&description, precision),
            || self.describe(id).is_ok(),
        )
    }

    fn choose_precision(
        &self,
        id: &ModelId,
        requested: Option<Precision>,
    ) -> Result<Precision, RepositoryError> {
        match requested.unwrap_or(self.shared.devices.precision) {
            Precision::Float32 => return Ok(Precision::Float32),
            Precision::Int8 => {}
        }
        match (self.quantisation(id)?.objection(), requested) {
            (None, _) => Ok(Precision::Int8),
            (Some(_), None) => Ok(Precision::Float32),
            (Some(reason), Some(_)) => Err(RepositoryError::NoInt8 {
                id: id.clone(),
                reason,
            }),
        }
    }

    /// Returns what int8 costs a version. Measures and stores it if that was
    /// not done when the version was stored.
    fn quantisation(&self, id: &ModelId) -> Result<Quantisation, RepositoryError> {
        if let Some(known) = &self.describe(id)?.quantisation {
            return Ok(known.clone());
        }
        // Concurrent callers measure once.
        let _measuring = lock(&self.shared.measuring);
        let description = self.describe(id)?;
        if let Some(known) = &description.quantisation {
            return Ok(known.clone());
        }
        let model = self.read_described(&description)?;
        let quantisation = Quantisation::measure(&model.parameters);
        quantisation.report(id);
        let stored = match &self.shared.sharing {
            Some(sharing) => sharing.record_quantisation(id, &quantisation),
            None => self.shared.storage.write_quantisation(id, &quantisation),
        };
        if let Err(error) = stored {
            // It is a function of the file, and is measured again after the
            // next start.
            tracing::warn!(model = %id, %error, "what int8 costs this model could not be stored");
        }
        self.index().record_quantisation(id, quantisation.clone());
        Ok(quantisation)
    }

    /// Reads a whole version, to start a training from. Blocks on the disk.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn read(&self, id: &ModelId) -> Result<ModelFile, RepositoryError> {
        self.read_described(&*self.describe(id)?)
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
        let file = self.open_model(description)?;
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

    /// Reads a version, prepares its weights and checks its decode step.
    pub(super) fn load_weights(
        &self,
        description: &ModelDescription,
        precision: Precision,
    ) -> Result<LoadedModel, RepositoryError> {
        let id = &description.id;
        let model = self.read_described(description)?;
        let device = |source| RepositoryError::Device {
            id: id.clone(),
            source,
        };
        let prepared = self.shared.devices.of(precision);
        let weights = Arc::new(prepared.prepare(&model.parameters).map_err(device)?);
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
