//! Samples the next character from logits: settings, sampling, and the random
//! numbers. The random state of each session is kept elsewhere.
//!
//! All arithmetic consists of IEEE 754 operations in a fixed order; `exp` and
//! `ln` are those of docs/arithmetic.md and not those of the system, so that a
//! result has the same bits on every machine.

use charlstm_int8::logsumexp::{exp, log_sum_exp};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

#[cfg(test)]
mod tests;

/// Maximum temperature. Above it, the distribution of every model is practically
/// uniform.
pub const MAX_TEMPERATURE: f64 = 100.0;

/// A sampling setting is outside its limits.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("must be {limit}, not {value}")]
pub struct SamplingError {
    /// Name of the setting in the API.
    pub field: &'static str,
    /// The valid values.
    pub limit: &'static str,
    /// The given value.
    pub value: f64,
}

/// Settings for sampling the next character, applied in the order temperature,
/// top-k, top-p, min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingSettings {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
}

impl Default for SamplingSettings {
    /// Samples from the model's own distribution.
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
    /// Checks and returns settings. With a `temperature` of 0, the most probable
    /// character is always selected; a `top_k` of 0 means all characters.
    ///
    /// # Errors
    /// A setting is outside its limits; the first one is reported.
    pub fn new(
        temperature: f64,
        top_k: u32,
        top_p: f64,
        min_p: f64,
    ) -> Result<Self, SamplingError> {
        // All comparisons are false for NaN, which is rejected as well.
        let checks = [
            (
                "temperature",
                "0 to 100",
                temperature,
                (0.0..=MAX_TEMPERATURE).contains(&temperature),
            ),
            (
                "top_p",
                "greater than 0 and at most 1",
                top_p,
                top_p > 0.0 && top_p <= 1.0,
            ),
            ("min_p", "0 to 1", min_p, (0.0..=1.0).contains(&min_p)),
        ];
        for (field, limit, value, valid) in checks {
            if !valid {
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

    /// Encodes the settings for a digest of everything that a text depends on:
    /// temperature, `top_k` (as u64), `top_p` and `min_p`, little-endian.
    pub fn to_le_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        // Adding zero turns -0.0 into 0.0, which gives the same text.
        let fields = [
            (self.temperature + 0.0).to_le_bytes(),
            (self.top_k as u64).to_le_bytes(),
            self.top_p.to_le_bytes(),
            (self.min_p + 0.0).to_le_bytes(),
        ];
        for (part, field) in bytes.chunks_exact_mut(8).zip(fields) {
            part.copy_from_slice(&field);
        }
        bytes
    }

    /// Whether the [`HIGHEST`] highest logits of a row are enough to sample from.
    pub fn need_only_highest(&self) -> bool {
        self.temperature == 0.0 || (1..=HIGHEST).contains(&self.top_k)
    }

    /// Returns settings that always select the most probable character.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }
}

/// A position in a sequence of random numbers, small enough to be stored with
/// every session: the seed, and the count of numbers drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomState {
    /// Seed of the sequence.
    pub seed: u64,
    /// Count of numbers drawn, one for each sampled character.
    pub draws: u64,
}

impl RandomState {
    /// Returns the beginning of the sequence of a seed.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// Returns the position `count` numbers later.
    pub fn after(self, count: u64) -> Self {
        Self {
            draws: self.draws.wrapping_add(count),
            ..self
        }
    }
}

/// Generates uniform random numbers from a position in a sequence on
/// (ChaCha8, Bernstein, 2008).
#[derive(Clone, Debug)]
pub struct Draws {
    state: RandomState,
    generator: ChaCha8Rng,
}

impl Draws {
    /// Creates the generator of the sequence from `state` on.
    pub fn at(state: RandomState) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(state.seed);
        // A number takes 64 bits, two words of the generator.
        generator.set_word_pos(u128::from(state.draws) * 2);
        Self { state, generator }
    }

    /// Returns the current position.
    pub fn state(&self) -> RandomState {
        self.state
    }

    /// Returns the next number, in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        self.state = self.state.after(1);
        // An f64 has a precision of 53 bits.
        (self.generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// Samples characters. It keeps only scratch memory: each result depends only on
/// the arguments.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
}

/// A character that can be sampled.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    /// Its probability, up to a common factor.
    weight: f64,
}

/// Up to this `top_k`, insertion is faster than a selection algorithm.
const INSERTION_LIMIT: usize = 16;

/// Number of logits of a row that a device must select, if the vocabulary has as
/// many. It may be no larger than that: the selection algorithm orders -0 after 0,
/// and a device does not distinguish them.
pub const HIGHEST: usize = INSERTION_LIMIT;

/// The highest logits of a row, [`HIGHEST`] or more of them, by falling logit;
/// equal logits by rising token id, where -0 equals 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HighestLogits<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Their logits.
    pub logits: &'a [f32],
    /// [`log_sum_exp`] of all logits of the row.
    pub log_sum_exp: f64,
}

