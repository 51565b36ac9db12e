//! The portable kernel: arrays in place of registers. The compiler turns much
//! of it into whatever instructions the target always has.

use super::{Float32x8, HiddenForm, Int8x16, Int32x8, Registers, Task};

/// Arrays of eight numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

type Floats = [f32; 8];

#[inline(always)]
fn each(a: Floats, b: Floats, operation: impl Fn(f32, f32) -> f32) -> Floats {
    std::array::from_fn(|lane| operation(a[lane], b[lane]))
}

impl Registers for Portable {
    type Ints = [i32; 8];
    type Floats = Floats;
    type Weights = [i8; 16];
    type Hidden = u32;
    type WeightBlock = Int8x16;
    type IntBlock = Int32x8;
    type FloatBlock = Float32x8;

    const LANES: usize = 8;
    const FORM: HiddenForm = HiddenForm::Int16;
    const ROWS: usize = 2;

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        task.run(self)
    }

    #[inline(always)]
    fn load_weights(self, block: &Int8x16) -> [i8; 16] {
        block.0
    }

    #[inline(always)]
    fn splat_hidden(self, word: u32) -> u32 {
        word
    }

    #[inline(always)]
    fn dot(self, sums: [i32; 8], hidden: u32, weights: [i8; 16]) -> [i32; 8] {
        let (low, high) = (i32::from(hidden as i16), i32::from((hidden >> 16) as i16));
        std::array::from_fn(|lane| {
            let (first, second) = (weights[2 * lane], weights[2 * lane + 1]);
            let products = i32::from(first) * low + i32::from(second) * high;
            sums[lane].wrapping_add(products)
        })
    }

    #[inline(always)]
    fn splat_ints(self, value: i32) -> [i32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn load_ints(self, block: &Int32x8) -> [i32; 8] {
        block.0
    }

    #[inline(always)]
    fn store_ints(self, ints: [i32; 8], block: &mut Int32x8) {
        block.0 = ints;
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|lane| a[lane].wrapping_add(b[lane]))
    }

    #[inline(always)]
    fn load_floats(self, block: &Float32x8) -> Floats {
        block.0
    }

    #[inline(always)]
    fn store_floats(self, floats: Floats, block: &mut Float32x8) {
        block.0 = floats;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        [value; 8]
    }

    #[inline(always)]
    fn to_floats(self, ints: [i32; 8]) -> Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        each(a, b, f32::min)
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        each(a, b, f32::max)
    }

    #[inline(always)]
    fn store_hidden(self, h: Floats, words: &mut [u32]) {
        let (pairs, _) = h.as_chunks::<2>();
        for (word, pair) in words.iter_mut().zip(pairs) {
            let [low, high] = pair.map(|h| h.round_ties_even() as i16 as u16);
            *word = u32::from(low) | u32::from(high) << 16;
        }
    }
}
