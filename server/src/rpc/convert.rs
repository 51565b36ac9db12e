//! Conversions between protobuf and the domain that several services share.

use charlstm_proto::v1 as proto;

use charlstm_repository::ModelDescription;

/// A size for the wire; one that does not fit is told as the largest.
pub(super) fn to_u32(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A model as it is told to clients.
pub(super) fn model(description: &ModelDescription) -> proto::Model {
    let facts = &description.facts;
    let architecture = &description.architecture;
    // A bare state dict tells nothing of its training.
    let training = (facts.epochs > 0 || facts.steps > 0).then(|| proto::TrainingSpecSummary {
        recipe: facts.recipe.clone(),
        epochs: facts.epochs,
        steps: facts.steps,
        corpus_chars: facts.corpus_chars,
        corpus_sha256: facts.corpus_sha256.clone(),
    });
    proto::Model {
        name: description.id.name.clone(),
        version: description.id.version,
        vocabulary: description.vocabulary.clone(),
        hidden_size: to_u32(architecture.hidden_size),
        num_layers: to_u32(architecture.num_layers),
        parameters: architecture.parameter_count() as u64,
        bytes: description.bytes,
        created_unix_ms: facts.created_unix_ms,
        training_id: facts.training_id.clone(),
        train_loss: facts.train_loss,
        validation_loss: facts.validation_loss,
        training,
    }
}
