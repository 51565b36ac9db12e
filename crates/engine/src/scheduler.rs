//! Which jobs are in the batch, which wait, and which is prefilled next. Pure:
//! no thread, no clock, and no knowledge of what a job is but its caller.
//!
//! Slots are shared among callers. The next free slot goes to the caller that
//! has the fewest. If none is free, a caller that has two more than another one
//! that waits gives one up, and one that has one more does so after some steps
//! ([`QUANTUM`]). While several callers have jobs, a caller has at most as many
//! slots as the other one with the most jobs has jobs ([`Demand::limit`]): a step
//! takes longer with more rows, in proportion to them for a large network, and
//! the rows of one caller must not slow those of the others. The worker lifts that
//! limit for single steps as its time allows.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::caller::CallerId;

mod queue;
#[cfg(test)]
mod tests;

use queue::CallerQueues;

/// Steps that a job has its slot for, at least, before another caller that has
/// one slot less can have it: moving a state costs a fraction of a step.
const QUANTUM: u64 = 16;

/// Slots that each caller may have whatever the others do: a caller with a few
/// streams should not have to wait for a step with surplus rows.
const MIN_SLOTS: usize = 2;

/// Part of the jobs of all others that a caller may have as slots, although no
/// other one has as many: while many callers have one job each, the rows of one
/// slow the others by no more than a ninth.
const PART_OF_OTHERS: usize = 8;

/// A job, as far as the scheduler needs to know it.
pub(crate) trait Schedulable {
    /// Who has made the call.
    fn caller(&self) -> &CallerId;

    /// The step since which it has its slot.
    fn slot_since(&self) -> u64;

    /// Records the step since which it has its slot.
    fn set_slot_since(&mut self, step: u64);
}

/// The slots of a batch and the jobs that wait for one. A job in prefill holds
/// a slot already, so that it joins the batch as soon as it is ready.
#[derive(Debug)]
pub(crate) struct Scheduler<J> {
    slots: usize,
    /// Slots of the jobs that run or that the worker prefills now, by caller.
    running: HashMap<CallerId, usize>,
    waiting: CallerQueues<J>,
    prefilling: CallerQueues<J>,
    steps: u64,
    /// Number of slots given so far, and that number when a caller last got
    /// one.
    given: u64,
    served: HashMap<CallerId, u64>,
}

/// What [`Scheduler::preempt`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preemption {
    /// The caller that gives a slot up.
    pub(crate) caller: CallerId,
    /// Only a job that has had its slot since this step, or longer.
    pub(crate) since: u64,
}

/// How many jobs the callers have.
#[derive(Debug, Default)]
struct Demand<'a> {
    /// Jobs of all callers.
    jobs: usize,
    /// The caller with the most jobs, and their number.
    most: Option<(&'a CallerId, usize)>,
    /// The number of jobs of the caller with the most jobs but one.
    second: usize,
}

impl<'a> Demand<'a> {
    /// Counts the jobs of a caller, which may have been counted before.
    fn count(&mut self, caller: &'a CallerId, jobs: usize) {
        match self.most {
            Some((most, _)) if most == caller => {}
            Some((_, count)) if count >= jobs => self.second = self.second.max(jobs),
            most => {
                self.second = most.map_or(0, |(_, count)| count);
                self.most = Some((caller, jobs));
            }
        }
    }

    /// Returns how many slots a caller with so many jobs may have; `None` if the
    /// others have no jobs.
    fn limit(&self, caller: &CallerId, own: usize) -> Option<usize> {
        let others = self.jobs.saturating_sub(own);
        if others == 0 {
            return None;
        }
        let most_of_others = match self.most {
            Some((most, count)) if most != caller => count,
            _ => self.second,
        };
        let part = others / PART_OF_OTHERS;
        Some(most_of_others.max(part).max(MIN_SLOTS))
    }
}

