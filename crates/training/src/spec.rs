//! The specification of a training as a client sends it, and the resolved one.
//! `resolve` makes the second from the first, with the missing values of a
//! `recipe`. Corpus and memory are checked elsewhere.

mod recipe;
mod resolve;
mod text_length;

use charlstm_model::architecture::Architecture;
use charlstm_model::learner::{Techniques, TrainingPrecision};
use charlstm_model::optimizer_config::OptimizerConfig;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::recipe::Recipe;

#[cfg(test)]
mod tests;

/// A training as a client specifies it. `None` is the default of the recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingSpec {
    /// Name of the model; the training publishes a new version of it.
    pub model: String,
    /// Width of each LSTM layer.
    pub hidden_size: Option<u32>,
    /// Number of LSTM layers.
    pub num_layers: Option<u32>,
    /// Sequences in a batch.
    pub batch_size: Option<u32>,
    /// Characters in a sequence.
    pub sequence_length: Option<u32>,
    /// Passes over the training text.
    pub epochs: Option<u32>,
    /// Probability of dropping an activation.
    pub dropout: Option<f64>,
    /// Step size of the optimizer.
    pub learning_rate: Option<f64>,
    /// Maximum norm of the gradient.
    pub clip_norm: Option<f64>,
    /// Fraction of the text, at its end, that is held out.
    pub validation_fraction: Option<f64>,
    /// Seed of all random choices.
    pub seed: Option<u64>,
    /// Number of characters to skip at the beginning of the corpus.
    pub skip_chars: Option<u32>,
    /// Named preset.
    pub recipe: Option<String>,
    /// Model whose weights to start from, `name` or `name@version`.
    pub init_from: Option<String>,
    /// Whether the training is cancelled when the stream that started it breaks.
    pub cancel_on_disconnect: Option<bool>,
    /// Prompt of the sample of each epoch.
    pub sample_prime: Option<String>,
    /// Number of characters in the sample of each epoch.
    pub sample_chars: Option<u32>,
    /// Whether characters that the model of `init_from` does not have are added
    /// to its vocabulary.
    pub extend_vocabulary: Option<bool>,
    /// `auto`, `float32` or `bf16`: the type of the inputs of all products.
    pub precision: Option<String>,
    /// Decoupled weight decay.
    pub weight_decay: Option<f64>,
    /// Whether dropout drops the same outputs at all time steps.
    pub locked_dropout: Option<bool>,
    /// Probability of dropping a recurrent weight during a batch.
    pub recurrent_dropout: Option<f64>,
    /// Probability of dropping a character of the vocabulary as an input during
    /// a batch.
    pub input_dropout: Option<f64>,
    /// Decay rate of a moving average of the weights; 0: none.
    pub average_decay: Option<f64>,
}

/// A spec in which every value is set and valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// Name of the model; the training publishes a new version of it.
    pub model: String,
    /// Width of each LSTM layer.
    pub hidden_size: u32,
    /// Number of LSTM layers.
    pub num_layers: u32,
    /// Sequences in a batch.
    pub batch_size: u32,
    /// Characters in a sequence.
    pub sequence_length: u32,
    /// Passes over the training text.
    pub epochs: u32,
    /// Probability of dropping an activation.
    pub dropout: f64,
    /// Step size of the optimizer.
    pub learning_rate: f64,
    /// Maximum norm of the gradient.
    pub clip_norm: f64,
    /// Fraction of the text, at its end, that is held out.
    pub validation_fraction: f64,
    /// Seed of all random choices.
    pub seed: u64,
    /// Number of characters to skip at the beginning of the corpus.
    pub skip_chars: u32,
    /// The recipe.
    pub recipe: Recipe,
    /// Model whose weights to start from, as `name@version`.
    pub init_from: Option<String>,
    /// Whether the training is cancelled when the stream that started it breaks.
    pub cancel_on_disconnect: bool,
    /// Prompt of the sample; `None` is the first character of the corpus.
    pub sample_prime: Option<String>,
    /// Number of characters in the sample of each epoch; 0 for no sample.
    pub sample_chars: u32,
    /// Whether characters that the model of `init_from` does not have are added
    /// to its vocabulary.
    #[serde(default)]
    pub extend_vocabulary: bool,
    /// The type of the inputs of all products. A spec of version 0.1 has none:
    /// it is float32.
    #[serde(default)]
    pub precision: TrainingPrecision,
    /// Decoupled weight decay. A spec of version 0.1 has none: it is the
    /// recipe's of that version.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// Whether dropout drops the same outputs at all time steps.
    #[serde(default)]
    pub locked_dropout: bool,
    /// Probability of dropping a recurrent weight during a batch.
    #[serde(default)]
    pub recurrent_dropout: f64,
    /// Probability of dropping a character of the vocabulary as an input during
    /// a batch.
    #[serde(default)]
    pub input_dropout: f64,
    /// Decay rate of a moving average of the weights; 0: none.
    #[serde(default)]
    pub average_decay: f64,
}

/// A field of the spec is not valid. The message says what is allowed and what
/// was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field, as the contract names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl SpecError {
    /// Creates the error of one field.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }
}

impl ResolvedSpec {
    /// Returns initialisation, optimizer and schedule.
    pub fn optimizer(&self) -> OptimizerConfig {
        let mut optimizer = self.recipe.method();
        if let Some(weight_decay) = self.weight_decay {
            optimizer.weight_decay = weight_decay;
        }
        optimizer
    }

    /// Returns what is done in training only.
    pub fn techniques(&self) -> Techniques {
        Techniques {
            locked_dropout: self.locked_dropout,
            recurrent_dropout: self.recurrent_dropout,
            input_dropout: self.input_dropout,
            average_decay: (self.average_decay > 0.0).then_some(self.average_decay),
        }
    }

    /// Returns the shape of the network for a vocabulary of that size.
    pub fn architecture(&self, vocabulary_size: usize) -> Architecture {
        Architecture {
            vocabulary_size,
            hidden_size: self.hidden_size as usize,
            num_layers: self.num_layers as usize,
        }
    }
}
