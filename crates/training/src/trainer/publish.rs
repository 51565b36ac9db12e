//! The end of a training that has taken all its steps: its weights become a
//! version of its model, exactly once.

use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_repository::RepositoryError;
use charlstm_store::disk_error;

use super::{Ending, Failure, Run};
use crate::events::{CheckpointFailed, EventKind, Finished, State};
use crate::job::StopRequest;

impl Run<'_> {
    /// Publishes the weights of the best epoch, or the last ones if nothing is
    /// held out.
    ///
    /// If the disk does not accept the model, it waits in memory, and the
    /// attempt is repeated until the disk does or the training is asked to
    /// stop. There is one training thread, so at most one model waits.
    pub(super) fn publish(&mut self) -> Result<Ending, Failure> {
        let mut model = None;
        let mut is_waiting = false;
        loop {
            let error = match self.try_publish(&mut model) {
                Ok(finished) => return Ok(Ending::Published(finished)),
                Err(Failure::Publish(error)) => error,
                Err(failure) => return Err(failure),
            };
            if !error.is_temporary() {
                return Err(Failure::Publish(error));
            }
            tracing::error!(%error, id = self.job.id(), "a finished model cannot be stored; the server tries again");
            if !std::mem::replace(&mut is_waiting, true) {
                let message = format!(
                    "the finished model could not be stored: {}; the server tries again until \
                     it can",
                    error.client_message()
                );
                let step = self.step;
                self.report(EventKind::CheckpointFailed(CheckpointFailed {
                    step,
                    message,
                }));
            }
            // The last checkpoint has everything that the one before it has.
            if error.disk_error().is_some_and(disk_error::is_full) && self.last_is_saved {
                match self.checkpoints.delete_previous() {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, id = self.job.id(), "the previous checkpoint cannot be deleted");
                    }
                }
            }
            let patience = self.context.intervals.publishing;
            let stop_request = self.job.wait_for_stop_request(patience);
            if stop_request != StopRequest::Nothing {
                return self.stop(stop_request);
            }
        }
    }

    /// If a crash or an error came between publishing and the last event of the
    /// training, the version exists already and is the one that is reported.
    fn try_publish(&mut self, model: &mut Option<ModelFile>) -> Result<Finished, Failure> {
        let models = &self.context.models;
        let metadata = self.job.metadata();
        let name = &metadata.spec.model;
        let published = models
            .published_by(name, &metadata.id)
            .map_err(Failure::Publish)?;
        let version = match published {
            Some(published) => published.version,
            None => {
                let model = match model {
                    Some(model) => model,
                    None => model.insert(self.model()?),
                };
                match models.publish(&metadata.publisher, name, model) {
                    // By a replica that ran the training before this one.
                    Err(RepositoryError::PublishedBefore { version }) => version,
                    published => published.map_err(Failure::Publish)?,
                }
            }
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

    fn model(&mut self) -> Result<ModelFile, Failure> {
        let (parameters, steps) = match (&self.position.best, &self.best_parameters) {
            (Some(best), Some(values)) => {
                let parameters = Parameters {
                    architecture: self.config.architecture,
                    values: values.as_ref().clone(),
                };
                (parameters, best.step)
            }
            _ => (self.last_parameters()?, self.step),
        };
        let metadata = self.job.metadata();
        let (train_loss, validation_loss) = self.published_losses();
        Ok(ModelFile {
            parameters,
            vocabulary: self.job.vocabulary().clone(),
            metadata: ModelMetadata {
                recipe: metadata.spec.recipe.name().to_owned(),
                epochs: self.published_epoch(),
                steps,
                corpus_chars: metadata.corpus_chars as u64,
                corpus_sha256: metadata.corpus_sha256.clone(),
                most_frequent: metadata.most_frequent,
                training_id: metadata.id.clone(),
                train_loss,
                validation_loss,
                precision: metadata.spec.precision.name().to_owned(),
                // Set when the model is stored.
                created_unix_ms: 0,
            },
        })
    }

    /// Returns training and validation loss of the published weights.
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
