//! Cuts a text into batches as the notebook does, so that the hidden state of
//! each row can be carried from batch to batch.

use std::io;

use thiserror::Error;

use super::tokens::CorpusTokens;

/// A text is too short for one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the training text has {given} characters, but one batch of {batch_size} x {sequence_length} \
     needs {needed}; reduce the batch size or the sequence length"
)]
pub struct BatchesError {
    /// Characters of the text.
    pub given: usize,
    /// Characters in one batch.
    pub needed: usize,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Characters of a sequence.
    pub sequence_length: usize,
}

/// Arranges a text as `[batch_size, steps * sequence_length]`; the remainder at
/// its end is dropped. Each step takes the next `sequence_length` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    batch_size: usize,
    sequence_length: usize,
    steps: usize,
}

impl Batches {
    /// Arranges a text of `tokens` characters.
    ///
    /// # Errors
    /// The text does not fill one batch.
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

    /// Returns the number of batches in the text.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Writes one batch, time first: `inputs` and `targets` are
    /// `[sequence_length, batch_size]`. The target of an input is the next
    /// character in its row; that of the last column of all is the first column
    /// (the notebook wraps around). The end of the text is joined to its
    /// beginning, and the first row starts at `offset`. Blocks on the file of
    /// the text, if it has one.
    ///
    /// # Errors
    /// As [`CorpusTokens::read`].
    ///
    /// # Panics
    /// If `step` is not less than [`Self::steps`], or a slice is shorter.
    pub fn fill(
        &self,
        tokens: &CorpusTokens,
        offset: usize,
        step: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> io::Result<()> {
        assert!(step < self.steps, "step {step} of {}", self.steps);
        let width = self.steps * self.sequence_length;
        let first = step * self.sequence_length;
        let is_last = first + self.sequence_length == width;
        // The inputs of a row, and the character after them.
        let mut row_tokens = vec![0; self.sequence_length + 1];
        for row in 0..self.batch_size {
            let start = (offset + row * width) % tokens.len();
            if is_last {
                let (wrapped, rest) = row_tokens.split_last_mut().expect("at least one");
                read_wrapping(tokens, start + first, rest)?;
                read_wrapping(tokens, start, std::slice::from_mut(wrapped))?;
            } else {
                read_wrapping(tokens, start + first, &mut row_tokens)?;
            }
            for (time, pair) in row_tokens.windows(2).enumerate() {
                let index = time * self.batch_size + row;
                inputs[index] = pair[0];
                targets[index] = pair[1];
            }
        }
        Ok(())
    }
}

/// Reads the token ids from `position` on, continuing at the beginning of the
/// text after its end.
fn read_wrapping(tokens: &CorpusTokens, position: usize, mut out: &mut [u32]) -> io::Result<()> {
    let mut position = position % tokens.len();
    while !out.is_empty() {
        let count = out.len().min(tokens.len() - position);
        let (part, rest) = out.split_at_mut(count);
        tokens.read(position, part)?;
        out = rest;
        position = 0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Input and output of the notebook's own function.
    #[derive(serde::Deserialize)]
    struct Example {
        name: String,
        data: Vec<u32>,
        batches: Vec<Batch>,
    }

    /// `[batch, sequence]`, as in the notebook.
    #[derive(serde::Deserialize)]
    struct Batch {
        inputs: Vec<Vec<u32>>,
        targets: Vec<Vec<u32>>,
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        batch_size: usize,
        sequence_length: usize,
        examples: Vec<Example>,
    }

    fn transposed(rows: &[Vec<u32>]) -> Vec<u32> {
        (0..rows[0].len())
            .flat_map(|time| rows.iter().map(move |row| row[time]))
            .collect()
    }

    #[test]
    fn batches_match_those_of_the_notebook() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../../tests/golden/iterbatches.json"))
                .expect("the golden file");
        let characters = golden.batch_size * golden.sequence_length;
        for example in &golden.examples {
            let batches = Batches::new(
                example.data.len(),
                golden.batch_size,
                golden.sequence_length,
            )
            .expect("long enough");
            assert_eq!(batches.steps(), example.batches.len(), "{}", example.name);
            let tokens = CorpusTokens::from(&example.data[..]);
            for (step, expected) in example.batches.iter().enumerate() {
                let (mut inputs, mut targets) = (vec![0; characters], vec![0; characters]);
                batches
                    .fill(&tokens, 0, step, &mut inputs, &mut targets)
                    .expect("a text in memory");
                assert_eq!(inputs, transposed(&expected.inputs), "{}", example.name);
                assert_eq!(targets, transposed(&expected.targets), "{}", example.name);
            }
        }
    }

    #[test]
    fn an_offset_moves_every_character_and_wraps_around() {
        let batches = Batches::new(6, 2, 3).expect("long enough");
        let (mut inputs, mut targets) = ([0; 6], [0; 6]);
        let tokens: CorpusTokens = (0..6).collect();
        batches
            .fill(&tokens, 4, 0, &mut inputs, &mut targets)
            .expect("a text in memory");
        assert_eq!(inputs, [4, 1, 5, 2, 0, 3]);
        assert_eq!(targets, [5, 2, 0, 3, 4, 1]);
    }

    #[test]
    fn a_text_shorter_than_a_batch_is_rejected_with_the_length_it_needs() {
        let error = Batches::new(5, 2, 3).expect_err("too short");
        assert_eq!(
            error.to_string(),
            "the training text has 5 characters, but one batch of 2 x 3 needs 6; reduce the batch \
             size or the sequence length"
        );
    }
}
