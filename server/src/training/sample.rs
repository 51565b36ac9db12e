//! The sample of an epoch: some text from the weights as they are now. The
//! text that clients ask for is made in `generation`.

use std::sync::Arc;

use super::learn::SampleRequest;
use crate::model::sampler::{Draws, RandomState, Sampler, SamplingSettings};
use crate::model::step::{HiddenState, StepError, StepWeights, Stepper};

/// Candidates for each character, as in the notebook's samples.
const TOP_K: u32 = 3;

/// Writes `chars` characters that go on from the prime. The same request gives
/// the same text. Blocks; a thousand characters of a large model take about a
/// second.
///
/// # Errors
/// A stepper that failed.
pub fn write(request: &SampleRequest<'_>) -> Result<String, StepError> {
    let weights = Arc::new(StepWeights::new(request.parameters));
    let mut stepper = Stepper::new(Arc::clone(&weights), 1)?;
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
