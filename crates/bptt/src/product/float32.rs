//! Products of float32 values on the registers of any CPU, and of values that
//! are rounded to bfloat16 but stored as float32: slow, and the definition of
//! what the bfloat16 instructions compute, up to the order of summation.

use pulp::{Arch, Simd, WithSimd};

use super::{Arithmetic, MAX_WIDTH, Product, Tile, from_bf16, to_bf16};
use charlstm_model::kernel::register_lanes;

/// Registers of columns in a panel.
const REGISTERS: usize = 2;

/// Products on float32 registers, of values that are rounded to bfloat16 if
/// `TO_BF16`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloatProducts<const TO_BF16: bool>(pub(crate) Arch);

impl<const TO_BF16: bool> Arithmetic for FloatProducts<TO_BF16> {
    type Element = f32;
    const GROUP: usize = 1;
    const INPUT_ALIGNMENT: usize = 1;

    fn width(self) -> usize {
        REGISTERS * register_lanes(self.0)
    }

    fn arch(self) -> Arch {
        self.0
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        if TO_BF16 {
            from_bf16(to_bf16(value))
        } else {
            value
        }
    }

    fn widen(element: f32) -> f32 {
        element
    }

    unsafe fn add_product(self, product: Product<'_, f32>) {
        self.0.dispatch(AddProduct(product));
    }
}

/// Created only with an output that its creator vouches for.
struct AddProduct<'a>(Product<'a, f32>);

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Sums of 14 x 2 of 32 registers, or 6 x 2 of 16.
        let rows_at_once = if S::REGISTER_COUNT >= 32 { 14 } else { 6 };
        self.0.for_each_tile(
            REGISTERS * S::F32_LANES,
            rows_at_once,
            #[inline(always)]
            |tile| match tile.row_count {
                1 => compute::<S, 1>(simd, &tile),
                2 => compute::<S, 2>(simd, &tile),
                3 => compute::<S, 3>(simd, &tile),
                4 => compute::<S, 4>(simd, &tile),
                5 => compute::<S, 5>(simd, &tile),
                6 => compute::<S, 6>(simd, &tile),
                7 => compute::<S, 7>(simd, &tile),
                8 => compute::<S, 8>(simd, &tile),
                9 => compute::<S, 9>(simd, &tile),
                10 => compute::<S, 10>(simd, &tile),
                11 => compute::<S, 11>(simd, &tile),
                12 => compute::<S, 12>(simd, &tile),
                13 => compute::<S, 13>(simd, &tile),
                _ => compute::<S, 14>(simd, &tile),
            },
        );
    }
}

#[inline(always)]
fn compute<S: Simd, const ROWS: usize>(simd: S, tile: &Tile<'_, f32>) {
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    let (weights, _) = S::as_simd_f32s(tile.panel);
    let (weights, _) = weights.as_chunks::<REGISTERS>();
    let inputs = tile.inputs;
    assert_eq!(weights.len(), inputs, "inputs of a panel");
    assert!(tile.rows.len() >= (ROWS - 1) * tile.stride + inputs, "rows");
    let rows = tile.rows.as_ptr();
    for (k, weights) in weights.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `rows` has the rows and inputs, asserted above.
            let input = simd.splat_f32s(unsafe { *rows.add(row * tile.stride + k) });
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = simd.mul_add_f32s(input, *weight, *sum);
            }
        }
    }
    if tile.columns == REGISTERS * S::F32_LANES {
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: a full row of the tile is inside the output.
            let out = unsafe {
                let start = tile.out.add(row * tile.out_stride);
                std::slice::from_raw_parts_mut(start, REGISTERS * S::F32_LANES)
            };
            let (out, _) = S::as_mut_simd_f32s(out);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = simd.add_f32s(*out, *sum);
            }
        }
    } else {
        let mut values = [[0.0; MAX_WIDTH]; ROWS];
        for (values, sums) in values.iter_mut().zip(&sums) {
            let (values, _) = S::as_mut_simd_f32s(values);
            values[..REGISTERS].copy_from_slice(sums);
        }
        // SAFETY: the creator of the product vouches for the output.
        unsafe { tile.add_partial(&values) };
    }
}
