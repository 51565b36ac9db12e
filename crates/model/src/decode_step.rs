//! The decode step of the network for a batch of sequences whose states stay
//! in the memory of the device, and the prefill of known characters.
//!
//! This module manages the rows of a batch. The arithmetic is behind
//! [`BatchBackend`]: `simd` for float32 and `int8` for int8 on the CPU, other
//! crates for other devices.

mod arithmetic;
pub mod check;
mod int8;
mod layers;
mod simd;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

use std::error::Error;
use std::sync::Arc;
use std::{fmt, io};

use charlstm_int8::float_control::DefaultFloatControl;

pub use self::arithmetic::{ARITHMETIC_REVISION, Arithmetic, Precision};
pub use self::int8::{Int8Processor, quantise};
use self::simd::SimdWeights;
pub use self::state::HiddenState;
use super::architecture::Architecture;
use super::kernels::FloatKernels;
use super::parameters::Parameters;
use super::sampler::{HIGHEST, HighestLogits};

/// Prepares models for generation on one device: the extension point for
/// other arithmetic and other devices.
pub trait DecodeDevice: fmt::Debug + Send + Sync {
    /// Lays out the weights of a model. Blocks for some milliseconds per
    /// million parameters.
    ///
    /// # Errors
    /// The device failed or has too little memory.
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError>;
}

/// The CPU with float32 arithmetic, for batches of any size. The kernels give
/// the same bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processor {
    /// The instruction set to compute with.
    pub kernels: FloatKernels,
}

impl DecodeDevice for Processor {
    fn prepare(&self, parameters: &Parameters) -> Result<DecodeWeights, DecodeError> {
        Ok(self.lay_out(parameters))
    }
}

impl Processor {
    fn lay_out(self, parameters: &Parameters) -> DecodeWeights {
        let layout = SimdWeights::new(parameters, self.kernels.arch());
        DecodeWeights::new(parameters.architecture, Box::new(layout))
    }
}

/// The weights of a network in the memory of a device.
pub trait WeightLayout: fmt::Debug + Send + Sync {
    /// Returns the arithmetic that batches of these weights use.
    fn arithmetic(&self) -> Arithmetic;

    /// Returns the memory that the weights take on their device, in bytes.
    fn bytes(&self) -> usize;

    /// Creates an empty batch with room for `max_rows` rows.
    ///
    /// # Errors
    /// The device failed or has too little memory.
    fn batch(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError>;
}

/// The weights of a network, laid out once for generation and shared by all
/// batches of the model.
#[derive(Debug)]
pub struct DecodeWeights {
    architecture: Architecture,
    layout: Box<dyn WeightLayout>,
}

impl DecodeWeights {
    /// Wraps weights that a device has laid out.
    pub fn new(architecture: Architecture, layout: Box<dyn WeightLayout>) -> Self {
        Self {
            architecture,
            layout,
        }
    }

    /// Lays out the weights for float32 arithmetic on the CPU. Blocks for some
    /// milliseconds per million parameters.
    pub fn on_processor(parameters: &Parameters) -> Self {
        Processor::default().lay_out(parameters)
    }

    /// Returns the shape of the network.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns the arithmetic that batches of these weights use.
    pub fn arithmetic(&self) -> Arithmetic {
        self.layout.arithmetic()
    }

    /// Returns the state of a sequence before its first character.
    pub fn zero_state(&self) -> HiddenState {
        HiddenState::zeros(self.arithmetic().precision, &self.architecture)
    }

