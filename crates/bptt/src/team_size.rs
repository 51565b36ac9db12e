//! How many threads of a team compute a step. Their number changes no bit of the
//! result, only the time: threads that have a core each finish a step faster
//! together, but if one of them waits for a core, all wait for it at every
//! barrier. So the number is chosen by measuring.

use std::time::Duration;

/// Steps between two trials of another number.
const STEPS_BETWEEN_TRIALS: u32 = 32;

/// Steps of a trial, and of the present number that are compared with it.
const TRIAL_STEPS: usize = 3;

/// Another number is chosen if its steps take less than this part of the time:
/// steps of the same number differ by about this much.
const CLEARLY_LESS: f64 = 0.95;

/// Trials that are left out after one that took this many times as long.
const COSTLY: f64 = 2.0;
const TRIALS_LEFT_OUT: u32 = 7;

/// Chooses the number of threads of each step.
#[derive(Debug)]
pub(crate) struct TeamSize {
    /// The numbers to choose from, ascending.
    sizes: Vec<usize>,
    /// Index of the number that is used.
    chosen: usize,
    /// The index that is tried, and the direction of the next trial.
    trial: Option<usize>,
    upwards: bool,
    /// Steps until the next trial.
    until_trial: u32,
    /// Durations of the last steps of the present number.
    durations: Vec<Duration>,
    /// Durations of the last steps before the trial.
    before: Vec<Duration>,
}

impl TeamSize {
    /// Begins with all of `threads` threads.
    pub(crate) fn new(threads: usize) -> Self {
        let mut sizes: Vec<usize> = (0..usize::BITS)
            .map(|power| 1 << power)
            .take_while(|&size| size < threads)
            .collect();
        sizes.push(threads.max(1));
        Self {
            chosen: sizes.len() - 1,
            sizes,
            trial: None,
            upwards: false,
            // The first steps of a training are slower for other reasons.
            until_trial: 2 * TRIAL_STEPS as u32,
            durations: Vec::new(),
            before: Vec::new(),
        }
    }

    /// Returns the number of threads of the next step.
    pub(crate) fn next(&self) -> usize {
        self.sizes[self.trial.unwrap_or(self.chosen)]
    }

    /// Takes note of how long the step took.
    pub(crate) fn record(&mut self, duration: Duration) {
        if self.sizes.len() == 1 {
            return;
        }
        if self.durations.len() == TRIAL_STEPS {
            self.durations.remove(0);
        }
        self.durations.push(duration);
        match self.trial {
            Some(trial) if self.durations.len() == TRIAL_STEPS => self.end_trial(trial),
            Some(_) => {}
            None => {
                self.until_trial = self.until_trial.saturating_sub(1);
                if self.until_trial == 0 && self.durations.len() == TRIAL_STEPS {
                    self.begin_trial();
                }
            }
        }
    }

    fn begin_trial(&mut self) {
        let above = Some(self.chosen + 1).filter(|&index| index < self.sizes.len());
        let below = self.chosen.checked_sub(1);
        self.trial = if self.upwards {
            above.or(below)
        } else {
            below.or(above)
        };
        self.upwards = !self.upwards;
        self.before = std::mem::take(&mut self.durations);
    }

    fn end_trial(&mut self, trial: usize) {
        let (before, during) = (shortest(&self.before), shortest(&self.durations));
        self.until_trial = STEPS_BETWEEN_TRIALS;
        self.trial = None;
        if during < before * CLEARLY_LESS {
            self.chosen = trial;
            // Perhaps one more step in the same direction is still better.
            self.upwards = !self.upwards;
        } else {
            if during > before * COSTLY {
                self.until_trial *= 1 + TRIALS_LEFT_OUT;
            }
            self.durations.clear();
        }
    }
}

/// Returns the shortest of some durations, in seconds: what delays a step has
/// nothing to do with the number of its threads, unless it delays all of them.
fn shortest(durations: &[Duration]) -> f64 {
    let shortest = durations.iter().min().copied();
    shortest.unwrap_or(Duration::MAX).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of threads after some steps whose duration depends on
    /// their number.
    fn settled(size: &mut TeamSize, milliseconds: impl Fn(usize) -> u64) -> usize {
        for _ in 0..600 {
            let duration = Duration::from_millis(milliseconds(size.next()));
            size.record(duration);
        }
        size.sizes[size.chosen]
    }

    #[test]
    fn all_threads_compute_while_that_is_fastest() {
        let mut size = TeamSize::new(6);
        assert_eq!(size.next(), 6);
        assert_eq!(settled(&mut size, |threads| 60 / threads as u64), 6);
    }

    #[test]
    fn one_thread_computes_if_the_others_only_wait() {
        let mut size = TeamSize::new(6);
        assert_eq!(settled(&mut size, |threads| 10 * threads as u64), 1);
    }

    #[test]
    fn the_others_come_back_when_they_have_cores_again() {
        let mut size = TeamSize::new(4);
        assert_eq!(settled(&mut size, |threads| 10 * threads as u64), 1);
        assert_eq!(settled(&mut size, |threads| 100 / threads as u64), 4);
    }

    #[test]
    fn some_threads_can_be_the_best() {
        let mut size = TeamSize::new(8);
        assert_eq!(
            settled(&mut size, |threads| 10 + 10 * threads.abs_diff(2) as u64),
            2
        );
    }

    #[test]
    fn most_steps_are_computed_with_the_best_number() {
        let mut size = TeamSize::new(2);
        let mut others = 0;
        for _ in 0..1000 {
            others += usize::from(size.next() == 1);
            let milliseconds = if size.next() == 1 { 30 } else { 10 };
            size.record(Duration::from_millis(milliseconds));
        }
        assert!(others <= 20, "{others} of 1000");
    }

    #[test]
    fn a_single_thread_is_never_changed() {
        let mut size = TeamSize::new(1);
        assert_eq!(settled(&mut size, |_| 10), 1);
    }
}
