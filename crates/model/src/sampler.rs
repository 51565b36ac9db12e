//! From logits to the next character: the settings, the choice, and the
//! random numbers it is made with. Which session draws when is not known
//! here.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

#[cfg(test)]
mod tests;

/// Highest temperature. Beyond it every model is a fair die anyway.
pub const MAX_TEMPERATURE: f64 = 100.0;

/// A setting is outside its limits.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("must be {limit}, not {value}")]
pub struct SamplingError {
    /// The setting, as the contract names it.
    pub field: &'static str,
    /// What it must be.
    pub limit: &'static str,
    /// What it was.
    pub value: f64,
}

/// How the next character is chosen. The steps are applied in the order
/// temperature, top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
}

impl Default for SamplingSettings {
    /// The model's own distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl SamplingSettings {
    /// Checked settings. A `temperature` of 0 means the most probable
    /// character, a `top_k` of 0 all of them.
    ///
    /// # Errors
    /// The first setting that is outside its limits.
    pub fn new(
        temperature: f64,
        top_k: u32,
        top_p: f64,
        min_p: f64,
    ) -> Result<Self, SamplingError> {
        // `contains` is false for NaN, so that is refused as well.
        let checks = [
            (
                "temperature",
                "0 to 100",
                temperature,
                (0.0..=MAX_TEMPERATURE).contains(&temperature),
            ),
            (
                "top_p",
                "over 0 and at most 1",
                top_p,
                top_p > 0.0 && top_p <= 1.0,
            ),
            ("min_p", "0 to 1", min_p, (0.0..=1.0).contains(&min_p)),
        ];
        for (field, limit, value, holds) in checks {
            if !holds {
                return Err(SamplingError {
                    field,
                    limit,
                    value,
                });
            }
        }
        Ok(Self {
            temperature,
            top_k: top_k as usize,
            top_p,
            min_p,
        })
    }

    /// Always the most probable character.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// A place in a sequence of random numbers, small enough to be kept with
/// every session: the seed, and how many numbers were drawn since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomState {
    /// Seed of the sequence.
    pub seed: u64,
    /// Numbers drawn; one for each character chosen.
    pub draws: u64,
}

impl RandomState {
    /// The beginning of a sequence.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// The place `count` numbers further on.
    pub fn after(self, count: u64) -> Self {
        Self {
            draws: self.draws.wrapping_add(count),
            ..self
        }
    }
}

/// A sequence of uniform random numbers, standing at some place.
#[derive(Clone, Debug)]
pub struct Draws {
    state: RandomState,
    generator: ChaCha8Rng,
}

impl Draws {
    /// The sequence from `state` on.
    pub fn at(state: RandomState) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(state.seed);
        // A draw takes one 64-bit number, two of the generator's words.
        generator.set_word_pos(u128::from(state.draws) * 2);
        Self { state, generator }
    }

    /// Where the sequence stands.
    pub fn state(&self) -> RandomState {
        self.state
    }

    /// The next number, in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.state = self.state.after(1);
        // 53 bits are what an f64 holds.
        (self.generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// Chooses characters. Holds only scratch memory: every choice depends on its
/// arguments alone.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

/// A character that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Its probability, but for a common factor.
    weight: f64,
}

/// Up to this many characters are picked by insertion; more are worth a
/// proper selection.
const INSERTION_LIMIT: usize = 16;

impl Sampler {
    /// The character to come, given the logits and a uniform number in
    /// `[0, 1)`. Equal logits count in the order of their numbers; a NaN
    /// counts as impossible.
    ///
    /// # Panics
    /// Where there are no logits.
    pub fn choose(&mut self, settings: &SamplingSettings, logits: &[f32], uniform: f64) -> u32 {
        if settings.temperature == 0.0 || settings.top_k == 1 {
            return most_probable(logits);
        }
        self.select(logits, settings.top_k);
        self.weigh(settings.temperature);
        if settings.top_p < 1.0 {
            self.keep_top_p(settings.top_p);
        }
        if settings.min_p > 0.0 {
            // The most probable candidate has weight 1.
            self.candidates.retain(|c| c.weight >= settings.min_p);
        }
        self.draw(uniform).unwrap_or_else(|| most_probable(logits))
    }

    /// Fills the candidates: the `top_k` most probable, or all.
    fn select(&mut self, logits: &[f32], top_k: usize) {
        self.candidates.clear();
        let all = (0u32..).zip(logits).map(|(token, &logit)| Candidate {
            token,
            logit: if logit.is_nan() {
                f32::NEG_INFINITY
            } else {
                logit
            },
            weight: 0.0,
        });
        if top_k == 0 || top_k >= logits.len() {
            self.candidates.extend(all);
        } else if top_k <= INSERTION_LIMIT {
            for candidate in all {
                self.insert(candidate, top_k);
            }
        } else {
            self.candidates.extend(all);
            self.candidates
                .select_nth_unstable_by(top_k, more_probable_first);
            self.candidates.truncate(top_k);
            self.candidates.sort_unstable_by(more_probable_first);
        }
    }

    /// Inserts a candidate into the at most `top_k` best, which are in order.
    fn insert(&mut self, candidate: Candidate, top_k: usize) {
        let kept = &mut self.candidates;
        if kept.len() == top_k {
            // On a tie the one that came first, with the lower number, stays.
            if candidate.logit <= kept[top_k - 1].logit {
                return;
            }
            kept.pop();
        }
        let place = kept.partition_point(|c| c.logit >= candidate.logit);
        kept.insert(place, candidate);
    }

    /// Gives each candidate its weight; the most probable one gets 1.
    fn weigh(&mut self, temperature: f64) {
        let highest = self
            .candidates
            .iter()
            .map(|c| c.logit)
            .fold(f32::NEG_INFINITY, f32::max);
        for candidate in &mut self.candidates {
            let below = f64::from(candidate.logit) - f64::from(highest);
            // Two infinities differ by NaN: equal to the highest.
            candidate.weight = if candidate.logit == highest {
                1.0
            } else {
                (below / temperature).exp()
            };
        }
    }

    /// Keeps the most probable candidates whose share first reaches `top_p`.
    fn keep_top_p(&mut self, top_p: f64) {
        self.candidates.sort_unstable_by(more_probable_first);
        let wanted = top_p * self.candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        let kept = self
            .candidates
            .iter()
            .position(|c| {
                sum += c.weight;
                sum >= wanted
            })
            .map_or(self.candidates.len(), |last| last + 1);
        self.candidates.truncate(kept);
    }

    /// The candidate at which the summed weights pass the drawn share.
    fn draw(&self, uniform: f64) -> Option<u32> {
        let drawn = uniform * self.candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += candidate.weight;
            if sum > drawn {
                return Some(candidate.token);
            }
        }
        // Rounding can leave the sum a hair short of the share.
        let possible = self.candidates.iter().rev().find(|c| c.weight > 0.0);
        possible.map(|c| c.token)
    }
}

/// Order of falling logits; equal ones in the order of their numbers, so that
/// the order is total and the same on every call.
fn more_probable_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The number of the highest logit; the lowest number of equal ones.
fn most_probable(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut highest = f32::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        if logit > highest {
            (best, highest) = (token, logit);
        }
    }
    best
}

/// Natural logarithm of the probability that the model gives a character,
/// before any setting changed it, summed in a fixed order.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - highest).exp()).sum();
    f64::from(logits[token as usize]) - highest - sum.ln()
}
