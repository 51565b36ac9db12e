//! The weights in the panels that products read, packed for each batch, and the
//! masks of dropped recurrent weights and input characters.

use super::{Batch, Network, Sizes};
use crate::dropout::{INPUT_KEY, RECURRENT_KEY, mask_key};
use crate::panels::{pack_rows, pack_weight_columns, transpose};
use crate::product::Arithmetic;
use crate::shared_buffer::SharedBuffer;
use crate::team::Member;

/// The panels of one layer.
pub(super) struct PackedLayer<E> {
    /// `weight_hh` as the forward pass reads it: the panels of each gate in turn.
    pub(super) hh_forward: SharedBuffer<E>,
    /// `weight_hh` as the backward pass reads it: `hidden` columns.
    pub(super) hh_backward: SharedBuffer<E>,
    /// `weight_ih` as `hh_forward`; empty in the first layer.
    pub(super) ih_forward: SharedBuffer<E>,
    /// `weight_ih` as `hh_backward`; empty in the first layer.
    pub(super) ih_backward: SharedBuffer<E>,
    /// The sum of both biases, `[4 hidden]`; empty in the first layer.
    pub(super) bias: SharedBuffer<f32>,
    /// `weight_hh` without the dropped weights, `[4 hidden, hidden]`; empty if
    /// none are dropped.
    pub(super) kept: SharedBuffer<f32>,
    /// 1 keeps a recurrent weight, 0 drops it.
    pub(super) kept_mask: SharedBuffer<u8>,
}

/// The panels of all weights.
pub(super) struct PackedWeights<A: Arithmetic> {
    pub(super) layers: Vec<PackedLayer<A::Element>>,
    /// The first layer's sums of each token as its input, `[vocabulary, 4
    /// hidden]`.
    pub(super) embedding: SharedBuffer<f32>,
    /// 1 keeps a token as an input, 0 drops it.
    pub(super) input_mask: SharedBuffer<u8>,
    pub(super) fc_forward: SharedBuffer<A::Element>,
    pub(super) fc_backward: SharedBuffer<A::Element>,
}

impl<A: Arithmetic> PackedWeights<A> {
    pub(super) fn new(arithmetic: A, sizes: &Sizes, drops_weights: bool) -> Self {
        let Sizes {
            vocabulary, hidden, ..
        } = *sizes;
        let width = arithmetic.width();
        let columns = hidden.next_multiple_of(width);
        let forward = 4 * columns * A::padded(hidden);
        let backward = columns * A::padded(sizes.gates());
        let kept = if drops_weights {
            sizes.gates() * hidden
        } else {
            0
        };
        let layers = (0..sizes.layers).map(|index| {
            let if_above = |len| if index == 0 { 0 } else { len };
            PackedLayer {
                hh_forward: SharedBuffer::new(forward),
                hh_backward: SharedBuffer::new(backward),
                ih_forward: SharedBuffer::new(if_above(forward)),
                ih_backward: SharedBuffer::new(if_above(backward)),
                bias: SharedBuffer::new(if_above(sizes.gates())),
                kept: SharedBuffer::new(kept),
                kept_mask: SharedBuffer::new(kept),
            }
        });
        Self {
            layers: layers.collect(),
            embedding: SharedBuffer::new(vocabulary * sizes.gates()),
            input_mask: SharedBuffer::new(vocabulary),
            fc_forward: SharedBuffer::new(vocabulary.next_multiple_of(width) * A::padded(hidden)),
            fc_backward: SharedBuffer::new(columns * A::padded(vocabulary)),
        }
    }
}

impl<A: Arithmetic> Network<A> {
    /// Packs all weights.
    pub(super) fn pack_weights(&self, member: &Member<'_>, parameters: &[f32], batch: &Batch<'_>) {
        self.drop_weights(member, parameters, batch);
        self.pack_embedding(member, parameters, batch);
        let Sizes {
            vocabulary, hidden, ..
        } = self.sizes;
        let gates = self.sizes.gates();
        let mut narrowed = Vec::new();
        for (index, (packed, names)) in self
            .weights
            .layers
            .iter()
            .zip(&self.names.layers)
            .enumerate()
        {
            let weight_hh = if self.dropouts.recurrent.is_some() {
                // SAFETY: written by `drop_weights`, which ends with a barrier.
                unsafe { packed.kept.part(0..gates * hidden) }
            } else {
                &parameters[names.weight_hh.clone()]
            };
            self.pack_gates(member, weight_hh, &packed.hh_forward, &mut narrowed);
            self.pack_backward(member, weight_hh, gates, &packed.hh_backward);
            if index > 0 {
                let weight_ih = &parameters[names.weight_ih.clone()];
                self.pack_gates(member, weight_ih, &packed.ih_forward, &mut narrowed);
                self.pack_backward(member, weight_ih, gates, &packed.ih_backward);
                let biases = parameters[names.bias_ih.clone()]
                    .iter()
                    .zip(&parameters[names.bias_hh.clone()]);
                if member.index == 0 {
                    // SAFETY: only the first member writes it.
                    let bias = unsafe { packed.bias.part_mut(0..gates) };
                    for (bias, (ih, hh)) in bias.iter_mut().zip(biases) {
                        *bias = ih + hh;
                    }
                }
            }
        }
        let fc = &parameters[self.names.fc_weight.clone()];
        let width = self.arithmetic.width();
        let panels = member.share(vocabulary.div_ceil(width));
        let len = width * A::padded(hidden);
        // SAFETY: each member has its own panels.
        let out = unsafe {
            self.weights
                .fc_forward
                .part_mut(panels.start * len..panels.end * len)
        };
        let columns = panels.start * width..(panels.end * width).min(vocabulary);
        pack_rows(self.arithmetic, fc, hidden, columns, out, &mut narrowed);
        self.pack_backward(member, fc, vocabulary, &self.weights.fc_backward);
    }

