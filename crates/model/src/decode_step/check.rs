//! Checks at run time that a device computes rows independently: a row must be
//! bit for bit the same in any batch. The decode step is written so that it is;
//! a CPU, a compiler or a matrix library may still violate it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BatchBackend, Chunk, DecodeBatch, DecodeError, DecodeWeights, HiddenState};
use crate::sampler::{self, HIGHEST};

/// Sizes of the batches in which a row is compared: they leave one, two and
/// three rows after full blocks of the kernel, and the last has several blocks.
const BATCH_SIZES: [usize; 5] = [2, 3, 4, 7, MAX_ROWS];

/// Rows of the largest batch.
pub const MAX_ROWS: usize = 13;

/// Characters that each row is fed.
const STEPS: usize = 3;

/// Rows and characters of the comparison of two devices.
const COMPARED_ROWS: usize = 5;
const COMPARED_CHARS: usize = 16;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeCheck {
    /// Whether a row is independent of the other rows of its batch.
    pub row_invariant: bool,
    /// Time of a step of one row.
    pub one_row: Duration,
    /// Time of a step of the largest batch, divided by its rows.
    pub row_in_batch: Duration,
}

/// Steps a few characters alone and in batches. Blocks for some tens of steps:
/// 50 ms for the notebook's model on a slow core.
///
/// # Errors
/// As [`DecodeBatch::step`].
pub fn check(weights: &Arc<DecodeWeights>) -> Result<DecodeCheck, DecodeError> {
    let vocabulary = weights.architecture().vocabulary_size;
    let token = |row: usize, step: usize| ((row * 31 + step * 17 + 1) % vocabulary) as u32;
    // Returns the last logits of each row, and the time of a step.
    let run = |rows: &[usize]| -> Result<(Vec<Vec<f32>>, Duration), DecodeError> {
        let mut batch = DecodeBatch::new(weights.clone(), rows.len())?;
        for _ in rows {
            batch.push(&weights.zero_state());
        }
        let begin = Instant::now();
        let mut logits = Vec::new();
        for step in 0..STEPS {
            let tokens: Vec<u32> = rows.iter().map(|&row| token(row, step)).collect();
            logits = batch.step(&tokens)?.to_vec();
        }
        let time = begin.elapsed() / STEPS as u32;
        Ok((
            logits.chunks(vocabulary).map(<[f32]>::to_vec).collect(),
            time,
        ))
    };

    let (alone, one_row) = run(&[0])?;
    let mut result = DecodeCheck {
        row_invariant: true,
        one_row,
        row_in_batch: one_row,
    };
    for size in BATCH_SIZES {
        // The row is first, then last: its index must not matter either.
        let mut rows: Vec<usize> = (0..size).collect();
        let (first, _) = run(&rows)?;
        rows.reverse();
        let (last, time) = run(&rows)?;
        result.row_invariant &= first[0] == alone[0] && last[size - 1] == alone[0];
        result.row_in_batch = time / size as u32;
    }
    Ok(result)
}

/// Returns whether two devices compute the same bits for a network, in prefill,
/// in steps and in states. Blocks for some tens of steps on each.
///
/// # Errors
/// As [`DecodeBatch::step`].
pub fn same_results(a: &DecodeWeights, b: &DecodeWeights) -> Result<bool, DecodeError> {
    Ok(results(a)? == results(b)?)
}

