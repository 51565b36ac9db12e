//! The product of a few rows with a square block of weights, once per
//! character: the weights are laid out in panels once per optimizer step, where
//! a matrix library lays them out again for every product.

use pulp::{Arch, Simd, WithSimd};

use charlstm_model::kernel::{Finish, Product, Sums, for_rows};
use charlstm_model::packed::GATES;

/// A matrix `[inputs, outputs]` in panels of 4 registers of columns,
/// `[panels, inputs, 4, lanes]`; the last panel is filled up with zeros.
pub(super) struct Panels {
    inputs: usize,
    outputs: usize,
    width: usize,
    numbers: Vec<f32>,
}

impl Panels {
    /// Takes the memory.
    pub(super) fn new(arch: Arch, inputs: usize, outputs: usize) -> Self {
        let width = GATES * arch.dispatch(Lanes);
        Self {
            inputs,
            outputs,
            width,
            numbers: vec![0.0; outputs.div_ceil(width) * width * inputs],
        }
    }

    /// Lays out `matrix`, `[inputs, outputs]`.
    pub(super) fn lay_out(&mut self, matrix: &[f32]) {
        for (number, panel) in self
            .numbers
            .chunks_mut(self.inputs * self.width)
            .enumerate()
        {
            let first = number * self.width;
            let count = self.width.min(self.outputs - first);
            for (row, out) in matrix
                .chunks_exact(self.outputs)
                .zip(panel.chunks_mut(self.width))
            {
                out[..count].copy_from_slice(&row[first..first + count]);
            }
        }
    }

    /// Lays out the transpose of `matrix`, `[outputs, inputs]`.
    pub(super) fn lay_out_transposed(&mut self, matrix: &[f32]) {
        let (inputs, width) = (self.inputs, self.width);
        for (panel, rows) in self
            .numbers
            .chunks_mut(inputs * width)
            .zip(matrix.chunks(width * inputs))
        {
            for (place, row) in rows.chunks_exact(inputs).enumerate() {
                for (&value, out) in row.iter().zip(panel.chunks_exact_mut(width)) {
                    out[place] = value;
                }
            }
        }
    }

    /// `sums += rows * matrix`, for `rows` `[rows, inputs]` and `sums`
    /// `[rows, outputs]`. Called again and again, it should go `way` and back:
    /// what the cache still holds of the panels is what was read last.
    pub(super) fn add_product(&self, arch: Arch, way: Direction, rows: &[f32], sums: &mut [f32]) {
        arch.dispatch(AddProduct {
            panels: self,
            way,
            rows,
            sums,
        });
    }
}

/// In which order the panels are read. The sums are the same.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Forward,
    Reverse,
}

impl Direction {
    /// The way of a time step.
    pub(super) fn of(time: usize) -> Self {
        if time.is_multiple_of(2) {
            Self::Forward
        } else {
            Self::Reverse
        }
    }
}

struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

struct AddProduct<'a> {
    panels: &'a Panels,
    way: Direction,
    rows: &'a [f32],
    sums: &'a mut [f32],
}

/// Registers that a panel is wide at most, in numbers.
const MOST_WIDTH: usize = 4 * 16;

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Panels {
            inputs,
            outputs,
            width,
            ref numbers,
        } = *self.panels;
        let rows = self.rows.len() / inputs;
        let nothing = [0.0; MOST_WIDTH];
        let panels = outputs.div_ceil(width);
        for place in 0..panels {
            let number = match self.way {
                Direction::Forward => place,
                Direction::Reverse => panels - 1 - place,
            };
            let weights = &numbers[number * inputs * width..][..inputs * width];
            let first = number * width;
            let product = Product {
                weights,
                rows: self.rows,
                stride: inputs,
                inputs,
            };
            let mut add = Add {
                sums: &mut *self.sums,
                outputs,
                columns: first..outputs.min(first + width),
            };
            for_rows(simd, rows, &[product], |_| &nothing[..width], &mut add);
        }
    }
}

/// Adds the sums of a row in one panel to its place.
struct Add<'a> {
    sums: &'a mut [f32],
    outputs: usize,
    columns: std::ops::Range<usize>,
}

impl Finish for Add<'_> {
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, row: usize, sums: Sums<S>) {
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
        let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
        for (rows, inputs, outputs) in [(1, 3, 5), (8, 16, 64), (7, 20, 130)] {
            let matrix: Vec<f32> = (0..inputs * outputs).map(number).collect();
            let transposed: Vec<f32> = (0..inputs * outputs)
                .map(|i| matrix[i % inputs * outputs + i / inputs])
                .collect();
            let a: Vec<f32> = (0..rows * inputs).map(|i| number(i + 5)).collect();
            let mut panels = Panels::new(Arch::new(), inputs, outputs);
            for way in [Direction::Forward, Direction::Reverse] {
                match way {
                    Direction::Forward => panels.lay_out(&matrix),
                    Direction::Reverse => panels.lay_out_transposed(&transposed),
                }
                let mut sums: Vec<f32> = (0..rows * outputs).map(number).collect();
                panels.add_product(Arch::new(), way, &a, &mut sums);
                for (place, sum) in sums.iter().enumerate() {
                    let (row, column) = (place / outputs, place % outputs);
                    let expected: f32 = (0..inputs)
                        .map(|k| a[row * inputs + k] * matrix[k * outputs + column])
                        .sum();
                    assert!((sum - expected - number(place)).abs() < 1e-4);
                }
            }
        }
    }
}
