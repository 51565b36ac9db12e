//! The backward pass through the LSTM layers, and the gradients of their
//! weights.

use std::ops::Range;

use super::{Batch, Network, Sizes, blocks};
use crate::cells::BackwardCells;
use crate::panels::{pack_columns, transpose};
use crate::product::{Arithmetic, Product};
use crate::team::Member;

impl<A: Arithmetic> Network<A> {
    /// Runs a layer backward over all time steps, last step first: replaces its
    /// activated gates by the gradients of their sums.
    pub(super) fn backward_layer(&self, member: &Member<'_>, index: usize) {
        let Sizes {
            hidden,
            batch,
            time: times,
            ..
        } = self.sizes;
        let part = self.part(member);
        let stride = A::padded(self.sizes.gates());
        let panel_len = self.arithmetic.width() * stride;
        let is_empty = part.units.is_empty() || part.rows.is_empty();
        for row in part.rows.clone() {
            let units = row * hidden + part.units.start..row * hidden + part.units.end;
            // SAFETY: the row's units are the member's.
            unsafe { self.buffers.d_c.part_mut(units).fill(0.0) };
        }
        for time in (0..times).rev() {
            if !is_empty {
                for row in part.rows.clone() {
                    self.backward_cells(index, time * batch + row, row, &part.units);
                }
            }
            if part.shares_rows {
                member.barrier();
            }
            if time > 0 && !is_empty {
                let first_row = time * batch + part.rows.start;
                let len = part.rows.len() * stride;
                let panels = &part.panels;
                // SAFETY: the gradients of this time and the panels are only
                // read; the units of the output are the member's.
                unsafe {
                    let packed = &self.weights.layers[index].hh_backward;
                    let before = first_row - batch;
                    self.arithmetic.add_product(Product {
                        rows: self
                            .buffers
                            .d_sums
                            .part(first_row * stride..first_row * stride + len),
                        row_count: part.rows.len(),
                        stride,
                        inputs: stride,
                        panels: packed.part(panels.start * panel_len..panels.end * panel_len),
                        columns: part.units.len(),
                        out: self.buffers.d_h.address(before * hidden + part.units.start),
                        out_stride: hidden,
                    });
                }
            }
        }
    }

    /// Computes the gradients of the sums of some units of one row.
    fn backward_cells(&self, index: usize, position: usize, row: usize, units: &Range<usize>) {
        let hidden = self.sizes.hidden;
        let stride = A::padded(self.sizes.gates());
        let layer = &self.layers[index];
        let buffers = &self.buffers;
        let at = |row: usize| row * hidden + units.start..row * hidden + units.end;
        // SAFETY: the row's units are the member's.
        unsafe {
            self.arithmetic.arch().dispatch(BackwardCells {
                gates: [0, 1, 2, 3].map(|gate| layer.gates.part_mut(at(4 * position + gate))),
                old_c: layer.c.part(at(position)),
                c: layer.c.part(at(position + self.sizes.batch)),
                d_h: buffers.d_h.part(at(position)),
                d_c: buffers.d_c.part_mut(at(row)),
            });
            for gate in 0..4 {
                let start = position * stride + gate * hidden;
                self.arithmetic.narrow(
                    layer.gates.part(at(4 * position + gate)),
                    buffers
                        .d_sums
                        .part_mut(start + units.start..start + units.end),
                );
            }
        }
    }

    /// Prepares the products of [`Self::layer_gradient`], and computes the
    /// gradients of the biases and of the first layer's sums by token.
    pub(super) fn prepare_gradient(&self, member: &Member<'_>, index: usize, batch: &Batch<'_>) {
        let Sizes {
            vocabulary, hidden, ..
        } = self.sizes;
        let characters = self.sizes.characters();
        let gates = self.sizes.gates();
        let stride = A::padded(gates);
        let padded = A::padded(characters);
        let buffers = &self.buffers;
        let names = &self.names.layers[index];
        let columns = member.share(gates);
        // SAFETY: each member has its own columns, and the gradients of the sums
        // are only read in this phase.
        unsafe {
            transpose(
                buffers.d_sums.part(0..characters * stride),
                characters,
                stride,
                columns.clone(),
                buffers
                    .d_sums_transposed
                    .part_mut(columns.start * padded..columns.end * padded),
                padded,
            );
            let start = names.bias_ih.start;
            let bias = self
                .gradient
                .part_mut(start + columns.start..start + columns.end);
            bias.fill(0.0);
            if index == 0 {
                for token in 0..vocabulary {
                    let start = token * gates;
                    let sums = buffers
                        .d_embedding
                        .part_mut(start + columns.start..start + columns.end);
                    sums.fill(0.0);
                }
            }
            for (position, &token) in batch.inputs.iter().enumerate() {
                let start = position * gates;
                let d_sums = self.layers[index]
                    .gates
                    .part(start + columns.start..start + columns.end);
                for (sum, value) in bias.iter_mut().zip(d_sums) {
                    *sum += value;
                }
                if index == 0 {
                    let start = token as usize * gates;
                    let sums = buffers
                        .d_embedding
                        .part_mut(start + columns.start..start + columns.end);
                    for (sum, value) in sums.iter_mut().zip(d_sums) {
                        *sum += value;
                    }
                }
            }
            let start = names.bias_hh.start;
            self.gradient
                .part_mut(start + columns.start..start + columns.end)
                .copy_from_slice(bias);
            let stride = A::padded(hidden);
            let panels = member.share(self.panel_count());
            let width = self.arithmetic.width();
            pack_columns(
                self.arithmetic,
                self.layers[index].h.part(0..characters * stride),
                characters,
                stride,
                panels.start * width..(panels.end * width).min(hidden),
                buffers
                    .h_panels
                    .part_mut(panels.start * width * padded..panels.end * width * padded),
            );
        }
        if index > 0 {
            self.pack_outputs(member, index - 1);
        }
    }

