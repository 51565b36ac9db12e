//! The portable kernel: arrays in place of registers. The compiler turns much
//! of it into whatever instructions the target always has.

use super::{DEPTH, Float32x8, Int8x32, Int32x8, Registers, Task};

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
    type Weights = [i8; 32];
    type Hidden = u32;
    type WeightBlock = Int8x32;
    type IntBlock = Int32x8;
    type FloatBlock = Float32x8;

    const LANES: usize = 8;
    const OFFSET: u8 = 0;
    const ROWS: usize = 2;

    fn run<T: Task<Self>>(self, task: T) -> T::Output {
        task.run(self)
    }

    #[inline(always)]
    fn load_weights(self, block: &Int8x32) -> [i8; 32] {
        block.0
    }

    #[inline(always)]
    fn splat_hidden(self, group: u32) -> u32 {
        group
    }

    #[inline(always)]
    fn dot(self, sums: [i32; 8], hidden: u32, weights: [i8; 32]) -> [i32; 8] {
        let h = hidden.to_le_bytes().map(|byte| i16::from(byte as i8));
        std::array::from_fn(|lane| {
            // A sum of two products fits 16 bits.
            let product = |k: usize| i16::from(weights[DEPTH * lane + k]) * h[k];
            let first = i32::from(product(0) + product(1));
            let second = i32::from(product(2) + product(3));
            sums[lane].wrapping_add(first + second)
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
    fn store_hidden(self, h: Floats, groups: &mut [u32]) {
        let (chunks, _) = h.as_chunks::<DEPTH>();
        for (group, values) in groups.iter_mut().zip(chunks) {
            let bytes = values.map(|h| h.round_ties_even() as i8 as u8);
            *group = u32::from_le_bytes(bytes);
        }
    }
}
