//! What int8 costs a model in quality: measured once for each version, and
//! stored next to it.

use std::sync::Arc;

use charlstm_model::architecture::Architecture;
use charlstm_model::decode_step::{
    ARITHMETIC_REVISION, DecodeBatch, DecodeDevice, DecodeError, DecodeWeights, Int8Processor,
    Processor,
};
use charlstm_model::parameters::Parameters;
use charlstm_model::sampler::{Draws, RandomState, Sampler, SamplingSettings, log_probability};
use charlstm_store::checksummed_json::{self, ChecksumError};
use serde::{Deserialize, Serialize};

use super::ModelId;

/// Maximum cost of quantisation, in bits per character. Converged models lose
/// less than 0.001; the difference between two training seeds is some 0.01.
pub const MAX_LOSS: f64 = 0.005;

/// Texts that are generated to measure the loss, all with their own seed.
const TEXTS: usize = 64;

/// Characters of each text.
const CHARS: usize = 64;

/// Version of the stored form, and the only one that is read.
const FORMAT: u32 = 1;

/// How well a model predicts in float32 and in int8, or why it has no int8
/// form. A pure function of the model file, so that two machines never decide
/// differently.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantisation {
    /// Both were measured on text that the model itself has generated, in bits
    /// per character.
    Measured {
        /// In float32.
        float32: f64,
        /// In int8.
        int8: f64,
    },
    /// The model cannot be computed in int8; the text says why.
    Unsupported(String),
}

impl Quantisation {
    /// Measures a model: generates texts in float32, and compares how well
    /// both precisions predict them. Blocks for some thousand decode steps: 0.2
    /// seconds for the notebook's model.
    pub fn measure(parameters: &Parameters) -> Self {
        let int8 = match Int8Processor::default().prepare(parameters) {
            Ok(weights) => weights,
            Err(error) => return Self::Unsupported(error.0.to_string()),
        };
        // Always on the CPU, whose results are the same on every machine.
        let float32 = Processor::default().prepare(parameters);
        let measured = float32.and_then(|float32| {
            let (texts, float32) = generate(Arc::new(float32))?;
            let int8 = score(Arc::new(int8), &texts)?;
            Ok(Self::Measured { float32, int8 })
        });
        measured.unwrap_or_else(|error| Self::Unsupported(error.0.to_string()))
    }

    /// Logs what int8 costs a version.
    pub(super) fn report(&self, id: &ModelId) {
        match self.objection() {
            Some(reason) => {
                tracing::warn!(model = %id, reason, "this model version is computed in float32");
            }
            None => {
                let loss = self.loss().unwrap_or_default();
                tracing::info!(model = %id, bits_per_char = loss, "measured what int8 costs this model version");
            }
        }
    }

    /// Returns the stored form.
    pub(super) fn to_text(&self) -> Result<Vec<u8>, serde_json::Error> {
        checksummed_json::to_text(&StoredQuantisation {
            format: FORMAT,
            revision: ARITHMETIC_REVISION,
            quantisation: self.clone(),
        })
    }

    /// Reads the stored form; `None` if it is about another arithmetic, and has
    /// to be measured again.
    pub(super) fn from_text(text: &[u8]) -> Result<Option<Self>, ChecksumError> {
        let stored: StoredQuantisation = checksummed_json::from_slice(text)?;
        let is_current = stored.format == FORMAT && stored.revision == ARITHMETIC_REVISION;
        Ok(is_current.then_some(stored.quantisation))
    }

    /// Returns the cost of int8 in bits per character, if it was measured.
    /// Slightly negative if int8 happens to predict better.
    pub fn loss(&self) -> Option<f64> {
        match self {
            Self::Measured { float32, int8 } => Some(int8 - float32),
            Self::Unsupported(_) => None,
        }
    }

    /// Returns why the model must run in float32, if it must.
    pub fn objection(&self) -> Option<String> {
        match self {
            Self::Unsupported(reason) => Some(format!("int8 cannot compute it: {reason}")),
            Self::Measured { float32, int8 } => {
                let loss = int8 - float32;
                // A loss that is not a number is not acceptable.
                let is_acceptable = loss <= MAX_LOSS;
                (!is_acceptable).then(|| {
                    format!("int8 would cost {loss:.4} bits per character, more than {MAX_LOSS}")
                })
            }
        }
    }
}

/// The token that a text begins with: all characters in turn.
fn first_token(text: usize, architecture: &Architecture) -> u32 {
    (text % architecture.vocabulary_size) as u32
}