/// Returns the fields of [`HighestLogits`] for all logits of a row, with [`HIGHEST`]
/// of them: what a device must select. NaN counts as impossible.
pub fn highest(logits: &[f32]) -> (Vec<u32>, Vec<f32>, f64) {
    let mut sampler = Sampler::default();
    sampler.select(logits, HIGHEST);
    let candidates = &mut sampler.candidates;
    // If the vocabulary has no more, they are not sorted yet.
    candidates.sort_by(|a, b| {
        let order = b.logit.partial_cmp(&a.logit);
        order.unwrap_or(std::cmp::Ordering::Equal)
    });
    let ids = candidates.iter().map(|c| c.token).collect();
    let highest = candidates.iter().map(|c| c.logit).collect();
    (ids, highest, log_sum_exp(logits))
}

impl HighestLogits<'_> {
    /// As [`log_probability`], for a character that was chosen from these logits.
    ///
    /// # Panics
    /// If `token` is not among them.
    pub fn log_probability(&self, token: u32) -> f64 {
        let place = self.ids.iter().position(|&id| id == token);
        let place = place.expect("a chosen character is one of the highest");
        f64::from(self.logits[place]) - self.log_sum_exp
    }
}

impl Sampler {
    /// Samples the next token id, given the logits `[vocabulary]` and a uniform
    /// random number in `[0, 1)`. Equal logits are ordered by token id; a NaN
    /// counts as impossible. Returns 0 if there are no logits.
    pub fn choose(&mut self, settings: &SamplingSettings, logits: &[f32], uniform: f64) -> u32 {
        if settings.temperature == 0.0 || settings.top_k == 1 {
            return most_probable(logits);
        }
        self.select(logits, settings.top_k);
        self.sample(settings, uniform)
            .unwrap_or_else(|| most_probable(logits))
    }

    /// As [`Self::choose`], with the same result, if
    /// [`SamplingSettings::need_only_highest`].
    pub fn choose_of_highest(
        &mut self,
        settings: &SamplingSettings,
        highest: &HighestLogits<'_>,
        uniform: f64,
    ) -> u32 {
        let most_probable = highest.ids.first().copied().unwrap_or(0);
        if settings.temperature == 0.0 || settings.top_k == 1 {
            return most_probable;
        }
        let candidates = highest.ids.iter().zip(highest.logits).take(settings.top_k);
        self.candidates.clear();
        self.candidates
            .extend(candidates.map(|(&token, &logit)| Candidate {
                token,
                logit,
                weight: 0.0,
            }));
        self.sample(settings, uniform).unwrap_or(most_probable)
    }

    /// Samples one of the candidates.
    fn sample(&mut self, settings: &SamplingSettings, uniform: f64) -> Option<u32> {
        self.weigh(settings.temperature);
        if settings.top_p < 1.0 {
            self.keep_top_p(settings.top_p);
        }
        if settings.min_p > 0.0 {
            // The most probable candidate has weight 1.
            self.candidates.retain(|c| c.weight >= settings.min_p);
        }
        self.draw(uniform)
    }

    /// Fills the candidates with the `top_k` most probable characters, or all.
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

    /// Inserts a candidate into the sorted candidates, of which at most `top_k`
    /// are kept.
    fn insert(&mut self, candidate: Candidate, top_k: usize) {
        let kept = &mut self.candidates;
        if kept.len() == top_k {
            // Of equal logits, the lower token id came first and stays.
            if candidate.logit <= kept[top_k - 1].logit {
                return;
            }
            kept.pop();
        }
        let index = kept.partition_point(|c| c.logit >= candidate.logit);
        kept.insert(index, candidate);
    }

    /// Computes the weight of each candidate; the most probable one has 1.
    fn weigh(&mut self, temperature: f64) {
        let highest = self
            .candidates
            .iter()
            .map(|c| c.logit)
            .fold(f32::NEG_INFINITY, f32::max);
        for candidate in &mut self.candidates {
            let below = f64::from(candidate.logit) - f64::from(highest);
            // The difference of two infinities is NaN, hence the comparison.
            candidate.weight = if candidate.logit == highest {
                1.0
            } else {
                exp(below / temperature)
            };
        }
    }

    /// Keeps the fewest most probable candidates with a total probability of at
    /// least `top_p`.
    fn keep_top_p(&mut self, top_p: f64) {
        self.candidates.sort_unstable_by(more_probable_first);
        let target = top_p * self.candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        let kept = self
            .candidates
            .iter()
            .position(|c| {
                sum += c.weight;
                sum >= target
            })
            .map_or(self.candidates.len(), |last| last + 1);
        self.candidates.truncate(kept);
    }

    /// Returns the candidate at which the cumulative weight exceeds `uniform` of
    /// the total.
    fn draw(&self, uniform: f64) -> Option<u32> {
        let drawn = uniform * self.candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += candidate.weight;
            if sum > drawn {
                return Some(candidate.token);
            }
        }
        // Rounding can leave the sum slightly below the total.
        let possible = self.candidates.iter().rev().find(|c| c.weight > 0.0);
        possible.map(|c| c.token)
    }
}

/// Orders by descending logit, then by ascending token id, which makes the order
/// total.
fn more_probable_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Returns the token id of the highest logit; of equal ones, the lowest.
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

/// Returns the natural logarithm of the probability that the model gives a
/// character, without any sampling settings. Sums in the order of
/// docs/arithmetic.md.
///
/// # Panics
/// If `token` is outside the vocabulary.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_sum_exp(logits)
}
