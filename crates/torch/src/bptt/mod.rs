//! Forward and backward pass of some sequences through the network on the
//! CPU, written out: backpropagation through time (Werbos, 1990) for the LSTM
//! (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).
//!
//! What depends on the step before is one product per step into memory that
//! is there already; everything else (the products with the layer below, all
//! gradients of weights) is one large product per sequence. Products are
//! libtorch's, on the calling thread; pointwise work is in `pointwise`.

pub(super) mod dropout;
mod pointwise;
mod recurrent;

use pulp::Arch;
use tch::{Kind, TchError, Tensor};

use self::dropout::{Dropout, subkey};
use self::pointwise::{Backward, Forward};
use self::recurrent::{Direction, Panels};
use super::shared_buffer::SharedBuffer;
use super::shared_slices::{LayerViews, ParameterViews};
use charlstm_model::architecture::Architecture;

/// What a pass works on. Rows are sequences; time comes first everywhere:
/// `[time, rows, ...]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) architecture: Architecture,
    pub(super) rows: usize,
    pub(super) time: usize,
}

/// Dropout of one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Masks {
    pub(super) dropout: Dropout,
    /// Differs from step to step.
    pub(super) key: u64,
    /// Number of the first row within the whole batch.
    pub(super) first_row: usize,
}

/// Buffers of one layer, kept from step to step.
struct Layer {
    /// `[time * rows, 4 hidden]`: sums, then activated gates, then gradients.
    gates: SharedBuffer,
    /// `[(time + 1) * rows, hidden]`; the first part is the state before.
    h: SharedBuffer,
    /// As `h`.
    c: Vec<f32>,
    /// What goes up: `[time * rows, hidden]`, h after dropout.
    up: SharedBuffer,
    /// `[time * rows, hidden]`: 1 keeps, 0 drops. Empty without dropout.
    mask: Vec<u8>,
    /// The recurrent weights, as the way forward and the way back read them.
    forward: Panels,
    backward: Panels,
}

/// A pass over `rows` sequences of `time` characters.
pub(super) struct Bptt {
    shape: Shape,
    arch: Arch,
    layers: Vec<Layer>,
    /// `[time * rows, vocabulary]`.
    logits: SharedBuffer,
    /// Gradient of a layer's h, `[time * rows, hidden]`.
    d_h: SharedBuffer,
    /// Gradient of c, `[rows, hidden]`.
    d_c: Vec<f32>,
    /// Gradient of the first layer's sums by character, `[vocabulary, 4 hidden]`.
    d_table: SharedBuffer,
}

impl Bptt {
    /// Takes the memory; the state is zero.
    pub(super) fn new(shape: Shape) -> Result<Self, TchError> {
        let Shape {
            architecture,
            rows,
            time,
        } = shape;
        let hidden = architecture.hidden_size;
        let arch = Arch::new();
        let layers = (0..architecture.num_layers)
            .map(|_| {
                Ok(Layer {
                    gates: SharedBuffer::zeros(&[time * rows, 4 * hidden])?,
                    h: SharedBuffer::zeros(&[(time + 1) * rows, hidden])?,
                    c: vec![0.0; (time + 1) * rows * hidden],
                    up: SharedBuffer::zeros(&[time * rows, hidden])?,
                    mask: Vec::new(),
                    forward: Panels::new(arch, hidden, 4 * hidden),
                    backward: Panels::new(arch, 4 * hidden, hidden),
                })
            })
            .collect::<Result<_, TchError>>()?;
        Ok(Self {
            shape,
            arch,
            layers,
            logits: SharedBuffer::zeros(&[time * rows, architecture.vocabulary_size])?,
            d_h: SharedBuffer::zeros(&[time * rows, hidden])?,
            d_c: vec![0.0; rows * hidden],
            d_table: SharedBuffer::zeros(&[architecture.vocabulary_size, 4 * hidden])?,
        })
    }

    /// Computes the loss of `inputs` against `targets` (both `[time, rows]`),
    /// summed over all characters, in nats, and writes its gradient times
    /// `scale` to `gradients`. The state goes on from the last call.
    pub(super) fn run(
        &mut self,
        weights: &ParameterViews,
        gradients: &ParameterViews,
        inputs: &[u32],
        targets: &[u32],
        masks: Option<Masks>,
        scale: f32,
    ) -> Result<f64, TchError> {
        self.forward(weights, inputs, masks)?;
        let loss = self.output(weights, gradients, targets, scale)?;
        self.backward(weights, gradients, inputs, masks)?;
        self.carry();
        Ok(loss)
    }

    /// Begins anew from a state of zero.
    pub(super) fn clear_state(&mut self) {
        let numbers = self.state_numbers();
        for layer in &mut self.layers {
            layer.h.numbers_mut()[..numbers].fill(0.0);
            layer.c[..numbers].fill(0.0);
        }
    }