/// The states after a prefill and after steps, and the bits of all logits.
fn results(weights: &DecodeWeights) -> Result<(Vec<HiddenState>, Vec<u32>), DecodeError> {
    let vocabulary = weights.architecture().vocabulary_size;
    let token = |row: usize, at: usize| ((row * 31 + at * 17 + 1) % vocabulary) as u32;
    // Not a `DecodeBatch`, which panics if a device fails.
    let mut batch = weights.backend(COMPARED_ROWS)?;
    let text: Vec<u32> = (0..COMPARED_CHARS).map(|at| token(0, at)).collect();
    let mut prefilled = weights.zero_state();
    batch.prefill(&mut prefilled, &text, None)?;
    batch.write(0, &prefilled)?;
    for row in 1..COMPARED_ROWS {
        batch.write(row, &weights.zero_state())?;
    }
    let mut logits = Vec::new();
    for at in 0..COMPARED_CHARS {
        let tokens: Vec<u32> = (0..COMPARED_ROWS).map(|row| token(row, at)).collect();
        logits.extend(batch.step(&tokens)?.iter().map(|logit| logit.to_bits()));
    }
    let tokens: Vec<u32> = (0..COMPARED_ROWS).map(|row| token(row, 0)).collect();
    logits.extend(highest_of_step(&mut *batch, vocabulary, &tokens)?);
    let mut states = vec![prefilled];
    let lengths: Vec<usize> = (COMPARED_CHARS - COMPARED_ROWS..COMPARED_CHARS).collect();
    // Whichever width the device has, the results are in the same order.
    for lengths in lengths.chunks(batch.prefill_width()) {
        let mut together: Vec<HiddenState> = lengths.iter().map(|_| weights.zero_state()).collect();
        let chunks = together.iter_mut().zip(lengths);
        let mut chunks: Vec<Chunk<'_>> = chunks
            .map(|(state, &length)| (state, &text[..length]))
            .collect();
        batch.prefill_all(&mut chunks)?;
        states.extend(together);
    }
    for row in 0..COMPARED_ROWS {
        states.push(batch.read(row)?);
    }
    Ok((states, logits))
}

/// Takes a step; returns the highest logits of each row, as bits and with their token
/// ids, as the device selects them, or of all logits if it does not.
fn highest_of_step(
    batch: &mut dyn BatchBackend,
    vocabulary: usize,
    tokens: &[u32],
) -> Result<Vec<u32>, DecodeError> {
    let mut bits = Vec::new();
    let mut add = |ids: &[u32], logits: &[f32], log_sum: f64| {
        bits.extend(ids);
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
        let log_sum = log_sum.to_bits();
        bits.extend([log_sum as u32, (log_sum >> 32) as u32]);
    };
    if batch.selects_highest() {
        let highest = batch.step_highest(tokens)?;
        for row in 0..tokens.len() {
            let row = highest.row(row);
            let count = HIGHEST.min(vocabulary);
            add(&row.ids[..count], &row.logits[..count], row.log_sum_exp);
        }
    } else {
        for row in batch.step(tokens)?.chunks_exact(vocabulary) {
            let (ids, logits, log_sum) = sampler::highest(row);
            add(&ids, &logits, log_sum);
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use charlstm_int8::Kernel;

    use super::super::{DecodeDevice, Int8Processor};
    use super::*;
    use crate::architecture::Architecture;
    use crate::initial::Initial;

    #[test]
    fn rows_are_independent_on_this_computer() {
        let architecture = Architecture {
            vocabulary_size: 20,
            hidden_size: 50,
            num_layers: 2,
        };
        let weights = Arc::new(DecodeWeights::on_processor(
            &Initial::Uniform.parameters(architecture, 2),
        ));
        assert!(check(&weights).expect("steps").row_invariant);
    }

    #[test]
    fn devices_with_the_same_results_are_distinguished_from_others() {
        let architecture = Architecture {
            vocabulary_size: 20,
            hidden_size: 50,
            num_layers: 2,
        };
        let prepare = |kernel, seed| {
            let parameters = Initial::Uniform.parameters(architecture, seed);
            let device = Int8Processor { kernel };
            device.prepare(&parameters).expect("a CPU")
        };
        let best = prepare(Kernel::best(), 2);
        let same = |other: &DecodeWeights| same_results(&best, other).expect("steps");
        assert!(same(&prepare(Kernel::Portable, 2)));
        assert!(!same(&prepare(Kernel::Portable, 3)));
    }
}
