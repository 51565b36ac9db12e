//! The specification of a training as a client sends it, and the resolved one,
//! in which the recipe (preset) has filled in every missing value and every
//! value is validated. Corpus and memory are checked elsewhere.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use charlstm_model::architecture::Architecture;
use charlstm_model::learner::{Techniques, TrainingPrecision};
use charlstm_model::model_id::{check_name, shortened};
use charlstm_model::optimizer_config::OptimizerConfig;

#[cfg(test)]
mod tests;

/// Maximum number of characters of a sample and of its prompt: a sample is
/// generated on the training thread, and should not delay the training.
const MAX_SAMPLE_CHARS: u32 = 10_000;

/// How a recipe chooses epochs and dropout for the length of a text.
struct LengthRule {
    /// Number of characters that are trained at least, in as many epochs as that
    /// takes.
    min_trained_chars: usize,
    /// Number of characters beyond which no other epoch begins.
    max_trained_chars: usize,
    /// Stronger dropout for more epochs, ascending.
    stronger: &'static [StrongerDropout],
}

/// Dropout for a text that is trained for many epochs.
struct StrongerDropout {
    /// For more epochs than this.
    above_epochs: u32,
    dropout: f64,
    recurrent_dropout: f64,
}

/// Maximum number of epochs that a recipe chooses.
const MAX_CHOSEN_EPOCHS: u32 = 40;

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

    /// Returns the rule for the length of a text; `None`: it does not matter.
    fn length_rule(self) -> Option<LengthRule> {
        match self {
            Recipe::Notebook => None,
            Recipe::Fast => Some(LengthRule {
                min_trained_chars: 750_000,
                max_trained_chars: 4_000_000,
                stronger: &[
                    StrongerDropout {
                        above_epochs: 4,
                        dropout: 0.3,
                        recurrent_dropout: 0.1,
                    },
                    StrongerDropout {
                        above_epochs: 10,
                        dropout: 0.5,
                        recurrent_dropout: 0.2,
                    },
                ],
            }),
            Recipe::Best => Some(LengthRule {
                min_trained_chars: 1_500_000,
                max_trained_chars: 20_000_000,
                stronger: &[StrongerDropout {
                    above_epochs: 12,
                    dropout: 0.5,
                    recurrent_dropout: 0.3,
                }],
            }),
        }
    }

    fn named(name: &str) -> Result<Self, SpecError> {
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
    fn defaults(self) -> ResolvedSpec {
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
                weight_decay: Some(self.method().weight_decay),
                ..Recipe::Notebook.defaults()
            },
            Recipe::Best => ResolvedSpec {
                hidden_size: 768,
                sequence_length: 64,
                epochs: 12,
                dropout: 0.4,
                recurrent_dropout: 0.2,
                average_decay: 0.999,
                learning_rate: 0.008,
                recipe: self,
                ..Recipe::Fast.defaults()
            },
        }
    }
}

impl TrainingSpec {
    /// Fills in missing values and validates all values. `draw_seed` returns
    /// the seed if none is given; `fastest` is the precision `auto`.
    ///
    /// # Errors
    /// The first field that is outside its range.
    pub fn resolve(
        &self,
        fastest: TrainingPrecision,
        draw_seed: impl FnOnce() -> u64,
    ) -> Result<ResolvedSpec, SpecError> {
        check_name(&self.model).map_err(|error| SpecError::new("model", error.to_string()))?;
        let recipe = match self.recipe.as_deref() {
            None | Some("") => Recipe::DEFAULT,
            Some(name) => Recipe::named(name)?,
        };
        let by = recipe.defaults();
        Ok(ResolvedSpec {
            model: self.model.clone(),
            hidden_size: integer("hidden_size", self.hidden_size, by.hidden_size, 4096)?,
            num_layers: integer("num_layers", self.num_layers, by.num_layers, 8)?,
            batch_size: integer("batch_size", self.batch_size, by.batch_size, 4096)?,
            sequence_length: integer(
                "sequence_length",
                self.sequence_length,
                by.sequence_length,
                4096,
            )?,
            epochs: integer("epochs", self.epochs, by.epochs, 100_000)?,
            dropout: probability("dropout", self.dropout, by.dropout)?,
            learning_rate: number(
                "learning_rate",
                self.learning_rate,
                by.learning_rate,
                "over 0, at most 1",
                |v| v > 0.0 && v <= 1.0,
            )?,
            clip_norm: number(
                "clip_norm",
                self.clip_norm,
                by.clip_norm,
                "over 0, at most 1e6",
                |v| v > 0.0 && v <= 1e6,
            )?,
            validation_fraction: number(
                "validation_fraction",
                self.validation_fraction,
                by.validation_fraction,
                "0 to 0.5",
                |v| (0.0..=0.5).contains(&v),
            )?,
            seed: self.seed.unwrap_or_else(draw_seed),
            skip_chars: self.skip_chars.unwrap_or(by.skip_chars),
            recipe,
            init_from: self.init_from.clone().filter(|name| !name.is_empty()),
            cancel_on_disconnect: self.cancel_on_disconnect.unwrap_or(false),
            sample_prime: check_prime(self.sample_prime.as_deref())?,
            sample_chars: check_sample_chars(self.sample_chars.unwrap_or(by.sample_chars))?,
            extend_vocabulary: self.check_extend_vocabulary()?,
            precision: precision(self.precision.as_deref(), fastest)?,
            weight_decay: Some(number(
                "weight_decay",
                self.weight_decay,
                by.weight_decay.unwrap_or(0.0),
                "0 to 1",
                |v| (0.0..=1.0).contains(&v),
            )?),
            locked_dropout: self.locked_dropout.unwrap_or(by.locked_dropout),
            recurrent_dropout: probability(
                "recurrent_dropout",
                self.recurrent_dropout,
                by.recurrent_dropout,
            )?,
            input_dropout: probability("input_dropout", self.input_dropout, by.input_dropout)?,
            average_decay: probability("average_decay", self.average_decay, by.average_decay)?,
        })
    }

