//! Which jobs are in the batch, which wait, and which is prefilled next. Pure:
//! no thread, no clock, and no knowledge of what a job is.

use std::collections::VecDeque;

#[cfg(test)]
mod tests;

/// The slots of a batch and the jobs that wait for one. A job in prefill holds
/// a slot already, so that it joins the batch as soon as it is ready.
#[derive(Debug)]
pub(crate) struct Scheduler<J> {
    slots: usize,
    /// Slots of the jobs that run or that the caller prefills now.
    running: usize,
    waiting: VecDeque<J>,
    /// Jobs that were in the batch before.
    returning: VecDeque<J>,
    /// The next free slot goes to a returning job, if there is one.
    is_turn_of_returning: bool,
    prefilling: VecDeque<J>,
}

impl<J> Scheduler<J> {
    /// Creates a scheduler for a batch of `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            running: 0,
            waiting: VecDeque::new(),
            returning: VecDeque::new(),
            is_turn_of_returning: true,
            prefilling: VecDeque::new(),
        }
    }

    /// Queues a new job behind the others.
    pub(crate) fn join(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// Queues a job that was in the batch before. Returning jobs and new ones
    /// get free slots in turn: a returning job has waited once, and readers
    /// that fall behind again and again must not keep new jobs waiting.
    pub(crate) fn rejoin(&mut self, job: J) {
        self.returning.push_back(job);
    }

    /// Gives free slots to the jobs that wait for one, and calls `admitted`
    /// with each.
    pub(crate) fn admit(&mut self, mut admitted: impl FnMut(&J)) {
        while self.occupied() < self.slots {
            let Some(job) = self.next_to_admit() else {
                break;
            };
            admitted(&job);
            self.prefilling.push_back(job);
        }
    }

    fn next_to_admit(&mut self) -> Option<J> {
        let (first, second) = if self.is_turn_of_returning {
            (&mut self.returning, &mut self.waiting)
        } else {
            (&mut self.waiting, &mut self.returning)
        };
        let job = first.pop_front().or_else(|| second.pop_front())?;
        self.is_turn_of_returning = !self.is_turn_of_returning;
        Some(job)
    }

    /// Returns the job to prefill next. It keeps its slot until
    /// [`Self::continue_prefill`] takes it back or [`Self::free_slot`] frees
    /// the slot.
    pub(crate) fn next_to_prefill(&mut self) -> Option<J> {
        let job = self.prefilling.pop_front()?;
        self.running += 1;
        Some(job)
    }

    /// Queues a job whose prefill is not complete behind the others in
    /// prefill, so that a short prompt does not wait for a long one.
    pub(crate) fn continue_prefill(&mut self, job: J) {
        self.running -= 1;
        self.prefilling.push_back(job);
    }

    /// Frees the slot of a job that ran or was to be prefilled.
    pub(crate) fn free_slot(&mut self) {
        self.running -= 1;
    }

    /// Frees the slots of all jobs that ran.
    pub(crate) fn free_all_slots(&mut self) {
        self.running = 0;
    }

    /// Removes the waiting jobs and those in prefill that match.
    pub(crate) fn remove_if(&mut self, matches: impl Fn(&J) -> bool) -> Vec<J> {
        let mut removed = Vec::new();
        for queue in [&mut self.waiting, &mut self.returning, &mut self.prefilling] {
            // In most turns no job matches, and then nothing is moved.
            let mut index = 0;
            while index < queue.len() {
                if matches(&queue[index]) {
                    removed.extend(queue.remove(index));
                } else {
                    index += 1;
                }
            }
        }
        removed
    }

    /// Removes the jobs in prefill.
    pub(crate) fn remove_prefilling(&mut self) -> Vec<J> {
        self.prefilling.drain(..).collect()
    }

    /// Number of slots that are taken.
    pub(crate) fn occupied(&self) -> usize {
        self.running + self.prefilling.len()
    }

    /// Number of jobs that wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.returning.len()
    }

    /// Number of jobs that run or are prefilled by the caller now.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.occupied() == 0
    }
}
