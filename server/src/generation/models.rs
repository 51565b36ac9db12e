//! Where the engine gets its models from.

use std::sync::Arc;

use thiserror::Error;

use crate::repository::{LoadedModel, ModelId};

/// Finds and loads models. Both methods may block on the disk; the engine
/// calls them where blocking is allowed.
pub trait ModelSource: Send + Sync + 'static {
    /// The model that a reference means: `name` is its latest version,
    /// `name@version` that one, and an empty reference the only model there
    /// is.
    ///
    /// # Errors
    /// `NotFound`, with all that there is.
    fn resolve(&self, reference: &str) -> Result<ModelId, ModelSourceError>;

    /// A model in memory, loaded once and shared.
    ///
    /// # Errors
    /// `Gone` where it was removed, `Failed` where it cannot be read.
    fn load(&self, id: &ModelId) -> Result<Arc<LoadedModel>, ModelSourceError>;
}

/// A model cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelSourceError {
    /// There is none of that name or version.
    #[error("there is no model {reference:?}; {}", listed(available))]
    NotFound {
        /// What was asked for.
        reference: String,
        /// What there is.
        available: Vec<String>,
    },
    /// It was there and is not any more.
    #[error("version {} of model {:?} is gone", .0.version, .0.name)]
    Gone(ModelId),
    /// It is there and cannot be read. The text is for the log.
    #[error("a model could not be loaded: {0}")]
    Failed(String),
}

fn listed(available: &[String]) -> String {
    if available.is_empty() {
        "there are no models yet".to_owned()
    } else {
        format!("there is {}", available.join(", "))
    }
}
