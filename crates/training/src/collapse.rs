//! Notices a network that has collapsed: after a step with an unusual gradient, its cells
//! can saturate, and from then on it learns only how frequent the characters are.

use std::io;

use charlstm_model::tokens::CorpusTokens;
use serde::{Deserialize, Serialize};

/// Number of steps over which losses are averaged: longer than a difficult passage of a
/// text.
const STEPS: f64 = 30.0;

/// A network has learned something if its loss is lower by this than that of the
/// frequencies, in nats.
const LEARNED: f64 = 0.5;

/// A network predicts no better than the frequencies if its loss is lower by less than
/// this, in nats.
const NOTHING: f64 = 0.1;

/// Tokens that are read at a time.
const CHUNK: usize = 1 << 16;

/// What the losses say about a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It predicts better than the frequencies of the characters, or has not learned to yet.
    Sound,
    /// In the last step, it predicted no better than the frequencies of the characters,
    /// although it once did.
    Suspicious,
    /// The same, for many steps.
    Collapsed,
}

/// The losses of a training so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossTrend {
    /// Moving average of the losses; `None` before the first step.
    mean: Option<f64>,
    has_learned: bool,
}

impl LossTrend {
    /// Adds the loss of a step. `entropy` is the loss of predicting the characters by their
    /// frequencies.
    pub(crate) fn add(&mut self, loss: f64, entropy: f64) -> Health {
        let mean = self.mean.map_or(loss, |mean| mean + (loss - mean) / STEPS);
        self.mean = Some(mean);
        self.has_learned |= mean < entropy - LEARNED;
        let nothing = entropy - NOTHING;
        if !self.has_learned {
            Health::Sound
        } else if mean > nothing {
            Health::Collapsed
        } else if loss > nothing {
            Health::Suspicious
        } else {
            Health::Sound
        }
    }
}

/// Returns the loss of predicting every token by its frequency in a text: the entropy of
/// these frequencies, in nats. Reads the whole text.
///
/// # Errors
/// The text cannot be read.
pub(crate) fn entropy(text: &CorpusTokens, vocabulary_size: usize) -> io::Result<f64> {
    let mut counts = vec![0u64; vocabulary_size];
    let mut chunk = vec![0; CHUNK.min(text.len())];
    let mut start = 0;
    while start < text.len() {
        let tokens = &mut chunk[..CHUNK.min(text.len() - start)];
        text.read(start, tokens)?;
        for &token in tokens.iter() {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        }
        start += tokens.len();
    }
    let total = text.len() as f64;
    let occurring = counts.into_iter().filter(|&count| count > 0);
    Ok(occurring
        .map(|count| count as f64 / total)
        .map(|frequency| -frequency * frequency.ln())
        .sum())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ENTROPY: f64 = 3.0;

    /// Adds the same loss for a number of steps; returns whether the network counts as
    /// collapsed after one of them.
    fn collapses(trend: &mut LossTrend, loss: f64, steps: usize) -> bool {
        (0..steps).any(|_| trend.add(loss, ENTROPY) == Health::Collapsed)
    }

    #[test]
    fn a_network_that_has_learned_and_falls_back_to_the_frequencies_has_collapsed() {
        let mut trend = LossTrend::default();
        assert!(!collapses(&mut trend, 4.0, 100));
        assert!(!collapses(&mut trend, 1.8, 100));
        // A single step or a difficult passage.
        assert!(!collapses(&mut trend, 20.0, 1));
        assert!(!collapses(&mut trend, 1.8, 100));
        assert!(!collapses(&mut trend, 2.8, 1000));
        assert_eq!(trend.add(3.2, ENTROPY), Health::Suspicious);
        assert!(collapses(&mut trend, 3.2, 100));
    }

    #[test]
    fn a_network_that_has_learned_nothing_yet_has_not_collapsed() {
        let mut trend = LossTrend::default();
        assert!(!collapses(&mut trend, 4.0, 100));
        assert!(!collapses(&mut trend, 2.9, 1000));
        assert!(!collapses(&mut trend, 3.2, 1000));
    }

    #[test]
    fn the_entropy_is_that_of_the_frequencies() {
        let tokens: Vec<u32> = (0..200_000)
            .map(|n| if n % 4 == 0 { 1 } else { 0 })
            .collect();
        let found = entropy(&CorpusTokens::from(&tokens[..]), 5).unwrap();
        let expected = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        assert!((found - expected).abs() < 1e-12, "{found}");
    }
}