    fn check_extend_vocabulary(&self) -> Result<bool, SpecError> {
        let requested = self.extend_vocabulary.unwrap_or(false);
        if requested && self.init_from.as_deref().unwrap_or_default().is_empty() {
            let message = "requires init_from; a new model has the vocabulary of its corpus";
            return Err(SpecError::new("extend_vocabulary", message));
        }
        Ok(requested)
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

    /// Sets the values that depend on the length of the training text, unless
    /// the client has set them: `fast` and `best` train on a short text for more
    /// epochs, with more dropout, and on a very long one for fewer.
    pub fn adapt_to_length(&mut self, requested: &TrainingSpec, training_chars: usize) {
        let Some(rule) = self.recipe.length_rule() else {
            return;
        };
        let usual = self.recipe.defaults().epochs;
        if requested.epochs.is_none() {
            let epochs_for = |chars: usize| chars.div_ceil(training_chars.max(1));
            let most = epochs_for(rule.max_trained_chars).min(usual as usize);
            let epochs = epochs_for(rule.min_trained_chars).max(most);
            self.epochs = u32::try_from(epochs)
                .map_or(MAX_CHOSEN_EPOCHS, |epochs| epochs.min(MAX_CHOSEN_EPOCHS));
        }
        let applies = |stronger: &&StrongerDropout| self.epochs > stronger.above_epochs;
        if let Some(stronger) = rule.stronger.iter().rev().find(applies) {
            if requested.dropout.is_none() {
                self.dropout = stronger.dropout;
            }
            if requested.recurrent_dropout.is_none() {
                self.recurrent_dropout = stronger.recurrent_dropout;
            }
        }
    }

    /// Takes the sizes of the network from the model of `init_from`.
    ///
    /// # Errors
    /// `requested` sets a size to another value.
    pub fn inherit(
        &mut self,
        requested: &TrainingSpec,
        model: &str,
        architecture: &Architecture,
    ) -> Result<(), SpecError> {
        for (field, requested, has) in [
            (
                "hidden_size",
                requested.hidden_size,
                architecture.hidden_size,
            ),
            ("num_layers", requested.num_layers, architecture.num_layers),
        ] {
            if let Some(requested) = requested
                && requested as usize != has
            {
                let message = format!(
                    "must be {has}, as in {model} of init_from, or not set; not {requested}"
                );
                return Err(SpecError::new(field, message));
            }
        }
        let size = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        self.hidden_size = size(architecture.hidden_size);
        self.num_layers = size(architecture.num_layers);
        self.init_from = Some(model.to_owned());
        Ok(())
    }
}

fn integer(
    field: &'static str,
    given: Option<u32>,
    default: u32,
    limit: u32,
) -> Result<u32, SpecError> {
    let value = given.unwrap_or(default);
    if (1..=limit).contains(&value) {
        Ok(value)
    } else {
        let message = format!("must be 1 to {limit}, not {value}");
        Err(SpecError::new(field, message))
    }
}

fn number(
    field: &'static str,
    given: Option<f64>,
    default: f64,
    range: &str,
    holds: impl FnOnce(f64) -> bool,
) -> Result<f64, SpecError> {
    let value = given.unwrap_or(default);
    // NaN is in no range.
    if holds(value) {
        Ok(value)
    } else {
        Err(SpecError::new(
            field,
            format!("must be {range}, not {value}"),
        ))
    }
}

fn probability(field: &'static str, given: Option<f64>, default: f64) -> Result<f64, SpecError> {
    number(field, given, default, "at least 0, under 1", |v| {
        (0.0..1.0).contains(&v)
    })
}

fn precision(
    given: Option<&str>,
    fastest: TrainingPrecision,
) -> Result<TrainingPrecision, SpecError> {
    match given {
        None | Some("" | "auto") => Ok(fastest),
        Some("float32") => Ok(TrainingPrecision::Float32),
        Some("bf16") => Ok(TrainingPrecision::Bf16),
        Some(other) => {
            let other = shortened(other);
            let message = format!("must be one of auto, float32, bf16, not {other:?}");
            Err(SpecError::new("precision", message))
        }
    }
}

fn check_prime(prime: Option<&str>) -> Result<Option<String>, SpecError> {
    let Some(prime) = prime.filter(|prime| !prime.is_empty()) else {
        return Ok(None);
    };
    let chars = prime.chars().count();
    if chars > MAX_SAMPLE_CHARS as usize {
        let message = format!("must be at most {MAX_SAMPLE_CHARS} characters, not {chars}");
        return Err(SpecError::new("sample_prime", message));
    }
    Ok(Some(prime.to_owned()))
}

fn check_sample_chars(chars: u32) -> Result<u32, SpecError> {
    if chars <= MAX_SAMPLE_CHARS {
        return Ok(chars);
    }
    let message = format!("must be 0 to {MAX_SAMPLE_CHARS}, not {chars}");
    Err(SpecError::new("sample_chars", message))
}
