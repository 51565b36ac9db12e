//! The activation functions of the cell, in plain float32.
//!
//! tanh is a rational approximation, the one of the Eigen library
//! (`ptanh_float`): an odd numerator of degree 13 over an even denominator of
//! degree 6, accurate to a few units in the last place. It consists of
//! correctly rounded IEEE 754 operations only, so it gives the same bits on
//! every machine.

/// Beyond this magnitude the argument of tanh is clamped.
pub const TANH_LIMIT: f32 = 7.905_311;

/// Coefficients of the numerator divided by x: even powers from x^12 down to
/// x^0.
pub const TANH_NUMERATOR: [f32; 7] = [
    -2.760_768_5e-16,
    2.000_188e-13,
    -8.604_672e-11,
    5.122_297e-8,
    1.485_722_4e-5,
    6.372_619_3e-4,
    4.893_524_6e-3,
];

/// Coefficients of the denominator: even powers from x^6 down to x^0.
pub const TANH_DENOMINATOR: [f32; 4] =
    [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];

/// Returns tanh(x). The magnitude of the result is below 1, and the result is
/// odd in x bit for bit.
pub fn tanh(x: f32) -> f32 {
    let x = x.clamp(-TANH_LIMIT, TANH_LIMIT);
    let square = x * x;
    let numerator = x * polynomial(square, &TANH_NUMERATOR);
    numerator / polynomial(square, &TANH_DENOMINATOR)
}

/// Returns 1 / (1 + exp(-x)), computed as tanh(x / 2) / 2 + 1/2. The result is
/// greater than 0 and at most 1.
pub fn sigmoid(x: f32) -> f32 {
    tanh(x * 0.5).mul_add(0.5, 0.5)
}

/// Evaluates a polynomial by Horner's method with one fused multiply-add per
/// coefficient; the first coefficient belongs to the highest power.
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    let (first, rest) = coefficients
        .split_first()
        .expect("a polynomial has at least one coefficient");
    rest.iter()
        .fold(*first, |sum, coefficient| sum.mul_add(x, *coefficient))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_and_sigmoid_agree_with_the_exact_functions() {
        for i in -4096..=4096 {
            let x = i as f32 * 0.005;
            let exact = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - exact).abs() < 3e-7, "tanh({x})");
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() < 2e-7, "sigmoid({x})");
        }
    }

    // Every float was checked once when this was written; the stride here
    // keeps the test short. The bounds on h and c depend on it.
    #[test]
    fn tanh_is_odd_and_below_one_and_sigmoid_is_over_zero_and_at_most_one() {
        let limit = TANH_LIMIT.to_bits();
        for bits in (0..=limit).step_by(10_007).chain(limit - 20_000..=limit) {
            let x = f32::from_bits(bits);
            assert!(tanh(x) < 1.0, "tanh({x})");
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits(), "tanh({x})");
            assert!(sigmoid(x) <= 1.0 && sigmoid(-x) > 0.0, "sigmoid({x})");
        }
        assert_eq!(tanh(f32::MAX), tanh(TANH_LIMIT));
    }
}
