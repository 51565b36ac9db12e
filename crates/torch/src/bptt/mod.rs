//! Loss and gradient of a batch of sequences on the CPU, written out:
//! backpropagation through time (Werbos, 1990) for the LSTM (Hochreiter and
//! Schmidhuber, 1997; Gers et al., 2000).
//!
//! Only the recurrent product depends on the previous time step; it runs once
//! per step, in `recurrent`. Everything else (the products with the layer
//! below, all weight gradients) is one large product per sequence, by libtorch
//! on the calling thread. The pointwise work on the cells is in `pointwise`.

pub(super) mod dropout;
mod pointwise;
mod recurrent;

use pulp::Arch;
use tch::TchError;

use self::dropout::{Dropout, subkey};
use self::pointwise::{BackwardCells, ForwardCells};
use self::recurrent::{Direction, RecurrentPanels};
use super::matrix::{
    Buffer, Matrix, column_sums, embed, exp, linear, log_softmax, product, transpose,
    transposed_product, zeros,
};
use super::named_parameters::{LayerParameters, NamedParameters};
use charlstm_model::architecture::Architecture;

/// Sizes of the work of one [`Bptt`]. Rows are sequences. Time comes first in
/// every array: `[time, rows, ...]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchShape {
    pub(super) architecture: Architecture,
    /// Sequences.
    pub(super) rows: usize,
    /// Characters of a sequence.
    pub(super) time: usize,
}

/// Dropout in one optimizer step.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepDropout {
    pub(super) dropout: Dropout,
    /// Differs between optimizer steps.
    pub(super) key: u64,
    /// Index of the first row within the whole batch, so that the masks do not
    /// depend on how the batch is divided among threads.
    pub(super) first_row: usize,
}

/// Buffers of one layer, reused by every optimizer step.
struct LayerBuffers {
    /// `[time, rows, 4 hidden]`: sums, then activated gates, then gradients of
    /// the sums.
    gates: Buffer,
    /// `[time + 1, rows, hidden]`; the first part is the state before the
    /// first character.
    h: Buffer,
    /// As `h`.
    c: Vec<f32>,
    /// `[time, rows, hidden]`: h after dropout, the input of the layer above.
    output: Buffer,
    /// `[time, rows, hidden]`: 1 keeps, 0 drops. Empty without dropout.
    mask: Vec<u8>,
    /// `weight_hh` as the forward pass reads it.
    forward_weights: RecurrentPanels,
    /// `weight_hh` as the backward pass reads it.
    backward_weights: RecurrentPanels,
}

/// Computes loss and gradient of batches of `rows` sequences of `time`
/// characters, and carries their hidden states from one batch to the next.
pub(super) struct Bptt {
    shape: BatchShape,
    arch: Arch,
    layers: Vec<LayerBuffers>,
    /// `[time, rows, vocabulary]`: logits, then their gradients.
    logits: Buffer,
    /// Gradient of a layer's h, `[time, rows, hidden]`.
    d_h: Buffer,
    /// Gradient of c, `[rows, hidden]`.
    d_c: Vec<f32>,
    /// Gradient of the first layer's sums by token, `[vocabulary, 4 hidden]`.
    d_embedding: Buffer,
}

impl Bptt {
    /// Allocates all buffers. The hidden states are zero.
    pub(super) fn new(shape: BatchShape) -> Self {
        let BatchShape {
            architecture,
            rows,
            time,
        } = shape;
        let hidden = architecture.hidden_size;
        let arch = Arch::new();
        let layers = (0..architecture.num_layers)
            .map(|_| LayerBuffers {
                gates: zeros(time * rows * 4 * hidden),
                h: zeros((time + 1) * rows * hidden),
                c: vec![0.0; (time + 1) * rows * hidden],
                output: zeros(time * rows * hidden),
                mask: Vec::new(),
                forward_weights: RecurrentPanels::new(arch, hidden, 4 * hidden),
                backward_weights: RecurrentPanels::new(arch, 4 * hidden, hidden),
            })
            .collect();
        Self {
            shape,
            arch,
            layers,
            logits: zeros(time * rows * architecture.vocabulary_size),
            d_h: zeros(time * rows * hidden),
            d_c: vec![0.0; rows * hidden],
            d_embedding: zeros(architecture.vocabulary_size * 4 * hidden),
        }
    }

