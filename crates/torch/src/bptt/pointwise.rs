//! The cells of a layer for all rows of one time step, forward and backward,
//! fused so that each number is read and written once.

use pulp::{Simd, WithSimd};

use charlstm_model::activation::{sigmoid, tanh};

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
                let input = sigmoid(simd, get(simd, gates, unit, count));
                let forget = sigmoid(simd, get(simd, gates, hidden + unit, count));
                let candidate = tanh(simd, get(simd, gates, 2 * hidden + unit, count));
                let output = sigmoid(simd, get(simd, gates, 3 * hidden + unit, count));
                let kept = simd.mul_f32s(forget, get(simd, old_c, unit, count));
                let new_c = simd.mul_add_e_f32s(input, candidate, kept);
                let new_h = simd.mul_f32s(output, tanh(simd, new_c));
                put(simd, gates, unit, count, input);
                put(simd, gates, hidden + unit, count, forget);
                put(simd, gates, 2 * hidden + unit, count, candidate);
                put(simd, gates, 3 * hidden + unit, count, output);
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
        for (row, gates) in self.gates.chunks_exact_mut(4 * hidden).enumerate() {
            let states = row * hidden..(row + 1) * hidden;
            let (old_c, c) = (&self.old_c[states.clone()], &self.c[states.clone()]);
            let (d_h, d_c) = (&self.d_h[states.clone()], &mut self.d_c[states]);
            for unit in (0..hidden).step_by(S::F32_LANES) {
                let count = S::F32_LANES.min(hidden - unit);
                let input = get(simd, gates, unit, count);
                let forget = get(simd, gates, hidden + unit, count);
                let candidate = get(simd, gates, 2 * hidden + unit, count);
                let output = get(simd, gates, 3 * hidden + unit, count);
                let squashed = tanh(simd, get(simd, c, unit, count));
                let d_h = get(simd, d_h, unit, count);
                let d_squashed = simd.mul_f32s(simd.mul_f32s(d_h, output), d_tanh(simd, squashed));
                let d_cell = simd.add_f32s(get(simd, d_c, unit, count), d_squashed);
                let old_c = get(simd, old_c, unit, count);
                let d_input = simd.mul_f32s(d_cell, candidate);
                let d_forget = simd.mul_f32s(d_cell, old_c);
                let d_candidate = simd.mul_f32s(d_cell, input);
                let d_output = simd.mul_f32s(d_h, squashed);
                let d_input = simd.mul_f32s(d_input, d_sigmoid(simd, input));
                let d_forget = simd.mul_f32s(d_forget, d_sigmoid(simd, forget));
                let d_candidate = simd.mul_f32s(d_candidate, d_tanh(simd, candidate));
                let d_output = simd.mul_f32s(d_output, d_sigmoid(simd, output));
                put(simd, gates, unit, count, d_input);
                put(simd, gates, hidden + unit, count, d_forget);
                put(simd, gates, 2 * hidden + unit, count, d_candidate);
                put(simd, gates, 3 * hidden + unit, count, d_output);
                put(simd, d_c, unit, count, simd.mul_f32s(d_cell, forget));
            }
        }
    }
}

/// Derivative of the sigmoid, from its value.
#[inline(always)]
fn d_sigmoid<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    simd.mul_f32s(value, simd.sub_f32s(simd.splat_f32s(1.0), value))
}

/// Derivative of the hyperbolic tangent, from its value.
#[inline(always)]
fn d_tanh<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    simd.sub_f32s(simd.splat_f32s(1.0), simd.mul_f32s(value, value))
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
