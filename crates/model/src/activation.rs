//! The pointwise functions of an LSTM on SIMD registers, shared by the decode
//! step and by training.

use pulp::Simd;

/// Above this argument, tanh is 1 in single precision.
const TANH_LIMIT: f32 = 7.905_311;

/// Coefficients of the numerator, for the odd powers from 13 down to 1.
/// Source: the rational approximation of degree 13 over 6 in the Eigen library
/// (`ptanh_float`). Its error is a few units in the last place.
const NUMERATOR: [f32; 7] = [
    -2.760_768_5e-16,
    2.000_188e-13,
    -8.604_672e-11,
    5.122_297e-8,
    1.485_722_4e-5,
    6.372_619_3e-4,
    4.893_524_6e-3,
];

/// Coefficients of the denominator, for the even powers from 6 down to 0.
const DENOMINATOR: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];

/// Returns tanh of each lane.
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let limit = simd.splat_f32s(TANH_LIMIT);
    let x = simd.max_f32s(simd.min_f32s(x, limit), simd.neg_f32s(limit));
    let square = simd.mul_f32s(x, x);
    let numerator = simd.mul_f32s(x, polynomial(simd, square, &NUMERATOR));
    simd.div_f32s(numerator, polynomial(simd, square, &DENOMINATOR))
}

/// Evaluates a polynomial by Horner's rule, highest coefficient first. This is
/// not a closure because closures are not always inlined, and registers would
/// be spilled.
#[inline(always)]
fn polynomial<S: Simd>(simd: S, x: S::f32s, coefficients: &[f32]) -> S::f32s {
    let mut value = simd.splat_f32s(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        value = simd.mul_add_f32s(value, x, simd.splat_f32s(coefficient));
    }
    value
}

/// Returns 1 / (1 + exp(-x)) of each lane.
#[inline(always)]
pub fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.splat_f32s(0.5);
    let t = tanh(simd, simd.mul_f32s(x, half));
    simd.mul_add_f32s(t, half, half)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Both<'a> {
        x: &'a [f32],
        tanh: &'a mut [f32],
        sigmoid: &'a mut [f32],
    }

    impl pulp::WithSimd for Both<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (x, _) = S::as_simd_f32s(self.x);
            let (tanh_out, _) = S::as_mut_simd_f32s(self.tanh);
            let (sigmoid_out, _) = S::as_mut_simd_f32s(self.sigmoid);
            for ((x, t), s) in x.iter().zip(tanh_out).zip(sigmoid_out) {
                *t = tanh(simd, *x);
                *s = sigmoid(simd, *x);
            }
        }
    }

    #[test]
    fn tanh_and_sigmoid_agree_with_the_exact_functions() {
        let x: Vec<f32> = (-4096..4096).map(|i| i as f32 * 0.005).collect();
        let (mut t, mut s) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        pulp::Arch::new().dispatch(Both {
            x: &x,
            tanh: &mut t,
            sigmoid: &mut s,
        });
        for i in 0..x.len() {
            let exact = f64::from(x[i]).tanh();
            assert!((f64::from(t[i]) - exact).abs() < 3e-7, "tanh({})", x[i]);
            let exact = 1.0 / (1.0 + (-f64::from(x[i])).exp());
            assert!((f64::from(s[i]) - exact).abs() < 2e-7, "sigmoid({})", x[i]);
        }
    }
}