    /// Returns the loss of `inputs` against `targets` (token ids, both `[time,
    /// rows]`), summed over all characters, in nats, and writes its gradient
    /// times `scale` to `gradient`. Parameters and gradient are in the order of
    /// `charlstm_model::parameters::layout`. The hidden states continue from
    /// the previous call.
    ///
    /// # Errors
    /// An input is outside the vocabulary, or libtorch failed. The hidden
    /// states are undefined then.
    ///
    /// # Panics
    /// If a slice has another length, or a target is outside the vocabulary.
    pub(super) fn loss_and_gradient(
        &mut self,
        parameters: &[f32],
        gradient: &mut [f32],
        inputs: &[u32],
        targets: &[u32],
        dropout: Option<StepDropout>,
        scale: f32,
    ) -> Result<f64, TchError> {
        let characters = self.shape.time * self.shape.rows;
        assert_eq!(inputs.len(), characters, "inputs");
        assert_eq!(targets.len(), characters, "targets");
        let architecture = self.shape.architecture;
        let weights = NamedParameters::slices(&architecture, parameters);
        let mut gradients = NamedParameters::slices_mut(&architecture, gradient);
        self.forward(&weights, inputs, dropout)?;
        let loss = self.output_layer(&weights, &mut gradients, targets, scale)?;
        self.backward(&weights, &mut gradients, inputs, dropout)?;
        self.carry_state();
        Ok(loss)
    }

    /// Sets the hidden states to zero.
    pub(super) fn clear_state(&mut self) {
        let len = self.state_len();
        for layer in &mut self.layers {
            layer.h[..len].fill(0.0);
            layer.c[..len].fill(0.0);
        }
    }

    /// Returns the hidden states, `[rows, layers, 2, hidden]`.
    pub(super) fn state(&self) -> Vec<f32> {
        let hidden = self.shape.architecture.hidden_size;
        let mut state = Vec::new();
        for row in 0..self.shape.rows {
            for layer in &self.layers {
                state.extend_from_slice(&layer.h[row * hidden..][..hidden]);
                state.extend_from_slice(&layer.c[row * hidden..][..hidden]);
            }
        }
        state
    }

    /// Sets the hidden states, in the layout of [`Self::state`].
    ///
    /// # Panics
    /// If there are fewer values.
    pub(super) fn set_state(&mut self, state: &[f32]) {
        let hidden = self.shape.architecture.hidden_size;
        let mut parts = state.chunks_exact(hidden);
        let mut next = || parts.next().expect("h and c of every row and layer");
        for row in 0..self.shape.rows {
            for layer in &mut self.layers {
                layer.h[row * hidden..][..hidden].copy_from_slice(next());
                layer.c[row * hidden..][..hidden].copy_from_slice(next());
            }
        }
    }

    /// Returns the number of values of h (or c) of all rows at one time step.
    fn state_len(&self) -> usize {
        self.shape.rows * self.shape.architecture.hidden_size
    }

    /// Makes the state after the last character the one before the next batch.
    fn carry_state(&mut self) {
        let last = self.shape.time * self.state_len();
        for layer in &mut self.layers {
            layer.h.copy_within(last.., 0);
            layer.c.copy_within(last.., 0);
        }
    }

    /// Runs the LSTM layers, bottom first.
    fn forward(
        &mut self,
        weights: &NamedParameters<&[f32]>,
        inputs: &[u32],
        dropout: Option<StepDropout>,
    ) -> Result<(), TchError> {
        let characters = self.shape.time * self.shape.rows;
        let hidden = self.shape.architecture.hidden_size;
        let vocabulary = self.shape.architecture.vocabulary_size;
        for index in 0..self.layers.len() {
            let (below, rest) = self.layers.split_at_mut(index);
            let (layer, weights) = (&mut rest[0], &weights.layers[index]);
            let bias = sum_of_biases(weights);
            match below.last() {
                None => {
                    let weight = Matrix::new(weights.weight_ih, 4 * hidden, vocabulary);
                    embed(weight, &bias, inputs, &mut layer.gates)?;
                }
                Some(below) => {
                    let input = Matrix::new(&below.output, characters, hidden);
                    let weight = Matrix::new(weights.weight_ih, 4 * hidden, hidden);
                    linear(input, weight, &bias, &mut layer.gates)?;
                }
            }
            layer.forward_weights.pack_transposed(weights.weight_hh);
            forward_layer(self.arch, &self.shape, layer);
            write_output(&self.shape, index, layer, dropout);
        }
        Ok(())
    }

