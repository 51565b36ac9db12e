//! The recurrent product: a few rows times the matrix `weight_hh`, once per
//! time step. The matrix is packed into panels once per optimizer step; a
//! matrix library would pack it again for every product.

use pulp::{Arch, Simd, WithSimd};

use charlstm_model::kernel::{
    PanelProduct, SumsConsumer, SumsOfRow, multiply_rows, register_lanes,
};
use charlstm_model::packed::GATES;

/// A matrix `[inputs, outputs]` in panels of 4 registers of columns, `[panels,
/// inputs, 4, lanes]`; the last panel is padded with zeros.
pub(super) struct RecurrentPanels {
    inputs: usize,
    outputs: usize,
    /// Columns of a panel: `4 * lanes`.
    width: usize,
    values: Vec<f32>,
}

impl RecurrentPanels {
    /// Allocates a matrix of zeros.
    pub(super) fn new(arch: Arch, inputs: usize, outputs: usize) -> Self {
        let width = GATES * register_lanes(arch);
        Self {
            inputs,
            outputs,
            width,
            values: vec![0.0; outputs.div_ceil(width) * width * inputs],
        }
    }

    /// Packs `matrix`, `[inputs, outputs]`.
    pub(super) fn pack(&mut self, matrix: &[f32]) {
        for (index, panel) in self.values.chunks_mut(self.inputs * self.width).enumerate() {
            let first = index * self.width;
            let count = self.width.min(self.outputs - first);
            for (row, out) in matrix
                .chunks_exact(self.outputs)
                .zip(panel.chunks_mut(self.width))
            {
                out[..count].copy_from_slice(&row[first..first + count]);
            }
        }
    }

    /// Packs the transpose of `matrix`, `[outputs, inputs]`.
    pub(super) fn pack_transposed(&mut self, matrix: &[f32]) {
        let (inputs, width) = (self.inputs, self.width);
        for (panel, rows) in self
            .values
            .chunks_mut(inputs * width)
            .zip(matrix.chunks(width * inputs))
        {
            for (column, row) in rows.chunks_exact(inputs).enumerate() {
                for (&value, out) in row.iter().zip(panel.chunks_exact_mut(width)) {
                    out[column] = value;
                }
            }
        }
    }

    /// Computes `sums += rows * matrix`, for `rows` `[rows, inputs]` and
    /// `sums` `[rows, outputs]`. The direction does not change the result.
    /// Consecutive products should alternate it ([`Direction::of`]): then each
    /// starts with the panels that are still in cache.
    pub(super) fn add_product(
        &self,
        arch: Arch,
        direction: Direction,
        rows: &[f32],
        sums: &mut [f32],
    ) {
        arch.dispatch(AddProduct {
            panels: self,
            direction,
            rows,
            sums,
        });
    }
}

/// The order in which the panels are read.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Forward,
    Reverse,
}

impl Direction {
    /// Returns the direction for a time step; consecutive steps alternate.
    pub(super) fn of(time: usize) -> Self {
        if time.is_multiple_of(2) {
            Self::Forward
        } else {
            Self::Reverse
        }
    }
}

struct AddProduct<'a> {
    panels: &'a RecurrentPanels,
    direction: Direction,
    rows: &'a [f32],
    sums: &'a mut [f32],
}

/// Maximum number of columns of a panel: 4 registers of 16 values (AVX-512).
const MAX_WIDTH: usize = 4 * 16;

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let RecurrentPanels {
            inputs,
            outputs,
            width,
            ref values,
        } = *self.panels;
        let rows = self.rows.len() / inputs;
        let zeros = [0.0; MAX_WIDTH];
        let panels = outputs.div_ceil(width);
        for step in 0..panels {
            let panel = match self.direction {
                Direction::Forward => step,
                Direction::Reverse => panels - 1 - step,
            };
            let first = panel * width;
            let product = PanelProduct {
                weights: &values[panel * inputs * width..][..inputs * width],
                rows: self.rows,
                stride: inputs,
                inputs,
            };
            let mut add = AddToColumns {
                sums: &mut *self.sums,
                outputs,
                columns: first..outputs.min(first + width),
            };
            multiply_rows(simd, rows, &[product], |_| &zeros[..width], &mut add);
        }
    }
}

/// Adds the sums of a row in one panel to the columns of that panel.
struct AddToColumns<'a> {
    /// `[rows, outputs]`.
    sums: &'a mut [f32],
    outputs: usize,
    columns: std::ops::Range<usize>,
}

impl SumsConsumer for AddToColumns<'_> {
    #[inline(always)]
    fn consume<S: Simd>(&mut self, simd: S, row: usize, sums: SumsOfRow<S>) {
        let row = &mut self.sums[row * self.outputs..][self.columns.clone()];
        for (out, sum) in row.chunks_mut(S::F32_LANES).zip(sums) {
            if out.len() == S::F32_LANES {
                let (registers, _) = S::as_mut_simd_f32s(out);
                registers[0] = simd.add_f32s(registers[0], sum);
            } else {
                let old = simd.partial_load_f32s(out);
                simd.partial_store_f32s(out, simd.add_f32s(old, sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_that_of_the_matrix_at_any_size() {
        let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        for (rows, inputs, outputs) in [(1, 3, 5), (8, 16, 64), (7, 20, 130)] {
            let matrix: Vec<f32> = (0..inputs * outputs).map(value).collect();
            let transposed: Vec<f32> = (0..inputs * outputs)
                .map(|i| matrix[i % inputs * outputs + i / inputs])
                .collect();
            let a: Vec<f32> = (0..rows * inputs).map(|i| value(i + 5)).collect();
            let mut panels = RecurrentPanels::new(Arch::new(), inputs, outputs);
            for direction in [Direction::Forward, Direction::Reverse] {
                match direction {
                    Direction::Forward => panels.pack(&matrix),
                    Direction::Reverse => panels.pack_transposed(&transposed),
                }
                let mut sums: Vec<f32> = (0..rows * outputs).map(value).collect();
                panels.add_product(Arch::new(), direction, &a, &mut sums);
                for (index, sum) in sums.iter().enumerate() {
                    let (row, column) = (index / outputs, index % outputs);
                    let expected: f32 = (0..inputs)
                        .map(|k| a[row * inputs + k] * matrix[k * outputs + column])
                        .sum();
                    assert!((sum - expected - value(index)).abs() < 1e-4);
                }
            }
        }
    }
}
