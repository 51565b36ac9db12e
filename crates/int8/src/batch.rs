//! A batch of sequences whose states stay in the form of a kernel.

mod layers;
mod partner;
mod prefill;
mod rows;
mod step;

use std::sync::Arc;
use std::{fmt, io};

use self::rows::KernelRows;
use crate::float_control::DefaultFloatControl;
#[cfg(target_arch = "x86_64")]
use crate::kernel::{Avx2, Avx512, Avx512Vnni, AvxVnni};
use crate::kernel::{Kernel, KernelError, Portable, Registers};
use crate::network::QuantisedNetwork;
use crate::packed::PackedWeights;
use crate::shape::Shape;
use crate::state::State;

/// The weights of a network, packed for a kernel. Cheap to clone; all clones
/// share the weights.
#[derive(Clone)]
pub struct PackedNetwork {
    kernel: Kernel,
    shape: Shape,
    weights: Arc<dyn Packed>,
}

/// Packed weights of some kernel.
trait Packed: Send + Sync {
    fn bytes(&self) -> usize;

    fn rows(self: Arc<Self>) -> Box<dyn Rows>;
}

impl<R: Registers> Packed for PackedWeights<R> {
    fn bytes(&self) -> usize {
        PackedWeights::bytes(self)
    }

    fn rows(self: Arc<Self>) -> Box<dyn Rows> {
        Box::new(KernelRows::new(self))
    }
}

impl PackedNetwork {
    /// Packs a network for a kernel. Takes some milliseconds for a million
    /// weights.
    ///
    /// # Errors
    /// Fails if the kernel is not available on this machine.
    pub fn new(network: &QuantisedNetwork, kernel: Kernel) -> Result<Self, KernelError> {
        fn pack<R: Registers>(
            registers: Option<R>,
            network: &QuantisedNetwork,
        ) -> Option<Arc<dyn Packed>> {
            Some(Arc::new(PackedWeights::new(registers?, network)))
        }
        let weights = match kernel {
            Kernel::Portable => pack(Some(Portable), network),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => pack(Avx2::detect(), network),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => pack(Avx512::detect(), network),
            #[cfg(target_arch = "x86_64")]
            Kernel::AvxVnni => pack(AvxVnni::detect(), network),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni => pack(Avx512Vnni::detect(), network),
            #[cfg(not(target_arch = "x86_64"))]
            Kernel::Avx2 | Kernel::Avx512 | Kernel::AvxVnni | Kernel::Avx512Vnni => None,
            Kernel::Amx => None,
        };
        Ok(Self {
            kernel,
            shape: *network.shape(),
            weights: weights.ok_or(KernelError::Unavailable { kernel })?,
        })
    }

    /// The kernel that computes with these weights.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The sizes of the network.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of memory that the packed weights take.
    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

impl fmt::Debug for PackedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedNetwork")
            .field("kernel", &self.kernel)
            .field("shape", &self.shape)
            .field("bytes", &self.bytes())
            .finish()
    }
}

/// The states of a batch in the form of a kernel, and the arithmetic on them.
/// [`Batch`] checks rows, states and token ids.
trait Rows: Send {
    /// Makes room for a row more, if there are only `rows`.
    fn reserve(&mut self, rows: usize);

    /// Sets the state of a row.
    fn write(&mut self, row: usize, state: &State);

    /// Reads the state of a row.
    fn read(&self, row: usize) -> State;

    /// Copies the state of one row to another.
    fn copy(&mut self, from: usize, to: usize);

    /// Starts or ends the thread that takes half of a single row's work.
    fn set_partner(&mut self, wanted: bool) -> io::Result<()>;

    /// Feeds `tokens[row]` to the rows `0..tokens.len()`; returns the logits,
    /// `[rows, vocabulary]`.
    fn step(&mut self, tokens: &[u32]) -> &[f32];

    /// Feeds characters to a sequence outside the batch; appends the logits
    /// after each character to `logits`, if they are wanted.
    fn prefill(&mut self, state: &mut State, tokens: &[u32], logits: Option<&mut Vec<f32>>);
}

/// A batch of sequences. Its rows are `0..rows()`, without gaps. It belongs to
/// one thread at a time.
///
/// The logits and the new state of a row are, bit for bit, those of
/// [`reference`](mod@crate::reference), whatever other rows there are, whichever
/// kernel computes, and whether characters come through [`Self::step`] or
/// [`Self::prefill`]. They do not depend on the floating-point control
/// register of the calling thread either: it is set to the default during each
/// call and restored.
pub struct Batch {
    shape: Shape,
    max_rows: usize,
    count: usize,
    rows: Box<dyn Rows>,
}

impl Batch {
    /// Creates an empty batch that accepts up to `max_rows` rows. Memory is
    /// allocated as rows are added, and kept.
    pub fn new(network: &PackedNetwork, max_rows: usize) -> Self {
        Self {
            shape: network.shape,
            max_rows,
            count: 0,
            rows: Arc::clone(&network.weights).rows(),
        }
    }