    /// Returns the memory that the weights take on their device, in bytes.
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Creates an empty batch without the checks of [`DecodeBatch`], for a
    /// device that computes some batches on another one.
    ///
    /// # Errors
    /// As [`WeightLayout::batch`].
    pub fn backend(&self, max_rows: usize) -> Result<Box<dyn BatchBackend>, DecodeError> {
        self.layout.batch(max_rows)
    }
}

/// A device failed, so that a decode step could not be computed.
#[derive(Debug, thiserror::Error)]
#[error("the decode step failed: {0}")]
pub struct DecodeError(#[source] pub Box<dyn Error + Send + Sync>);

/// The states of a batch and the arithmetic on them, on one device. The caller,
/// [`DecodeBatch`], checks rows, token ids, and that states are of the
/// precision and architecture of the batch. All methods block. After an error,
/// the states are undefined.
pub trait BatchBackend: Send {
    /// Sets the state of a row.
    fn write(&mut self, row: usize, state: &HiddenState) -> Result<(), DecodeError>;

    /// Returns a copy of the state of a row.
    fn read(&self, row: usize) -> Result<HiddenState, DecodeError>;

    /// Gives row `to` the state of row `from`, which is the last one and is not
    /// used again before it is written.
    fn move_last(&mut self, from: usize, to: usize) -> Result<(), DecodeError>;

    /// Feeds `tokens[row]` to each row in `0..tokens.len()`; returns the logits,
    /// `[rows, vocabulary]`.
    fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError>;

    /// Whether [`Self::step_highest`] is faster than [`Self::step`].
    fn selects_highest(&self) -> bool {
        false
    }

    /// As [`Self::step`], but returns the highest logits of each row. Called only if
    /// [`Self::selects_highest`].
    fn step_highest(&mut self, _tokens: &[u32]) -> Result<HighestOfRows<'_>, DecodeError> {
        Err(DecodeError("the device does not select logits".into()))
    }

    /// Feeds a chunk of characters to a sequence outside the batch; appends the
    /// logits after each character to `logits`, if given. Only scores ask for
    /// logits, so a device may compute such a prefill elsewhere than the steps
    /// of its batch, with the same bits.
    fn prefill(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError>;

    /// Returns how many sequences outside the batch the device feeds at once:
    /// more than one if that takes hardly longer than one.
    fn prefill_width(&self) -> usize {
        1
    }

    /// Feeds a chunk of characters to each of at most [`Self::prefill_width`]
    /// sequences outside the batch.
    fn prefill_all(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), DecodeError> {
        for (state, tokens) in chunks {
            self.prefill(state, tokens, None)?;
        }
        Ok(())
    }

    /// Starts or ends a second thread that computes a part of each step while
    /// there is one row. Does nothing on devices that have no use for it.
    ///
    /// # Errors
    /// The thread cannot be started; the batch computes without it.
    fn set_partner(&mut self, _wanted: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The highest logits of each row of a step.
#[derive(Clone, Copy, Debug)]
pub struct HighestOfRows<'a> {
    /// Token ids of the rows; [`HighestLogits`] has their order.
    pub ids: &'a [u32],
    /// Their logits.
    pub logits: &'a [f32],
    /// The logarithm of the sum of the exponentials of all logits of each row.
    pub log_sums: &'a [f64],
    /// Logits of a row.
    pub count: usize,
    /// Distance of two rows in `ids` and `logits`.
    pub stride: usize,
}

impl<'a> HighestOfRows<'a> {
    /// Returns those of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> HighestLogits<'a> {
        HighestLogits {
            ids: &self.ids[row * self.stride..][..self.count],
            logits: &self.logits[row * self.stride..][..self.count],
            log_sum_exp: self.log_sums[row],
        }
    }
}

/// Characters for a sequence outside a batch, and the state that they advance.
pub type Chunk<'a> = (&'a mut HiddenState, &'a [u32]);

/// A batch of sequences that are stepped together. Its rows are `0..rows()`; if
/// one is removed, the last one takes its index. Methods block the calling
/// thread.
///
/// The logits and the new state of a row are bit for bit the same whichever
/// other rows the batch has, and whether the characters came through
/// [`Self::step`] or [`Self::prefill`]. [`check`] detects devices that violate
/// this. They do not depend on the floating-point control register of the
/// calling thread: it has its default value during each computation.
pub struct DecodeBatch {
    architecture: Architecture,
    precision: Precision,
    max_rows: usize,
    rows: usize,
    states: Box<dyn BatchBackend>,
}

impl DecodeBatch {
    /// Creates an empty batch with room for `max_rows` rows.
    ///
    /// # Errors
    /// The device failed or has too little memory; never on the CPU.
    ///
    /// # Panics
    /// If the weights were laid out for fewer rows.
    pub fn new(weights: Arc<DecodeWeights>, max_rows: usize) -> Result<Self, DecodeError> {
        let architecture = weights.architecture;
        let states = weights.backend(max_rows)?;
        Ok(Self {
            architecture,
            precision: weights.arithmetic().precision,
            max_rows,
            rows: 0,
            states,
        })
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row with this state; returns its index, `rows() - 1`.
    ///
    /// # Panics
    /// If the batch is full, the state has another architecture or precision,
    /// or the device fails.
    pub fn push(&mut self, state: &HiddenState) -> usize {
        assert!(self.rows < self.max_rows, "the batch is full");
        self.assert_fits(state);
        let row = self.rows;
        self.rows += 1;
        expect_done(self.states.write(row, state));
        row
    }

    /// Removes a row and returns its state. The last row takes its index.
    ///
    /// # Panics
    /// If there is no such row, or the device fails.
    pub fn swap_remove(&mut self, row: usize) -> HiddenState {
        let state = self.state(row);
        self.rows -= 1;
        if row < self.rows {
            expect_done(self.states.move_last(self.rows, row));
        }
        state
    }

    /// Resets a row to the state before the first character.
    ///
    /// # Panics
    /// If there is no such row, or the device fails.
    pub fn reset(&mut self, row: usize) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let zeros = HiddenState::zeros(self.precision, &self.architecture);
        expect_done(self.states.write(row, &zeros));
    }

    /// Returns a copy of the state of a row.
    ///
    /// # Panics
    /// If there is no such row, or the device fails.
    pub fn state(&self, row: usize) -> HiddenState {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        expect_done(self.states.read(row))
    }

    /// Feeds `tokens[row]` to each row; returns the logits, `[rows,
    /// vocabulary]`.
    ///
    /// # Errors
    /// The device failed; never on the CPU. The batch must be dropped then.
    ///
    /// # Panics
    /// If there is not one token for each row, or a token is outside the
    /// vocabulary.
    pub fn step(&mut self, tokens: &[u32]) -> Result<&[f32], DecodeError> {
        assert_eq!(tokens.len(), self.rows, "one token for each row");
        self.assert_known(tokens);
        let _control = DefaultFloatControl::set();
        self.states.step(tokens)
    }

    /// Whether [`Self::step_highest`] is faster than [`Self::step`].
    pub fn selects_highest(&self) -> bool {
        // All characters are not sorted to sample from them, see `Sampler`.
        self.architecture.vocabulary_size > HIGHEST && self.states.selects_highest()
    }

    /// As [`Self::step`], but returns the highest logits of each row. To be called
    /// only if [`Self::selects_highest`].
    ///
    /// # Errors
    /// As [`Self::step`], or the device does not select logits.
    ///
    /// # Panics
    /// As [`Self::step`].
    pub fn step_highest(&mut self, tokens: &[u32]) -> Result<HighestOfRows<'_>, DecodeError> {
        assert_eq!(tokens.len(), self.rows, "one token for each row");
        self.assert_known(tokens);
        let _control = DefaultFloatControl::set();
        self.states.step_highest(tokens)
    }

    /// Starts or ends a second thread that computes a part of each step while
    /// the batch has one row. Logits and states are the same with and without
    /// it. It pays only if another core is idle: the thread waits with its core
    /// for a moment between two steps.
    ///
    /// # Errors
    /// The thread cannot be started; the batch computes without it.
    pub fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        self.states.set_partner(wanted)
    }

