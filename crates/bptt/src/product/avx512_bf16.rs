//! Products of bfloat16 values by the instruction VDPBF16PS of AVX512_BF16,
//! which adds the products of two pairs to a float32 sum.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::transmute;

use pulp::Arch;

use super::{Arithmetic, MAX_WIDTH, Product, Tile, from_bf16, to_bf16};

/// Registers of columns in a panel.
const REGISTERS: usize = 2;
/// Columns of a panel.
const WIDTH: usize = 16 * REGISTERS;
/// Sums of 14 x 2 of 32 registers.
const ROWS_AT_ONCE: usize = 14;

/// Products of bfloat16 values on a CPU that has AVX512_BF16. A value comes only
/// from [`Avx512Bf16::detect`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Bf16(Arch);

impl Avx512Bf16 {
    /// Returns the arithmetic if this CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        found.then(|| Self(Arch::new()))
    }
}

impl Arithmetic for Avx512Bf16 {
    type Element = u16;
    const GROUP: usize = 2;
    const INPUT_ALIGNMENT: usize = 2;

    fn width(self) -> usize {
        WIDTH
    }

    fn arch(self) -> Arch {
        self.0
    }

    #[inline(always)]
    fn round(value: f32) -> u16 {
        to_bf16(value)
    }

    fn widen(element: u16) -> f32 {
        from_bf16(element)
    }

    unsafe fn add_product(self, product: Product<'_, u16>) {
        // SAFETY: the value exists, so the CPU has the instructions; the caller
        // vouches for the output.
        unsafe { add_product(product) };
    }
}

/// # Safety
/// The CPU has the instructions, and [`Arithmetic::add_product`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn add_product(product: Product<'_, u16>) {
    product.for_each_tile(WIDTH, ROWS_AT_ONCE, |tile| {
        // SAFETY: as for this function.
        unsafe {
            match tile.row_count {
                1 => compute::<1>(&tile),
                2 => compute::<2>(&tile),
                3 => compute::<3>(&tile),
                4 => compute::<4>(&tile),
                5 => compute::<5>(&tile),
                6 => compute::<6>(&tile),
                7 => compute::<7>(&tile),
                8 => compute::<8>(&tile),
                9 => compute::<9>(&tile),
                10 => compute::<10>(&tile),
                11 => compute::<11>(&tile),
                12 => compute::<12>(&tile),
                13 => compute::<13>(&tile),
                _ => compute::<14>(&tile),
            }
        }
    });
}

/// # Safety
/// As for [`add_product`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn compute<const ROWS: usize>(tile: &Tile<'_, u16>) {
    let pairs = tile.inputs / 2;
    assert!(tile.panel.len() >= pairs * 2 * WIDTH, "panel");
    assert!(
        tile.rows.len() >= (ROWS - 1) * tile.stride + 2 * pairs,
        "rows"
    );
    let mut sums: [[__m512; REGISTERS]; ROWS] = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
    let rows = tile.rows.as_ptr();
    let mut panel = tile.panel.as_ptr();
    for pair in 0..pairs {
        // SAFETY: panel and rows have that many pairs, asserted above.
        unsafe {
            let weights: [__m512bh; REGISTERS] = std::array::from_fn(|register| {
                let weights = _mm512_loadu_si512(panel.add(32 * register).cast());
                transmute::<__m512i, __m512bh>(weights)
            });
            panel = panel.add(2 * WIDTH);
            for (row, sums) in sums.iter_mut().enumerate() {
                let pair: i32 = rows
                    .add(row * tile.stride + 2 * pair)
                    .cast::<i32>()
                    .read_unaligned();
                let pair = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair));
                for (sum, weights) in sums.iter_mut().zip(&weights) {
                    *sum = _mm512_dpbf16_ps(*sum, pair, *weights);
                }
            }
        }
    }
    if tile.columns == WIDTH {
        for (row, sums) in sums.iter().enumerate() {
            for (register, &sum) in sums.iter().enumerate() {
                // SAFETY: a full row of the tile is inside the output.
                unsafe {
                    let out = tile.out.add(row * tile.out_stride + 16 * register);
                    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
                }
            }
        }
    } else {
        let mut values = [[0.0f32; MAX_WIDTH]; ROWS];
        for (values, sums) in values.iter_mut().zip(&sums) {
            for (register, &sum) in sums.iter().enumerate() {
                // SAFETY: a row of `values` has 16 values for each register.
                unsafe { _mm512_storeu_ps(values.as_mut_ptr().add(16 * register), sum) };
            }
        }
        // SAFETY: the caller vouches for the output.
        unsafe { tile.add_partial(&values) };
    }
}
