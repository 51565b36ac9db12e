//! The int8 decode step of a character LSTM.
//!
//! Weights are int8 with one float32 scale per row, the hidden state h is int8
//! with the fixed scale 1/127, the cell state c is float32. All sums are exact
//! integers and every float32 operation is a single correctly rounded IEEE 754
//! operation in a fixed order, so the result depends only on the weights, the
//! state and the token ids: not on the batch, the number of threads, the
//! instruction set or the machine. `docs/arithmetic.md` is the definition;
//! [`mod@reference`] is its plain scalar form, with which every kernel is compared
//! bit for bit.
//!
//! The crate does no I/O and depends on no tensor library.

pub mod activation;
mod batch;
pub mod float_control;
mod kernel;
pub mod logsumexp;
mod network;
mod packed;
mod quantisation;
pub mod reference;
mod shape;
mod state;
mod sums;

pub use batch::{Batch, PackedNetwork};
pub use kernel::{Kernel, KernelError};
pub use network::{FloatLayer, FloatNetwork, QuantisedLayer, QuantisedNetwork};
pub use quantisation::{MAX_WEIGHT, QuantisationError, QuantisedMatrix};
pub use shape::{MAX_HIDDEN_SIZE, Shape, ShapeError};
pub use state::{MAX_CELL, MAX_H, State, StateError};

/// Revision of the arithmetic that this crate implements. It is part of the
/// identity of a session: a state of another revision must not be continued.
pub const REVISION: u32 = 1;

/// Gates of an LSTM cell, in PyTorch's order: input, forget, cell (the
/// candidate), output.
pub const GATES: usize = 4;
