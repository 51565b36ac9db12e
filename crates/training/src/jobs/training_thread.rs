//! The training thread, which runs one training after the other, and its end.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{Jobs, Shared, lock};
use crate::job::{Job, StopRequest};
use crate::trainer;

impl Jobs {
    /// Ends the training thread: the running training saves a checkpoint and
    /// is interrupted, and so are the waiting ones. Blocks until the thread has
    /// ended, at most for `patience`; returns whether it has. Shared trainings
    /// are not interrupted: another replica can continue them at once.
    pub fn stop(&self, patience: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.stopping = true;
        // A training that was cancelled ends as cancelled.
        if let Some(job) = &state.running
            && job.stop_request() == StopRequest::Nothing
        {
            job.request_stop(StopRequest::Stop);
        }
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        self.shared.changed.notify_all();
        for job in waiting {
            job.interrupt(job.resumability());
        }
        let state = lock(&self.shared.state);
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| !state.thread_ended)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = state.thread_ended;
        let jobs: Vec<Arc<Job>> = match self.shared.sharing {
            Some(_) => state.jobs.values().cloned().collect(),
            None => Vec::new(),
        };
        drop(state);
        for job in jobs {
            job.history().close();
        }
        let thread = ended.then(|| lock(&self.shared.thread).take()).flatten();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the training thread panicked");
        }
        ended
    }
}

impl Shared {
    /// Runs on the training thread.
    pub(super) fn work(&self, can_train: bool) {
        trainer::lower_priority();
        while let Some(job) = self.next(can_train) {
            let finished = trainer::run(&job, &self.context);
            match &self.sharing {
                Some(sharing) => self.end_shared(sharing, &job, finished),
                None => {
                    job.finish(finished);
                    job.delete_spent_files();
                    lock(&self.state).running = None;
                }
            }
            self.changed.notify_all();
            self.delete_old();
        }
        lock(&self.state).thread_ended = true;
        self.changed.notify_all();
    }

    fn next(&self, can_train: bool) -> Option<Arc<Job>> {
        if let Some(sharing) = self.sharing.as_ref().filter(|_| can_train) {
            return self.next_shared(sharing);
        }
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| !state.stopping && state.queue.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return None;
        }
        let job = state.queue.pop_front()?;
        job.history().set_running();
        state.running = Some(Arc::clone(&job));
        Some(job)
    }
}
