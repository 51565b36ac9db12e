//! The end of a training that took all its steps: its weights become a
//! version of its model, once.

use super::{Failure, Run};
use crate::events::{Finished, State};
use charlstm_model::model_file::{ModelFile, ModelMetadata};

impl Run<'_> {
    /// Publishes the weights of the best epoch, or the last where nothing is
    /// held out. Where a crash came between that and the last event of the
    /// training, the version is there already, and is the one that is reported.
    pub(super) fn publish(&mut self) -> Result<Finished, Failure> {
        let models = &self.context.models;
        let facts = self.job.facts();
        let name = &facts.spec.model;
        let version = match models.published_by(name, &facts.id)? {
            Some(version) => version,
            None => models.publish(name, self.model()?)?,
        };
        let (train_loss, validation_loss) = self.published_losses();
        Ok(Finished {
            state: State::Succeeded,
            version,
            train_loss,
            validation_loss,
            message: String::new(),
            best_epoch: Some(self.published_epoch()),
        })
    }

    fn model(&self) -> Result<ModelFile, Failure> {
        let mut parameters = self.learner.parameters()?;
        let mut steps = self.step;
        if let (Some(best), Some(values)) = (self.position.best, &self.best_parameters) {
            parameters.values.clone_from(values);
            steps = best.step;
        }
        let facts = self.job.facts();
        let (train_loss, validation_loss) = self.published_losses();
        Ok(ModelFile {
            parameters,
            vocabulary: self.job.vocabulary().clone(),
            facts: ModelMetadata {
                recipe: facts.spec.recipe.name().to_owned(),
                epochs: self.published_epoch(),
                steps,
                corpus_chars: facts.corpus_chars as u64,
                corpus_sha256: facts.corpus_sha256.clone(),
                training_id: facts.id.clone(),
                train_loss,
                validation_loss,
                // The repository knows when it takes the model in.
                created_unix_ms: 0,
            },
        })
    }

    /// Training and validation loss of the weights that are published.
    fn published_losses(&self) -> (Option<f64>, Option<f64>) {
        match self.position.best {
            Some(best) => (Some(best.train_loss), Some(best.validation_loss)),
            None => (self.position.train_loss, self.position.validation_loss),
        }
    }

    fn published_epoch(&self) -> u32 {
        self.position
            .best
            .map_or(self.config.epochs, |best| best.epoch)
    }
}