    /// Computes the gradients of a layer's weights, and of the h of the layer
    /// below.
    pub(super) fn layer_gradient(&self, member: &Member<'_>, index: usize) {
        let Sizes {
            vocabulary, hidden, ..
        } = self.sizes;
        let gates = self.sizes.gates();
        let padded = A::padded(self.sizes.characters());
        let buffers = &self.buffers;
        let names = &self.names.layers[index];
        let rows = member.share(gates);
        // SAFETY: each member has its own rows of the gradients; everything else
        // is only read in this phase.
        unsafe {
            let d_sums = buffers
                .d_sums_transposed
                .part(rows.start * padded..rows.end * padded);
            let of = |start: usize| start + rows.start * hidden..start + rows.end * hidden;
            let weight_hh = of(names.weight_hh.start);
            let h_panels = buffers.h_panels.part(0..self.panels_len());
            self.add_weight_gradient(d_sums, h_panels, weight_hh.clone());
            if let Some(dropout) = self.dropouts.recurrent {
                let mask = self.weights.layers[index]
                    .kept_mask
                    .part(rows.start * hidden..rows.end * hidden);
                dropout.apply_in_place(self.gradient.part_mut(weight_hh), mask);
            }
            if index > 0 {
                let panels = buffers.output_panels.part(0..self.panels_len());
                self.add_weight_gradient(d_sums, panels, of(names.weight_ih.start));
            } else {
                let start = names.weight_ih.start + rows.start * vocabulary;
                let weight_ih = self
                    .gradient
                    .part_mut(start..start + rows.len() * vocabulary);
                let sums = buffers.d_embedding.part(0..vocabulary * gates);
                transpose(sums, vocabulary, gates, rows, weight_ih, vocabulary);
                if let Some(dropout) = self.dropouts.inputs {
                    let mask = self.weights.input_mask.part(0..vocabulary);
                    for row in weight_ih.chunks_exact_mut(vocabulary) {
                        dropout.apply_in_place(row, mask);
                    }
                }
            }
        }
        if index == 0 {
            return;
        }
        let stride = A::padded(gates);
        let panels_len = hidden.next_multiple_of(self.arithmetic.width()) * stride;
        for block in blocks(member.share(self.sizes.characters())) {
            // SAFETY: each member has its own rows of the output; the operands are
            // only read in this phase.
            unsafe {
                buffers
                    .d_h
                    .part_mut(block.start * hidden..block.end * hidden)
                    .fill(0.0);
                self.arithmetic.add_product(Product {
                    rows: buffers
                        .d_sums
                        .part(block.start * stride..block.end * stride),
                    row_count: block.len(),
                    stride,
                    inputs: stride,
                    panels: self.weights.layers[index].ih_backward.part(0..panels_len),
                    columns: hidden,
                    out: buffers.d_h.address(block.start * hidden),
                    out_stride: hidden,
                });
            }
            self.drop_gradient(index - 1, block);
        }
    }

    /// Applies the mask of a layer's output to some rows of its gradient.
    pub(super) fn drop_gradient(&self, index: usize, rows: Range<usize>) {
        let hidden = self.sizes.hidden;
        if let Some(dropout) = self.dropouts.outputs {
            let range = rows.start * hidden..rows.end * hidden;
            // SAFETY: the rows are the member's; the mask is only read.
            unsafe {
                let mask = self.layers[index].mask.part(range.clone());
                dropout.apply_in_place(self.buffers.d_h.part_mut(range), mask);
            }
        }
    }

    /// Returns the number of elements of `h_panels` and `output_panels`.
    pub(super) fn panels_len(&self) -> usize {
        self.panel_count() * self.arithmetic.width() * A::padded(self.sizes.characters())
    }

    /// Writes the gradient of some rows of a weight matrix, `[rows, hidden]`: the
    /// transposed gradients of its outputs, `[rows, padded characters]`, times its
    /// inputs in panels.
    ///
    /// # Safety
    /// The range of the gradient is the member's.
    pub(super) unsafe fn add_weight_gradient(
        &self,
        d_outputs: &[A::Element],
        panels: &[A::Element],
        range: Range<usize>,
    ) {
        let hidden = self.sizes.hidden;
        let padded = A::padded(self.sizes.characters());
        // SAFETY: the caller vouches for the range.
        unsafe { self.gradient.part_mut(range.clone()).fill(0.0) };
        for block in blocks(0..range.len() / hidden) {
            // SAFETY: as above.
            unsafe {
                self.arithmetic.add_product(Product {
                    rows: &d_outputs[block.start * padded..block.end * padded],
                    row_count: block.len(),
                    stride: padded,
                    inputs: padded,
                    panels,
                    columns: hidden,
                    out: self.gradient.address(range.start + block.start * hidden),
                    out_stride: hidden,
                });
            }
        }
    }
}
