//! A model without training, for servers that cannot train.

use charlstm_model::architecture::Architecture;
use charlstm_model::model_file::{ModelFile, ModelMetadata};
use charlstm_model::parameters::Parameters;
use charlstm_model::vocabulary::Vocabulary;

/// A small vocabulary.
pub(crate) const LETTERS: &str = "\n abcdefghij";

/// Returns a small model of these characters. Its weights vary, and are at most half of
/// `scale`.
pub(crate) fn untrained_model(characters: impl Iterator<Item = char>, scale: f32) -> ModelFile {
    let vocabulary = Vocabulary::of(characters);
    let mut parameters = Parameters::zeros(Architecture {
        vocabulary_size: vocabulary.len(),
        hidden_size: 24,
        num_layers: 2,
    });
    for (index, value) in parameters.values.iter_mut().enumerate() {
        *value = ((index * 31 % 97) as f32 / 97.0 - 0.5) * scale;
    }
    ModelFile {
        parameters,
        vocabulary,
        metadata: ModelMetadata::default(),
    }
}
