//! How many threads of a team compute a step. Their number changes no bit of the
//! result, only the time: threads that have a core each finish a step faster
//! together, but if one of them waits for a core, all wait for it at every
//! barrier. So the number is chosen by measuring.

use std::time::Duration;

/// Steps that are compared: those of a trial, and those before it.
const TRIAL_STEPS: usize = 3;

/// Steps between two trials: few after a trial that was worth it, twice as many
/// after each that was not.
const MIN_STEPS_BETWEEN_TRIALS: u32 = 32;
const MAX_STEPS_BETWEEN_TRIALS: u32 = 1024;

/// Another number is chosen if its steps take less than this part of the time:
/// steps of the same number differ by about this much.
const CLEARLY_LESS: f64 = 0.95;

/// A trial ends early with a step that takes this many times as long as those
/// before, and steps that take this many times as long as usual cause a trial:
/// other programs have come or gone.
const CLEARLY_MORE: f64 = 1.5;

/// Weight of the last steps in what is usual.
const WEIGHT: f64 = 0.1;

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
    /// Steps until the next trial, and between trials.
    until_trial: u32,
    between_trials: u32,
    /// Seconds of the last steps of the present number.
    last: Vec<f64>,
    /// Seconds of a step before the trial, and usually.
    before: f64,
    usual: Option<f64>,
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
            between_trials: MIN_STEPS_BETWEEN_TRIALS,
            last: Vec::new(),
            before: 0.0,
            usual: None,
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
        let seconds = duration.as_secs_f64();
        if self.last.len() == TRIAL_STEPS {
            self.last.remove(0);
        }
        self.last.push(seconds);
        let is_full = self.last.len() == TRIAL_STEPS;
        match self.trial {
            Some(_) if seconds > CLEARLY_MORE * self.before => self.end_trial(None),
            Some(trial) if is_full => {
                let is_better = shortest(&self.last) < CLEARLY_LESS * self.before;
                self.end_trial(is_better.then_some(trial));
            }
            Some(_) => {}
            None => {
                self.until_trial = self.until_trial.saturating_sub(1);
                if is_full && (self.until_trial == 0 || self.is_unusual()) {
                    self.begin_trial();
                }
            }
        }
    }

    /// Returns whether the last steps took much longer than usual, and takes note
    /// of them.
    fn is_unusual(&mut self) -> bool {
        let now = shortest(&self.last);
        let usual = *self.usual.get_or_insert(now);
        self.usual = Some(usual + WEIGHT * (now - usual));
        now > CLEARLY_MORE * usual
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
        // What delays a step has nothing to do with the number of its threads,
        // unless it delays all of them.
        self.before = shortest(&self.last);
        self.last.clear();
    }

    /// Keeps the number that was tried if it is better, and otherwise restores the
    /// one before.
    fn end_trial(&mut self, better: Option<usize>) {
        self.trial = None;
        self.last.clear();
        self.usual = None;
        match better {
            Some(index) => {
                self.chosen = index;
                self.between_trials = MIN_STEPS_BETWEEN_TRIALS;
                // Perhaps one more in the same direction is still better.
                self.upwards = !self.upwards;
            }
            None => {
                let longer = 2 * self.between_trials;
                self.between_trials = longer.min(MAX_STEPS_BETWEEN_TRIALS);
            }
        }
        self.until_trial = self.between_trials;
    }
}

fn shortest(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes some steps whose duration depends on the number of threads; returns
    /// the number after them.
    fn settled(size: &mut TeamSize, steps: usize, milliseconds: impl Fn(usize) -> u64) -> usize {
        for _ in 0..steps {
            let duration = Duration::from_millis(milliseconds(size.next()));
            size.record(duration);
        }
        size.sizes[size.chosen]
    }

    #[test]
    fn all_threads_compute_while_that_is_fastest() {
        let mut size = TeamSize::new(6);
        assert_eq!(size.next(), 6);
        assert_eq!(settled(&mut size, 600, |threads| 60 / threads as u64), 6);
    }

    #[test]
    fn one_thread_computes_if_the_others_only_wait() {
        let mut size = TeamSize::new(6);
        assert_eq!(settled(&mut size, 600, |threads| 10 * threads as u64), 1);
    }

    #[test]
    fn a_core_that_others_take_is_noticed_soon_and_that_it_is_free_again_later() {
        let mut size = TeamSize::new(2);
        let alone = |threads| if threads == 2 { 10 } else { 19 };
        let contended = |threads| if threads == 2 { 80 } else { 19 };
        assert_eq!(settled(&mut size, 5000, alone), 2);
        assert_eq!(settled(&mut size, 20, contended), 1);
        assert_eq!(settled(&mut size, 2000, alone), 2);
    }

    #[test]
    fn some_threads_can_be_the_best() {
        let mut size = TeamSize::new(8);
        let milliseconds = |threads: usize| 10 + 10 * threads.abs_diff(2) as u64;
        assert_eq!(settled(&mut size, 600, milliseconds), 2);
    }

    #[test]
    fn almost_all_steps_are_computed_with_the_best_number() {
        let mut size = TeamSize::new(2);
        let mut others = 0;
        for _ in 0..1000 {
            others += usize::from(size.next() == 1);
            let milliseconds = if size.next() == 1 { 19 } else { 10 };
            size.record(Duration::from_millis(milliseconds));
        }
        assert!(others <= 10, "{others} of 1000");
    }

    #[test]
    fn a_single_thread_is_never_changed() {
        let mut size = TeamSize::new(1);
        assert_eq!(settled(&mut size, 100, |_| 10), 1);
    }
}
