//! How well a network predicts a text, in parallel stretches.

use std::io;
use std::sync::Arc;

use super::decode_step::{DecodeBatch, DecodeWeights, HiddenState};
use super::parameters::Parameters;
use super::tokens::CorpusTokens;

/// Stretches that a thread steps together: enough for the products to run at
/// speed.
const ROWS: usize = 32;

/// Characters before a stretch that set its hidden state up.
const WARM_UP: usize = 100;

/// Fewer characters than this in a stretch would make warming up the main
/// work.
const SHORTEST: usize = 4 * WARM_UP;

/// Mean loss of every token but the first, in nats. Long texts are cut into
/// stretches, each of which is warmed up on the 100 characters before it.
/// 0 for fewer than two tokens. Blocks until done.
///
/// # Errors
/// Those of [`CorpusTokens::read`].
pub fn mean_loss(
    parameters: &Parameters,
    tokens: &CorpusTokens,
    threads: usize,
) -> io::Result<f64> {
    if tokens.len() < 2 {
        return Ok(0.0);
    }
    let predicted = tokens.len() - 1;
    let rows = (threads.max(1) * ROWS).min(predicted.div_ceil(SHORTEST));
    // Row r predicts the tokens starts[r] + 1 ..= starts[r + 1].
    let starts: Vec<usize> = (0..=rows).map(|row| row * predicted / rows).collect();
    let stretches: Vec<(usize, usize)> = starts.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let weights = Arc::new(DecodeWeights::on_processor(parameters));
    let total: io::Result<f64> = std::thread::scope(|scope| {
        let parts = stretches.chunks(rows.div_ceil(threads.max(1)));
        let threads: Vec<_> = parts
            .map(|part| {
                let weights = weights.clone();
                scope.spawn(move || sum_of_losses(weights, tokens, part))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .expect("the step of a valid token does not panic")
            })
            .sum()
    });
    Ok(total? / predicted as f64)
}

/// Tokens of a text that a row reads ahead.
const BLOCK_TOKENS: usize = 1024;

/// The tokens that one row of a batch is fed, in order.
struct RowReader<'a> {
    tokens: &'a CorpusTokens,
    /// Place of the first token in `block`.
    begin: usize,
    block: Vec<u32>,
}

impl<'a> RowReader<'a> {
    fn new(tokens: &'a CorpusTokens) -> Self {
        Self {
            tokens,
            begin: 0,
            block: Vec::new(),
        }
    }

    fn token(&mut self, place: usize) -> io::Result<u32> {
        if !(self.begin..self.begin + self.block.len()).contains(&place) {
            let count = BLOCK_TOKENS.min(self.tokens.len().saturating_sub(place));
            self.block.resize(count.max(1), 0);
            self.tokens.read(place, &mut self.block)?;
            self.begin = place;
        }
        Ok(self.block[place - self.begin])
    }
}

fn sum_of_losses(
    weights: Arc<DecodeWeights>,
    tokens: &CorpusTokens,
    stretches: &[(usize, usize)],
) -> io::Result<f64> {
    let architecture = *weights.architecture();
    let mut stepper =
        DecodeBatch::new(weights, stretches.len()).expect("a stepper of the CPU has no errors");
    for _ in stretches {
        stepper.push(&HiddenState::zeros(&architecture));
    }
    let longest = stretches.iter().map(|(begin, end)| end - begin).max();
    let mut readers: Vec<RowReader<'_>> =
        stretches.iter().map(|_| RowReader::new(tokens)).collect();
    let mut fed = vec![0; stretches.len()];
    let mut total = 0.0;
    // All rows are at the same place of their stretch; one that has nothing
    // to warm up on, or is at its end, is fed and not counted.
    for place in 0..longest.unwrap_or(0) + WARM_UP {
        let at = |begin: usize| (begin + place).checked_sub(WARM_UP);
        for ((token, reader), &(begin, end)) in fed.iter_mut().zip(&mut readers).zip(stretches) {
            *token = match at(begin) {
                Some(at) if at < end => reader.token(at)?,
                _ => 0,
            };
        }
        let logits = stepper.step(&fed).expect("a step on the CPU has no errors");
        let mut before_text = Vec::new();
        let rows = logits.chunks_exact(architecture.vocabulary_size);
        for (row, (logits, &(begin, end))) in rows.zip(stretches).enumerate() {
            match at(begin) {
                None => before_text.push(row),
                Some(at) if at >= begin && at < end => {
                    let next = readers[row].token(at + 1)?;
                    total += negative_log_likelihood(logits, next);
                }
                Some(_) => {}
            }
        }
        // What such a row was fed is not of the text: it begins anew.
        for row in before_text {
            stepper.reset(row);
        }
    }
    Ok(total)
}

/// Minus the logarithm of what softmax gives the target, in double precision.
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
    fn stretches_give_the_loss_of_the_text_read_in_one_go() {
        let architecture = Architecture {
            vocabulary_size: 7,
            hidden_size: 12,
            num_layers: 2,
        };
        let parameters = Initial::Uniform.parameters(architecture, 1);
        let tokens: Vec<u32> = (0..3001u32).map(|i| (i * i + i / 3) % 7).collect();
        let weights = Arc::new(DecodeWeights::on_processor(&parameters));
        let mut stepper = DecodeBatch::new(weights, 1).expect("a stepper");
        let mut state = HiddenState::zeros(&architecture);
        let logits = stepper
            .prefill_logits(&mut state, &tokens)
            .expect("a prefill");
        let exact = logits
            .chunks_exact(7)
            .zip(&tokens[1..])
            .map(|(logits, &next)| negative_log_likelihood(logits, next))
            .sum::<f64>()
            / 3000.0;
        let text = CorpusTokens::from(&tokens[..]);
        for threads in [1, 2, 3] {
            let ours = mean_loss(&parameters, &text, threads).expect("in memory");
            assert!((ours - exact).abs() < 1e-6, "{ours} {exact}");
        }
        let of = |part| {
            let part = text.range(part).expect("a part");
            mean_loss(&parameters, &part, 2).expect("in memory")
        };
        let short = of(0..2);
        assert!((short - negative_log_likelihood(&logits[..7], tokens[1])).abs() < 1e-9);
        assert_eq!(of(0..1), 0.0);
    }
}