    /// The sizes of the network.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Rows in use.
    pub fn rows(&self) -> usize {
        self.count
    }

    /// Adds a row that starts in `state`; returns its index, the former
    /// `rows()`.
    ///
    /// # Panics
    /// Panics if the batch is full or the state has another shape.
    pub fn push(&mut self, state: &State) -> usize {
        assert!(self.count < self.max_rows, "the batch is full");
        self.assert_fits(state);
        let row = self.count;
        self.count += 1;
        self.rows.reserve(self.count);
        self.rows.write(row, state);
        row
    }

    /// Removes a row and returns its state. The last row takes its index.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn swap_remove(&mut self, row: usize) -> State {
        let state = self.state(row);
        let last = self.count - 1;
        self.copy_row(last, row);
        self.truncate(last);
        state
    }

    /// Keeps the first `rows` rows and removes the others; does nothing if
    /// there are no more.
    pub fn truncate(&mut self, rows: usize) {
        self.count = self.count.min(rows);
    }

    /// Copies the state of one row to another.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn copy_row(&mut self, from: usize, to: usize) {
        self.assert_row(from);
        self.assert_row(to);
        if from != to {
            self.rows.copy(from, to);
        }
    }

    /// Replaces the state of a row.
    ///
    /// # Panics
    /// Panics if there is no such row or the state has another shape.
    pub fn set_state(&mut self, row: usize, state: &State) {
        self.assert_row(row);
        self.assert_fits(state);
        self.rows.write(row, state);
    }

    /// Sets a row to the state before the first character.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn reset(&mut self, row: usize) {
        self.set_state(row, &State::zeros(&self.shape));
    }

    /// Returns a copy of the state of a row.
    ///
    /// # Panics
    /// Panics if there is no such row.
    pub fn state(&self, row: usize) -> State {
        self.assert_row(row);
        self.rows.read(row)
    }

    /// Starts or ends a second thread that computes half of each step while
    /// the batch has a single row. Results are the same with and without it.
    ///
    /// Only worth it if a second core has nothing else to do: between two
    /// steps the thread waits with its core for up to 200 microseconds before
    /// it sleeps. If it is late, because it has no core, the caller does all
    /// the work and leaves it out for a while; a step takes at most about
    /// twice as long then as without a second thread.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn set_partner(&mut self, wanted: bool) -> io::Result<()> {
        self.rows.set_partner(wanted)
    }

    /// Feeds `tokens[row]` to each row; returns the logits,
    /// `[rows, vocabulary]`. Blocks until they are computed.
    ///
    /// # Panics
    /// Panics if there is not one token id for each row, or one is outside the
    /// vocabulary.
    pub fn step(&mut self, tokens: &[u32]) -> &[f32] {
        assert_eq!(tokens.len(), self.count, "one token id for each row");
        self.assert_known(tokens);
        let _control = DefaultFloatControl::set();
        self.rows.step(tokens)
    }

    /// Feeds characters to a sequence that is not in the batch, without
    /// computing its logits. Blocks until all of them are done; the caller
    /// bounds the length.
    ///
    /// # Panics
    /// Panics if a token id is outside the vocabulary or the state has another
    /// shape.
    pub fn prefill(&mut self, state: &mut State, tokens: &[u32]) {
        self.prefill_each(state, tokens, None);
    }

    /// As [`Self::prefill`], and returns the logits after each character,
    /// `[tokens.len(), vocabulary]`.
    ///
    /// # Panics
    /// As [`Self::prefill`].
    pub fn prefill_logits(&mut self, state: &mut State, tokens: &[u32]) -> Vec<f32> {
        let mut logits = Vec::with_capacity(tokens.len() * self.shape.vocabulary_size());
        self.prefill_each(state, tokens, Some(&mut logits));
        logits
    }

    fn prefill_each(&mut self, state: &mut State, tokens: &[u32], logits: Option<&mut Vec<f32>>) {
        self.assert_fits(state);
        self.assert_known(tokens);
        let _control = DefaultFloatControl::set();
        self.rows.prefill(state, tokens, logits);
    }

    fn assert_row(&self, row: usize) {
        assert!(row < self.count, "row {row} of {}", self.count);
    }

    fn assert_fits(&self, state: &State) {
        assert!(state.fits(&self.shape), "the state has another shape");
    }

    fn assert_known(&self, tokens: &[u32]) {
        let known = self.shape.vocabulary_size();
        assert!(
            tokens.iter().all(|&token| (token as usize) < known),
            "a token id is outside the vocabulary of {known}"
        );
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("shape", &self.shape)
            .field("rows", &self.count)
            .field("max_rows", &self.max_rows)
            .finish_non_exhaustive()
    }
}
