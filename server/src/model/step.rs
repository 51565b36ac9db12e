//! One step of the network for a batch of sequences whose states stay
//! resident, and the faster way through a stretch of known characters: who is
//! in the batch and in which state. What is computed is in `passes`, the layout
//! of the weights in `packed`.

pub mod check;
mod passes;

use std::sync::Arc;

use pulp::Arch;
use thiserror::Error;

use self::passes::{BatchStep, Lanes, Prefill};
use super::architecture::Architecture;
use super::packed::{GATES, PackedNetwork};
use super::parameters::Parameters;

/// Characters that go through one layer of a prefill together. The product
/// with the layer below is made for all of them at once; more would win
/// little and take more memory.
const STRETCH: usize = 64;

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
    network: PackedNetwork,
}

impl StepWeights {
    /// Lays the weights out. Takes some milliseconds a million parameters.
    pub fn new(parameters: &Parameters) -> Self {
        Self {
            network: PackedNetwork::new(parameters, Arch::new().dispatch(Lanes)),
        }
    }

    /// The shape of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.network.architecture
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.network.bytes()
    }
}

/// A step could not be computed (a device failed).
#[derive(Debug, Error)]
#[error("the step failed: {0}")]
pub struct StepError(pub String);

/// The resident state of one layer; each row padded to whole panels.
struct LayerState {
    /// `[max_rows, padded]`.
    h: Vec<f32>,
    /// Where a step writes the new h, since all of the old is still read.
    next_h: Vec<f32>,
    /// `[max_rows, padded]`.
    c: Vec<f32>,
}

impl LayerState {
    fn new(rows: usize, padded: usize) -> Self {
        let zeros = || vec![0.0; rows * padded];
        Self {
            h: zeros(),
            next_h: zeros(),
            c: zeros(),
        }
    }
}

/// A batch of sequences in step. Rows are `0..rows()`, without gaps; the row
/// that is taken out is filled by the last one. Belongs to one thread.
///
/// The logits and the new state of a row are, bit for bit, the same whatever
/// other rows there are, and whether its characters came through
/// [`Self::step`] or [`Self::prefill`].
pub struct Stepper {
    weights: Arc<StepWeights>,
    arch: Arch,
    max_rows: usize,
    rows: usize,
    layers: Vec<LayerState>,
    /// `[max_rows, vocabulary]`.
    logits: Vec<f32>,
    /// One row: the sequence that is being prefilled.
    single: Vec<LayerState>,
    stretch: Stretch,
}

/// Buffers of a prefill.
struct Stretch {
    /// h of the layer below after each character, `[STRETCH, padded]`.
    below: Vec<f32>,
    /// h of this layer after each character, `[STRETCH, padded]`.
    above: Vec<f32>,
    /// Sums over the layer below, `[panels, STRETCH, 4, lanes]`.
    sums: Vec<f32>,
}

impl Stepper {
    /// An empty batch with room for `max_rows` rows.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn new(weights: Arc<StepWeights>, max_rows: usize) -> Result<Self, StepError> {
        let network = &weights.network;
        let padded = network.padded_hidden();
        let layers = network.architecture.num_layers;
        let states = |rows| (0..layers).map(|_| LayerState::new(rows, padded)).collect();
        Ok(Self {
            arch: Arch::new(),
            max_rows,
            rows: 0,
            layers: states(max_rows),
            logits: vec![0.0; max_rows * network.architecture.vocabulary_size],
            single: states(1),
            stretch: Stretch {
                below: vec![0.0; STRETCH * padded],
                above: vec![0.0; STRETCH * padded],
                sums: vec![0.0; STRETCH * padded * GATES],
            },
            weights,
        })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row that begins in `state`; returns its index, `rows() - 1`.
    ///
    /// # Panics
    /// Where the batch is full or the state has another architecture.
    pub fn push(&mut self, state: &HiddenState) -> usize {
        assert!(self.rows < self.max_rows, "the batch is full");
        let row = self.rows;
        self.rows += 1;
        write_row(&self.weights.network, &mut self.layers, row, state);
        row
    }