impl<J: Schedulable> Scheduler<J> {
    /// Creates a scheduler for a batch of `slots` slots.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            running: HashMap::new(),
            waiting: CallerQueues::default(),
            prefilling: CallerQueues::default(),
            steps: 0,
            given: 0,
            served: HashMap::new(),
        }
    }

    /// Queues a new job behind the others of its caller.
    pub(crate) fn join(&mut self, job: J) {
        self.waiting.push_back(job);
    }

    /// Queues a job that was in the batch before. Returning jobs and new ones
    /// of a caller get free slots in turn: a returning job has waited once, and
    /// readers that fall behind again and again must not keep new jobs waiting.
    pub(crate) fn rejoin(&mut self, job: J) {
        self.waiting.push_returning(job);
    }

    /// Counts a step.
    pub(crate) fn stepped(&mut self) {
        self.steps += 1;
    }

    /// Gives free slots to the jobs that wait for one, and calls `admitted`
    /// with each. With `is_surplus`, also beyond what a caller may have while
    /// others have jobs.
    pub(crate) fn admit(&mut self, is_surplus: bool, mut admitted: impl FnMut(&J)) {
        while self.occupied() < self.slots
            && let Some(caller) = self.next_caller(is_surplus)
            && let Some(mut job) = self.waiting.pop(&caller)
        {
            self.given += 1;
            self.served.insert(caller, self.given);
            job.set_slot_since(self.steps);
            admitted(&job);
            self.prefilling.push_back(job);
        }
        if self.served.len() > 2 * self.slots + 64 {
            self.forget_idle_callers();
        }
    }

    /// Returns the waiting caller with the fewest slots that may have one more;
    /// of several, the one that got a slot longest ago.
    fn next_caller(&self, is_surplus: bool) -> Option<CallerId> {
        if self.waiting.len() == 0 {
            return None;
        }
        let callers = self.waiting.callers();
        let demand = self.demand();
        let rank = |caller: &CallerId| (self.slots_of(caller), self.served_at(caller));
        callers
            .filter(|caller| is_surplus || self.slots_of(caller) < self.limit(caller, &demand))
            .min_by_key(|caller| rank(caller))
            .cloned()
    }

    /// Returns how many jobs the callers have.
    fn demand(&self) -> Demand<'_> {
        let mut demand = Demand::default();
        let callers = self.running.keys().chain(self.prefilling.callers());
        for caller in callers.chain(self.waiting.callers()) {
            demand.count(caller, self.jobs_of(caller));
        }
        demand.jobs = self.occupied() + self.waiting.len();
        demand
    }

    /// Number of jobs of a caller that run, are prefilled or wait.
    fn jobs_of(&self, caller: &CallerId) -> usize {
        self.slots_of(caller) + self.waiting.len_of(caller)
    }

    /// Number of slots that a caller may have.
    fn limit(&self, caller: &CallerId, demand: &Demand<'_>) -> usize {
        let limit = demand.limit(caller, self.jobs_of(caller));
        limit.unwrap_or(self.slots)
    }

    /// When a caller last got a slot; 0 if it has had none.
    fn served_at(&self, caller: &CallerId) -> u64 {
        self.served.get(caller).copied().unwrap_or(0)
    }

    /// Number of slots that a caller has.
    fn slots_of(&self, caller: &CallerId) -> usize {
        let running = self.running.get(caller).copied().unwrap_or(0);
        running + self.prefilling.len_of(caller)
    }

    /// Returns a slot that is to be given up for another caller, or because its
    /// caller has more than it may have. `None` if all is as it should be. The
    /// worker answers with [`Self::preempted`], or by not asking again before
    /// the next step.
    pub(crate) fn preempt(&self) -> Option<Preemption> {
        let callers = || self.running.keys().chain(self.prefilling.callers());
        let rank = |caller: &CallerId| (self.slots_of(caller), Reverse(self.served_at(caller)));
        let most = callers().max_by_key(|caller| rank(caller))?;
        let slots = self.slots_of(most);
        let now = |caller: &CallerId| {
            Some(Preemption {
                caller: caller.clone(),
                since: self.steps,
            })
        };
        let demand = self.demand();
        if let Some(above) = callers().find(|c| self.slots_of(c) > self.limit(c, &demand)) {
            return now(above);
        }
        if self.occupied() < self.slots {
            return None;
        }
        let least = self.next_caller(false).filter(|caller| caller != most)?;
        match slots.saturating_sub(self.slots_of(&least)) {
            0 => None,
            1 => Some(Preemption {
                caller: most.clone(),
                since: self.steps.checked_sub(QUANTUM)?,
            }),
            _ => now(most),
        }
    }

    /// Takes a job out of prefill, for [`Self::preempted`].
    pub(crate) fn take_prefilling(&mut self, preemption: &Preemption) -> Option<J> {
        let Preemption { caller, since } = preemption;
        let is_old = |job: &J| job.slot_since() <= *since;
        let job = self.prefilling.take_last(caller, is_old)?;
        *self.running.entry(caller.clone()).or_default() += 1;
        Some(job)
    }

    /// Queues a job that has given its slot up, before the others of its
    /// caller.
    pub(crate) fn preempted(&mut self, job: J) {
        self.free_slot(job.caller());
        self.waiting.push_front(job);
    }

    /// Returns the job to prefill next, of the callers in turn. It keeps its
    /// slot until [`Self::continue_prefill`] takes it back or
    /// [`Self::free_slot`] frees the slot.
    pub(crate) fn next_to_prefill(&mut self) -> Option<J> {
        let job = self.prefilling.pop_in_turn()?;
        *self.running.entry(job.caller().clone()).or_default() += 1;
        Some(job)
    }

    /// Returns the job that [`Self::next_to_prefill`] will return.
    pub(crate) fn peek_to_prefill(&self) -> Option<&J> {
        self.prefilling.peek_in_turn()
    }

    /// Queues a job whose prefill is not complete behind the others in
    /// prefill, so that a short prompt does not wait for a long one.
    pub(crate) fn continue_prefill(&mut self, job: J) {
        self.free_slot(job.caller());
        self.prefilling.push_back(job);
    }

    /// Frees the slot of a job that ran or was to be prefilled.
    pub(crate) fn free_slot(&mut self, caller: &CallerId) {
        if let Some(running) = self.running.get_mut(caller) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(caller);
            }
        }
    }

    /// Frees the slots of all jobs that ran.
    pub(crate) fn free_all_slots(&mut self) {
        self.running.clear();
    }

    /// Removes the waiting jobs and those in prefill that match.
    pub(crate) fn remove_if(&mut self, matches: impl Fn(&J) -> bool) -> Vec<J> {
        let mut removed = self.waiting.remove_if(&matches);
        removed.extend(self.prefilling.remove_if(&matches));
        removed
    }

    /// Removes the jobs in prefill.
    pub(crate) fn remove_prefilling(&mut self) -> Vec<J> {
        self.prefilling.remove_if(|_| true)
    }

    /// Number of slots that are taken.
    pub(crate) fn occupied(&self) -> usize {
        self.running() + self.prefilling.len()
    }

    /// Number of jobs that wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Number of jobs that run or are prefilled by the worker now.
    pub(crate) fn running(&self) -> usize {
        self.running.values().sum()
    }

    /// Whether jobs wait although slots are free, because their callers have
    /// what they may have.
    pub(crate) fn has_surplus(&self) -> bool {
        self.waiting.len() > 0 && self.occupied() < self.slots
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.occupied() == 0
    }

    fn forget_idle_callers(&mut self) {
        let (running, waiting, prefilling) = (&self.running, &self.waiting, &self.prefilling);
        self.served.retain(|caller, _| {
            running.contains_key(caller)
                || waiting.len_of(caller) > 0
                || prefilling.len_of(caller) > 0
        });
    }
}
