//! Checks at run time that a device computes rows independently: a row must be
//! bit for bit the same in any batch. The decode step is written so that it is;
//! a CPU, a compiler or a matrix library may still violate it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DecodeBatch, DecodeError, DecodeWeights};

/// Sizes of the batches in which a row is compared: they leave one, two and
/// three rows after full blocks of the kernel, and the last has several blocks.
const BATCH_SIZES: [usize; 5] = [2, 3, 4, 7, MAX_ROWS];

/// Rows of the largest batch.
pub const MAX_ROWS: usize = 13;

/// Characters that each row is fed.
const STEPS: usize = 3;

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

#[cfg(test)]
mod tests {
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
}
