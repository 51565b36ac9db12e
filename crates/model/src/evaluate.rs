//! Measures how well a network predicts a text, in parallel segments.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::decode_step::{DecodeBatch, DecodeWeights};
use super::parameters::Parameters;
use super::tokens::CorpusTokens;

/// Maximum number of segments: enough for the matrix products of several threads
/// to run at full speed.
const MAX_SEGMENTS: usize = 128;

/// Characters before a segment that warm up its hidden state.
pub const WARM_UP_CHARS: usize = 100;

/// Minimum length of a segment: with shorter ones, most of the work would be
/// warm-up.
const MIN_SEGMENT_CHARS: usize = 4 * WARM_UP_CHARS;

/// Token ids that a row reads from the text at a time.
const BLOCK_TOKENS: usize = 1024;

/// Returns the mean loss of every token but the first, in nats, without
/// dropout; 0 for fewer than two tokens. A long text is divided into segments,
/// each of which is warmed up on the 100 characters before it. The number of
/// threads does not change the result. Blocks until it is done.
///
/// # Errors
/// As [`CorpusTokens::read`].
///
/// # Panics
/// If a token in memory is outside the vocabulary.
pub fn mean_loss(
    parameters: &Parameters,
    tokens: &CorpusTokens,
    threads: usize,
) -> io::Result<f64> {
    if tokens.len() < 2 {
        return Ok(0.0);
    }
    let segments = segments(tokens.len());
    let rows = segments.len();
    let weights = Arc::new(DecodeWeights::on_processor(parameters));
    let losses: io::Result<Vec<Vec<f64>>> = std::thread::scope(|scope| {
        let parts = segments.chunks(rows.div_ceil(threads.max(1)));
        let threads: Vec<_> = parts
            .map(|part| {
                let weights = weights.clone();
                scope.spawn(move || losses_of(weights, tokens, part))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .expect("a step of tokens in the vocabulary does not panic")
            })
            .collect()
    });
    // Summed in the order of the segments, whichever thread computed them.
    Ok(losses?.iter().flatten().sum::<f64>() / (tokens.len() - 1) as f64)
}

/// Divides a text of at least two tokens into segments that can be predicted at
/// the same time. The tokens of a segment are the inputs; each predicts the token
/// after it. All segments but the first begin [`WARM_UP_CHARS`] after the
/// beginning of the text, or later.
pub fn segments(tokens: usize) -> Vec<Range<usize>> {
    let predicted = tokens - 1;
    let rows = MAX_SEGMENTS.min(predicted.div_ceil(MIN_SEGMENT_CHARS));
    (0..rows)
        .map(|row| row * predicted / rows..(row + 1) * predicted / rows)
        .collect()
}

/// Reads the token ids of one row in ascending order, in blocks.
struct RowReader<'a> {
    tokens: &'a CorpusTokens,
    /// Position of the first token of `block`.
    start: usize,
    block: Vec<u32>,
}

impl<'a> RowReader<'a> {
    fn new(tokens: &'a CorpusTokens) -> Self {
        Self {
            tokens,
            start: 0,
            block: Vec::new(),
        }
    }

    fn token(&mut self, position: usize) -> io::Result<u32> {
        if !(self.start..self.start + self.block.len()).contains(&position) {
            let count = BLOCK_TOKENS.min(self.tokens.len().saturating_sub(position));
            self.block.resize(count.max(1), 0);
            self.tokens.read(position, &mut self.block)?;
            self.start = position;
        }
        Ok(self.block[position - self.start])
    }
}

/// Returns the summed loss of each of some segments, which are stepped together.
fn losses_of(
    weights: Arc<DecodeWeights>,
    tokens: &CorpusTokens,
    segments: &[Range<usize>],
) -> io::Result<Vec<f64>> {
    let architecture = *weights.architecture();
    let mut batch = DecodeBatch::new(Arc::clone(&weights), segments.len())
        .expect("a batch on the CPU has no errors");
    for _ in segments {
        batch.push(&weights.zero_state());
    }
    let longest = segments.iter().map(Range::len).max();
    let mut readers: Vec<RowReader<'_>> = segments.iter().map(|_| RowReader::new(tokens)).collect();
    let mut inputs = vec![0; segments.len()];
    let mut losses = vec![0.0; segments.len()];
    // All rows are equally far into their segment. A row whose warm-up would
    // start before the text, or whose segment has ended, is fed as well, but
    // its loss is not counted.
    for step in 0..longest.unwrap_or(0) + WARM_UP_CHARS {
        let position = |segment: &Range<usize>| (segment.start + step).checked_sub(WARM_UP_CHARS);
        for ((input, reader), segment) in inputs.iter_mut().zip(&mut readers).zip(segments) {
            *input = match position(segment) {
                Some(position) if position < segment.end => reader.token(position)?,
                _ => 0,
            };
        }
        let logits = batch
            .step(&inputs)
            .expect("a step on the CPU has no errors");
        let mut before_text = Vec::new();
        let rows = logits.chunks_exact(architecture.vocabulary_size);
        for (row, (logits, segment)) in rows.zip(segments).enumerate() {
            match position(segment) {
                None => before_text.push(row),
                Some(position) if segment.contains(&position) => {
                    let target = readers[row].token(position + 1)?;
                    losses[row] += negative_log_likelihood(logits, target);
                }
                Some(_) => {}
            }
        }
        // These rows were fed a token that is not in the text.
        for row in before_text {
            batch.reset(row);
        }
    }
    Ok(losses)
}

/// Returns the negative logarithm of the probability that softmax gives
/// `target`, computed in double precision.
///
/// # Panics
/// If `target` is outside the vocabulary.
pub fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - largest).exp())
        .sum();
    sum.ln() - f64::from(logits[target as usize] - largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::initial::Initial;

    #[test]
    fn segments_give_the_loss_of_the_uninterrupted_text() {
        let architecture = Architecture {
            vocabulary_size: 7,
            hidden_size: 12,
            num_layers: 2,
        };
        let parameters = Initial::Uniform.parameters(architecture, 1);
        let tokens: Vec<u32> = (0..3001u32).map(|i| (i * i + i / 3) % 7).collect();
        let weights = Arc::new(DecodeWeights::on_processor(&parameters));
        let mut batch = DecodeBatch::new(weights.clone(), 1).expect("a batch");
        let mut state = weights.zero_state();
        let logits = batch
            .prefill_logits(&mut state, &tokens)
            .expect("a prefill");
        let exact = logits
            .chunks_exact(7)
            .zip(&tokens[1..])
            .map(|(logits, &next)| negative_log_likelihood(logits, next))
            .sum::<f64>()
            / 3000.0;
        let text = CorpusTokens::from(&tokens[..]);
        let with_one = mean_loss(&parameters, &text, 1).expect("in memory");
        assert!((with_one - exact).abs() < 1e-6, "{with_one} {exact}");
        for threads in [2, 3, 50] {
            let ours = mean_loss(&parameters, &text, threads).expect("in memory");
            assert_eq!(ours.to_bits(), with_one.to_bits(), "{threads} threads");
        }
        let loss_of = |part| {
            let part = text.range(part).expect("a part");
            mean_loss(&parameters, &part, 2).expect("in memory")
        };
        let short = loss_of(0..2);
        assert!((short - negative_log_likelihood(&logits[..7], tokens[1])).abs() < 1e-9);
        assert_eq!(loss_of(0..1), 0.0);
    }
}
