//! exp, ln and the log-sum-exp of logits, with the same bits on every machine.
//!
//! The functions of the system's mathematics library differ between systems,
//! versions and CPUs in the last bit. These use additions, multiplications and
//! divisions of float64 only, each rounded once, in a fixed order and without
//! fused multiply-adds, so that they are also fast where the compiler may not
//! assume FMA instructions, and can be computed on a GPU.

use std::f64::consts::SQRT_2;

/// Token ids whose terms are added up before the sums of blocks are added.
pub const BLOCK: usize = 64;

/// 1 / ln 2.
const LOG2_E: f64 = std::f64::consts::LOG2_E;

/// ln 2, its upper 33 bits: products with exponents of float64 are exact.
const LN_2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);

/// ln 2 - [`LN_2_HIGH`].
const LN_2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);

/// Arguments below have the result 0; e^x would be near the smallest normal
/// number.
const EXP_MIN: f64 = -708.0;

/// Arguments above have the result infinity; e^x is near the largest number.
const EXP_MAX: f64 = 709.0;

/// 1.5 x 2^52 + 1023. Adding it rounds to an integer, which the lowest bits
/// then hold with the bias of an exponent added.
const ROUND_TO_EXPONENT: f64 = 6_755_399_441_055_744.0 + 1023.0;

/// 1/13!, 1/12!, ..., 1/1!, 1/0!, each rounded to float64.
const EXP_TAYLOR: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    1.0 / 2.0,
    1.0,
    1.0,
];

/// 2/23, 2/21, ..., 2/3, each rounded to float64.
const LN_SERIES: [f64; 11] = [
    2.0 / 23.0,
    2.0 / 21.0,
    2.0 / 19.0,
    2.0 / 17.0,
    2.0 / 15.0,
    2.0 / 13.0,
    2.0 / 11.0,
    2.0 / 9.0,
    2.0 / 7.0,
    2.0 / 5.0,
    2.0 / 3.0,
];

/// Returns e^x with an error of less than 1.5 units in the last place; 0 for x
/// below -708, infinity for x above 709, NaN for NaN.
///
/// x is split into n ln 2 + r with an integer n and |r| <= ln(2) / 2; e^r is
/// the Taylor polynomial of degree 13 by Horner's method.
#[inline]
pub fn exp(x: f64) -> f64 {
    let biased = x * LOG2_E + ROUND_TO_EXPONENT;
    let n = biased - ROUND_TO_EXPONENT;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut value = EXP_TAYLOR[0];
    for coefficient in &EXP_TAYLOR[1..] {
        value = value * r + coefficient;
    }
    // 2^n: the biased exponent moves to where a float64 has it.
    let power = f64::from_bits(biased.to_bits() << 52);
    let value = value * power;
    if x < EXP_MIN {
        0.0
    } else if x > EXP_MAX {
        f64::INFINITY
    } else {
        value
    }
}

/// Returns the natural logarithm of x with an error of less than one unit in
/// the last place; minus infinity for 0, NaN for negative x and NaN.
///
/// x is split into 2^k m with m from 1/sqrt(2) to sqrt(2), and ln m is the
/// series of 2 artanh(s), s = (m - 1) / (m + 1), up to s^23.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    // Subnormal numbers have no exponent of their own.
    let (x, shift) = if x < f64::MIN_POSITIVE {
        (x * (1u64 << 54) as f64, 54)
    } else {
        (x, 0)
    };
    let bits = x.to_bits();
    let mut k = (bits >> 52) as i64 - 1023 - shift;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > SQRT_2 {
        m *= 0.5;
        k += 1;
    }
    let k = k as f64;
    let f = m - 1.0;
    let s = f / (m + 1.0);
    let z = s * s;
    let mut series = LN_SERIES[0];
    for coefficient in &LN_SERIES[1..] {
        series = series * z + coefficient;
    }
    // 2 s is f - s f, and f is exact: the error of the division counts little.
    k * LN_2_HIGH - ((s * (f - z * series) - k * LN_2_LOW) - f)
}

