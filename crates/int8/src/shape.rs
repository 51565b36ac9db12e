//! The sizes of a network.

use thiserror::Error;

use crate::GATES;

/// Largest hidden size for which every sum is certain to fit an int32:
/// 127 x 127 x 133,000 is just under 2^31.
pub const MAX_HIDDEN_SIZE: usize = 133_000;

/// The sizes of a character LSTM: `num_layers` LSTM layers of `hidden_size`
/// units and a linear layer onto the vocabulary. None of them is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    vocabulary_size: usize,
    hidden_size: usize,
    num_layers: usize,
}

/// A size is outside its limits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field} is {value}; it must be from 1 to {max}")]
pub struct ShapeError {
    /// Name of the size.
    pub field: &'static str,
    /// The rejected value.
    pub value: usize,
    /// The largest value that is accepted.
    pub max: usize,
}

impl Shape {
    /// Checks the sizes. Token ids are `u32`, which limits the vocabulary.
    ///
    /// # Errors
    /// Fails for the first size that is 0 or too large.
    pub fn new(
        vocabulary_size: usize,
        hidden_size: usize,
        num_layers: usize,
    ) -> Result<Self, ShapeError> {
        let limits = [
            ("vocabulary_size", vocabulary_size, u32::MAX as usize),
            ("hidden_size", hidden_size, MAX_HIDDEN_SIZE),
            ("num_layers", num_layers, u16::MAX as usize),
        ];
        for (field, value, max) in limits {
            if value == 0 || value > max {
                return Err(ShapeError { field, value, max });
            }
        }
        Ok(Self {
            vocabulary_size,
            hidden_size,
            num_layers,
        })
    }

    /// Number of distinct characters: token ids are `0..vocabulary_size`.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Number of units of each LSTM layer.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Number of LSTM layers.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Rows of a layer's weight matrices, `4 * hidden_size`: all units of the
    /// input gate, then of the forget, cell and output gate.
    pub fn gate_rows(&self) -> usize {
        GATES * self.hidden_size
    }

    /// Bytes of a serialised [`State`](crate::State): for each unit of each
    /// layer one byte of h and four bytes of c.
    pub fn state_bytes(&self) -> usize {
        self.num_layers * self.hidden_size * (size_of::<i8>() + size_of::<f32>())
    }
}
