//! Kernels on 256-bit registers.

use std::arch::x86_64::*;

use crate::kernel::{Float32x8, HiddenForm, Int8x16, Int8x32, Int32x8, Registers, Task};

/// AVX2 and FMA. 8-bit weights are widened to 16 bits as they are loaded, and
/// `vpmaddwd` adds pairs of products.
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
        type Hidden = __m256i;
        type IntBlock = Int32x8;
        type FloatBlock = Float32x8;

        const LANES: usize = 8;

        #[inline(always)]
        fn splat_hidden(self, word: u32) -> __m256i {
            // SAFETY: `self` proves that the CPU has AVX2.
            unsafe { _mm256_set1_epi32(word as i32) }
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

/// Eight int32 within the range of int16, as eight int16.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow(ints: __m256i) -> __m128i {
    let (low, high) = (
        _mm256_castsi256_si128(ints),
        _mm256_extracti128_si256::<1>(ints),
    );
    _mm_packs_epi32(low, high)
}

impl Registers for Avx2 {
    type WeightBlock = Int8x16;

    const FORM: HiddenForm = HiddenForm::Int16;
    const ROWS: usize = 3;

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
    fn load_weights(self, block: &Int8x16) -> __m256i {
        // SAFETY: the block has 16 aligned bytes; `self` proves AVX2.
        unsafe { _mm256_cvtepi8_epi16(_mm_load_si128(block.0.as_ptr().cast())) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, hidden: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: `self` proves that the CPU has AVX2.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(hidden, weights)) }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m256, words: &mut [u32]) {
        let words: &mut [u32; 4] = words.try_into().expect("four words");
        // SAFETY: four words are 16 bytes; `self` proves AVX2.
        unsafe {
            let narrow = narrow(_mm256_cvtps_epi32(h));
            _mm_storeu_si128(words.as_mut_ptr().cast(), narrow);
        }
    }
}

impl Registers for AvxVnni {
    type WeightBlock = Int8x32;

    const FORM: HiddenForm = HiddenForm::OffsetBytes;
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
    fn load_weights(self, block: &Int8x32) -> __m256i {
        // SAFETY: the block has 32 aligned bytes; `self` proves AVX2.
        unsafe { _mm256_load_si256(block.0.as_ptr().cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, hidden: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: `self` proves that the CPU has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sums, hidden, weights) }
    }

    #[inline(always)]
    fn store_hidden(self, h: __m256, words: &mut [u32]) {
        let words: &mut [u32; 2] = words.try_into().expect("two words");
        // SAFETY: two words are 8 bytes; `self` proves AVX2.
        unsafe {
            let narrow = narrow(_mm256_cvtps_epi32(h));
            let bytes = _mm_packs_epi16(narrow, narrow);
            // Flipping the highest bit adds 128.
            let offset = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
            _mm_storel_epi64(words.as_mut_ptr().cast(), offset);
        }
    }
}
