//! The batches of a worker: one for each model in one precision.

use std::sync::Arc;

use charlstm_model::decode_step::DecodeError;
use charlstm_repository::LoadedModel;

use crate::batch::Batch;

/// Maximum number of models, each in one precision, that a worker keeps ready
/// while none of their generations runs.
const MAX_READY_MODELS: usize = 4;

/// Returns where the batch of a model is.
pub(super) fn position_of(batches: &[Batch], model: &LoadedModel) -> Option<usize> {
    let is_same = |batch: &Batch| Arc::ptr_eq(&batch.model().weights, &model.weights);
    batches.iter().position(is_same)
}

/// Returns the batch of a model, and creates it if there is none.
pub(super) fn batch_of<'a>(
    batches: &'a mut Vec<Batch>,
    model: &Arc<LoadedModel>,
    slots: usize,
) -> Result<&'a mut Batch, DecodeError> {
    let index = match position_of(batches, model) {
        Some(index) => index,
        None => {
            if batches.len() >= MAX_READY_MODELS
                && let Some(idle) = batches.iter().position(Batch::is_empty)
            {
                batches.remove(idle);
            }
            batches.push(Batch::new(Arc::clone(model), slots)?);
            batches.len() - 1
        }
    };
    Ok(&mut batches[index])
}