    /// Runs the linear layer and the cross-entropy loss, forward and backward;
    /// leaves the gradient of the last LSTM layer's output in `d_h`. Returns
    /// the summed loss in nats.
    fn output_layer(
        &mut self,
        weights: &NamedParameters<&[f32]>,
        gradients: &mut NamedParameters<&mut [f32]>,
        targets: &[u32],
        scale: f32,
    ) -> Result<f64, TchError> {
        let characters = self.shape.time * self.shape.rows;
        let Architecture {
            vocabulary_size: vocabulary,
            hidden_size: hidden,
            ..
        } = self.shape.architecture;
        let last = self.layers.last().expect("at least one layer");
        let input = Matrix::new(&last.output, characters, hidden);
        let weight = Matrix::new(weights.fc_weight, vocabulary, hidden);
        linear(input, weight, weights.fc_bias, &mut self.logits)?;
        log_softmax(&mut self.logits, characters, vocabulary)?;
        let mut loss = 0.0;
        for (row, &target) in self.logits.chunks_exact(vocabulary).zip(targets) {
            loss -= f64::from(row[target as usize]);
        }
        // The gradient of the loss: softmax minus the one-hot target.
        exp(&mut self.logits)?;
        for (row, &target) in self.logits.chunks_exact_mut(vocabulary).zip(targets) {
            row[target as usize] -= 1.0;
            row.iter_mut().for_each(|value| *value *= scale);
        }

        let d_logits = Matrix::new(&self.logits, characters, vocabulary);
        transposed_product(d_logits, input, gradients.fc_weight)?;
        column_sums(d_logits, gradients.fc_bias)?;
        product(d_logits, weight, &mut self.d_h)?;
        Ok(loss)
    }

    /// Runs the LSTM layers backward, top first, from the gradient of the
    /// last layer's output in `d_h`.
    fn backward(
        &mut self,
        weights: &NamedParameters<&[f32]>,
        gradients: &mut NamedParameters<&mut [f32]>,
        inputs: &[u32],
        dropout: Option<StepDropout>,
    ) -> Result<(), TchError> {
        let characters = self.shape.time * self.shape.rows;
        let hidden = self.shape.architecture.hidden_size;
        let vocabulary = self.shape.architecture.vocabulary_size;
        for index in (0..self.layers.len()).rev() {
            let (below, rest) = self.layers.split_at_mut(index);
            let layer = &mut rest[0];
            let (weights, gradients) = (&weights.layers[index], &mut gradients.layers[index]);
            if let Some(StepDropout { dropout, .. }) = dropout {
                dropout.apply_in_place(&mut self.d_h, &layer.mask);
            }
            self.d_c.fill(0.0);
            layer.backward_weights.pack(weights.weight_hh);
            backward_layer(self.arch, &self.shape, layer, &mut self.d_h, &mut self.d_c);

            let d_sums = Matrix::new(&layer.gates, characters, 4 * hidden);
            let h_before = Matrix::new(&layer.h[..characters * hidden], characters, hidden);
            transposed_product(d_sums, h_before, gradients.weight_hh)?;
            column_sums(d_sums, gradients.bias_ih)?;
            gradients.bias_hh.copy_from_slice(gradients.bias_ih);
            match below.last() {
                None => {
                    sum_by_token(&mut self.d_embedding, &layer.gates, inputs);
                    let d_embedding = Matrix::new(&self.d_embedding, vocabulary, 4 * hidden);
                    transpose(d_embedding, gradients.weight_ih)?;
                }
                Some(below) => {
                    let input = Matrix::new(&below.output, characters, hidden);
                    transposed_product(d_sums, input, gradients.weight_ih)?;
                    let weight = Matrix::new(weights.weight_ih, 4 * hidden, hidden);
                    product(d_sums, weight, &mut self.d_h)?;
                }
            }
        }
        Ok(())
    }
}

