//! The arithmetic of a step on SIMD registers: sums over packed weights, and
//! the activation of the cells. What a row's numbers are depends on that row
//! alone: each is one chain of fused multiply-adds in the order of the
//! weights, however many rows are computed together.

use pulp::Simd;

use super::activation::{sigmoid, tanh};
use super::packed::GATES;

/// The sums of one row in one panel.
pub type Sums<S> = [<S as Simd>::f32s; GATES];

/// Rows whose sums fit the registers, leaving some for weights and inputs:
/// 6 x 4 of 32 where registers hold 16 numbers, 3 x 4 of 16 elsewhere.
fn rows_at_once<S: Simd>() -> usize {
    if S::F32_LANES >= 16 { 6 } else { 3 }
}

/// A panel of weights and the rows that it is applied to.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// `[inputs, 4, lanes]`.
    pub weights: &'a [f32],
    /// `[rows, stride]`, of which the first `inputs` of each row count.
    pub rows: &'a [f32],
    /// Distance between the starts of two rows, in values.
    pub stride: usize,
    /// Values of a row that count.
    pub inputs: usize,
}

/// What becomes of a row's sums. A trait, not a closure: its method is inlined
/// for sure, so that the sums stay in registers.
pub trait Finish {
    /// Takes the sums of a row.
    fn finish<S: Simd>(&mut self, simd: S, row: usize, sums: Sums<S>);
}

/// Computes what `begin(row)` gives, `[4, lanes]`, plus the products, for
/// every row in `0..rows`, and hands it to `finish`.
#[inline(always)]
pub fn for_rows<'a, S: Simd>(
    simd: S,
    rows: usize,
    products: &[Product<'_>],
    begin: impl Fn(usize) -> &'a [f32],
    finish: &mut impl Finish,
) {
    let at_once = rows_at_once::<S>();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        if at_once == 6 && left >= 6 {
            block::<S, 6>(simd, row, products, &begin, finish);
            row += 6;
        } else if left >= 3 {
            block::<S, 3>(simd, row, products, &begin, finish);
            row += 3;
        } else if left == 2 {
            block::<S, 2>(simd, row, products, &begin, finish);
            row += 2;
        } else {
            block::<S, 1>(simd, row, products, &begin, finish);
            row += 1;
        }
    }
}

#[inline(always)]
fn block<'a, S: Simd, const R: usize>(
    simd: S,
    first: usize,
    products: &[Product<'_>],
    begin: &impl Fn(usize) -> &'a [f32],
    finish: &mut impl Finish,
) {
    let mut sums = [[simd.splat_f32s(0.0); GATES]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        let (registers, _) = S::as_simd_f32s(begin(first + r));
        sums.copy_from_slice(&registers[..GATES]);
    }
    for product in products {
        let mut inputs: [&[f32]; R] = [&[]; R];
        for (r, input) in inputs.iter_mut().enumerate() {
            *input = &product.rows[(first + r) * product.stride..][..product.inputs];
        }
        let (weights, _) = S::as_simd_f32s(product.weights);
        let (weights, _) = weights.as_chunks::<GATES>();
        sums = accumulate(simd, sums, &weights[..product.inputs], inputs);
    }
    for (r, sums) in sums.into_iter().enumerate() {
        finish.finish(simd, first + r, sums);
    }
}

#[inline(always)]
fn accumulate<S: Simd, const R: usize>(
    simd: S,
    mut sums: [Sums<S>; R],
    weights: &[Sums<S>],
    inputs: [&[f32]; R],
) -> [Sums<S>; R] {
    for (k, weight) in weights.iter().enumerate() {
        let mut input = [simd.splat_f32s(0.0); R];
        for r in 0..R {
            // SAFETY: `inputs[r]` has as many numbers as `weights` has
            // entries; `block` cuts both to `product.inputs`.
            input[r] = simd.splat_f32s(unsafe { *inputs[r].get_unchecked(k) });
        }
        // One weight at a time: with all of a panel in registers there would
        // be too few.
        for gate in 0..GATES {
            for r in 0..R {
                sums[r][gate] = simd.mul_add_e_f32s(input[r], weight[gate], sums[r][gate]);
            }
        }
    }
    sums
}

/// Registers as numbers `[4, lanes]`.
#[inline(always)]
pub fn store<S: Simd>(numbers: &mut [f32], sums: Sums<S>) {
    let (registers, _) = S::as_mut_simd_f32s(numbers);
    registers[..GATES].copy_from_slice(&sums);
}

/// The cell of `lanes` units: from the sums of the gates and the old c (in
/// place, `[lanes]`) to the new c and h (`[lanes]`).
#[inline(always)]
pub fn cell<S: Simd>(simd: S, sums: Sums<S>, c: &mut [f32], h: &mut [f32]) {
    let (c, _) = S::as_mut_simd_f32s(c);
    let (h, _) = S::as_mut_simd_f32s(h);
    let input = sigmoid(simd, sums[0]);
    let forget = sigmoid(simd, sums[1]);
    let candidate = tanh(simd, sums[2]);
    let output = sigmoid(simd, sums[3]);
    let kept = simd.mul_f32s(forget, c[0]);
    c[0] = simd.mul_add_e_f32s(input, candidate, kept);
    h[0] = simd.mul_f32s(output, tanh(simd, c[0]));
}