    /// Takes a row out and returns its state. The last row moves into its
    /// place.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn swap_remove(&mut self, row: usize) -> HiddenState {
        let state = self.state(row);
        let padded = self.weights.network.padded_hidden();
        self.rows -= 1;
        let last = self.rows * padded..(self.rows + 1) * padded;
        for layer in &mut self.layers {
            layer.h.copy_within(last.clone(), row * padded);
            layer.c.copy_within(last.clone(), row * padded);
        }
        state
    }

    /// Sets a row back to the state before the first character.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn reset(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let network = &self.weights.network;
        let zeros = HiddenState::zeros(&network.architecture);
        write_row(network, &mut self.layers, row, &zeros);
    }

    /// A copy of the state of a row.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn state(&self, row: usize) -> HiddenState {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        read_row(&self.weights.network, &self.layers, row)
    }

    /// Feeds `tokens[row]` to each row; returns the logits
    /// `[rows, vocabulary]`.
    ///
    /// # Errors
    /// None on the CPU.
    ///
    /// # Panics
    /// Where there is not one token for each row, or one is outside the
    /// vocabulary.
    pub fn step(&mut self, tokens: &[u32]) -> Result<&[f32], StepError> {
        assert_eq!(tokens.len(), self.rows, "one token for each row");
        let network = &self.weights.network;
        self.arch.dispatch(BatchStep {
            network,
            layers: &mut self.layers,
            tokens,
            logits: &mut self.logits,
        });
        for layer in &mut self.layers {
            std::mem::swap(&mut layer.h, &mut layer.next_h);
        }
        Ok(&self.logits[..tokens.len() * network.architecture.vocabulary_size])
    }

    /// Feeds a stretch of characters to a sequence that is not in the batch,
    /// without its logits. The caller bounds the stretch: it blocks until the
    /// stretch is done.
    ///
    /// # Errors
    /// None on the CPU.
    ///
    /// # Panics
    /// Where a token is outside the vocabulary or the state has another
    /// architecture.
    pub fn prefill(&mut self, state: &mut HiddenState, tokens: &[u32]) -> Result<(), StepError> {
        self.prefill_each(state, tokens, None);
        Ok(())
    }

    /// As [`Self::prefill`], and returns the logits after each character,
    /// `[tokens.len(), vocabulary]`, for scoring.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    ///
    /// # Panics
    /// As [`Self::prefill`].
    pub fn prefill_logits(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
    ) -> Result<Vec<f32>, StepError> {
        let mut logits = Vec::new();
        self.prefill_each(state, tokens, Some(&mut logits));
        Ok(logits)
    }

    fn prefill_each(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        mut logits: Option<&mut Vec<f32>>,
    ) {
        let network = &self.weights.network;
        write_row(network, &mut self.single, 0, state);
        for tokens in tokens.chunks(STRETCH) {
            let logits = logits.as_deref_mut().map(|all| {
                let begin = all.len();
                all.resize(
                    begin + tokens.len() * network.architecture.vocabulary_size,
                    0.0,
                );
                &mut all[begin..]
            });
            self.arch.dispatch(Prefill {
                network,
                layers: &mut self.single,
                stretch: &mut self.stretch,
                tokens,
                logits,
            });
        }
        *state = read_row(network, &self.single, 0);
    }
}

fn write_row(network: &PackedNetwork, layers: &mut [LayerState], row: usize, state: &HiddenState) {
    assert_eq!(state.0.len(), network.architecture.state_len());
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    for (layer, numbers) in layers.iter_mut().zip(state.0.chunks_exact(2 * hidden)) {
        let (h, c) = numbers.split_at(hidden);
        for (row, numbers) in [
            (&mut layer.h[row * padded..][..padded], h),
            (&mut layer.c[row * padded..][..padded], c),
        ] {
            row[..hidden].copy_from_slice(numbers);
            row[hidden..].fill(0.0);
        }
    }
}

fn read_row(network: &PackedNetwork, layers: &[LayerState], row: usize) -> HiddenState {
    let (hidden, padded) = (network.architecture.hidden_size, network.padded_hidden());
    let mut numbers = Vec::with_capacity(network.architecture.state_len());
    for layer in layers {
        numbers.extend_from_slice(&layer.h[row * padded..][..hidden]);
        numbers.extend_from_slice(&layer.c[row * padded..][..hidden]);
    }
    HiddenState(numbers.into_boxed_slice())
}

#[cfg(test)]
#[path = "step/tests.rs"]
mod tests;