fn sum_of_biases(weights: &LayerParameters<&[f32]>) -> Vec<f32> {
    let biases = weights.bias_ih.iter().zip(weights.bias_hh);
    biases.map(|(ih, hh)| ih + hh).collect()
}

/// Runs one layer over all time steps: from the sums over its input, in
/// `gates`, to activated gates, c and h.
fn forward_layer(arch: Arch, shape: &BatchShape, layer: &mut LayerBuffers) {
    let hidden = shape.architecture.hidden_size;
    let step = shape.rows * hidden;
    for time in 0..shape.time {
        let gates = &mut layer.gates[time * 4 * step..][..4 * step];
        let (old_h, h) = layer.h[time * step..][..2 * step].split_at_mut(step);
        layer
            .forward_weights
            .add_product(arch, Direction::of(time), old_h, gates);
        let (old_c, c) = layer.c[time * step..][..2 * step].split_at_mut(step);
        arch.dispatch(ForwardCells {
            hidden,
            gates,
            old_c,
            c,
            h,
        });
    }
}

/// Writes h after dropout to `output`, and keeps the mask for the backward
/// pass.
fn write_output(
    shape: &BatchShape,
    index: usize,
    layer: &mut LayerBuffers,
    dropout: Option<StepDropout>,
) {
    let hidden = shape.architecture.hidden_size;
    let h = &layer.h[shape.rows * hidden..];
    let Some(StepDropout {
        dropout,
        key,
        first_row,
    }) = dropout
    else {
        layer.output.copy_from_slice(h);
        return;
    };
    layer.mask.resize(h.len(), 0);
    for (position, mask) in layer.mask.chunks_exact_mut(hidden).enumerate() {
        let (time, row) = (position / shape.rows, first_row + position % shape.rows);
        let key = [index, time, row]
            .into_iter()
            .fold(key, |key, part| subkey(key, part as u64));
        dropout.draw(mask, key);
    }
    dropout.apply(h, &layer.mask, &mut layer.output);
}

/// Runs one layer backward over all time steps, last step first: replaces its
/// activated gates by the gradients of their sums. `d_h` is the gradient of
/// its h, `[time, rows, hidden]`, and `d_c` that of its last c, `[rows,
/// hidden]`; both are overwritten.
fn backward_layer(
    arch: Arch,
    shape: &BatchShape,
    layer: &mut LayerBuffers,
    d_h: &mut [f32],
    d_c: &mut [f32],
) {
    let hidden = shape.architecture.hidden_size;
    let step = shape.rows * hidden;
    for time in (0..shape.time).rev() {
        let gates = &mut layer.gates[time * 4 * step..][..4 * step];
        arch.dispatch(BackwardCells {
            hidden,
            gates,
            old_c: &layer.c[time * step..][..step],
            c: &layer.c[(time + 1) * step..][..step],
            d_h: &d_h[time * step..][..step],
            d_c,
        });
        if time > 0 {
            let d_h = &mut d_h[(time - 1) * step..][..step];
            layer
                .backward_weights
                .add_product(arch, Direction::of(time), gates, d_h);
        }
    }
}

/// Sums the gradients of the first layer's sums, `[tokens.len(), 4 hidden]`,
/// by token into `d_embedding`, `[vocabulary, 4 hidden]`.
fn sum_by_token(d_embedding: &mut [f32], d_sums: &[f32], tokens: &[u32]) {
    d_embedding.fill(0.0);
    let width = d_sums.len() / tokens.len();
    for (gradients, &token) in d_sums.chunks_exact(width).zip(tokens) {
        let row = &mut d_embedding[token as usize * width..][..width];
        for (sum, gradient) in row.iter_mut().zip(gradients) {
            *sum += gradient;
        }
    }
}

#[cfg(test)]
mod tests;
