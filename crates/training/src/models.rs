//! Where trainings find models to start from and publish what they trained: a
//! trait, and its implementation by the repository.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use charlstm_model::model_file::ModelFile;
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;
use thiserror::Error;

use charlstm_repository::{ModelId, Repository, RepositoryError};

/// A model to begin with.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialModel {
    /// Its name and version, as `name@version`.
    pub id: String,
    /// Its characters.
    pub vocabulary: Vocabulary,
    /// Its weights.
    pub parameters: Parameters,
}

/// A model could not be found, read or stored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelsError {
    /// The text names no model.
    #[error("{0}")]
    BadReference(String),
    /// There is no such model; the text says which there are.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be read or written; the text is for the log.
    #[error("{0}")]
    Broken(String),
    /// The disk has no room for it.
    #[error("the server's data folder has no room left")]
    DiskFull,
}

/// Where models are found and published. All methods block.
pub trait Models: Send + Sync {
    /// A model by `name` or `name@version`.
    ///
    /// # Errors
    /// An unknown model, or one that cannot be read.
    fn find(&self, reference: &str) -> Result<InitialModel, ModelsError>;
    /// Stores a model as the next version of its name; returns the version.
    /// When that was is written into its facts.
    ///
    /// # Errors
    /// A disk that does not take it.
    fn publish(&self, name: &str, model: ModelFile) -> Result<u64, ModelsError>;
    /// The version of a name that a training has published, where it has.
    ///
    /// # Errors
    /// A model that cannot be read.
    fn published_by(&self, name: &str, training_id: &str) -> Result<Option<u64>, ModelsError>;
}

impl Models for Repository {
    fn find(&self, reference: &str) -> Result<InitialModel, ModelsError> {
        let id = self.resolve(reference)?;
        let model = self.read(&id)?;
        Ok(InitialModel {
            id: id.to_string(),
            vocabulary: model.vocabulary,
            parameters: model.parameters,
        })
    }

    fn publish(&self, name: &str, mut model: ModelFile) -> Result<u64, ModelsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        model.facts.created_unix_ms = now.map_or(0, |time| time.as_millis() as u64);
        Ok(Repository::publish(self, name, &model)?.version)
    }

    fn published_by(&self, name: &str, training_id: &str) -> Result<Option<u64>, ModelsError> {
        for version in self.versions(name) {
            let id = ModelId {
                name: name.to_owned(),
                version,
            };
            match self.describe(&id) {
                Ok(model) if model.facts.training_id == training_id => {
                    return Ok(Some(version));
                }
                // One that was deleted meanwhile is not the one.
                Ok(_) | Err(RepositoryError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

impl From<RepositoryError> for ModelsError {
    fn from(error: RepositoryError) -> Self {
        let text = error.to_string();
        match error {
            RepositoryError::BadName(_) | RepositoryError::BadReference(_) => {
                Self::BadReference(text)
            }
            RepositoryError::NotFound { .. }
            | RepositoryError::NoModels
            | RepositoryError::Ambiguous { .. } => Self::NotFound(text),
            RepositoryError::Io { ref source, .. } if is_full(source) => Self::DiskFull,
            RepositoryError::Damaged { .. }
            | RepositoryError::Device { .. }
            | RepositoryError::NotAModel(_)
            | RepositoryError::Io { .. } => Self::Broken(text),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}
