//! Kernels on 256-bit registers.

use std::arch::x86_64::*;

use crate::kernel::{Float32x8, Int8x32, Int32x8, Registers, Task};

/// AVX2 and FMA. `vpsignb` moves the sign of h to the weights, `vpmaddubsw`
/// multiplies the magnitude of h by them and adds pairs of products (at most
/// 2 x 127 x 127, so that it never saturates), and `vpmaddwd` adds pairs of
/// these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

/// AVX-VNNI, AVX2 and FMA: `vpdpbusd` adds four products of unsigned bytes of
/// h and signed bytes of weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(());

impl Avx2 {
    /// Returns a value if this CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        found.then_some(Self(()))
    }
}

impl AvxVnni {
    /// Returns a value if this CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avxvnni") && Avx2::detect().is_some();
        found.then_some(Self(()))
    }
}

/// The operations that are the same for both kernels.
macro_rules! operations {
    () => {
        type Ints = __m256i;
        type Floats = __m256;
        type Weights = __m256i;
        type WeightBlock = Int8x32;
        type IntBlock = Int32x8;
        type FloatBlock = Float32x8;

        const LANES: usize = 8;

        #[inline(always)]
        fn load_weights(self, block: &Int8x32) -> __m256i {
            // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
            unsafe { _mm256_load_si256(block.0.as_ptr().cast()) }
        }

        #[inline(always)]
        fn splat_ints(self, value: i32) -> __m256i {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_set1_epi32(value) }
        }

        #[inline(always)]
        fn load_ints(self, block: &Int32x8) -> __m256i {
            // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
            unsafe { _mm256_load_si256(block.0.as_ptr().cast()) }
        }

        #[inline(always)]
        fn store_ints(self, ints: __m256i, block: &mut Int32x8) {
            // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
            unsafe { _mm256_store_si256(block.0.as_mut_ptr().cast(), ints) }
        }

        #[inline(always)]
        fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_add_epi32(a, b) }
        }

        #[inline(always)]
        fn load_floats(self, block: &Float32x8) -> __m256 {
            // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
            unsafe { _mm256_load_ps(block.0.as_ptr()) }
        }

        #[inline(always)]
        fn store_floats(self, floats: __m256, block: &mut Float32x8) {
            // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
            unsafe { _mm256_store_ps(block.0.as_mut_ptr(), floats) }
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        fn to_floats(self, ints: __m256i) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_cvtepi32_ps(ints) }
        }

        #[inline(always)]
        fn mul(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: `self` proves that the CPU has FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn div(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_div_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_min_ps(a, b) }
        }

        #[inline(always)]
        fn max(self, a: __m256, b: __m256) -> __m256 {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_max_ps(a, b) }
        }
    };
}

/// Rounds eight numbers from -127 to 127 to int8, in the lower half of the
/// result.
#[inline]
#[target_feature(enable = "avx2")]
fn round_to_bytes(h: __m256) -> __m128i {
    let ints = _mm256_cvtps_epi32(h);
    let (low, high) = (
        _mm256_castsi256_si128(ints),
        _mm256_extracti128_si256::<1>(ints),
    );
    let shorts = _mm_packs_epi32(low, high);
    _mm_packs_epi16(shorts, shorts)
}

/// h with its magnitude apart.
#[derive(Clone, Copy)]
pub(crate) struct SignedHidden {
    h: __m256i,
    magnitude: __m256i,
}

impl Registers for Avx2 {
    type Hidden = SignedHidden;

    const OFFSET: u8 = 0;
    const ROWS: usize = 2;

    operations!();

    #[inline(always)]
    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma")]
        fn compiled<T: Task<Avx2>>(registers: Avx2, task: T) -> T::Output {
            task.run(registers)
        }
        // SAFETY: `self` proves that the CPU has AVX2 and FMA.
        unsafe { compiled(self, task) }
    }

    #[inline(always)]
    fn splat_hidden(self, group: u32) -> SignedHidden {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe {
            let h = _mm256_set1_epi32(group as i32);
            SignedHidden {
                h,
                magnitude: _mm256_abs_epi8(h),
            }
        }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, hidden: SignedHidden, weights: __m256i) -> __m256i {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe {
            let signed = _mm256_sign_epi8(weights, hidden.h);
            let pairs = _mm256_maddubs_epi16(hidden.magnitude, signed);
            let dots = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_add_epi32(sums, dots)
        }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m256, groups: &mut [u32]) {
        let groups: &mut [u32; 2] = groups.try_into().expect("two groups");
        // SAFETY: two groups are 8 bytes; `self` proves AVX2.
        unsafe { _mm_storel_epi64(groups.as_mut_ptr().cast(), round_to_bytes(h)) }
    }
}

impl Registers for AvxVnni {
    type Hidden = __m256i;

    const OFFSET: u8 = 128;
    const ROWS: usize = 3;

    operations!();

    #[inline(always)]
    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,avxvnni")]
        fn compiled<T: Task<AvxVnni>>(registers: AvxVnni, task: T) -> T::Output {
            task.run(registers)
        }
        // SAFETY: `self` proves that the CPU has AVX-VNNI, AVX2 and FMA.
        unsafe { compiled(self, task) }
    }

    #[inline(always)]
    fn splat_hidden(self, group: u32) -> __m256i {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_set1_epi32(group as i32) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, hidden: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: `self` proves that the CPU has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sums, hidden, weights) }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m256, groups: &mut [u32]) {
        let groups: &mut [u32; 2] = groups.try_into().expect("two groups");
        // SAFETY: two groups are 8 bytes; `self` proves AVX2.
        unsafe {
            // Flipping the highest bit adds 128.
            let offset = _mm_xor_si128(round_to_bytes(h), _mm_set1_epi8(i8::MIN));
            _mm_storel_epi64(groups.as_mut_ptr().cast(), offset);
        }
    }
}
