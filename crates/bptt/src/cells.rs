//! The pointwise arithmetic of the LSTM cells of one row, forward and backward,
//! fused so that each value is read and written once (Hochreiter and
//! Schmidhuber, 1997; Gers et al., 2000).

use pulp::{Simd, WithSimd};

use charlstm_model::activation::{sigmoid, tanh};

/// Computes activated gates (in place of their sums), the new c and the new h
/// of some units. All slices have one value for each unit.
pub(crate) struct ForwardCells<'a> {
    /// Gates in the order input, forget, cell, output: sums in, activated gates
    /// out.
    pub(crate) gates: [&'a mut [f32]; 4],
    pub(crate) old_c: &'a [f32],
    pub(crate) c: &'a mut [f32],
    pub(crate) h: &'a mut [f32],
}

impl WithSimd for ForwardCells<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            gates: [inputs, forgets, candidates, outputs],
            old_c,
            c,
            h,
        } = self;
        let units = c.len();
        for unit in (0..units).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(units - unit);
            let input = sigmoid(simd, load(simd, inputs, unit, count));
            let forget = sigmoid(simd, load(simd, forgets, unit, count));
            let candidate = tanh(simd, load(simd, candidates, unit, count));
            let output = sigmoid(simd, load(simd, outputs, unit, count));
            let kept = simd.mul_f32s(forget, load(simd, old_c, unit, count));
            let new_c = simd.mul_add_f32s(input, candidate, kept);
            let new_h = simd.mul_f32s(output, tanh(simd, new_c));
            store(simd, inputs, unit, count, input);
            store(simd, forgets, unit, count, forget);
            store(simd, candidates, unit, count, candidate);
            store(simd, outputs, unit, count, output);
            store(simd, c, unit, count, new_c);
            store(simd, h, unit, count, new_h);
        }
    }
}

/// Computes the gradients of the sums of the gates (in place of the activated
/// gates) and of the old c, from the gradients of h and of the new c.
pub(crate) struct BackwardCells<'a> {
    /// Activated gates in, gradients of their sums out.
    pub(crate) gates: [&'a mut [f32]; 4],
    /// c before the step.
    pub(crate) old_c: &'a [f32],
    /// c after the step.
    pub(crate) c: &'a [f32],
    /// Gradient of h after the step.
    pub(crate) d_h: &'a [f32],
    /// Gradient of c after the step in, before it out.
    pub(crate) d_c: &'a mut [f32],
}

impl WithSimd for BackwardCells<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            gates: [inputs, forgets, candidates, outputs],
            old_c,
            c,
            d_h,
            d_c,
        } = self;
        let units = c.len();
        for unit in (0..units).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(units - unit);
            let input = load(simd, inputs, unit, count);
            let forget = load(simd, forgets, unit, count);
            let candidate = load(simd, candidates, unit, count);
            let output = load(simd, outputs, unit, count);
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
            store(simd, inputs, unit, count, d_input);
            store(simd, forgets, unit, count, d_forget);
            store(simd, candidates, unit, count, d_candidate);
            store(simd, outputs, unit, count, d_output);
            store(simd, d_c, unit, count, simd.mul_f32s(d_cell, forget));
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