    /// Feeds a chunk of characters to a sequence that is not in the batch,
    /// without computing logits. Blocks until all of it has been fed, which the
    /// caller keeps short by the length of the chunk.
    ///
    /// # Errors
    /// As [`Self::step`].
    ///
    /// # Panics
    /// If a token is outside the vocabulary, or the state has another
    /// architecture or precision.
    pub fn prefill(&mut self, state: &mut HiddenState, tokens: &[u32]) -> Result<(), DecodeError> {
        self.prefill_each(state, tokens, None)
    }

    /// Returns how many sequences [`Self::prefill_all`] should be given; more are
    /// an error of the caller.
    pub fn prefill_width(&self) -> usize {
        self.states.prefill_width()
    }

    /// Feeds several sequences outside the batch, at once where the device can.
    ///
    /// # Errors
    /// As [`Self::step`]. The states are not to be used then.
    ///
    /// # Panics
    /// As [`Self::prefill`], or if there are more than [`Self::prefill_width`].
    pub fn prefill_all(&mut self, chunks: &mut [Chunk<'_>]) -> Result<(), DecodeError> {
        assert!(chunks.len() <= self.prefill_width(), "too many sequences");
        for (state, tokens) in &*chunks {
            self.assert_fits(state);
            self.assert_known(tokens);
        }
        let _control = DefaultFloatControl::set();
        self.states.prefill_all(chunks)
    }

    /// Feeds a chunk as [`Self::prefill`] does, and returns the logits after
    /// each character, `[tokens.len(), vocabulary]`, for scoring.
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
    ) -> Result<Vec<f32>, DecodeError> {
        let mut logits = Vec::with_capacity(tokens.len() * self.architecture.vocabulary_size);
        self.prefill_each(state, tokens, Some(&mut logits))?;
        Ok(logits)
    }

