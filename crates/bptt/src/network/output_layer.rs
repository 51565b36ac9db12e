//! The linear layer and the cross-entropy loss, forward and backward.

use super::{Batch, Network, Sizes, blocks};
use crate::panels::{pack_columns, transpose};
use crate::product::{Arithmetic, Product};
use crate::team::Member;

impl<A: Arithmetic> Network<A> {
    /// Computes the losses, and the gradients of the logits and of the last
    /// layer's h.
    ///
    /// # Panics
    /// If a target is outside the vocabulary.
    pub(super) fn output_layer(&self, member: &Member<'_>, parameters: &[f32], batch: &Batch<'_>) {
        let Sizes {
            vocabulary,
            hidden,
            layers,
            ..
        } = self.sizes;
        let stride = A::padded(hidden);
        let logits_stride = A::padded(vocabulary);
        let width = self.arithmetic.width();
        let bias = &parameters[self.names.fc_bias.clone()];
        let scale = 1.0 / self.sizes.characters() as f32;
        let buffers = &self.buffers;
        for block in blocks(member.share(self.sizes.characters())) {
            let count = block.len();
            let rows = |width: usize| block.start * width..block.end * width;
            // SAFETY: each member has its own rows; outputs and panels are only
            // read in this phase.
            unsafe {
                let logits = buffers.logits.part_mut(rows(vocabulary));
                for row in logits.chunks_exact_mut(vocabulary) {
                    row.copy_from_slice(bias);
                }
                let len = vocabulary.next_multiple_of(width) * stride;
                self.arithmetic.add_product(Product {
                    rows: self.layers[layers - 1].output.part(rows(stride)),
                    row_count: count,
                    stride,
                    inputs: stride,
                    panels: self.weights.fc_forward.part(0..len),
                    columns: vocabulary,
                    out: logits.as_mut_ptr(),
                    out_stride: vocabulary,
                });
                let losses = buffers.losses.part_mut(block.clone());
                let d_logits = buffers.d_logits.part_mut(rows(logits_stride));
                for (((row, &target), loss), narrowed) in logits
                    .chunks_exact_mut(vocabulary)
                    .zip(&batch.targets[block.clone()])
                    .zip(losses)
                    .zip(d_logits.chunks_exact_mut(logits_stride))
                {
                    *loss = loss_and_gradient(row, target as usize, scale);
                    self.arithmetic.narrow(row, &mut narrowed[..vocabulary]);
                }
                buffers.d_h.part_mut(rows(hidden)).fill(0.0);
                let len = hidden.next_multiple_of(width) * logits_stride;
                self.arithmetic.add_product(Product {
                    rows: buffers.d_logits.part(rows(logits_stride)),
                    row_count: count,
                    stride: logits_stride,
                    inputs: logits_stride,
                    panels: self.weights.fc_backward.part(0..len),
                    columns: hidden,
                    out: buffers.d_h.address(block.start * hidden),
                    out_stride: hidden,
                });
            }
            self.drop_gradient(layers - 1, block);
        }
    }

    /// Computes the gradients of the linear layer. Has a barrier within.
    pub(super) fn output_layer_gradient(&self, member: &Member<'_>) {
        let Sizes {
            vocabulary,
            hidden,
            layers,
            ..
        } = self.sizes;
        let characters = self.sizes.characters();
        let logits_stride = A::padded(vocabulary);
        let padded = A::padded(characters);
        let buffers = &self.buffers;
        let tokens = member.share(vocabulary);
        // SAFETY: each member has its own tokens; the gradients of the logits are
        // only read in this phase.
        unsafe {
            transpose(
                buffers.d_logits.part(0..characters * logits_stride),
                characters,
                logits_stride,
                tokens.clone(),
                buffers
                    .d_logits_transposed
                    .part_mut(tokens.start * padded..tokens.end * padded),
                padded,
            );
            let start = self.names.fc_bias.start;
            let bias = self
                .gradient
                .part_mut(start + tokens.start..start + tokens.end);
            bias.fill(0.0);
            let logits = buffers.logits.part(0..characters * vocabulary);
            for row in logits.chunks_exact(vocabulary) {
                for (sum, value) in bias.iter_mut().zip(&row[tokens.clone()]) {
                    *sum += value;
                }
            }
        }
        self.pack_outputs(member, layers - 1);
        member.barrier();
        let weight = self.names.fc_weight.start;
        // SAFETY: each member has its own rows of the gradient; the operands are
        // only read in this phase.
        unsafe {
            self.add_weight_gradient(
                buffers
                    .d_logits_transposed
                    .part(tokens.start * padded..tokens.end * padded),
                buffers.output_panels.part(0..self.panels_len()),
                weight + tokens.start * hidden..weight + tokens.end * hidden,
            );
        }
    }

    /// Packs the outputs of a layer as the right factor of a weight gradient.
    pub(super) fn pack_outputs(&self, member: &Member<'_>, index: usize) {
        let stride = A::padded(self.sizes.hidden);
        let characters = self.sizes.characters();
        let panels = member.share(self.panel_count());
        let width = self.arithmetic.width();
        let len = width * A::padded(characters);
        // SAFETY: each member has its own panels; the outputs are only read.
        unsafe {
            pack_columns(
                self.arithmetic,
                self.layers[index].output.part(0..characters * stride),
                characters,
                stride,
                panels.start * width..(panels.end * width).min(self.sizes.hidden),
                self.buffers
                    .output_panels
                    .part_mut(panels.start * len..panels.end * len),
            );
        }
    }
}

/// Replaces the logits of a character by the gradient of its loss times `scale`:
/// softmax minus the one-hot target. Returns the loss in nats.
fn loss_and_gradient(logits: &mut [f32], target: usize, scale: f32) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let logit = logits[target] - largest;
    let mut sum = 0.0f32;
    for value in logits.iter_mut() {
        *value = (*value - largest).exp();
        sum += *value;
    }
    let factor = scale / sum;
    for value in logits.iter_mut() {
        *value *= factor;
    }
    logits[target] -= scale;
    sum.ln() - logit
}
