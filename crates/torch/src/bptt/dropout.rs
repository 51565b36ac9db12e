//! Dropout masks that depend on their place alone (step, layer, time, row),
//! not on who computes them: the same for any number of threads, and the same
//! again after a training is resumed.

/// Keeps each number with a probability, and scales what it keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    /// A draw of 16 bits under this is kept.
    threshold: u32,
    /// 1 / probability of keeping, exact for the threshold.
    scale: f32,
}

/// Values of a draw.
const DRAWS: u32 = 1 << 16;

impl Dropout {
    /// Drops with this probability, rounded to 1/65536.
    pub(crate) fn new(probability: f64) -> Self {
        let threshold = ((1.0 - probability) * f64::from(DRAWS)).round() as u32;
        let threshold = threshold.clamp(1, DRAWS);
        Self {
            threshold,
            scale: DRAWS as f32 / threshold as f32,
        }
    }

    /// Draws the mask of one row: 1 keeps, 0 drops.
    pub(super) fn draw(self, mask: &mut [u8], key: u64) {
        for (counter, four) in (0u64..).zip(mask.chunks_mut(4)) {
            let bits = mix(key.wrapping_add(counter.wrapping_mul(GOLDEN)));
            for (place, keep) in four.iter_mut().enumerate() {
                let draw = (bits >> (16 * place)) as u32 & (DRAWS - 1);
                *keep = u8::from(draw < self.threshold);
            }
        }
    }

    /// `out = numbers * mask * scale`.
    pub(super) fn apply(self, numbers: &[f32], mask: &[u8], out: &mut [f32]) {
        for ((out, number), keep) in out.iter_mut().zip(numbers).zip(mask) {
            *out = number * (self.scale * f32::from(*keep));
        }
    }

    /// `numbers *= mask * scale`.
    pub(super) fn apply_in_place(self, numbers: &mut [f32], mask: &[u8]) {
        for (number, keep) in numbers.iter_mut().zip(mask) {
            *number *= self.scale * f32::from(*keep);
        }
    }

    /// The factor of a mask's place.
    #[cfg(test)]
    pub(super) fn factor(self, keep: u8) -> f32 {
        self.scale * f32::from(keep)
    }
}

/// 2^64 over the golden ratio, the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A key for `part` under `key`.
pub(crate) fn subkey(key: u64, part: u64) -> u64 {
    mix(key ^ mix(part.wrapping_add(GOLDEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_is_kept_is_the_one_that_was_asked_for() {
        for probability in [0.1, 0.5, 0.73] {
            let dropout = Dropout::new(probability);
            let mut mask = vec![0; 100_000];
            dropout.draw(&mut mask, 42);
            let kept = mask.iter().filter(|&&keep| keep == 1).count() as f64 / 100_000.0;
            // Six standard deviations of a binomial share.
            assert!((kept - (1.0 - probability)).abs() < 6.0 * 0.5 / 316.0);
            let expected = 1.0 / (1.0 - probability);
            assert!((f64::from(dropout.scale) - expected).abs() < 1e-3);
        }
    }

    #[test]
    fn two_keys_give_two_masks_and_one_key_gives_one() {
        let draw = |key| {
            let mut mask = [0; 64];
            Dropout::new(0.5).draw(&mut mask, key);
            mask
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(subkey(7, 0)), draw(subkey(7, 1)));
    }
}