    /// The carried state, `[rows, layers, 2, hidden]`.
    pub(super) fn state(&self) -> Vec<f32> {
        let hidden = self.shape.architecture.hidden_size;
        let mut state = Vec::new();
        for row in 0..self.shape.rows {
            for layer in &self.layers {
                state.extend_from_slice(&layer.h.numbers()[row * hidden..][..hidden]);
                state.extend_from_slice(&layer.c[row * hidden..][..hidden]);
            }
        }
        state
    }

    /// Sets the carried state, in the layout of [`Self::state`].
    pub(super) fn set_state(&mut self, state: &[f32]) {
        let hidden = self.shape.architecture.hidden_size;
        let mut parts = state.chunks_exact(hidden);
        for row in 0..self.shape.rows {
            for layer in &mut self.layers {
                let h = &mut layer.h.numbers_mut()[row * hidden..][..hidden];
                for numbers in [h, &mut layer.c[row * hidden..][..hidden]] {
                    numbers.copy_from_slice(parts.next().expect("h and c of every row and layer"));
                }
            }
        }
    }

    /// Numbers in h (or c) of all rows at one time.
    fn state_numbers(&self) -> usize {
        self.shape.rows * self.shape.architecture.hidden_size
    }

    /// The state after the last character becomes the one before the first.
    fn carry(&mut self) {
        let numbers = self.state_numbers();
        let last = self.shape.time * numbers;
        for layer in &mut self.layers {
            layer.h.numbers_mut().copy_within(last.., 0);
            layer.c.copy_within(last.., 0);
        }
    }

    fn forward(
        &mut self,
        weights: &ParameterViews,
        inputs: &[u32],
        masks: Option<Masks>,
    ) -> Result<(), TchError> {
        for index in 0..self.layers.len() {
            let (below, rest) = self.layers.split_at_mut(index);
            let (layer, weights) = (&mut rest[0], &weights.layers[index]);
            match below.last() {
                None => gather_sums(layer, weights, inputs)?,
                Some(below) => {
                    let bias = weights.bias_ih.f_add(&weights.bias_hh)?;
                    let transposed = weights.weight_ih.f_tr()?.f_contiguous()?;
                    let _ =
                        bias.f_addmm_out(layer.gates.tensor(), below.up.tensor(), &transposed)?;
                }
            }
            layer.forward.lay_out_transposed(weights.recurrent());
            forward_layer(self.arch, &self.shape, layer);
            send_up(&self.shape, index, layer, masks);
        }
        Ok(())
    }

    /// Linear layer, log-softmax and negative log-likelihood, forward and
    /// backward; leaves the gradient of the last layer's output in `d_h`.
    fn output(
        &mut self,
        weights: &ParameterViews,
        gradients: &ParameterViews,
        targets: &[u32],
        scale: f32,
    ) -> Result<f64, TchError> {
        let up = self.layers.last().expect("at least one layer").up.tensor();
        let transposed = weights.fc_weight.f_tr()?.f_contiguous()?;
        let _ = weights
            .fc_bias
            .f_addmm_out(self.logits.tensor(), up, &transposed)?;
        let log_probabilities = self.logits.tensor().f_log_softmax(-1, Kind::Float)?;
        self.logits
            .tensor()
            .shallow_clone()
            .f_copy_(&log_probabilities)?;

        let vocabulary = self.shape.architecture.vocabulary_size;
        let mut loss = 0.0;
        for (row, &target) in self.logits.numbers().chunks_exact(vocabulary).zip(targets) {
            loss -= f64::from(row[target as usize]);
        }
        let _ = self.logits.tensor().shallow_clone().f_exp_()?;
        for (row, &target) in self
            .logits
            .numbers_mut()
            .chunks_exact_mut(vocabulary)
            .zip(targets)
        {
            row[target as usize] -= 1.0;
        }
        let _ = self
            .logits
            .tensor()
            .shallow_clone()
            .f_mul_scalar_(f64::from(scale))?;

        let d_logits = self.logits.tensor();
        let _ = d_logits.f_tr()?.f_mm_out(&gradients.fc_weight, up)?;
        let d_bias = d_logits.f_sum_dim_intlist(0, false, Kind::Float)?;
        gradients.fc_bias.shallow_clone().f_copy_(&d_bias)?;
        let _ = d_logits.f_mm_out(self.d_h.tensor(), &weights.fc_weight)?;
        Ok(loss)
    }