    fn prefill_each(
        &mut self,
        state: &mut HiddenState,
        tokens: &[u32],
        logits: Option<&mut Vec<f32>>,
    ) -> Result<(), DecodeError> {
        self.assert_fits(state);
        self.assert_known(tokens);
        let _control = DefaultFloatControl::set();
        self.states.prefill(state, tokens, logits)
    }

    fn assert_fits(&self, state: &HiddenState) {
        assert_eq!(state.precision(), self.precision, "precision of a state");
        assert!(state.fits(&self.architecture), "a state of another network");
    }

    fn assert_known(&self, tokens: &[u32]) {
        let vocabulary = self.architecture.vocabulary_size;
        assert!(
            tokens.iter().all(|&token| (token as usize) < vocabulary),
            "a token outside the vocabulary of {vocabulary}"
        );
    }
}

/// Panics if a state could not be copied: the device has failed, and all states
/// of the batch are lost. The owner of the batch catches the panic and drops it.
fn expect_done<T>(result: Result<T, DecodeError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use charlstm_int8::Kernel;

    use super::*;

    /// The CPU with each of its kernels, in both precisions.
    fn devices() -> Vec<Box<dyn DecodeDevice>> {
        let mut devices: Vec<Box<dyn DecodeDevice>> = Vec::new();
        for kernels in FloatKernels::available() {
            devices.push(Box::new(Processor { kernels }));
        }
        for kernel in Kernel::available() {
            devices.push(Box::new(Int8Processor { kernel }));
        }
        devices
    }

    #[test]
    fn logits_match_the_textbook_network() {
        for device in devices() {
            testing::logits_match_the_textbook_network(&*device);
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_any_batch() {
        for device in devices() {
            testing::a_row_is_the_same_alone_and_in_any_batch(&*device);
        }
    }

    #[test]
    fn prefill_in_chunks_of_any_length_equals_steps() {
        for device in devices() {
            testing::prefill_in_chunks_of_any_length_equals_steps(&*device);
        }
    }

    #[test]
    fn a_removed_row_is_replaced_by_the_last_one() {
        for device in devices() {
            testing::a_removed_row_is_replaced_by_the_last_one(&*device);
        }
    }
}
