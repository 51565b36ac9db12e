//! What is asked of a training, and what becomes of it once the recipe has
//! filled the gaps and every value is checked. Whether the corpus and the
//! machine are up to it is checked elsewhere.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use charlstm_model::architecture::Architecture;
use charlstm_model::optimizer_config::OptimizerConfig;

#[cfg(test)]
mod tests;

/// Most characters of a model's name.
const MAX_NAME_CHARS: usize = 64;
/// Most characters of a sample and of what it goes on from: a sample is made
/// on the training thread, and should not hold the training up.
const MAX_SAMPLE_CHARS: u32 = 10_000;

/// Characters that `fast` trains on at least, the same ones again where there
/// are fewer.
const LEAST_CHARS: usize = 500_000;
/// Characters beyond which `fast` does not go over a text again.
const MOST_CHARS: usize = 4_000_000;
/// Most epochs that `fast` takes of itself.
const MOST_EPOCHS: u32 = 40;
/// Dropout of `fast` where it goes over a text more often than usual.
const REPEATED_DROPOUT: f64 = 0.3;

/// What is asked for. What is `None` has the default of the recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingSpec {
    /// Name of the model that gets a new version.
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
    /// Largest norm of the gradient.
    pub clip_norm: Option<f64>,
    /// Share of the text, at its end, that is held out.
    pub validation_fraction: Option<f64>,
    /// Seed of everything that is random.
    pub seed: Option<u64>,
    /// Characters to leave out at the beginning of the corpus.
    pub skip_chars: Option<u32>,
    /// Named set of defaults.
    pub recipe: Option<String>,
    /// Model whose weights to begin with, `name` or `name@version`.
    pub init_from: Option<String>,
    /// Whether the training ends with the stream that started it.
    pub cancel_on_disconnect: Option<bool>,
    /// Text that the sample of each epoch goes on from.
    pub sample_prime: Option<String>,
    /// Characters in the sample of each epoch.
    pub sample_chars: Option<u32>,
    /// Whether characters that the model of `init_from` does not know are
    /// added to its vocabulary.
    pub extend_vocabulary: Option<bool>,
}

/// A named way to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// The notebook to the letter.
    Notebook,
    /// Ours: a good model in a fraction of the notebook's time.
    Fast,
}

/// A spec with every gap filled and every value checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// Name of the model that gets a new version.
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
    /// Largest norm of the gradient.
    pub clip_norm: f64,
    /// Share of the text, at its end, that is held out.
    pub validation_fraction: f64,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Characters to leave out at the beginning of the corpus.
    pub skip_chars: u32,
    /// The recipe.
    pub recipe: Recipe,
    /// Model whose weights to begin with, as `name@version`.
    pub init_from: Option<String>,
    /// Whether the training ends with the stream that started it.
    pub cancel_on_disconnect: bool,
    /// Text that the sample goes on from; `None` is the corpus's first
    /// character.
    pub sample_prime: Option<String>,
    /// Characters in the sample of each epoch; 0 for no sample.
    pub sample_chars: u32,
    /// Whether characters that the model of `init_from` does not know are
    /// added to its vocabulary.
    #[serde(default)]
    pub extend_vocabulary: bool,
}

/// A field of the spec cannot be accepted. The message says what is allowed
/// and what was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field, as the contract names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl SpecError {
    /// An error of one field.
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self {
            field,
            message: message.into(),
        }
    }
}

impl Recipe {
    const ALL: [Recipe; 2] = [Recipe::Fast, Recipe::Notebook];

    /// The recipe of a spec that names none.
    pub const DEFAULT: Recipe = Recipe::Fast;

    /// Its name in a spec.
    pub fn name(self) -> &'static str {
        match self {
            Recipe::Notebook => "notebook",
            Recipe::Fast => "fast",
        }
    }

    /// How it begins and moves.
    pub fn method(self) -> OptimizerConfig {
        match self {
            Recipe::Notebook => OptimizerConfig::NOTEBOOK,
            Recipe::Fast => OptimizerConfig::FAST,
        }
    }

    fn named(name: &str) -> Result<Self, SpecError> {
        Self::ALL
            .into_iter()
            .find(|recipe| recipe.name() == name)
            .ok_or_else(|| {
                let known: Vec<&str> = Self::ALL.into_iter().map(Recipe::name).collect();
                let message = format!("must be one of {}, not {name:?}", known.join(", "));
                SpecError::new("recipe", message)
            })
    }

    /// What the recipe says where the spec says nothing.
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
            },
            // Found by `cargo bench --bench curve` on a held-out tail.
            Recipe::Fast => ResolvedSpec {
                batch_size: 16,
                sequence_length: 32,
                epochs: 4,
                dropout: 0.1,
                learning_rate: 0.003,
                validation_fraction: 0.1,
                recipe: self,
                ..Recipe::Notebook.defaults()
            },
        }
    }
}