/// Generates the texts, `[CHARS][TEXTS]`, at temperature 1; also returns the
/// mean number of bits that the model needs for a character.
fn generate(weights: Arc<DecodeWeights>) -> Result<(Vec<Vec<u32>>, f64), DecodeError> {
    let architecture = *weights.architecture();
    let mut batch = zero_batch(&weights)?;
    let settings = SamplingSettings::default();
    let mut sampler = Sampler::default();
    let mut draws: Vec<Draws> = (0..TEXTS as u64)
        .map(|text| Draws::at(RandomState::seeded(text)))
        .collect();
    let mut tokens: Vec<u32> = (0..TEXTS).map(|i| first_token(i, &architecture)).collect();
    let mut texts = Vec::with_capacity(CHARS);
    let mut nats = 0.0;
    for _ in 0..CHARS {
        let logits = batch.step(&tokens)?;
        for ((row, draws), token) in logits
            .chunks_exact(architecture.vocabulary_size)
            .zip(&mut draws)
            .zip(&mut tokens)
        {
            *token = sampler.choose(&settings, row, draws.uniform());
            nats -= log_probability(row, *token);
        }
        texts.push(tokens.clone());
    }
    Ok((texts, bits_per_char(nats)))
}

/// Returns the mean number of bits that a model needs for a character of the
/// texts.
fn score(weights: Arc<DecodeWeights>, texts: &[Vec<u32>]) -> Result<f64, DecodeError> {
    let architecture = *weights.architecture();
    let mut batch = zero_batch(&weights)?;
    let mut tokens: Vec<u32> = (0..TEXTS).map(|i| first_token(i, &architecture)).collect();
    let mut nats = 0.0;
    for next in texts {
        let logits = batch.step(&tokens)?;
        let rows = logits.chunks_exact(architecture.vocabulary_size);
        for (row, &token) in rows.zip(next) {
            nats -= log_probability(row, token);
        }
        tokens.clone_from(next);
    }
    Ok(bits_per_char(nats))
}

fn zero_batch(weights: &Arc<DecodeWeights>) -> Result<DecodeBatch, DecodeError> {
    let mut batch = DecodeBatch::new(Arc::clone(weights), TEXTS)?;
    let zeros = weights.zero_state();
    for _ in 0..TEXTS {
        batch.push(&zeros);
    }
    Ok(batch)
}

fn bits_per_char(nats: f64) -> f64 {
    nats / (TEXTS * CHARS) as f64 / std::f64::consts::LN_2
}

/// The stored form.
#[derive(Debug, Serialize, Deserialize)]
struct StoredQuantisation {
    format: u32,
    /// Revision of the arithmetic that was measured.
    revision: u16,
    quantisation: Quantisation,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use charlstm_model::initial::Initial;

    use super::*;

    const ARCHITECTURE: Architecture = Architecture {
        vocabulary_size: 20,
        hidden_size: 30,
        num_layers: 2,
    };

    #[test]
    fn an_ordinary_network_loses_little() {
        let parameters = Initial::Uniform.parameters(ARCHITECTURE, 2);
        let measured = Quantisation::measure(&parameters);
        assert!(measured.loss().unwrap().abs() < MAX_LOSS, "{measured:?}");
        assert_eq!(measured.objection(), None);
        assert_eq!(measured, Quantisation::measure(&parameters));
    }

    #[test]
    fn the_result_is_the_same_on_every_machine() {
        let mut parameters = Initial::Uniform.parameters(ARCHITECTURE, 2);
        for value in &mut parameters.values {
            *value *= 3.0;
        }
        let Quantisation::Measured { float32, int8 } = Quantisation::measure(&parameters) else {
            panic!("it can be quantised");
        };
        let bits = [float32.to_bits(), int8.to_bits()];
        assert_eq!(
            bits,
            [0x4010_6ec9_74e1_7f9d, 0x4010_6ed5_89ec_d364],
            "{float32} {int8} {bits:#x?}"
        );
    }

    #[test]
    fn a_network_that_rounding_changes_too_much_runs_in_float32() {
        let mut parameters = Initial::Uniform.parameters(ARCHITECTURE, 2);
        // One large weight in each row: the others are rounded to zero.
        for view in charlstm_model::parameters::layout(&ARCHITECTURE) {
            if let [rows, columns] = view.shape[..] {
                for row in 0..rows {
                    parameters.values[view.range.start + row * columns] = 60.0;
                }
            }
        }
        let measured = Quantisation::measure(&parameters);
        assert!(measured.loss().unwrap() > MAX_LOSS, "{measured:?}");
        let objection = measured.objection().unwrap();
        assert!(objection.starts_with("int8 would cost"), "{objection}");
    }

    #[test]
    fn a_network_with_weights_that_are_not_finite_runs_in_float32() {
        let mut parameters = Initial::Uniform.parameters(ARCHITECTURE, 2);
        parameters.values[7] = f32::NAN;
        let measured = Quantisation::measure(&parameters);
        let objection = measured.objection().unwrap();
        assert!(objection.contains("weight_ih_l0 is NaN"), "{objection}");
    }
}
