use pulp::Arch;

use super::amx::EmulatedTiles;
use super::*;
use crate::panels::{pack_columns, pack_rows, pack_weight_columns, transpose};

fn value(index: usize) -> f32 {
    ((index * 37 + 11) % 101) as f32 / 50.0 - 1.0
}

/// Packs a matrix in each way, multiplies it, and compares the outputs with sums
/// in double precision over the rounded values.
fn check<A: Arithmetic>(arithmetic: A) {
    for (rows, inputs, columns) in [
        (1, 3, 5),
        (2, 1, 1),
        (7, 20, 130),
        (16, 32, 64),
        (33, 70, 32),
        (130, 1100, 40),
    ] {
        let what = format!("{arithmetic:?} {rows} x {inputs} x {columns}");
        let padded = A::padded(inputs);
        let weights: Vec<f32> = (0..inputs * columns).map(value).collect();
        let mut transposed = vec![0.0; weights.len()];
        transpose(
            &weights,
            inputs,
            columns,
            0..columns,
            &mut transposed,
            inputs,
        );
        let mut narrowed = vec![A::Element::default(); weights.len()];
        arithmetic.narrow(&weights, &mut narrowed);

        let mut a = vec![A::Element::default(); rows * padded];
        for (row, a) in a.chunks_exact_mut(padded).enumerate() {
            let values: Vec<f32> = (0..inputs).map(|k| value(row * 3 + k * 7)).collect();
            arithmetic.narrow(&values, &mut a[..inputs]);
        }
        let width = arithmetic.width();
        let len = columns.next_multiple_of(width) * padded;
        let packed = [0, 1, 2].map(|way| {
            // Whatever was there before is overwritten.
            let mut out = vec![*narrowed.last().expect("a weight"); len];
            match way {
                0 => pack_rows(
                    arithmetic,
                    &transposed,
                    inputs,
                    0..columns,
                    &mut out,
                    &mut Vec::new(),
                ),
                1 => pack_columns(arithmetic, &narrowed, inputs, columns, 0..columns, &mut out),
                _ => {
                    pack_weight_columns(
                        arithmetic,
                        &weights,
                        inputs,
                        columns,
                        0..columns,
                        &mut out,
                    );
                }
            }
            out
        });
        assert_eq!(packed[0], packed[1], "{what}");
        assert_eq!(packed[0], packed[2], "{what}");

        // The last value of each row is not part of the output.
        let stride = columns + 1;
        let initial: Vec<f32> = (0..rows * stride).map(|i| value(i + 5)).collect();
        let mut out = initial.clone();
        // SAFETY: `out` has the rows, columns and stride.
        unsafe {
            arithmetic.add_product(Product {
                rows: &a,
                row_count: rows,
                stride: padded,
                inputs: padded,
                panels: &packed[0],
                columns,
                out: out.as_mut_ptr(),
                out_stride: stride,
            });
        }
        for row in 0..rows {
            for column in 0..columns {
                let sum: f64 = (0..inputs)
                    .map(|k| {
                        let a = f64::from(A::widen(a[row * padded + k]));
                        a * f64::from(A::widen(narrowed[k * columns + column]))
                    })
                    .sum();
                let expected = sum + f64::from(initial[row * stride + column]);
                let ours = f64::from(out[row * stride + column]);
                assert!(
                    (ours - expected).abs() < 1e-4,
                    "{what}: row {row}, column {column}: {ours} {expected}"
                );
            }
            let untouched = row * stride + columns;
            assert_eq!(out[untouched], initial[untouched], "{what}");
        }
    }
}

#[test]
fn products_of_all_instructions_are_those_of_the_matrix_at_any_size() {
    for arch in [Arch::Scalar, Arch::new()] {
        check(FloatProducts::<false>(arch));
        check(FloatProducts::<true>(arch));
    }
    check(Amx::on(EmulatedTiles::new));
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(arithmetic) = Avx512Bf16::detect() {
            check(arithmetic);
        }
        if let Some(arithmetic) = Amx::detect() {
            check(arithmetic);
        }
    }
}

#[test]
fn rounding_to_bfloat16_is_to_nearest_even_and_keeps_nan() {
    for (value, expected) in [
        (1.0, 1.0),
        (f32::from_bits(0x3F80_8000), 1.0),
        (f32::from_bits(0x3F80_8001), f32::from_bits(0x3F81_0000)),
        (f32::from_bits(0x3F81_8000), f32::from_bits(0x3F82_0000)),
        (-f32::from_bits(0x3F80_7FFF), -1.0),
        (f32::MAX, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        (-0.0, -0.0),
    ] {
        let rounded = from_bf16(to_bf16(value));
        assert_eq!(rounded.to_bits(), f32::to_bits(expected), "{value}");
    }
    for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001] {
        assert!(from_bf16(to_bf16(f32::from_bits(bits))).is_nan());
    }
}
