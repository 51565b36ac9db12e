//! Queues of jobs, one for each caller.

use std::collections::{HashMap, VecDeque};

use super::Schedulable;
use crate::caller::CallerId;

/// The queues of all callers that have jobs.
#[derive(Debug)]
pub(super) struct CallerQueues<J> {
    queues: HashMap<CallerId, Queue<J>>,
    /// The callers in turn, each once.
    turns: VecDeque<CallerId>,
    len: usize,
}

#[derive(Debug)]
struct Queue<J> {
    jobs: VecDeque<J>,
    /// Jobs that were in the batch before.
    returning: VecDeque<J>,
    /// The next one is a returning job, if there is one.
    is_turn_of_returning: bool,
}

impl<J> Default for CallerQueues<J> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
        }
    }
}

impl<J> Queue<J> {
    fn len(&self) -> usize {
        self.jobs.len() + self.returning.len()
    }

    /// Returns what [`Self::pop`] will take.
    fn peek(&self) -> Option<&J> {
        let (first, second) = if self.is_turn_of_returning {
            (&self.returning, &self.jobs)
        } else {
            (&self.jobs, &self.returning)
        };
        first.front().or_else(|| second.front())
    }

    fn pop(&mut self) -> Option<J> {
        let (first, second) = if self.is_turn_of_returning {
            (&mut self.returning, &mut self.jobs)
        } else {
            (&mut self.jobs, &mut self.returning)
        };
        let job = first.pop_front().or_else(|| second.pop_front())?;
        self.is_turn_of_returning = !self.is_turn_of_returning;
        Some(job)
    }
}

impl<J: Schedulable> CallerQueues<J> {
    fn queue_of(&mut self, job: &J) -> &mut Queue<J> {
        self.len += 1;
        let caller = job.caller();
        if !self.queues.contains_key(caller) {
            self.turns.push_back(caller.clone());
        }
        self.queues.entry(caller.clone()).or_insert_with(|| Queue {
            jobs: VecDeque::new(),
            returning: VecDeque::new(),
            is_turn_of_returning: true,
        })
    }

    pub(super) fn push_back(&mut self, job: J) {
        self.queue_of(&job).jobs.push_back(job);
    }

    pub(super) fn push_front(&mut self, job: J) {
        let queue = self.queue_of(&job);
        queue.returning.push_front(job);
        queue.is_turn_of_returning = true;
    }

    pub(super) fn push_returning(&mut self, job: J) {
        self.queue_of(&job).returning.push_back(job);
    }

    /// Takes the next job of a caller.
    pub(super) fn pop(&mut self, caller: &CallerId) -> Option<J> {
        let job = self.queues.get_mut(caller)?.pop()?;
        self.removed(caller);
        Some(job)
    }

    /// Takes the last job of a caller that matches, of those that did not
    /// return.
    pub(super) fn take_last(
        &mut self,
        caller: &CallerId,
        matches: impl Fn(&J) -> bool,
    ) -> Option<J> {
        let jobs = &mut self.queues.get_mut(caller)?.jobs;
        let index = jobs.iter().rposition(matches)?;
        let job = jobs.remove(index)?;
        self.removed(caller);
        Some(job)
    }

    /// Takes the next job of the caller whose turn it is.
    pub(super) fn pop_in_turn(&mut self) -> Option<J> {
        let caller = self.turns.pop_front()?;
        self.turns.push_back(caller.clone());
        self.pop(&caller)
    }

    /// Returns what [`Self::pop_in_turn`] will take.
    pub(super) fn peek_in_turn(&self) -> Option<&J> {
        self.queues.get(self.turns.front()?)?.peek()
    }

    fn removed(&mut self, caller: &CallerId) {
        self.len -= 1;
        if self.queues.get(caller).is_some_and(|q| q.len() == 0) {
            self.queues.remove(caller);
            self.turns.retain(|other| other != caller);
        }
    }

    pub(super) fn remove_if(&mut self, matches: impl Fn(&J) -> bool) -> Vec<J> {
        let mut removed = Vec::new();
        for caller in &self.turns {
            let Some(queue) = self.queues.get_mut(caller) else {
                continue;
            };
            for jobs in [&mut queue.jobs, &mut queue.returning] {
                // In most turns no job matches, and then nothing is moved.
                let mut index = 0;
                while index < jobs.len() {
                    if matches(&jobs[index]) {
                        removed.extend(jobs.remove(index));
                    } else {
                        index += 1;
                    }
                }
            }
        }
        if !removed.is_empty() {
            self.len -= removed.len();
            self.queues.retain(|_, queue| queue.len() > 0);
            self.turns.retain(|caller| self.queues.contains_key(caller));
        }
        removed
    }

    /// The callers that have jobs, each once.
    pub(super) fn callers(&self) -> impl Iterator<Item = &CallerId> {
        self.turns.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn len_of(&self, caller: &CallerId) -> usize {
        self.queues.get(caller).map_or(0, Queue::len)
    }
}