    /// Draws the masks of the recurrent weights and applies them. Ends with a
    /// barrier if there are any.
    fn drop_weights(&self, member: &Member<'_>, parameters: &[f32], batch: &Batch<'_>) {
        let Some(dropout) = self.dropouts.recurrent else {
            return;
        };
        let hidden = self.sizes.hidden;
        for (index, (packed, names)) in
            (0u64..).zip(self.weights.layers.iter().zip(&self.names.layers))
        {
            let weight = &parameters[names.weight_hh.clone()];
            for row in member.share(self.sizes.gates()) {
                let range = row * hidden..(row + 1) * hidden;
                // SAFETY: each member has its own rows.
                let (mask, kept) = unsafe {
                    (
                        packed.kept_mask.part_mut(range.clone()),
                        packed.kept.part_mut(range.clone()),
                    )
                };
                let key = mask_key(batch.key, &[RECURRENT_KEY, index, row as u64]);
                dropout.draw(mask, key);
                dropout.apply(&weight[range], mask, kept);
            }
        }
        member.barrier();
    }

    /// Writes the first layer's sums of each token.
    fn pack_embedding(&self, member: &Member<'_>, parameters: &[f32], batch: &Batch<'_>) {
        let vocabulary = self.sizes.vocabulary;
        let gates = self.sizes.gates();
        let names = &self.names.layers[0];
        let weight = &parameters[names.weight_ih.clone()];
        let (ih, hh) = (
            &parameters[names.bias_ih.clone()],
            &parameters[names.bias_hh.clone()],
        );
        let tokens = member.share(vocabulary);
        // SAFETY: each member has its own tokens.
        let (embedding, mask) = unsafe {
            (
                self.weights
                    .embedding
                    .part_mut(tokens.start * gates..tokens.end * gates),
                self.weights.input_mask.part_mut(tokens.clone()),
            )
        };
        transpose(weight, gates, vocabulary, tokens.clone(), embedding, gates);
        for ((token, sums), mask) in tokens
            .zip(embedding.chunks_exact_mut(gates))
            .zip(mask.chunks_exact_mut(1))
        {
            let mut factor = 1.0;
            if let Some(dropout) = self.dropouts.inputs {
                dropout.draw(mask, mask_key(batch.key, &[INPUT_KEY, token as u64]));
                factor = dropout.factor(mask[0]);
            }
            for ((sum, ih), hh) in sums.iter_mut().zip(ih).zip(hh) {
                *sum = *sum * factor + (ih + hh);
            }
        }
    }

    /// Packs a matrix `[4 hidden, hidden]` for the forward pass.
    fn pack_gates(
        &self,
        member: &Member<'_>,
        weight: &[f32],
        out: &SharedBuffer<A::Element>,
        narrowed: &mut Vec<A::Element>,
    ) {
        let hidden = self.sizes.hidden;
        let width = self.arithmetic.width();
        let len = width * A::padded(hidden);
        let panels = self.panel_count();
        for panel in member.share(4 * panels) {
            let (gate, first) = (panel / panels, panel % panels * width);
            let columns = gate * hidden + first..gate * hidden + (first + width).min(hidden);
            // SAFETY: each member has its own panels.
            let out = unsafe { out.part_mut(panel * len..(panel + 1) * len) };
            pack_rows(self.arithmetic, weight, hidden, columns, out, narrowed);
        }
    }

    /// Packs a matrix `[inputs, hidden]` for the backward pass.
    fn pack_backward(
        &self,
        member: &Member<'_>,
        weight: &[f32],
        inputs: usize,
        out: &SharedBuffer<A::Element>,
    ) {
        let hidden = self.sizes.hidden;
        let width = self.arithmetic.width();
        let len = width * A::padded(inputs);
        let panels = member.share(self.panel_count());
        let columns = panels.start * width..(panels.end * width).min(hidden);
        // SAFETY: each member has its own panels.
        let out = unsafe { out.part_mut(panels.start * len..panels.end * len) };
        pack_weight_columns(self.arithmetic, weight, inputs, hidden, columns, out);
    }
}
