//! The sample of an epoch: some text from the weights as they are now. The
//! text that clients ask for is made in `generation`.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::learn::SampleRequest;
use crate::model::step::{HiddenState, StepError, StepWeights, Stepper};

/// Candidates for each character, as in the notebook's samples.
const TOP_K: usize = 3;

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
    let mut random = ChaCha8Rng::seed_from_u64(request.seed);
    let mut text = String::new();
    let mut token = last;
    for _ in 0..request.chars {
        let logits = stepper.step(&[token])?;
        token = choose(logits, random.random());
        text.push(request.vocabulary.character(token));
    }
    Ok(text)
}

/// One of the most probable characters, by their probabilities; `uniform` is
/// in `[0, 1)`.
fn choose(logits: &[f32], uniform: f64) -> u32 {
    let mut best: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best.truncate(TOP_K);
    let highest = f64::from(best[0].1);
    let weights = best
        .iter()
        .map(|&(_, logit)| (f64::from(logit) - highest).exp());
    let drawn = uniform * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    for (&(token, _), weight) in best.iter().zip(weights) {
        sum += weight;
        if sum > drawn {
            return token;
        }
    }
    best[0].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_the_three_most_probable_characters() {
        let logits = [0.0, 5.0, 4.0, -1.0, 4.5];
        assert_eq!(choose(&logits, 0.0), 1);
        assert_eq!(choose(&logits, 0.999), 2);
        let chosen: Vec<u32> = (0..100)
            .map(|place| choose(&logits, f64::from(place) / 100.0))
            .collect();
        assert!(chosen.iter().all(|token| [1, 2, 4].contains(token)));
    }
}
