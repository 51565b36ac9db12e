//! Conversions from the domain to protobuf that several services share.

use charlstm_proto::v1 as pb;

use charlstm_repository::{ModelDescription, Quantisation, Repository};

/// Converts a size; one that does not fit becomes the largest.
pub(super) fn to_u32(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Converts the description of a model of a repository.
pub(super) fn model(repository: &Repository, description: &ModelDescription) -> pb::Model {
    let owner = repository.owner(&description.id.name);
    let precision = repository.precision(description);
    let quantisation = description.quantisation.as_ref();
    let metadata = &description.metadata;
    let architecture = &description.architecture;
    // An imported state dict has no information about its training.
    let training = (metadata.epochs > 0 || metadata.steps > 0).then(|| pb::TrainingSpecSummary {
        recipe: metadata.recipe.clone(),
        epochs: metadata.epochs,
        steps: metadata.steps,
        corpus_chars: metadata.corpus_chars,
        corpus_sha256: metadata.corpus_sha256.clone(),
        precision: metadata.precision.clone(),
    });
    pb::Model {
        name: description.id.name.clone(),
        version: description.id.version,
        vocabulary: description.vocabulary.clone(),
        hidden_size: to_u32(architecture.hidden_size),
        num_layers: to_u32(architecture.num_layers),
        parameters: architecture.parameter_count() as u64,
        bytes: description.bytes,
        created_unix_ms: metadata.created_unix_ms,
        training_id: metadata.training_id.clone(),
        train_loss: metadata.train_loss,
        validation_loss: metadata.validation_loss,
        training,
        precision: precision.map_or_else(String::new, |precision| precision.to_string()),
        int8_loss_bits_per_char: quantisation.and_then(Quantisation::loss),
        int8_objection: quantisation
            .and_then(Quantisation::objection)
            .unwrap_or_default(),
        // A model that was deleted in the meantime still has its owner.
        owner: owner.map_or_else(String::new, String::from),
    }
}
