//! The repository as the trainings see it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::learn::{InitialModel, Models, ModelsError, TrainedModel};
use crate::model::checkpoint::{ModelFacts, ModelFile};
use crate::repository::{Repository, RepositoryError};

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

    fn publish(&self, name: &str, model: TrainedModel) -> Result<u64, ModelsError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let file = ModelFile {
            parameters: model.parameters,
            vocabulary: model.vocabulary,
            facts: ModelFacts {
                recipe: model.facts.recipe,
                epochs: model.facts.epochs,
                steps: model.facts.steps,
                corpus_chars: model.facts.corpus_chars,
                corpus_sha256: model.facts.corpus_sha256,
                training_id: model.facts.training_id,
                train_loss: model.facts.train_loss,
                validation_loss: model.facts.validation_loss,
                created_unix_ms: now.map_or(0, |time| time.as_millis() as u64),
            },
        };
        Ok(Repository::publish(self, name, &file)?.version)
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
            RepositoryError::Damaged { .. }
            | RepositoryError::NotAModel(_)
            | RepositoryError::Io { .. } => Self::Broken(text),
        }
    }
}
