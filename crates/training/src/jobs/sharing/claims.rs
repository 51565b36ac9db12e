//! How a replica claims a training of the shared store, runs it, and reports its
//! end.

use std::fs;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::copies::delete_copies;
use super::{Sharing, lock};
use crate::claimed_run::ClaimedRun;
use crate::events::{EventKind, Finished, State};
use crate::job::{Job, StopRequest};
use crate::jobs::Shared;
use crate::shared::SharedTrainingsError;

/// Time between two attempts of an idle replica to claim a training, if there may
/// be one.
const CLAIM_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two attempts to store the end of a training.
const END_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// Blocks until this replica has claimed a training; `None` if the server
    /// stops.
    pub(in crate::jobs) fn next_shared(&self, sharing: &Sharing) -> Option<Arc<Job>> {
        let mut has_failed = false;
        loop {
            if lock(&self.state).stopping {
                return None;
            }
            let claimed = match self.may_claim(sharing) {
                true => self.claim(sharing),
                false => Ok(None),
            };
            match claimed {
                Ok(Some(job)) => return Some(job),
                Ok(None) => has_failed = false,
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(%error, "no training can be claimed at the moment");
                    }
                }
            }
            let state = lock(&self.state);
            if !state.stopping {
                let waited = self.changed.wait_timeout(state, CLAIM_INTERVAL);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    fn may_claim(&self, sharing: &Sharing) -> bool {
        let is_queued = |job: &Arc<Job>| job.summary().state == State::Queued;
        sharing.trainings.may_be_waiting() || lock(&self.state).jobs.values().any(is_queued)
    }

    fn claim(&self, sharing: &Sharing) -> io::Result<Option<Arc<Job>>> {
        let Some(claim) = sharing.trainings.claim()? else {
            return Ok(None);
        };
        let run = Arc::new(ClaimedRun::new(Arc::clone(&sharing.trainings), claim));
        let id = run.claim().id.clone();
        let found = self
            .refresh(sharing)
            .and_then(|()| self.get(&lock(&self.state), &id));
        let job = match found {
            Ok(job) => job,
            Err(error) => {
                let _ = run.release();
                return Err(io::Error::other(error));
            }
        };
        job.attach(Arc::clone(&run));
        job.history().set_running();
        lock(&self.state).running = Some(Arc::clone(&job));
        match self.prepare(sharing, &job, &run) {
            Ok(true) => Ok(Some(job)),
            Ok(false) => {
                self.end_run(&job);
                Ok(None)
            }
            Err(error) => {
                self.end_run(&job);
                let _ = run.release();
                Err(error)
            }
        }
    }

    /// Brings the files of a claimed training here, and reports that it
    /// continues here. Returns false if it has ended instead.
    fn prepare(&self, sharing: &Sharing, job: &Job, run: &ClaimedRun) -> io::Result<bool> {
        if run.renew()? {
            self.store_end(job, job.cancelled_while_waiting());
            return Ok(false);
        }
        fs::create_dir_all(job.folder())?;
        if job.tokens().is_err() {
            let fetched = sharing.trainings.fetch_tokens(job.id(), &job.tokens_path());
            match fetched {
                Err(SharedTrainingsError::NotFound) => {
                    let text = "the training cannot continue: its corpus is missing".to_owned();
                    self.store_end(job, job.without_model(State::Failed, text));
                    return Ok(false);
                }
                other => other?,
            }
        }
        job.checkpoints().fetch(|newest, previous| {
            let trainings = &sharing.trainings;
            trainings.fetch_checkpoints(job.id(), newest, previous)?;
            Ok(())
        })?;
        let history = job.history();
        let events = history.events();
        let last = events.last().map(|event| &event.event);
        // A training that has only been accepted begins here.
        if events.len() > 1 {
            let next_run = job.summary().run.saturating_add(1);
            // A checkpoint that is damaged is reported by the run.
            let from = job.checkpoints().verify().unwrap_or_default();
            let run = match last {
                // By a request; what continues it is known now.
                Some(EventKind::Resumed(by_request)) => by_request.run,
                _ => next_run,
            };
            let resumed = self.resumed(job, run, from, sharing.trainings.replica());
            let resumed = EventKind::Resumed(resumed);
            if last != Some(&resumed) {
                history.append(resumed);
                history.flush()?;
                history.set_running();
            }
        }
        let (id, epoch) = (job.id(), run.claim().epoch);
        let step = job.checkpoint_step();
        tracing::info!(id, epoch, step, "this replica runs a training");
        Ok(true)
    }

    /// Reports how a run of a claimed training has ended, and gives the claim
    /// back.
    pub(in crate::jobs) fn end_shared(&self, sharing: &Sharing, job: &Job, finished: Finished) {
        let Some(run) = job.run() else {
            return;
        };
        let state = finished.state;
        run.save_event_files(job.folder());
        if run.is_lost() {
            // The other replica reports it.
        } else if state == State::Interrupted {
            let released = job.history().flush().and_then(|()| run.release());
            match released {
                Ok(()) => tracing::info!(id = job.id(), "another replica can continue a training"),
                Err(error) => {
                    tracing::warn!(%error, id = job.id(), "another replica can continue a training in a few seconds");
                }
            }
        } else if self.store_end(job, finished)
            && state == State::Succeeded
            && let Err(error) = sharing.trainings.delete_files(job.id())
        {
            tracing::warn!(%error, id = job.id(), "files of a training that are no longer needed remain");
        }
        self.end_run(job);
        // The sequence of events may have continued elsewhere.
        let _ = self.refresh(sharing);
    }

    /// Stores the last event of a claimed training, as soon as the store accepts
    /// it. Returns false if another replica has the training by then, or will
    /// have because this one stops.
    fn store_end(&self, job: &Job, finished: Finished) -> bool {
        job.finish(finished);
        loop {
            let Err(error) = job.history().flush() else {
                return true;
            };
            if job.run().is_none_or(|run| run.is_lost()) {
                return false;
            }
            let state = lock(&self.state);
            if state.stopping {
                tracing::warn!(%error, id = job.id(), "the end of a training could not be stored; another replica reports it");
                return false;
            }
            let waited = self.changed.wait_timeout(state, END_INTERVAL);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// This replica does not run the training any more.
    fn end_run(&self, job: &Job) {
        job.detach();
        lock(&self.state).running = None;
        delete_copies(job.folder());
    }
}

pub(super) fn renew(job: &Job) -> io::Result<()> {
    if let Some(run) = job.run()
        && run.renew()?
        && job.stop_request() == StopRequest::Nothing
    {
        job.request_stop(StopRequest::Cancel);
    }
    Ok(())
}
