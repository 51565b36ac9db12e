//! How a text is cut into batches: the notebook's way, which lets the hidden
//! state of each row go on from batch to batch.

use thiserror::Error;

/// A text is too short for one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the training text has {given} characters; one batch of {batch_size} x {sequence_length} needs {needed}"
)]
pub struct BatchesError {
    /// Characters of the text.
    pub given: usize,
    /// Characters that one batch takes.
    pub needed: usize,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Characters of a sequence.
    pub sequence_length: usize,
}

/// The text as `[batch_size, steps * sequence_length]`; what is left over at
/// its end is dropped. Each step takes the next `sequence_length` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    batch_size: usize,
    sequence_length: usize,
    steps: usize,
}

impl Batches {
    /// Cuts a text of `tokens` characters.
    ///
    /// # Errors
    /// Where it does not fill one batch.
    pub fn new(
        tokens: usize,
        batch_size: usize,
        sequence_length: usize,
    ) -> Result<Self, BatchesError> {
        let needed = batch_size * sequence_length;
        if tokens < needed {
            return Err(BatchesError {
                given: tokens,
                needed,
                batch_size,
                sequence_length,
            });
        }
        Ok(Self {
            batch_size,
            sequence_length,
            steps: tokens / needed,
        })
    }

    /// Batches in the text.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Writes one batch, time first: `inputs` and `targets` are
    /// `[sequence_length, batch_size]`. Targets are the inputs one character
    /// on; that of a row's last character is the row's first (the notebook
    /// wraps them around).
    ///
    /// # Panics
    /// Where `step` is not under [`Self::steps`] or a slice has another size.
    pub fn fill(&self, tokens: &[u32], step: usize, inputs: &mut [u32], targets: &mut [u32]) {
        assert!(step < self.steps, "step {step} of {}", self.steps);
        let width = self.steps * self.sequence_length;
        for row in 0..self.batch_size {
            let sequence =
                &tokens[row * width + step * self.sequence_length..][..self.sequence_length];
            for time in 0..self.sequence_length {
                let place = time * self.batch_size + row;
                inputs[place] = sequence[time];
                targets[place] = sequence[(time + 1) % self.sequence_length];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_on_from_batch_to_batch_and_targets_wrap_around() {
        let tokens: Vec<u32> = (0..14).collect();
        let batches = Batches::new(tokens.len(), 2, 3).expect("long enough");
        assert_eq!(batches.steps(), 2);
        let (mut inputs, mut targets) = ([0; 6], [0; 6]);
        batches.fill(&tokens, 1, &mut inputs, &mut targets);
        // Rows 3 4 5 and 9 10 11, time first.
        assert_eq!(inputs, [3, 9, 4, 10, 5, 11]);
        assert_eq!(targets, [4, 10, 5, 11, 3, 9]);
    }

    #[test]
    fn a_text_shorter_than_a_batch_is_told_what_it_needs() {
        let error = Batches::new(5, 2, 3).expect_err("too short");
        assert_eq!(
            error.to_string(),
            "the training text has 5 characters; one batch of 2 x 3 needs 6"
        );
    }
}
