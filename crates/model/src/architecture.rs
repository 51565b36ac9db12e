//! The shape of a network. Its numbers are in `parameters`.

use serde::{Deserialize, Serialize};

/// Sizes of a character LSTM: `num_layers` LSTM layers of `hidden_size`, and
/// a linear layer onto the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Architecture {
    /// Distinct characters, the width of the input and of the output.
    pub vocabulary_size: usize,
    /// Width of each LSTM layer.
    pub hidden_size: usize,
    /// Number of LSTM layers.
    pub num_layers: usize,
}

impl Architecture {
    /// Width of the input of a layer.
    pub fn input_size(&self, layer: usize) -> usize {
        if layer == 0 {
            self.vocabulary_size
        } else {
            self.hidden_size
        }
    }

    /// Number of trainable numbers.
    pub fn parameter_count(&self) -> usize {
        crate::parameters::layout(self)
            .last()
            .map_or(0, |view| view.range.end)
    }

    /// Numbers in the hidden state of one sequence: h and c of every layer.
    pub fn state_len(&self) -> usize {
        self.num_layers * 2 * self.hidden_size
    }
}