/// Returns the logarithm of the sum of e^logit, in float64. The logarithm of a
/// character's probability is its logit minus this.
///
/// The largest logit is subtracted before [`exp`] and added after [`ln`]. The
/// terms are added in the order of the ids within blocks of [`BLOCK`] ids, and
/// the sums of the blocks in their order.
///
/// The result is NaN if a logit is NaN, and minus infinity if there is none or
/// all are minus infinity.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let highest = f64::from(highest);
    if highest.is_infinite() {
        // Differences of infinities would be NaN.
        let nan = logits.iter().any(|logit| logit.is_nan());
        return if nan { f64::NAN } else { highest };
    }
    let mut total = 0.0;
    for block in logits.chunks(BLOCK) {
        // First all terms, then their sum: the terms do not depend on each
        // other, so that the compiler can compute several at once.
        let mut terms = [0.0; BLOCK];
        for (term, &logit) in terms.iter_mut().zip(block) {
            *term = exp(f64::from(logit) - highest);
        }
        let sum = terms[..block.len()]
            .iter()
            .fold(0.0, |sum, term| sum + term);
        total += sum;
    }
    highest + ln(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of `b`.
    fn units(a: f64, b: f64) -> f64 {
        let unit = f64::from_bits(b.abs().to_bits() + 1) - b.abs();
        (a - b).abs() / unit
    }

    #[test]
    fn exp_agrees_with_the_exact_function() {
        for i in -70_800..=70_900 {
            let x = f64::from(i) * 0.01 + 1e-9;
            let x = x.clamp(-708.0, 709.0);
            // The system's function is itself only right to half a unit.
            assert!(units(exp(x), x.exp()) < 2.0, "exp({x})");
        }
        for i in 0..100_000 {
            let x = -f64::from(i) * 1.234_567e-4;
            assert!(units(exp(x), x.exp()) < 2.0, "exp({x})");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-708.1), 0.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e300), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp(1e300), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn ln_agrees_with_the_exact_function() {
        for i in 1..100_000 {
            for x in [
                f64::from(i) * 0.01,
                f64::from(i) * 1e-5,
                1.0 + f64::from(i) * 1e-9,
            ] {
                assert!(units(ln(x), x.ln()) < 1.5, "ln({x})");
            }
        }
        for exponent in 0..2046u64 {
            let x = f64::from_bits(exponent << 52 | 0x9_1234_5678_9ABC);
            assert!(units(ln(x), x.ln()) < 1.5, "ln({x})");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
    }

    fn logits(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 0.03125)
            .collect()
    }

    #[test]
    fn log_sum_exp_adds_blocks_of_64_ids_in_order() {
        for count in [1, 2, 63, 64, 65, 78, 128, 129, 5000] {
            let logits = logits(count);
            let highest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let mut total = 0.0;
            let mut sum = 0.0;
            for (id, &logit) in logits.iter().enumerate() {
                if id > 0 && id % 64 == 0 {
                    total += sum;
                    sum = 0.0;
                }
                sum += exp(f64::from(logit) - highest);
            }
            total += sum;
            assert_eq!(log_sum_exp(&logits), highest + ln(total), "{count} ids");
        }
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for count in [1, 78, 5000] {
            let logits = logits(count);
            let log_sum = log_sum_exp(&logits);
            let total: f64 = logits
                .iter()
                .map(|&logit| exp(f64::from(logit) - log_sum))
                .sum();
            assert!((total - 1.0).abs() < 1e-12, "{count} ids: {total}");
        }
    }

    #[test]
    fn impossible_characters_and_bad_numbers_have_defined_results() {
        let infinity = f32::INFINITY;
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[-infinity; 3]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[-infinity, 2.5]), 2.5);
        assert_eq!(log_sum_exp(&[0.0, infinity]), f64::INFINITY);
        assert!(log_sum_exp(&[0.0, f32::NAN]).is_nan());
        assert!(log_sum_exp(&[f32::NAN, infinity]).is_nan());
    }

    #[test]
    fn the_bits_are_those_of_every_other_machine() {
        let bits = [
            exp(-0.1).to_bits(),
            exp(-12.75).to_bits(),
            exp(100.25).to_bits(),
            ln(78.0).to_bits(),
            ln(1.000_001).to_bits(),
            log_sum_exp(&logits(78)).to_bits(),
            log_sum_exp(&logits(5000)).to_bits(),
        ];
        let expected = [
            0x3fec_f46d_99d5_2b3a,
            0x3ec8_58af_84b7_4310,
            0x48f8_c39b_9134_bac4,
            0x4011_6d45_1423_4e29,
            0x3eb0_c6f7_13f3_3a1d,
            0x4030_d72c_3357_8238,
            0x4034_d609_9f9c_08d3,
        ];
        assert_eq!(bits, expected, "{bits:x?}");
    }
}
