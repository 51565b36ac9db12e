//! The pointwise arithmetic of the LSTM cells of one layer, for all rows of one
//! time step, forward and backward, fused so that each value is read and
//! written once.

use pulp::{Simd, WithSimd};

use charlstm_model::activation::{sigmoid, tanh};

/// Computes activated gates (in place of their sums), the new c and the new h.
pub(super) struct ForwardCells<'a> {
    pub(super) hidden: usize,
    /// `[rows, 4 hidden]`, gates in the order input, forget, cell, output: sums
    /// in, activated gates out.
    pub(super) gates: &'a mut [f32],
    /// `[rows, hidden]`.
    pub(super) old_c: &'a [f32],
    /// `[rows, hidden]`.
    pub(super) c: &'a mut [f32],
    /// `[rows, hidden]`.
    pub(super) h: &'a mut [f32],
}

impl WithSimd for ForwardCells<'_> {
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
                let input = sigmoid(simd, load(simd, gates, unit, count));
                let forget = sigmoid(simd, load(simd, gates, hidden + unit, count));
                let candidate = tanh(simd, load(simd, gates, 2 * hidden + unit, count));
                let output = sigmoid(simd, load(simd, gates, 3 * hidden + unit, count));
                let kept = simd.mul_f32s(forget, load(simd, old_c, unit, count));
                let new_c = simd.mul_add_f32s(input, candidate, kept);
                let new_h = simd.mul_f32s(output, tanh(simd, new_c));
                store(simd, gates, unit, count, input);
                store(simd, gates, hidden + unit, count, forget);
                store(simd, gates, 2 * hidden + unit, count, candidate);
                store(simd, gates, 3 * hidden + unit, count, output);
                store(simd, c, unit, count, new_c);
                store(simd, h, unit, count, new_h);
            }
        }
    }
}

/// Computes the gradients of the sums of the gates (in place of the activated
/// gates) and of the old c, from the gradients of h and of the new c.
pub(super) struct BackwardCells<'a> {
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

impl WithSimd for BackwardCells<'_> {
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
                let input = load(simd, gates, unit, count);
                let forget = load(simd, gates, hidden + unit, count);
                let candidate = load(simd, gates, 2 * hidden + unit, count);
                let output = load(simd, gates, 3 * hidden + unit, count);
                let squashed = tanh(simd, load(simd, c, unit, count));
                let d_h = load(simd, d_h, unit, count);
                let d_squashed = simd.mul_f32s(simd.mul_f32s(d_h, output), d_tanh(simd, squashed));
                let d_cell = simd.add_f32s(load(simd, d_c, unit, count), d_squashed);
                let old_c = load(simd, old_c, unit, count);
                let d_input = simd.mul_f32s(d_cell, candidate);
                let d_forget = simd.mul_f32s(d_cell, old_c);
                let d_candidate = simd.mul_f32s(d_cell, input);
                let d_output = simd.mul_f32s(d_h, squashed);
                let d_input = simd.mul_f32s(d_input, d_sigmoid(simd, input));
                let d_forget = simd.mul_f32s(d_forget, d_sigmoid(simd, forget));
                let d_candidate = simd.mul_f32s(d_candidate, d_tanh(simd, candidate));
                let d_output = simd.mul_f32s(d_output, d_sigmoid(simd, output));
                store(simd, gates, unit, count, d_input);
                store(simd, gates, hidden + unit, count, d_forget);
                store(simd, gates, 2 * hidden + unit, count, d_candidate);
                store(simd, gates, 3 * hidden + unit, count, d_output);
                store(simd, d_c, unit, count, simd.mul_f32s(d_cell, forget));
            }
        }
    }
}

/// Returns the derivative of the sigmoid, given its value.
#[inline(always)]
fn d_sigmoid<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    simd.mul_f32s(value, simd.sub_f32s(simd.splat_f32s(1.0), value))
}

/// Returns the derivative of the hyperbolic tangent, given its value.
#[inline(always)]
fn d_tanh<S: Simd>(simd: S, value: S::f32s) -> S::f32s {
    simd.sub_f32s(simd.splat_f32s(1.0), simd.mul_f32s(value, value))
}

/// Loads `count` values from index `start` on into a register, padded with
/// zeros.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32], start: usize, count: usize) -> S::f32s {
    let values = &values[start..start + count];
    if count == S::F32_LANES {
        S::as_simd_f32s(values).0[0]
    } else {
        simd.partial_load_f32s(values)
    }
}

/// Stores the first `count` values of a register from index `start` on.
#[inline(always)]
fn store<S: Simd>(simd: S, values: &mut [f32], start: usize, count: usize, register: S::f32s) {
    let values = &mut values[start..start + count];
    // Full registers separately: a masked store takes many times as long on
    // some CPUs.
    if count == S::F32_LANES {
        S::as_mut_simd_f32s(values).0[0] = register;
    } else {
        simd.partial_store_f32s(values, register);
    }
}
