//! The forward pass through the LSTM layers.

use super::{Batch, Network, Part, Scratch, Sizes, blocks};
use crate::cells::ForwardCells;
use crate::dropout::mask_key;
use crate::product::{Arithmetic, Product};
use crate::team::Member;

impl<A: Arithmetic> Network<A> {
    /// Writes the sums over a layer's inputs and biases to its gates.
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub(super) fn sums_of_inputs(&self, member: &Member<'_>, index: usize, batch: &Batch<'_>) {
        let hidden = self.sizes.hidden;
        let gates = self.sizes.gates();
        let layer = &self.layers[index];
        for block in blocks(member.share(self.sizes.characters())) {
            // SAFETY: each member has its own rows.
            let out = unsafe { layer.gates.part_mut(block.start * gates..block.end * gates) };
            let rows = out.chunks_exact_mut(gates);
            if index == 0 {
                for (row, &token) in rows.zip(&batch.inputs[block]) {
                    let token = token as usize;
                    // SAFETY: only read in this phase.
                    let sums = unsafe {
                        self.weights
                            .embedding
                            .part(token * gates..(token + 1) * gates)
                    };
                    row.copy_from_slice(sums);
                }
                continue;
            }
            let packed = &self.weights.layers[index];
            let stride = A::padded(hidden);
            // SAFETY: only read in this phase.
            let (bias, below) = unsafe {
                (
                    packed.bias.part(0..gates),
                    self.layers[index - 1]
                        .output
                        .part(block.start * stride..block.end * stride),
                )
            };
            for row in rows {
                row.copy_from_slice(bias);
            }
            let panel_len = self.arithmetic.width() * stride;
            let panels = self.panel_count();
            for gate in 0..4 {
                let first = gate * panels * panel_len;
                // SAFETY: the panels are only read in this phase; the output rows
                // are the member's.
                unsafe {
                    let panels = packed.ih_forward.part(first..first + panels * panel_len);
                    self.arithmetic.add_product(Product {
                        rows: below,
                        row_count: block.len(),
                        stride,
                        inputs: stride,
                        panels,
                        columns: hidden,
                        out: layer.gates.address(block.start * gates + gate * hidden),
                        out_stride: gates,
                    });
                }
            }
        }
    }

    /// Runs a layer over all time steps: from the sums over its inputs to
    /// activated gates, c, h, and the output after dropout.
    pub(super) fn forward_layer(
        &self,
        member: &Member<'_>,
        index: usize,
        batch: &Batch<'_>,
        scratch: &mut Scratch,
    ) {
        let part = self.part(member);
        for time in 0..self.sizes.time {
            if !part.units.is_empty() && !part.rows.is_empty() {
                self.add_recurrent_sums(index, time, &part);
                for row in part.rows.clone() {
                    self.activate(index, time, row, &part, batch, scratch);
                }
            }
            if part.shares_rows {
                member.barrier();
            }
        }
    }

    fn add_recurrent_sums(&self, index: usize, time: usize, part: &Part) {
        let Sizes { hidden, batch, .. } = self.sizes;
        let gates = self.sizes.gates();
        let stride = A::padded(hidden);
        let layer = &self.layers[index];
        let first_row = time * batch + part.rows.start;
        let len = part.rows.len() * stride;
        let panel_len = self.arithmetic.width() * stride;
        for gate in 0..4 {
            let panels = gate * self.panel_count() + part.panels.start;
            // SAFETY: the h of this time and the panels are only read; the units
            // of the gates are the member's.
            unsafe {
                let packed = &self.weights.layers[index].hh_forward;
                self.arithmetic.add_product(Product {
                    rows: layer.h.part(first_row * stride..first_row * stride + len),
                    row_count: part.rows.len(),
                    stride,
                    inputs: stride,
                    panels: packed
                        .part(panels * panel_len..(panels + part.panels.len()) * panel_len),
                    columns: part.units.len(),
                    out: layer
                        .gates
                        .address(first_row * gates + gate * hidden + part.units.start),
                    out_stride: gates,
                });
            }
        }
    }

    /// Computes the cells of a row, and its output after dropout.
    fn activate(
        &self,
        index: usize,
        time: usize,
        row: usize,
        part: &Part,
        batch: &Batch<'_>,
        scratch: &mut Scratch,
    ) {
        let hidden = self.sizes.hidden;
        let stride = A::padded(hidden);
        let layer = &self.layers[index];
        let position = time * self.sizes.batch + row;
        let next = position + self.sizes.batch;
        let units = part.units.clone();
        let at = |row: usize, stride: usize| row * stride + units.start..row * stride + units.end;
        let h = &mut scratch.h[..units.len()];
        // SAFETY: the row's units are the member's.
        unsafe {
            self.arithmetic.arch().dispatch(ForwardCells {
                gates: [0, 1, 2, 3]
                    .map(|gate| layer.gates.part_mut(at(4 * position + gate, hidden))),
                old_c: layer.c.part(at(position, hidden)),
                c: layer.c.part_mut(at(next, hidden)),
                h,
            });
            self.arithmetic
                .narrow(h, layer.h.part_mut(at(next, stride)));
        }
        // SAFETY: as above.
        let output = unsafe { layer.output.part_mut(at(position, stride)) };
        let Some(dropout) = self.dropouts.outputs else {
            self.arithmetic.narrow(h, output);
            return;
        };
        let time = if self.dropouts.locked { 0 } else { time };
        let key = mask_key(batch.key, &[index as u64, time as u64, row as u64]);
        // SAFETY: as above.
        let mask = unsafe { layer.mask.part_mut(at(position, hidden)) };
        dropout.draw_from(units.start, mask, key);
        let dropped = &mut scratch.output[..units.len()];
        dropout.apply(h, mask, dropped);
        self.arithmetic.narrow(dropped, output);
    }
}
