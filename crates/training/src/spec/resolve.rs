//! Resolves the specification of a client: fills in missing values, and validates
//! all values.

use charlstm_model::architecture::Architecture;
use charlstm_model::learner::TrainingPrecision;
use charlstm_model::model_id::{check_name, shortened};

use super::{Recipe, ResolvedSpec, SpecError, TrainingSpec};

/// Maximum number of characters of a sample and of its prompt: a sample is
/// generated on the training thread, and should not delay the training.
const MAX_SAMPLE_CHARS: u32 = 10_000;

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
