//! Kernels on 512-bit registers.

use std::arch::x86_64::*;

use crate::kernel::{Float32x16, Int8x64, Int32x16, Registers, Task};

/// AVX-512 F and BW. The weights are negated where h is negative,
/// `vpmaddubsw` multiplies the magnitude of h by them and adds pairs of
/// products (at most 2 x 127 x 127, so that it never saturates), and
/// `vpmaddwd` adds pairs of these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

/// AVX-512 F, BW and VNNI: `vpdpbusd` adds four products of unsigned bytes of
/// h and signed bytes of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Vnni(());

impl Avx512 {
    /// Returns a value if this CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        found.then_some(Self(()))
    }
}

impl Avx512Vnni {
    /// Returns a value if this CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512vnni") && Avx512::detect().is_some();
        found.then_some(Self(()))
    }
}

/// The operations that are the same for both kernels.
macro_rules! operations {
    () => {
        type Ints = __m512i;
        type Floats = __m512;
        type Weights = __m512i;
        type WeightBlock = Int8x64;
        type IntBlock = Int32x16;
        type FloatBlock = Float32x16;

        const LANES: usize = 16;

        #[inline(always)]
        fn load_weights(self, block: &Int8x64) -> __m512i {
            // SAFETY: the block has 64 aligned bytes; `self` proves AVX-512 F.
            unsafe { _mm512_load_si512(block.0.as_ptr().cast()) }
        }

        #[inline(always)]
        fn splat_ints(self, value: i32) -> __m512i {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_set1_epi32(value) }
        }

        #[inline(always)]
        fn load_ints(self, block: &Int32x16) -> __m512i {
            // SAFETY: the block has 64 aligned bytes; `self` proves AVX-512 F.
            unsafe { _mm512_load_si512(block.0.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store_ints(self, ints: __m512i, block: &mut Int32x16) {
            // SAFETY: the block has 64 aligned bytes; `self` proves AVX-512 F.
            unsafe { _mm512_store_si512(block.0.as_mut_ptr().cast(), ints) }
        }

        #[inline(always)]
        fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_add_epi32(a, b) }
        }

        #[inline(always)]
        fn load_floats(self, block: &Float32x16) -> __m512 {
            // SAFETY: the block has 64 aligned bytes; `self` proves AVX-512 F.
            unsafe { _mm512_load_ps(block.0.as_ptr()) }
        }

        #[inline(always)]
        fn store_floats(self, floats: __m512, block: &mut Float32x16) {
            // SAFETY: the block has 64 aligned bytes; `self` proves AVX-512 F.
            unsafe { _mm512_store_ps(block.0.as_mut_ptr(), floats) }
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn to_floats(self, ints: __m512i) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_cvtepi32_ps(ints) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_div_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { _mm512_max_ps(a, b) }
        }
    };
}

/// h with its signs apart.
#[derive(Clone, Copy)]
pub(crate) struct SignedHidden {
    negative: __mmask64,
    magnitude: __m512i,
}

impl Registers for Avx512 {
    type Hidden = SignedHidden;

    const OFFSET: u8 = 0;
    const ROWS: usize = 5;

    operations!();

    #[inline(always)]
    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn compiled<T: Task<Avx512>>(registers: Avx512, task: T) -> T::Output {
            task.run(registers)
        }
        // SAFETY: `self` proves that the CPU has AVX-512 F and BW.
        unsafe { compiled(self, task) }
    }

    #[inline(always)]
    fn splat_hidden(self, group: u32) -> SignedHidden {
        // SAFETY: `self` proves that the CPU has AVX-512 F and BW.
        unsafe {
            let h = _mm512_set1_epi32(group as i32);
            SignedHidden {
                negative: _mm512_movepi8_mask(h),
                magnitude: _mm512_abs_epi8(h),
            }
        }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, hidden: SignedHidden, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has AVX-512 F and BW.
        unsafe {
            let zero = _mm512_setzero_si512();
            let signed = _mm512_mask_sub_epi8(weights, hidden.negative, zero, weights);
            let pairs = _mm512_maddubs_epi16(hidden.magnitude, signed);
            let dots = _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
            _mm512_add_epi32(sums, dots)
        }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m512, groups: &mut [u32]) {
        let groups: &mut [u32; 4] = groups.try_into().expect("four groups");
        // SAFETY: four groups are 16 bytes; `self` proves AVX-512 F.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(h));
            _mm_storeu_si128(groups.as_mut_ptr().cast(), bytes);
        }
    }
}

impl Registers for Avx512Vnni {
    type Hidden = __m512i;

    const OFFSET: u8 = 128;
    const ROWS: usize = 6;

    operations!();

    #[inline(always)]
    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        fn compiled<T: Task<Avx512Vnni>>(registers: Avx512Vnni, task: T) -> T::Output {
            task.run(registers)
        }
        // SAFETY: `self` proves that the CPU has AVX-512 F, BW and VNNI.
        unsafe { compiled(self, task) }
    }

    #[inline(always)]
    fn splat_hidden(self, group: u32) -> __m512i {
        // SAFETY: `self` proves that the CPU has AVX-512 F.
        unsafe { _mm512_set1_epi32(group as i32) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, hidden: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: `self` proves that the CPU has AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sums, hidden, weights) }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m512, groups: &mut [u32]) {
        let groups: &mut [u32; 4] = groups.try_into().expect("four groups");
        // SAFETY: four groups are 16 bytes; `self` proves AVX-512 F.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(h));
            // Flipping the highest bit adds 128.
            let offset = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
            _mm_storeu_si128(groups.as_mut_ptr().cast(), offset);
        }
    }
}
