//! A sequence's state as the kernels read and write it.

use charlstm_int8::{Shape, State, StateError};

use crate::launch::COLUMN_BLOCK;

/// The layout of a state row: h of all layers as int8, then c of all layers as
/// float32, each layer padded with zeros. Units beyond the hidden size stay
/// zero, because their weights, scales and biases are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateLayout {
    shape: Shape,
    padded: usize,
}

impl StateLayout {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self {
            shape: *shape,
            padded: shape.hidden_size().next_multiple_of(COLUMN_BLOCK),
        }
    }

    /// Bytes of a state row.
    pub(crate) fn bytes(&self) -> usize {
        self.shape.num_layers() * self.padded * (size_of::<i8>() + size_of::<f32>())
    }

    /// Writes a state of this shape to a state row.
    pub(crate) fn pack(&self, state: &State, row: &mut [u8]) {
        let hidden = self.shape.hidden_size();
        let (h, c) = row.split_at_mut(self.shape.num_layers() * self.padded);
        h.fill(0);
        c.fill(0);
        let layers = h.chunks_exact_mut(self.padded);
        for (to, from) in layers.zip(state.h().chunks_exact(hidden)) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to = from as u8;
            }
        }
        let layers = c.chunks_exact_mut(self.padded * size_of::<f32>());
        for (to, from) in layers.zip(state.c().chunks_exact(hidden)) {
            for (to, from) in to.chunks_exact_mut(size_of::<f32>()).zip(from) {
                to.copy_from_slice(&from.to_le_bytes());
            }
        }
    }

    /// Reads the state in a state row.
    ///
    /// # Errors
    /// Fails if it is one that no sequence can reach.
    pub(crate) fn unpack(&self, row: &[u8]) -> Result<State, StateError> {
        let hidden = self.shape.hidden_size();
        let (h, c) = row.split_at(self.shape.num_layers() * self.padded);
        let (c, _) = c.as_chunks::<{ size_of::<f32>() }>();
        let units = self.shape.num_layers() * hidden;
        let mut unpadded_h = Vec::with_capacity(units);
        for layer in h.chunks_exact(self.padded) {
            unpadded_h.extend(layer[..hidden].iter().map(|&byte| byte as i8));
        }
        let mut unpadded_c = Vec::with_capacity(units);
        for layer in c.chunks_exact(self.padded) {
            unpadded_c.extend(layer[..hidden].iter().map(|&four| f32::from_le_bytes(four)));
        }
        State::from_parts(
            &self.shape,
            unpadded_h.into_boxed_slice(),
            unpadded_c.into_boxed_slice(),
        )
    }
}
