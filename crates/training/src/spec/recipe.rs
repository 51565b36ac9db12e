//! The recipes (presets): what they are called, and the values that they set.

use charlstm_model::learner::TrainingPrecision;
use charlstm_model::model_id::shortened;
use charlstm_model::optimizer_config::OptimizerConfig;
use serde::{Deserialize, Serialize};

use super::{ResolvedSpec, SpecError};

/// A named preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Exactly the notebook's training.
    Notebook,
    /// Our own: a good model in a fraction of the notebook's time.
    Fast,
    /// Our own: a larger network in up to ten times the time of `fast`.
    Best,
}

impl Recipe {
    const ALL: [Recipe; 3] = [Recipe::Fast, Recipe::Best, Recipe::Notebook];

    /// The recipe of a spec that does not name one.
    pub const DEFAULT: Recipe = Recipe::Fast;

    /// Returns its name in a spec.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::Notebook => "notebook",
            Recipe::Fast => "fast",
            Recipe::Best => "best",
        }
    }

    /// Returns initialisation, optimizer and schedule.
    pub fn method(self) -> OptimizerConfig {
        match self {
            Recipe::Notebook => OptimizerConfig::NOTEBOOK,
            Recipe::Fast | Recipe::Best => OptimizerConfig::FAST,
        }
    }

    pub(super) fn named(name: &str) -> Result<Self, SpecError> {
        Self::ALL
            .into_iter()
            .find(|recipe| recipe.name() == name)
            .ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.into_iter().map(Recipe::name).collect();
                let message = format!(
                    "must be one of {}, not {:?}",
                    known.join(", "),
                    shortened(name)
                );
                SpecError::new("recipe", message)
            })
    }

    /// Returns the values of fields that the spec does not set.
    pub(super) fn defaults(self) -> ResolvedSpec {
        match self {
            // The values that the notebook trains with.
            Recipe::Notebook => ResolvedSpec {
                model: String::new(),
                hidden_size: 512,
                num_layers: 2,
                batch_size: 128,
                sequence_length: 100,
                epochs: 20,
                dropout: 0.5,
                learning_rate: 0.001,
                clip_norm: 5.0,
                validation_fraction: 0.0,
                seed: 0,
                skip_chars: 0,
                recipe: self,
                init_from: None,
                cancel_on_disconnect: false,
                sample_prime: None,
                sample_chars: 200,
                extend_vocabulary: false,
                precision: TrainingPrecision::Float32,
                weight_decay: Some(self.method().weight_decay),
                locked_dropout: false,
                recurrent_dropout: 0.0,
                input_dropout: 0.0,
                average_decay: 0.0,
            },
            // Found by `bench/search.py` (docs/training.md).
            Recipe::Fast => ResolvedSpec {
                batch_size: 16,
                sequence_length: 32,
                epochs: 4,
                dropout: 0.1,
                learning_rate: 0.01,
                validation_fraction: 0.1,
                recipe: self,
                weight_decay: Some(0.1),
                ..Recipe::Notebook.defaults()
            },
            Recipe::Best => ResolvedSpec {
                hidden_size: 768,
                epochs: 10,
                dropout: 0.3,
                recurrent_dropout: 0.1,
                average_decay: 0.999,
                learning_rate: 0.008,
                recipe: self,
                ..Recipe::Fast.defaults()
            },
        }
    }
}
