//! Which model a call needs.

use std::sync::Arc;

use super::super::error::GenerateError;
use super::super::models::{ModelSource, ModelSourceError};
use crate::sessions::{ModelKey, SessionId};
use charlstm_repository::{LoadedModel, ModelId};

/// The model that a call needs.
pub(super) enum ModelRef {
    /// The one that a reference means now.
    Reference(String),
    /// The very one that a session belongs to.
    Key(Arc<ModelKey>),
}

impl ModelRef {
    /// Loads it. Blocks.
    pub(super) fn load(
        &self,
        models: &dyn ModelSource,
    ) -> Result<Arc<LoadedModel>, ModelSourceError> {
        let key = match self {
            Self::Reference(reference) => return models.load(&models.resolve(reference)?),
            Self::Key(key) => key,
        };
        match models.load(&key.id) {
            Ok(model) if model.digest == key.digest => Ok(model),
            Ok(_) | Err(ModelSourceError::NotFound { .. }) => {
                Err(ModelSourceError::Gone(key.id.clone()))
            }
            Err(error) => Err(error),
        }
    }
}

/// The model of a session that goes on; the one asked for must not be
/// another.
pub(super) fn session_model(
    id: &SessionId,
    key: &Arc<ModelKey>,
    asked: &str,
) -> Result<ModelRef, GenerateError> {
    let ModelId { name, version } = &key.id;
    if !asked.is_empty() && asked != name && asked != format!("{name}@{version}") {
        return Err(GenerateError::OtherModel {
            id: id.clone(),
            model: key.id.clone(),
            asked: asked.to_owned(),
        });
    }
    Ok(ModelRef::Key(Arc::clone(key)))
}
