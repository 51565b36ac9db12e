//! One step of the network for a batch of sequences whose states stay
//! resident, and the way through a stretch of known characters: who is in the
//! batch and in which state. The arithmetic is that of `simd` on the processor
//! and of `torch` on other devices.

pub mod check;
mod passes;
mod simd;
mod torch;

use std::sync::Arc;

use thiserror::Error;

use self::simd::SimdStates;
use self::torch::{TorchStates, TorchWeights};
use super::architecture::Architecture;
use super::device::Device;
use super::packed::PackedNetwork;
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

/// Where models are stepped.
#[derive(Clone, Copy, Debug)]
pub struct StepPlace {
    /// The device.
    pub device: Device,
    /// Most rows of a batch. On a device that is not the processor each step
    /// computes so many, however few are used.
    pub max_rows: usize,
}

impl StepPlace {
    /// The processor; batches of any size.
    pub const PROCESSOR: Self = Self {
        device: Device::Cpu,
        max_rows: 0,
    };
}

/// The weights of a network, laid out once for stepping. Shared by all
/// steppers of the model.
#[derive(Debug)]
pub struct StepWeights {
    architecture: Architecture,
    layout: Layout,
}

/// The weights as the device wants them.
#[derive(Debug)]
enum Layout {
    Simd(Arc<PackedNetwork>),
    Torch(TorchWeights),
}

impl StepWeights {
    /// Lays the weights out for the processor. Takes some milliseconds a
    /// million parameters.
    pub fn new(parameters: &Parameters) -> Self {
        Self {
            architecture: parameters.architecture,
            layout: Layout::Simd(Arc::new(simd::lay_out(parameters))),
        }
    }

    /// Lays the weights out for steppers in `place`.
    ///
    /// # Errors
    /// The device failed, or has too little memory. None on the processor.
    pub fn on(parameters: &Parameters, place: StepPlace) -> Result<Self, StepError> {
        match place.device {
            Device::Cpu => Ok(Self::new(parameters)),
            Device::Cuda(_) => {
                let rows = place.max_rows.max(check::MOST_ROWS);
                Self::torch(parameters, place.device.into(), rows)
            }
        }
    }

    /// Lays the weights out for libtorch; each step computes `rows` rows.
    fn torch(parameters: &Parameters, device: tch::Device, rows: usize) -> Result<Self, StepError> {
        let weights = TorchWeights::new(parameters, device, rows)?;
        Ok(Self {
            architecture: parameters.architecture,
            layout: Layout::Torch(weights),
        })
    }

    /// The shape of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Bytes of memory that they take, on whichever device.
    pub fn bytes(&self) -> usize {
        match &self.layout {
            Layout::Simd(network) => network.bytes(),
            Layout::Torch(_) => self.architecture.parameter_count() * size_of::<f32>(),
        }
    }
}

/// A step could not be computed (a device failed).
#[derive(Debug, Error)]
#[error("the step failed: {0}")]
pub struct StepError(pub String);

/// The states of a batch and the arithmetic on them, on one device. Rows and
/// tokens are checked by [`Stepper`].
trait States: Send {
    /// Sets the state of a row.
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), StepError>;

    /// A copy of the state of a row.
    fn read(&self, row: usize) -> Result<HiddenState, StepError>;

    /// Copies the state of one row over another.
    fn copy(&mut self, from: usize, to: usize) -> Result<(), StepError>;

    /// Feeds `tokens[row]` to the rows `0..tokens.len()`; the logits `[rows,
    /// vocabulary]`.
    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], StepError>;

    /// Feeds a stretch to a sequence outside the batch; adds the logits after
    /// each character to `logits`, where they are wanted.
    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), StepError>;
}

/// A batch of sequences in step. Rows are `0..rows()`, without gaps; the row
/// that is taken out is filled by the last one. Belongs to one thread.
///
/// The logits and the new state of a row are, bit for bit, the same whatever
/// other rows there are, and whether its characters came through
/// [`Self::step`] or [`Self::prefill`]. [`check`] finds out where a device
/// breaks that.
pub struct Stepper {
    architecture: Architecture,
    max_rows: usize,
    rows: usize,
    states: Box<dyn States>,
}

