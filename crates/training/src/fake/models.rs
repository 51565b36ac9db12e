//! Models in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use charlstm_model::model_file::ModelFile;
use charlstm_repository::{Publisher, RepositoryError};

use super::lock;
use crate::models::{InitialModel, InitialModelInfo, Models, Published};

/// Models in memory.
#[derive(Default)]
pub struct FakeModels {
    /// Models that were published, with their names.
    pub published: Mutex<Vec<(String, ModelFile)>>,
    /// Models to start from, by `name` or `name@version`, with their ids.
    pub stored: Mutex<BTreeMap<String, (String, InitialModel)>>,
    /// Errors of the next attempts to publish.
    pub errors: Mutex<VecDeque<std::io::ErrorKind>>,
    /// Attempts to publish.
    pub attempts: Mutex<u32>,
}

impl FakeModels {
    /// Returns the weights of the models that were published, in their order.
    pub fn published_weights(&self) -> Vec<Vec<f32>> {
        let published = lock(&self.published);
        let weights = published.iter();
        weights
            .map(|(_, model)| model.parameters.values.clone())
            .collect()
    }

    fn stored(&self, reference: &str) -> Result<(String, InitialModel), RepositoryError> {
        let stored = lock(&self.stored);
        stored
            .get(reference)
            .cloned()
            .ok_or_else(|| RepositoryError::NotFound {
                reference: reference.to_owned(),
                available: "none yet".to_owned(),
            })
    }
}

impl Models for FakeModels {
    fn describe(&self, reference: &str) -> Result<InitialModelInfo, RepositoryError> {
        let (id, model) = self.stored(reference)?;
        Ok(InitialModelInfo {
            id,
            vocabulary: model.vocabulary,
            architecture: model.parameters.architecture,
        })
    }

    fn read(&self, reference: &str) -> Result<InitialModel, RepositoryError> {
        Ok(self.stored(reference)?.1)
    }

    fn check_publisher(&self, _name: &str, _publisher: &Publisher) -> Result<(), RepositoryError> {
        Ok(())
    }

    fn publish(
        &self,
        _publisher: &Publisher,
        name: &str,
        model: &mut ModelFile,
    ) -> Result<u64, RepositoryError> {
        *lock(&self.attempts) += 1;
        if let Some(kind) = lock(&self.errors).pop_front() {
            return Err(RepositoryError::Io {
                path: "a test".into(),
                source: kind.into(),
            });
        }
        let mut published = lock(&self.published);
        published.push((name.to_owned(), model.clone()));
        Ok(published.len() as u64)
    }

    fn published_by(
        &self,
        name: &str,
        training_id: &str,
    ) -> Result<Option<Published>, RepositoryError> {
        let published = lock(&self.published);
        let by_training = |(_, (other, model)): &(usize, &(String, ModelFile))| {
            other == name && model.metadata.training_id == training_id
        };
        let found = published.iter().enumerate().find(by_training);
        Ok(found.map(|(place, (_, model))| Published {
            version: place as u64 + 1,
            epoch: model.metadata.epochs,
            train_loss: model.metadata.train_loss,
            validation_loss: model.metadata.validation_loss,
        }))
    }
}
