//! One step of the network for a batch of sequences whose states stay
//! resident: the interface that generation is written against.

use std::sync::Arc;

use thiserror::Error;

use super::architecture::Architecture;
use super::parameters::Parameters;

/// h and c of every layer of one sequence, `[layers, 2, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenState(pub Box<[f32]>);

impl HiddenState {
    /// The state before the first character.
    pub fn zeros(architecture: &Architecture) -> Self {
        Self(vec![0.0; architecture.state_len()].into_boxed_slice())
    }
}

/// The weights of a network, laid out once for stepping. Shared by all
/// steppers of the model.
#[derive(Debug)]
pub struct StepWeights {
    architecture: Architecture,
}

impl StepWeights {
    /// Lays the weights out. Takes some milliseconds a million parameters.
    pub fn new(parameters: &Parameters) -> Self {
        Self {
            architecture: parameters.architecture,
        }
    }

    /// The shape of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        0
    }
}

/// A step could not be computed (a device failed).
#[derive(Debug, Error)]
#[error("the step failed: {0}")]
pub struct StepError(pub String);

/// A batch of sequences in step. Rows are `0..rows()`, without gaps; the row
/// that is taken out is filled by the last one. Belongs to one thread.
///
/// The logits and the new state of a row are, bit for bit, the same whatever
/// other rows there are, and whether its characters came through
/// [`Self::step`] or [`Self::prefill`].
pub struct Stepper {
    weights: Arc<StepWeights>,
}

impl Stepper {
    /// An empty batch with room for `max_rows` rows.
    pub fn new(weights: Arc<StepWeights>, max_rows: usize) -> Result<Self, StepError> {
        let _ = max_rows;
        Ok(Self { weights })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        let _ = &self.weights;
        unimplemented!()
    }

    /// Adds a row that begins in `state`; returns its index, `rows() - 1`.
    ///
    /// # Panics
    /// Where the batch is full or the state has another architecture.
    pub fn push(&mut self, state: &HiddenState) -> usize {
        let _ = state;
        unimplemented!()
    }

    /// Takes a row out and returns its state. The last row moves into its
    /// place.
    pub fn swap_remove(&mut self, row: usize) -> HiddenState {
        let _ = row;
        unimplemented!()
    }

    /// A copy of the state of a row.
    pub fn state(&self, row: usize) -> HiddenState {
        let _ = row;
        unimplemented!()
    }

    /// Feeds `tokens[row]` to each row; returns the logits
    /// `[rows, vocabulary]`.
    ///
    /// # Panics
    /// Where there is not one token for each row, or one is outside the
    /// vocabulary.
    pub fn step(&mut self, tokens: &[u32]) -> Result<&[f32], StepError> {
        let _ = tokens;
        unimplemented!()
    }

    /// Feeds a stretch of characters to a sequence that is not in the batch,
    /// without its logits. The caller bounds the stretch: it blocks until the
    /// stretch is done.
    pub fn prefill(&mut self, state: &mut HiddenState, tokens: &[u32]) -> Result<(), StepError> {
        let _ = (state, tokens);
        unimplemented!()
    }

    /// As [`Self::prefill`], and returns the logits after each character,
    /// `[tokens.len(), vocabulary]`, for scoring.
    pub fn prefill_logits(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
    ) -> Result<Vec<f32>, StepError> {
        let _ = (state, tokens);
        unimplemented!()
    }
}
