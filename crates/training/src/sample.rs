//! The sample of an epoch: some text from the weights as they are now. The
//! text that clients ask for is made in `generation`.

use std::sync::Arc;

use charlstm_model::decode_step::{DecodeBatch, DecodeError, DecodeWeights, HiddenState};
use charlstm_model::parameters::Parameters;
use charlstm_model::sampler::{Draws, RandomState, Sampler, SamplingSettings};
use charlstm_model::vocabulary::Vocabulary;

/// What a sample of a model under training is made of.
pub struct SampleRequest<'a> {
    /// The weights as they are now.
    pub parameters: &'a Parameters,
    /// The characters.
    pub vocabulary: &'a Vocabulary,
    /// Numbers of the text to go on from; at least one.
    pub prime: &'a [u32],
    /// Characters to write.
    pub chars: usize,
    /// Seed of the choice.
    pub seed: u64,
}

/// Writes the sample of an epoch: the characters after the prime.
pub type SampleWriter = dyn Fn(&SampleRequest<'_>) -> Result<String, DecodeError> + Send + Sync;

/// Candidates for each character, as in the notebook's samples.
const TOP_K: u32 = 3;

/// Writes `chars` characters that go on from the prime. The same request gives
/// the same text. Blocks; a thousand characters of a large model take about a
/// second.
///
/// # Errors
/// A stepper that failed.
pub fn write(request: &SampleRequest<'_>) -> Result<String, DecodeError> {
    let weights = Arc::new(DecodeWeights::on_processor(request.parameters));
    let mut stepper = DecodeBatch::new(Arc::clone(&weights), 1)?;
    let mut state = HiddenState::zeros(weights.architecture());
    let Some((&last, before)) = request.prime.split_last() else {
        return Ok(String::new());
    };
    stepper.prefill(&mut state, before)?;
    stepper.push(&state);
    let settings =
        SamplingSettings::new(1.0, TOP_K, 1.0, 0.0).expect("the settings are within their limits");
    let mut draws = Draws::at(RandomState::seeded(request.seed));
    let mut sampler = Sampler::default();
    let mut text = String::new();
    let mut token = last;
    for _ in 0..request.chars {
        let logits = stepper.step(&[token])?;
        token = sampler.choose(&settings, logits, draws.uniform());
        text.push(request.vocabulary.character(token));
    }
    Ok(text)
}
