//! Whether this machine's arithmetic keeps the promise of the step: a row is
//! bit for bit the same in any batch. The step is made so that it is; the check
//! finds out where a processor, a compiler or a matrix library breaks it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DecodeBatch, DecodeError, DecodeWeights, HiddenState};

/// Batches that a row is looked at in: sizes that leave one, two and more rows
/// beside full blocks, and one of several blocks.
const BATCHES: [usize; 5] = [2, 3, 4, 7, MAX_ROWS];

/// Rows of the largest of them.
pub const MAX_ROWS: usize = 13;

/// Characters that each row is fed.
const STEPS: usize = 3;

/// What the check found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeCheck {
    /// True where a row does not depend on the rows beside it.
    pub row_invariant: bool,
    /// Time of a step of one row.
    pub one_row: Duration,
    /// Time of a step of the largest batch that was looked at, for each row.
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
    let run = |rows: &[usize]| -> Result<(Vec<Vec<f32>>, Duration), DecodeError> {
        let mut stepper = DecodeBatch::new(weights.clone(), rows.len())?;
        for _ in rows {
            stepper.push(&HiddenState::zeros(weights.architecture()));
        }
        let begin = Instant::now();
        let mut logits = Vec::new();
        for step in 0..STEPS {
            let tokens: Vec<u32> = rows.iter().map(|&row| token(row, step)).collect();
            logits = stepper.step(&tokens)?.to_vec();
        }
        let time = begin.elapsed() / STEPS as u32;
        Ok((
            logits.chunks(vocabulary).map(<[f32]>::to_vec).collect(),
            time,
        ))
    };

    let (alone, one_row) = run(&[0])?;
    let mut found = DecodeCheck {
        row_invariant: true,
        one_row,
        row_in_batch: one_row,
    };
    for size in BATCHES {
        // The row stands first, then last: the order must not matter either.
        let mut rows: Vec<usize> = (0..size).collect();
        let (first, _) = run(&rows)?;
        rows.reverse();
        let (last, time) = run(&rows)?;
        found.row_invariant &= first[0] == alone[0] && last[size - 1] == alone[0];
        found.row_in_batch = time / size as u32;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::initial::Initial;

    #[test]
    fn this_machine_keeps_rows_independent() {
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
