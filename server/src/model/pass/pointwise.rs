//! The cells of a layer for all rows of one time step, forward and backward,
//! fused so that each number is read and written once.

use pulp::{Simd, WithSimd};

use crate::model::activation::{sigmoid, tanh};

/// Forward: sums of the gates to activated gates (in place), new c, new h.
pub(super) struct Forward<'a> {
    pub(super) hidden: usize,
    /// `[rows, 4 hidden]`, gates in the order input, forget, cell, output.
    pub(super) gates: &'a mut [f32],
    /// `[rows, hidden]`.
    pub(super) old_c: &'a [f32],
    /// `[rows, hidden]`.
    pub(super) c: &'a mut [f32],
    /// `[rows, hidden]`.
    pub(super) h: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let hidden = self.hidden;
        for (row, gates) in self.gates.chunks_exact_mut(4 * hidden).enumerate() {
            let states = row * hidden..(row + 1) * hidden;
            let old_c = &self.old_c[states.clone()];
            let (c, h) = (&mut self.c[states.clone()], &mut self.h[states]);
            for unit in (0..hidden).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(hidden - unit);
                let sum = |gate| get(simd, gates, gate * hidden + unit, count);
                let input = sigmoid(simd, sum(0));
                let forget = sigmoid(simd, sum(1));
                let candidate = tanh(simd, sum(2));
                let output = sigmoid(simd, sum(3));
                let kept = simd.mul_f32s(forget, get(simd, old_c, unit, count));
                let new_c = simd.mul_add_e_f32s(input, candidate, kept);
                let new_h = simd.mul_f32s(output, tanh(simd, new_c));
                for (gate, value) in [input, forget, candidate, output].into_iter().enumerate() {
                    put(simd, gates, gate * hidden + unit, count, value);
                }
                put(simd, c, unit, count, new_c);
                put(simd, h, unit, count, new_h);
            }
        }
    }
}

/// Backward: from the gradients of h and of the later c to those of the sums
/// of the gates (in place of the activated gates) and of the earlier c.
pub(super) struct Backward<'a> {
    pub(super) hidden: usize,
    /// `[rows, 4 hidden]`: activated gates in, gradients of their sums out.
    pub(super) gates: &'a mut [f32],
    /// `[rows, hidden]`, c before the step.
    pub(super) old_c: &'a [f32],
    /// `[rows, hidden]`, c after the step.
    pub(super) c: &'a [f32],
    /// `[rows, hidden]`, gradient of h after the step.
    pub(super) d_h: &'a [f32],
    /// `[rows, hidden]`: gradient of c after the step in, before it out.
    pub(super) d_c: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let hidden = self.hidden;
        let one = simd.splat_f32s(1.0);
        let mul = |a, b| simd.mul_f32s(a, b);
        // Derivatives of the functions, from their values.
        let d_sigmoid = |y| mul(y, simd.sub_f32s(one, y));
        let d_tanh = |y| simd.sub_f32s(one, mul(y, y));
        for (row, gates) in self.gates.chunks_exact_mut(4 * hidden).enumerate() {
            let states = row * hidden..(row + 1) * hidden;
            let (old_c, c) = (&self.old_c[states.clone()], &self.c[states.clone()]);
            let (d_h, d_c) = (&self.d_h[states.clone()], &mut self.d_c[states]);
            for unit in (0..hidden).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(hidden - unit);
                let gate = |gate| get(simd, gates, gate * hidden + unit, count);
                let (input, forget) = (gate(0), gate(1));
                let (candidate, output) = (gate(2), gate(3));
                let squashed = tanh(simd, get(simd, c, unit, count));
                let d_h = get(simd, d_h, unit, count);
                let through_h = mul(mul(d_h, output), d_tanh(squashed));
                let d_cell = simd.add_f32s(get(simd, d_c, unit, count), through_h);
                let old_c = get(simd, old_c, unit, count);
                let gradients = [
                    mul(mul(d_cell, candidate), d_sigmoid(input)),
                    mul(mul(d_cell, old_c), d_sigmoid(forget)),
                    mul(mul(d_cell, input), d_tanh(candidate)),
                    mul(mul(d_h, squashed), d_sigmoid(output)),
                ];
                for (gate, value) in gradients.into_iter().enumerate() {
                    put(simd, gates, gate * hidden + unit, count, value);
                }
                put(simd, d_c, unit, count, mul(d_cell, forget));
            }
        }
    }
}

/// `count` numbers from `at` on as a register; zeros fill it up.
#[inline(always)]
fn get<S: Simd>(simd: S, numbers: &[f32], at: usize, count: usize) -> S::f32s {
    let numbers = &numbers[at..at + count];
    if count == S::F32_LANES {
        S::as_simd_f32s(numbers).0[0]
    } else {
        simd.partial_load_f32s(numbers)
    }
}

/// The first `count` numbers of a register, to `at`.
#[inline(always)]
fn put<S: Simd>(simd: S, numbers: &mut [f32], at: usize, count: usize, value: S::f32s) {
    let numbers = &mut numbers[at..at + count];
    // Whole stores apart: on some processors a masked one takes many times
    // as long.
    if count == S::F32_LANES {
        S::as_mut_simd_f32s(numbers).0[0] = value;
    } else {
        simd.partial_store_f32s(numbers, value);
    }
}