impl Stepper {
    /// An empty batch with room for `max_rows` rows.
    ///
    /// # Errors
    /// The device failed, or has too little memory. None on the processor.
    ///
    /// # Panics
    /// Where the weights were laid out for fewer rows.
    pub fn new(weights: Arc<StepWeights>, max_rows: usize) -> Result<Self, StepError> {
        let architecture = weights.architecture;
        let states: Box<dyn States> = match &weights.layout {
            Layout::Simd(network) => Box::new(SimdStates::new(Arc::clone(network), max_rows)),
            Layout::Torch(weights) => Box::new(TorchStates::new(weights, max_rows)?),
        };
        Ok(Self {
            architecture,
            max_rows,
            rows: 0,
            states,
        })
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row that begins in `state`; returns its index, `rows() - 1`.
    ///
    /// # Panics
    /// Where the batch is full, the state has another architecture, or the
    /// device fails.
    pub fn push(&mut self, state: &HiddenState) -> usize {
        assert!(self.rows < self.max_rows, "the batch is full");
        assert_eq!(state.0.len(), self.architecture.state_len());
        let row = self.rows;
        self.rows += 1;
        done(self.states.write(row, state));
        row
    }

    /// Takes a row out and returns its state. The last row moves into its
    /// place.
    ///
    /// # Panics
    /// Where there is no such row, or the device fails.
    pub fn swap_remove(&mut self, row: usize) -> HiddenState {
        let state = self.state(row);
        self.rows -= 1;
        if row < self.rows {
            done(self.states.copy(self.rows, row));
        }
        state
    }

    /// Sets a row back to the state before the first character.
    ///
    /// # Panics
    /// Where there is no such row, or the device fails.
    pub fn reset(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let zeros = HiddenState::zeros(&self.architecture);
        done(self.states.write(row, &zeros));
    }

    /// A copy of the state of a row.
    ///
    /// # Panics
    /// Where there is no such row, or the device fails.
    pub fn state(&self, row: usize) -> HiddenState {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        done(self.states.read(row))
    }

    /// Feeds `tokens[row]` to each row; returns the logits
    /// `[rows, vocabulary]`.
    ///
    /// # Errors
    /// The device failed. None on the processor.
    ///
    /// # Panics
    /// Where there is not one token for each row, or one is outside the
    /// vocabulary.
    pub fn step(&mut self, tokens: &[u32]) -> Result<&[f32], StepError> {
        assert_eq!(tokens.len(), self.rows, "one token for each row");
        self.assert_known(tokens);
        self.states.step(tokens)
    }

    /// Feeds a stretch of characters to a sequence that is not in the batch,
    /// without its logits. The caller bounds the stretch: it blocks until the
    /// stretch is done.
    ///
    /// # Errors
    /// As [`Self::step`].
    ///
    /// # Panics
    /// Where a token is outside the vocabulary or the state has another
    /// architecture.
    pub fn prefill(&mut self, state: &mut HiddenState, tokens: &[u32]) -> Result<(), StepError> {
        self.prefill_each(state, tokens, None)
    }

    /// As [`Self::prefill`], and returns the logits after each character,
    /// `[tokens.len(), vocabulary]`, for scoring.
    ///
    /// # Errors
    /// As [`Self::step`].
    ///
    /// # Panics
    /// As [`Self::prefill`].
    pub fn prefill_logits(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
    ) -> Result<Vec<f32>, StepError> {
        let mut logits = Vec::with_capacity(tokens.len() * self.architecture.vocabulary_size);
        self.prefill_each(state, tokens, Some(&mut logits))?;
        Ok(logits)
    }

    fn prefill_each(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), StepError> {
        assert_eq!(state.0.len(), self.architecture.state_len());
        self.assert_known(tokens);
        self.states.prefill(state, tokens, logits)
    }

    fn assert_known(&self, tokens: &[u32]) {
        let known = self.architecture.vocabulary_size;
        assert!(
            tokens.iter().all(|&token| (token as usize) < known),
            "a token outside the vocabulary of {known}"
        );
    }
}

/// Moves of states fail with the device, and then nothing in the batch is
/// worth anything: its owner catches the panic and drops it whole.
fn done<T>(result: Result<T, StepError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
#[path = "step/tests.rs"]
mod tests;