    fn backward(
        &mut self,
        weights: &ParameterViews,
        gradients: &ParameterViews,
        inputs: &[u32],
        masks: Option<Masks>,
    ) -> Result<(), TchError> {
        for index in (0..self.layers.len()).rev() {
            let (below, rest) = self.layers.split_at_mut(index);
            let layer = &mut rest[0];
            let (weights, gradients) = (&weights.layers[index], &gradients.layers[index]);
            if let Some(masks) = masks {
                masks
                    .dropout
                    .apply_in_place(self.d_h.numbers_mut(), &layer.mask);
            }
            self.d_c.fill(0.0);
            layer.backward.lay_out(weights.recurrent());
            let (d_h, d_c) = (self.d_h.numbers_mut(), &mut self.d_c);
            backward_layer(self.arch, &self.shape, layer, d_h, d_c);

            let d_sums = layer.gates.tensor();
            let before = layer.h.tensor().f_narrow(0, 0, d_sums.size()[0])?;
            let _ = d_sums.f_tr()?.f_mm_out(&gradients.weight_hh, &before)?;
            let d_bias = d_sums.f_sum_dim_intlist(0, false, Kind::Float)?;
            gradients.bias_ih.shallow_clone().f_copy_(&d_bias)?;
            gradients
                .bias_hh
                .shallow_clone()
                .f_copy_(&gradients.bias_ih)?;
            match below.last() {
                None => {
                    scatter_gradients(&mut self.d_table, layer, inputs);
                    let transposed = self.d_table.tensor().f_tr()?;
                    gradients.weight_ih.shallow_clone().f_copy_(&transposed)?;
                }
                Some(below) => {
                    let _ = d_sums
                        .f_tr()?
                        .f_mm_out(&gradients.weight_ih, below.up.tensor())?;
                    let _ = d_sums.f_mm_out(self.d_h.tensor(), &weights.weight_ih)?;
                }
            }
        }
        Ok(())
    }
}

/// The first layer's sums before the recurrent product: a one-hot row times
/// `weight_ih` is a column of it.
fn gather_sums(layer: &mut Layer, weights: &LayerViews, inputs: &[u32]) -> Result<(), TchError> {
    let bias = weights.bias_ih.f_add(&weights.bias_hh)?;
    let table = weights.weight_ih.f_tr()?.f_add(&bias)?.f_contiguous()?;
    let inputs: Vec<i64> = inputs.iter().map(|&token| i64::from(token)).collect();
    let _ = table.f_index_select_out(layer.gates.tensor(), 0, &Tensor::f_from_slice(&inputs)?)?;
    Ok(())
}

fn forward_layer(arch: Arch, shape: &Shape, layer: &mut Layer) {
    let hidden = shape.architecture.hidden_size;
    let numbers = shape.rows * hidden;
    let (gates, h) = (layer.gates.numbers_mut(), layer.h.numbers_mut());
    for time in 0..shape.time {
        let gates = &mut gates[time * 4 * numbers..][..4 * numbers];
        let (old_h, h) = h[time * numbers..][..2 * numbers].split_at_mut(numbers);
        layer
            .forward
            .add_product(arch, Direction::of(time), old_h, gates);
        let (old_c, c) = layer.c[time * numbers..][..2 * numbers].split_at_mut(numbers);
        arch.dispatch(Forward {
            hidden,
            gates,
            old_c,
            c,
            h,
        });
    }
}

/// h after dropout, as the layer above and the linear layer see it.
fn send_up(shape: &Shape, index: usize, layer: &mut Layer, masks: Option<Masks>) {
    let hidden = shape.architecture.hidden_size;
    let h = &layer.h.numbers()[shape.rows * hidden..];
    let Some(masks) = masks else {
        layer.up.numbers_mut().copy_from_slice(h);
        return;
    };
    layer.mask.resize(h.len(), 0);
    for (place, mask) in layer.mask.chunks_exact_mut(hidden).enumerate() {
        let (time, row) = (place / shape.rows, masks.first_row + place % shape.rows);
        let key = [index, time, row]
            .into_iter()
            .fold(masks.key, |key, part| subkey(key, part as u64));
        masks.dropout.draw(mask, key);
    }
    masks.dropout.apply(h, &layer.mask, layer.up.numbers_mut());
}

/// Turns the activated gates of a layer into the gradients of their sums, last
/// step first.
fn backward_layer(arch: Arch, shape: &Shape, layer: &mut Layer, d_h: &mut [f32], d_c: &mut [f32]) {
    let hidden = shape.architecture.hidden_size;
    let numbers = shape.rows * hidden;
    for time in (0..shape.time).rev() {
        let gates = &mut layer.gates.numbers_mut()[time * 4 * numbers..][..4 * numbers];
        arch.dispatch(Backward {
            hidden,
            gates,
            old_c: &layer.c[time * numbers..][..numbers],
            c: &layer.c[(time + 1) * numbers..][..numbers],
            d_h: &d_h[time * numbers..][..numbers],
            d_c,
        });
        if time > 0 {
            let d_h = &mut d_h[(time - 1) * numbers..][..numbers];
            layer
                .backward
                .add_product(arch, Direction::of(time), gates, d_h);
        }
    }
}

/// Adds the gradients of the first layer's sums up by character.
fn scatter_gradients(table: &mut SharedBuffer, layer: &Layer, inputs: &[u32]) {
    let table = table.numbers_mut();
    table.fill(0.0);
    let width = layer.gates.numbers().len() / inputs.len();
    for (gradients, &token) in layer.gates.numbers().chunks_exact(width).zip(inputs) {
        let row = &mut table[token as usize * width..][..width];
        for (sum, gradient) in row.iter_mut().zip(gradients) {
            *sum += gradient;
        }
    }
}

#[cfg(test)]
mod tests;
