//! Dropout masks that depend only on their position (step, layer, time, row):
//! they are the same for any number of threads, and the same again after a
//! training is resumed.

/// Inverted dropout (Srivastava et al., 2014): keeps each value with a fixed
/// probability, and divides the kept values by that probability.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// A value is kept if its draw is below this.
    threshold: u32,
    /// 1 / probability of keeping, exact for the threshold.
    scale: f32,
}

/// Number of different draws: they have 16 bits.
const DRAWS: u32 = 1 << 16;

impl Dropout {
    /// Drops with this probability, rounded to a multiple of 1/65536.
    pub fn new(probability: f64) -> Self {
        let threshold = ((1.0 - probability) * f64::from(DRAWS)).round() as u32;
        let threshold = threshold.clamp(1, DRAWS);
        Self {
            threshold,
            scale: DRAWS as f32 / threshold as f32,
        }
    }

    /// Draws the mask of one row: 1 keeps, 0 drops.
    pub fn draw(self, mask: &mut [u8], key: u64) {
        self.draw_from(0, mask, key);
    }

    /// Draws the part of the mask of one row that begins at `first`.
    pub(crate) fn draw_from(self, first: usize, mask: &mut [u8], key: u64) {
        // One output of the generator decides about four values.
        let mut group = first as u64 / 4;
        let mut skipped = first % 4;
        let mut rest = mask;
        while !rest.is_empty() {
            let count = (4 - skipped).min(rest.len());
            let (values, after) = rest.split_at_mut(count);
            let bits = mix(key.wrapping_add(group.wrapping_mul(GOLDEN)));
            for (index, keep) in (skipped..).zip(values) {
                let draw = (bits >> (16 * index)) as u32 & (DRAWS - 1);
                *keep = u8::from(draw < self.threshold);
            }
            rest = after;
            group += 1;
            skipped = 0;
        }
    }

    /// Computes `out = values * mask * scale`.
    pub(crate) fn apply(self, values: &[f32], mask: &[u8], out: &mut [f32]) {
        for ((out, value), keep) in out.iter_mut().zip(values).zip(mask) {
            *out = value * (self.scale * f32::from(*keep));
        }
    }

    /// Computes `values *= mask * scale`.
    pub(crate) fn apply_in_place(self, values: &mut [f32], mask: &[u8]) {
        for (value, keep) in values.iter_mut().zip(mask) {
            *value *= self.scale * f32::from(*keep);
        }
    }

    /// Returns the factor of a value with this mask.
    pub fn factor(self, keep: u8) -> f32 {
        self.scale * f32::from(keep)
    }
}

/// 2^64 divided by the golden ratio, the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// Derives the key of `part` from `key`.
pub fn subkey(key: u64, part: u64) -> u64 {
    mix(key ^ mix(part.wrapping_add(GOLDEN)))
}

/// First part of the key of a mask of recurrent weights; the layer and the row of
/// the matrix follow. That of a mask of outputs is the layer, from 0; the time
/// step and the row of the batch follow.
pub const RECURRENT_KEY: u64 = 1 << 32;
/// First part of the key of a mask of input characters; the token follows.
pub const INPUT_KEY: u64 = 2 << 32;

/// Derives the key of a mask, such as that of a layer, time step and row, from
/// the key of a step.
pub fn mask_key(key: u64, parts: &[u64]) -> u64 {
    parts.iter().fold(key, |key, &part| subkey(key, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_of_kept_values_is_one_minus_the_probability() {
        for probability in [0.1, 0.5, 0.73] {
            let dropout = Dropout::new(probability);
            let mut mask = vec![0; 100_000];
            dropout.draw(&mut mask, 42);
            let kept = mask.iter().filter(|&&keep| keep == 1).count() as f64 / 100_000.0;
            // Six standard deviations of a binomial fraction.
            assert!((kept - (1.0 - probability)).abs() < 6.0 * 0.5 / 316.0);
            let expected = 1.0 / (1.0 - probability);
            assert!((f64::from(dropout.scale) - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn masks_are_the_same_for_the_same_key_and_differ_between_keys() {
        let draw = |key| {
            let mut mask = [0; 64];
            Dropout::new(0.5).draw(&mut mask, key);
            mask
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(subkey(7, 0)), draw(subkey(7, 1)));
    }
}
