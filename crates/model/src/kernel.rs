//! The matrix kernel on SIMD registers: sums over packed weights, and the
//! activation of the LSTM cells.
//!
//! The values of a row depend only on that row: each sum is one chain of fused
//! multiply-adds in the order of the weights, however many rows are computed
//! together. `mul_add_f32s` is fused on every CPU, unlike pulp's
//! `mul_add_e_f32s`, so the bits do not depend on the registers either.

use pulp::{Arch, Simd, WithSimd};

use super::activation::{sigmoid, tanh};
use super::packed::GATES;

/// The sums of one row over one panel: one register for each gate.
pub type SumsOfRow<S> = [<S as Simd>::f32s; GATES];

/// Returns the number of float32 values in a register of this CPU.
pub fn register_lanes(arch: Arch) -> usize {
    struct Lanes;

    impl WithSimd for Lanes {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }

    arch.dispatch(Lanes)
}

/// Returns the number of rows whose sums fit the registers, with some left for
/// weights and inputs: 6 x 4 of 32 registers with AVX-512, 3 x 4 of 16 without.
fn rows_at_once<S: Simd>() -> usize {
    if S::F32_LANES >= 16 { 6 } else { 3 }
}

/// A panel of weights and the rows that are multiplied by it.
#[derive(Clone, Copy)]
pub struct PanelProduct<'a> {
    /// `[inputs, 4, lanes]`.
    pub weights: &'a [f32],
    /// `[rows, stride]`, of which the first `inputs` of each row are used.
    pub rows: &'a [f32],
    /// Distance between the starts of two rows, in values.
    pub stride: usize,
    /// Values of a row that are used.
    pub inputs: usize,
}

/// Receives the sums of each row. This is a trait and not a closure because
/// its method is always inlined, which keeps the sums in registers.
pub trait SumsConsumer {
    /// Receives the sums of the row with this index.
    fn consume<S: Simd>(&mut self, simd: S, row: usize, sums: SumsOfRow<S>);
}

/// Computes `initial(row)`, which is `[4, lanes]`, plus all products, for each
/// row in `0..rows`, and passes the sums to `consumer`.
///
/// # Panics
/// If a slice is shorter than `rows`, `inputs` and `stride` require.
#[inline(always)]
pub fn multiply_rows<'a, S: Simd>(
    simd: S,
    rows: usize,
    products: &[PanelProduct<'_>],
    initial: impl Fn(usize) -> &'a [f32],
    consumer: &mut impl SumsConsumer,
) {
    let at_once = rows_at_once::<S>();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        if at_once == 6 && left >= 6 {
            multiply_block::<S, 6>(simd, row, products, &initial, consumer);
            row += 6;
        } else if left >= 3 {
            multiply_block::<S, 3>(simd, row, products, &initial, consumer);
            row += 3;
        } else if left == 2 {
            multiply_block::<S, 2>(simd, row, products, &initial, consumer);
            row += 2;
        } else {
            multiply_block::<S, 1>(simd, row, products, &initial, consumer);
            row += 1;
        }
    }
}

/// Computes the `R` rows from `first` on.
#[inline(always)]
fn multiply_block<'a, S: Simd, const R: usize>(
    simd: S,
    first: usize,
    products: &[PanelProduct<'_>],
    initial: &impl Fn(usize) -> &'a [f32],
    consumer: &mut impl SumsConsumer,
) {
    let mut sums = [[simd.splat_f32s(0.0); GATES]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        let (registers, _) = S::as_simd_f32s(initial(first + r));
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
        consumer.consume(simd, first + r, sums);
    }
}

/// Adds `inputs[r] * weights` to the sums of each row `r`.
///
/// # Panics
/// If a row has another length than `weights`.
#[inline(always)]
fn accumulate<S: Simd, const R: usize>(
    simd: S,
    mut sums: [SumsOfRow<S>; R],
    weights: &[SumsOfRow<S>],
    inputs: [&[f32]; R],
) -> [SumsOfRow<S>; R] {
    for input in inputs {
        assert_eq!(input.len(), weights.len(), "inputs of a row");
    }
    for (k, weight) in weights.iter().enumerate() {
        let mut input = [simd.splat_f32s(0.0); R];
        for r in 0..R {
            // SAFETY: `inputs[r]` is as long as `weights`, asserted above.
            input[r] = simd.splat_f32s(unsafe { *inputs[r].get_unchecked(k) });
        }
        // One register of weights at a time: a whole panel of them would not
        // fit next to the sums.
        for gate in 0..GATES {
            for r in 0..R {
                sums[r][gate] = simd.mul_add_f32s(input[r], weight[gate], sums[r][gate]);
            }
        }
    }
    sums
}

/// Writes sums to memory as `[4, lanes]`.
///
/// # Panics
/// If `values` is shorter.
#[inline(always)]
pub fn store<S: Simd>(values: &mut [f32], sums: SumsOfRow<S>) {
    let (registers, _) = S::as_mut_simd_f32s(values);
    registers[..GATES].copy_from_slice(&sums);
}

/// Activates the LSTM cells of `lanes` units: from the sums of the gates and
/// the old c to the new c (in place) and the new h, both `[lanes]`.
///
/// # Panics
/// If a slice is shorter.
#[inline(always)]
pub fn activate_cells<S: Simd>(simd: S, sums: SumsOfRow<S>, c: &mut [f32], h: &mut [f32]) {
    let (c, _) = S::as_mut_simd_f32s(c);
    let (h, _) = S::as_mut_simd_f32s(h);
    let input = sigmoid(simd, sums[0]);
    let forget = sigmoid(simd, sums[1]);
    let candidate = tanh(simd, sums[2]);
    let output = sigmoid(simd, sums[3]);
    let kept = simd.mul_f32s(forget, c[0]);
    c[0] = simd.mul_add_f32s(input, candidate, kept);
    h[0] = simd.mul_f32s(output, tanh(simd, c[0]));
}
