//! Who is in the batch, who waits, and who is primed next. Pure: no thread,
//! no clock, and nothing is known of what a job is.

use std::collections::VecDeque;
use std::time::Duration;

#[cfg(test)]
mod tests;

/// Places in the batch and those who want one. A job that is primed holds a
/// place already, so that it joins the batch as soon as it is ready.
#[derive(Debug)]
pub(super) struct Scheduler<J> {
    slots: usize,
    /// Places of those who run.
    running: usize,
    waiting: VecDeque<J>,
    priming: VecDeque<J>,
}

impl<J> Scheduler<J> {
    /// A batch of `slots` places.
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            running: 0,
            waiting: VecDeque::new(),
            priming: VecDeque::new(),
        }
    }

    /// A new job waits for a place behind the others.
    pub(super) fn join(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// A job that was in the batch before waits in front: it has waited once.
    pub(super) fn rejoin(&mut self, job: J) {
        self.waiting.push_front(job);
    }

    /// Gives free places to those who wait, the first come first, and shows
    /// each of them.
    pub(super) fn admit(&mut self, mut admitted: impl FnMut(&J)) {
        while self.occupied() < self.slots {
            let Some(job) = self.waiting.pop_front() else {
                break;
            };
            admitted(&job);
            self.priming.push_back(job);
        }
    }

    /// The job to prime next. It keeps its place until it is handed back to
    /// [`Self::prime_again`], [`Self::run`] or [`Self::dismiss`].
    pub(super) fn next_to_prime(&mut self) -> Option<J> {
        let job = self.priming.pop_front()?;
        self.running += 1;
        Some(job)
    }

    /// The job is not primed yet: it goes behind the others that are primed,
    /// so that a short prime does not wait for a long one.
    pub(super) fn prime_again(&mut self, job: J) {
        self.running -= 1;
        self.priming.push_back(job);
    }

    /// A job that was to be primed, or that ran, gives its place back.
    pub(super) fn dismiss(&mut self) {
        self.running -= 1;
    }

    /// Everyone who ran is gone.
    pub(super) fn dismiss_all(&mut self) {
        self.running = 0;
    }

    /// Takes out those who wait or are primed and for whom `leaves` says so.
    pub(super) fn take_out(&mut self, leaves: impl Fn(&J) -> bool) -> Vec<J> {
        let mut out = Vec::new();
        for queue in [&mut self.waiting, &mut self.priming] {
            // Most turns nobody leaves, and then nothing is moved.
            let mut place = 0;
            while place < queue.len() {
                if leaves(&queue[place]) {
                    out.extend(queue.remove(place));
                } else {
                    place += 1;
                }
            }
        }
        out
    }

    /// Takes out those who are being primed.
    pub(super) fn take_priming(&mut self) -> Vec<J> {
        self.priming.drain(..).collect()
    }

    /// Places that are taken.
    pub(super) fn occupied(&self) -> usize {
        self.running + self.priming.len()
    }

    /// Jobs that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Jobs that run or are just being primed.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.occupied() == 0
    }
}

/// How much is primed between two steps, so that the texts under way are not
/// held up for longer than a few steps. The times are measured by the caller.
#[derive(Debug)]
pub(super) struct PrefillBudget {
    /// Mean time of a step, in seconds.
    step: f64,
    /// Mean time of priming with one character, in seconds.
    char: f64,
}

/// Priming beside running texts may take so many times as long as a step.
const STEPS_OF_PRIMING: f64 = 1.5;

/// Least and most characters of a chunk beside running texts. Under the
/// least, the overhead of a chunk outweighs its work.
const CHUNK_CHARS: std::ops::RangeInclusive<usize> = 4..=64;

/// Characters of a chunk where nothing runs: a few milliseconds, after which
/// the worker gives way to others, and enough for one product over all of them.
const LONE_CHUNK_CHARS: usize = 16;

/// Weight of the latest measurement in the mean.
const LATEST: f64 = 0.1;

impl PrefillBudget {
    /// Nothing is measured yet.
    pub(super) fn new() -> Self {
        Self {
            step: 0.0,
            char: 0.0,
        }
    }

    /// A step took so long.
    pub(super) fn stepped(&mut self, time: Duration) {
        blend(&mut self.step, time.as_secs_f64());
    }

    /// Priming with so many characters took so long.
    pub(super) fn primed(&mut self, chars: usize, time: Duration) {
        if chars > 0 {
            blend(&mut self.char, time.as_secs_f64() / chars as f64);
        }
    }

    /// Characters to prime with before the next step, beside `running` texts.
    pub(super) fn chunk(&self, running: usize) -> usize {
        if running == 0 {
            return LONE_CHUNK_CHARS;
        }
        if self.step == 0.0 || self.char == 0.0 {
            return *CHUNK_CHARS.start();
        }
        let chars = STEPS_OF_PRIMING * self.step / self.char;
        (chars as usize).clamp(*CHUNK_CHARS.start(), *CHUNK_CHARS.end())
    }
}

fn blend(mean: &mut f64, value: f64) {
    *mean = if *mean == 0.0 {
        value
    } else {
        *mean + LATEST * (value - *mean)
    };
}
