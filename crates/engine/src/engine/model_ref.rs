//! Which model a call needs, and how it is loaded and encodes a text.

use std::sync::Arc;

use charlstm_model::decode_step::{ARITHMETIC_REVISION, Arithmetic, Precision};
use charlstm_model::sampler::SamplingSettings;
use charlstm_repository::{LoadedModel, ModelId};
use charlstm_store::session::{ModelVersion, SessionId, SessionIdentity};

use super::{Engine, compute};
use crate::error::GenerateError;
use crate::model_source::ModelSourceError;
use crate::parameters_digest::ParametersHash;
use crate::request::UnknownCharacters;

/// Prompts of at most this many bytes are encoded on the calling task, which
/// takes some microseconds: less than to hand the work to another thread.
const INLINE_PROMPT_BYTES: usize = 4096;

impl Engine {
    /// Loads the model that a reference means now, in a precision; without
    /// one, in that of the server.
    pub(super) async fn load_reference(
        &self,
        reference: &str,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, GenerateError> {
        let models = &self.shared.models;
        let id = match models.resolve(reference) {
            Err(ModelSourceError::NotFound(_)) => {
                let stored = Arc::clone(models);
                let refreshed = tokio::task::spawn_blocking(move || stored.refresh()).await;
                refreshed
                    .unwrap_or_else(|error| Err(ModelSourceError::Failed(error.to_string())))?;
                models.resolve(reference)?
            }
            resolved => resolved?,
        };
        Ok(self.load(&id, precision).await?)
    }

    /// Loads the very model that a session belongs to, in the precision of the
    /// session.
    pub(super) async fn load_model_of(
        &self,
        session: &SessionId,
        identity: &SessionIdentity,
    ) -> Result<Arc<LoadedModel>, GenerateError> {
        let id = model_id(&identity.model);
        let gone = || GenerateError::SessionModelGone {
            id: session.clone(),
            model: id.clone(),
        };
        match self.load(&id, Some(identity.precision)).await {
            // Another file under the same name and version is another model.
            Ok(model) if model.digest != identity.digest => Err(gone()),
            Ok(model) => Ok(model),
            Err(ModelSourceError::Gone(_) | ModelSourceError::NotFound(_)) => Err(gone()),
            Err(error) => Err(error.into()),
        }
    }

    /// Loads a model; on the calling task if it is in memory.
    pub(super) async fn load(
        &self,
        id: &ModelId,
        precision: Option<Precision>,
    ) -> Result<Arc<LoadedModel>, ModelSourceError> {
        if let Some(model) = self.shared.models.loaded(id, precision) {
            return Ok(model);
        }
        let models = Arc::clone(&self.shared.models);
        let id = id.clone();
        tokio::task::spawn_blocking(move || models.load(&id, precision))
            .await
            .unwrap_or_else(|error| Err(ModelSourceError::Failed(error.to_string())))
    }
}

/// A text as a model sees it.
pub(super) struct EncodedText {
    pub(super) tokens: Vec<u32>,
    /// Characters that the model does not know, which were skipped or replaced.
    pub(super) unknown_chars: u64,
    /// Hash of the text as it was encoded, and of the sampling settings.
    pub(super) hash: ParametersHash,
}

/// Encodes a text; on the calling task if it is short.
pub(super) async fn encode(
    model: &Arc<LoadedModel>,
    text: String,
    unknown: UnknownCharacters,
    settings: &SamplingSettings,
) -> Result<EncodedText, GenerateError> {
    let is_short = text.len() <= INLINE_PROMPT_BYTES;
    let (model, settings) = (Arc::clone(model), *settings);
    let encode = move || -> Result<EncodedText, GenerateError> {
        let vocabulary = &model.vocabulary;
        let (text, unknown_chars) = match unknown {
            UnknownCharacters::Reject => (text, 0),
            UnknownCharacters::Skip => vocabulary.replace_unknown(&text, None),
            UnknownCharacters::Replace => {
                vocabulary.replace_unknown(&text, Some(model.replacement))
            }
        };
        let tokens = vocabulary.encode(&text);
        Ok(EncodedText {
            tokens: tokens.map_err(GenerateError::UnknownCharacter)?,
            unknown_chars,
            hash: ParametersHash::new(&text, &settings),
        })
    };
    compute(is_short, encode).await?
}

/// The identity of a session that starts on a model.
pub(super) fn identity_of(model: &LoadedModel) -> SessionIdentity {
    let arithmetic = model.weights.arithmetic();
    SessionIdentity {
        model: model_version(&model.id),
        digest: model.digest,
        precision: arithmetic.precision,
        revision: arithmetic.revision,
    }
}

/// Checks that a requested reference means the model of a session.
pub(super) fn check_model_of(
    session: &SessionId,
    identity: &SessionIdentity,
    requested: &str,
) -> Result<(), GenerateError> {
    if names_model(identity, requested) {
        return Ok(());
    }
    Err(GenerateError::OtherModel {
        id: session.clone(),
        model: model_id(&identity.model),
        requested: requested.to_owned(),
    })
}

/// Whether a requested reference means the model of a session: none, its name,
/// or its name and version.
pub(super) fn names_model(identity: &SessionIdentity, requested: &str) -> bool {
    let model = &identity.model;
    requested.is_empty() || *requested == *model.name || requested == model.to_string()
}

pub(super) fn model_version(id: &ModelId) -> ModelVersion {
    ModelVersion {
        name: id.name.as_str().into(),
        version: id.version,
    }
}

pub(super) fn model_id(version: &ModelVersion) -> ModelId {
    ModelId {
        name: version.name.to_string(),
        version: version.version,
    }
}

// Every arithmetic that this version has is of the one revision that the
// session storage accepts.
const _: () = assert!(
    Arithmetic::FLOAT32.revision == ARITHMETIC_REVISION
        && Arithmetic::INT8.revision == ARITHMETIC_REVISION
);
