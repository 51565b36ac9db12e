//! How much is prefilled between two decode steps.

use std::time::Duration;

/// Bounds the prefill between two decode steps, so that running generations
/// are not delayed for longer than a few steps. The caller measures the times.
#[derive(Debug, Default)]
pub(crate) struct PrefillBudget {
    /// Mean duration of a decode step, in seconds; 0 until one was measured.
    step_seconds: f64,
    /// Mean duration of the prefill of one character, in seconds; 0 until one
    /// was measured.
    char_seconds: f64,
}

/// Duration of the prefill next to running generations, in decode steps.
const STEPS_PER_CHUNK: f64 = 1.5;

/// Minimum and maximum number of characters of a chunk next to running
/// generations. Below the minimum, the overhead of a chunk exceeds its work.
const CHUNK_CHARS: std::ops::RangeInclusive<usize> = 4..=64;

/// Duration of a chunk if nothing runs, after which the worker looks at its
/// inbox, in seconds.
const LONE_CHUNK_SECONDS: f64 = 0.003;

/// Minimum and maximum number of characters of such a chunk: enough to compute
/// many of them in one product, and so few that a wrong measurement does no
/// harm.
const LONE_CHUNK_CHARS: std::ops::RangeInclusive<usize> = 16..=512;

/// Weight of the latest measurement in the mean.
const LATEST_WEIGHT: f64 = 0.1;

impl PrefillBudget {
    /// Records the duration of a decode step.
    pub(crate) fn stepped(&mut self, time: Duration) {
        blend(&mut self.step_seconds, time.as_secs_f64());
    }

    /// Records the duration of the prefill of `chars` characters.
    pub(crate) fn prefilled(&mut self, chars: usize, time: Duration) {
        if chars > 0 {
            blend(&mut self.char_seconds, time.as_secs_f64() / chars as f64);
        }
    }

    /// Returns the number of characters to prefill before the next decode
    /// step of `running` generations.
    pub(crate) fn chunk_chars(&self, running: usize) -> usize {
        if running == 0 {
            let chars = match self.char_seconds {
                0.0 => 0.0,
                seconds => LONE_CHUNK_SECONDS / seconds,
            };
            return (chars as usize).clamp(*LONE_CHUNK_CHARS.start(), *LONE_CHUNK_CHARS.end());
        }
        if self.step_seconds == 0.0 || self.char_seconds == 0.0 {
            return *CHUNK_CHARS.start();
        }
        let chars = STEPS_PER_CHUNK * self.step_seconds / self.char_seconds;
        (chars as usize).clamp(*CHUNK_CHARS.start(), *CHUNK_CHARS.end())
    }
}

/// Adds a measurement to an exponential mean, which is 0 until there is one.
pub(crate) fn blend(mean: &mut f64, value: f64) {
    *mean = if *mean == 0.0 {
        value
    } else {
        *mean + LATEST_WEIGHT * (value - *mean)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_takes_about_as_long_as_a_decode_step() {
        let mut budget = PrefillBudget::default();
        assert_eq!(budget.chunk_chars(0), 16);
        assert_eq!(budget.chunk_chars(3), 4);
        budget.stepped(Duration::from_millis(2));
        budget.prefilled(10, Duration::from_millis(1));
        assert_eq!(budget.chunk_chars(3), 30);
        // Three milliseconds, if nothing runs.
        assert_eq!(budget.chunk_chars(0), 30);
        budget.prefilled(1, Duration::from_millis(100));
        assert_eq!(budget.chunk_chars(3), 4);
    }
}
