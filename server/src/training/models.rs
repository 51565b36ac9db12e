//! The repository as the trainings see it.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::learn::{InitialModel, Models, ModelsError};
use crate::model::checkpoint::ModelFile;
use crate::repository::{ModelId, Repository, RepositoryError};

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
