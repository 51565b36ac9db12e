//! The weights that a training starts from.

use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary_extension::extend;

use super::{Failure, TrainerContext};
use crate::job::Job;

/// Returns the weights to start from if they are those of a model. Characters
/// that it does not have get the weights that a new network would have.
pub(super) fn initial(job: &Job, context: &TrainerContext) -> Result<Option<Parameters>, Failure> {
    let spec = &job.metadata().spec;
    let Some(id) = &spec.init_from else {
        return Ok(None);
    };
    let model = context.models.read(id).map_err(|error| {
        tracing::error!(%error, id, "the model of init_from cannot be read");
        Failure::Initial(error.client_message())
    })?;
    if &model.vocabulary == job.vocabulary() {
        return Ok(Some(model.parameters));
    }
    let extended = spec.extend_vocabulary.then(|| {
        let config = job.config();
        let fresh = config
            .optimizer
            .initial
            .parameters(config.architecture, config.seed);
        extend(
            &model.parameters,
            &model.vocabulary,
            fresh,
            job.vocabulary(),
        )
    });
    match extended.flatten() {
        Some(parameters) => Ok(Some(parameters)),
        None => {
            let text = format!("{id} is not the model that it was when the training was accepted");
            Err(Failure::Initial(text))
        }
    }
}