impl TrainingSpec {
    /// Fills the gaps and checks every value. `draw_seed` is asked for a seed
    /// where none is given.
    ///
    /// # Errors
    /// The first field that is outside its range.
    pub fn resolve(&self, draw_seed: impl FnOnce() -> u64) -> Result<ResolvedSpec, SpecError> {
        check_name(&self.model)?;
        let recipe = match self.recipe.as_deref() {
            None | Some("") => Recipe::DEFAULT,
            Some(name) => Recipe::named(name)?,
        };
        let by = recipe.defaults();
        Ok(ResolvedSpec {
            model: self.model.clone(),
            hidden_size: whole("hidden_size", self.hidden_size, by.hidden_size, 4096)?,
            num_layers: whole("num_layers", self.num_layers, by.num_layers, 8)?,
            batch_size: whole("batch_size", self.batch_size, by.batch_size, 4096)?,
            sequence_length: whole(
                "sequence_length",
                self.sequence_length,
                by.sequence_length,
                4096,
            )?,
            epochs: whole("epochs", self.epochs, by.epochs, 100_000)?,
            dropout: real(
                "dropout",
                self.dropout,
                by.dropout,
                "at least 0, under 1",
                |v| (0.0..1.0).contains(&v),
            )?,
            learning_rate: real(
                "learning_rate",
                self.learning_rate,
                by.learning_rate,
                "over 0, at most 1",
                |v| v > 0.0 && v <= 1.0,
            )?,
            clip_norm: real(
                "clip_norm",
                self.clip_norm,
                by.clip_norm,
                "over 0, at most 1e6",
                |v| v > 0.0 && v <= 1e6,
            )?,
            validation_fraction: real(
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
        })
    }

    fn check_extend_vocabulary(&self) -> Result<bool, SpecError> {
        let asked = self.extend_vocabulary.unwrap_or(false);
        if asked && self.init_from.as_deref().unwrap_or_default().is_empty() {
            let message = "needs init_from: a new model has the vocabulary of its corpus";
            return Err(SpecError::new("extend_vocabulary", message));
        }
        Ok(asked)
    }
}

impl ResolvedSpec {
    /// The network for a vocabulary of that size.
    pub fn architecture(&self, vocabulary_size: usize) -> Architecture {
        Architecture {
            vocabulary_size,
            hidden_size: self.hidden_size as usize,
            num_layers: self.num_layers as usize,
        }
    }

    /// Settles what depends on the length of the training text, and was not
    /// asked for otherwise: `fast` goes over a short text more often, with
    /// more dropout, and over a very long one less often.
    pub fn suit(&mut self, asked: &TrainingSpec, training_chars: usize) {
        if self.recipe != Recipe::Fast {
            return;
        }
        let usual = Recipe::Fast.defaults().epochs;
        if asked.epochs.is_none() {
            let times = |chars: usize| chars.div_ceil(training_chars.max(1));
            let epochs = times(LEAST_CHARS).max(times(MOST_CHARS).min(usual as usize));
            self.epochs =
                u32::try_from(epochs).map_or(MOST_EPOCHS, |epochs| epochs.min(MOST_EPOCHS));
        }
        if asked.dropout.is_none() && self.epochs > usual {
            self.dropout = REPEATED_DROPOUT;
        }
    }

    /// Takes the sizes of the network from the model that the training begins
    /// with.
    ///
    /// # Errors
    /// A size that `asked` sets to something else.
    pub fn inherit(
        &mut self,
        asked: &TrainingSpec,
        model: &str,
        architecture: &Architecture,
    ) -> Result<(), SpecError> {
        for (field, asked, has) in [
            ("hidden_size", asked.hidden_size, architecture.hidden_size),
            ("num_layers", asked.num_layers, architecture.num_layers),
        ] {
            if let Some(asked) = asked
                && asked as usize != has
            {
                let message = format!(
                    "must be {has}, as in {model} that init_from begins with, or not set; not {asked}"
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

fn check_name(name: &str) -> Result<(), SpecError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= MAX_NAME_CHARS
        && name.chars().all(inner);
    if good {
        return Ok(());
    }
    Err(SpecError::new(
        "model",
        format!(
            "must be 1 to {MAX_NAME_CHARS} of a-z A-Z 0-9 . _ - and begin with a letter or a \
             digit, not {}",
            shown(name)
        ),
    ))
}

/// A text from outside, quoted, and cut where it is long.
fn shown(text: &str) -> String {
    let mut start: String = text.chars().take(MAX_NAME_CHARS).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?}")
}

fn whole(
    field: &'static str,
    given: Option<u32>,
    default: u32,
    most: u32,
) -> Result<u32, SpecError> {
    let value = given.unwrap_or(default);
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        let message = format!("must be 1 to {most}, not {value}");
        Err(SpecError::new(field, message))
    }
}

fn real(
    field: &'static str,
    given: Option<f64>,
    default: f64,
    range: &str,
    holds: impl FnOnce(f64) -> bool,
) -> Result<f64, SpecError> {
    let value = given.unwrap_or(default);
    // A NaN is in no range.
    if holds(value) {
        Ok(value)
    } else {
        Err(SpecError::new(
            field,
            format!("must be {range}, not {value}"),
        ))
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
