//! The shape of a network. Its weights are in `parameters`.

use serde::{Deserialize, Serialize};

/// Sizes of a character LSTM: `num_layers` LSTM layers of width `hidden_size`,
/// and a linear layer that gives a logit for each character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Architecture {
    /// Number of distinct characters; the width of input and output.
    pub vocabulary_size: usize,
    /// Width of each LSTM layer.
    pub hidden_size: usize,
    /// Number of LSTM layers.
    pub num_layers: usize,
}

impl Architecture {
    /// Returns the width of the input of a layer, counted from 0.
    pub fn input_size(&self, layer: usize) -> usize {
        if layer == 0 {
            self.vocabulary_size
        } else {
            self.hidden_size
        }
    }

    /// Returns the number of parameters.
    pub fn parameter_count(&self) -> usize {
        crate::parameters::layout(self)
            .last()
            .map_or(0, |view| view.range.end)
    }

    /// Returns the number of values in the hidden state of one sequence: h and c
    /// of every layer.
    pub fn state_len(&self) -> usize {
        self.num_layers * 2 * self.hidden_size
    }
}
