//! The list of trainings of a replica: it follows the shared store, runs what it
//! claims there, and asks the store for every change.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use charlstm_store::session::Owner;

use super::{Jobs, JobsError, ListState, Requester, Shared, lock};
use crate::checkpoint::Verified;
use crate::claimed_run::ClaimedRun;
use crate::events::{EventKind, Finished, State};
use crate::job::{Job, NewJob, StopRequest};
use crate::shared::{NewTraining, QueueLimits, SharedState, SharedTrainings, SharedTrainingsError};

/// Time between two looks at what other replicas have changed, if there may be
/// something.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two renewals of a claim.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);

/// Time between two attempts of an idle replica to claim a training, if there may
/// be one.
const CLAIM_INTERVAL: Duration = Duration::from_secs(2);

/// Time between two attempts to store the end of a training.
const END_INTERVAL: Duration = Duration::from_secs(1);

/// In the folder of a training: stays when the other copies are deleted.
const TENSORBOARD: &str = "tensorboard";

/// The shared store, as one replica sees it.
pub(super) struct Sharing {
    pub(super) trainings: Arc<dyn SharedTrainings>,
    /// What the list has. Held while it is refreshed.
    revision: Mutex<u64>,
    /// The thread that follows the store.
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sharing {
    pub(super) fn new(trainings: Arc<dyn SharedTrainings>) -> Self {
        Self {
            trainings,
            revision: Mutex::default(),
            thread: Mutex::default(),
        }
    }
}

impl Jobs {
    /// Reads what other replicas have changed; does nothing if nothing is
    /// shared. Blocks on the network.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn refresh(&self) -> Result<(), JobsError> {
        match &self.shared.sharing {
            Some(sharing) => self.shared.refresh(sharing),
            None => Ok(()),
        }
    }
}

/// Deletes the copies that an earlier process has left.
pub(super) fn clear(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => delete_copies(&path),
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

/// Deletes the copies of a training's files.
fn delete_copies(folder: &Path) {
    let deleted = fs::read_dir(folder).and_then(|entries| {
        let mut is_empty = true;
        for entry in entries {
            let entry = entry?;
            if entry.file_name() == TENSORBOARD {
                is_empty = false;
            } else if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        match is_empty {
            true => fs::remove_dir(folder),
            false => Ok(()),
        }
    });
    if let Err(error) = deleted
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "copies of a training's files stay until the next start");
    }
}

impl Shared {
    /// Updates the list to the shared store.
    pub(super) fn refresh(&self, sharing: &Sharing) -> Result<(), JobsError> {
        let mut revision = lock(&sharing.revision);
        let changes = sharing.trainings.changes(*revision)?;
        let known = |id: &str| lock(&self.state).jobs.get(id).cloned();
        let mut changed = Vec::new();
        for training in changes.trainings {
            if training.state == SharedState::Deleted {
                lock(&self.state).jobs.remove(&training.id);
                continue;
            }
            let job = match known(&training.id) {
                Some(job) => job,
                None => {
                    let folder = self.config.folder.join(&training.id);
                    match Job::shared(training.metadata.as_bytes(), folder) {
                        Ok(job) => Arc::new(job),
                        Err(error) => {
                            tracing::error!(%error, id = training.id, "a shared training cannot be read; it is ignored");
                            continue;
                        }
                    }
                }
            };
            job.set_checkpoint_step(training.checkpoint_step);
            changed.push((job, training.state));
        }
        for (id, event) in changes.events {
            let new = changed.iter().find(|(job, _)| job.id() == id);
            let job = new.map(|(job, _)| Arc::clone(job)).or_else(|| known(&id));
            if let Some(job) = job {
                job.history().follow([event]);
            }
        }
        let mut state = lock(&self.state);
        for (job, shared_state) in changed {
            if !job.summary().state.has_ended() {
                match shared_state {
                    SharedState::Queued => job.history().set_queued(),
                    SharedState::Running => job.history().set_running(),
                    SharedState::Ended | SharedState::Deleted => {}
                }
            }
            state.jobs.entry(job.id().to_owned()).or_insert(job);
        }
        drop(state);
        *revision = changes.revision;
        Ok(())
    }

    fn refresh_if_changed(&self, sharing: &Sharing) -> Result<(), String> {
        let revision = *lock(&sharing.revision);
        match sharing.trainings.may_have_changed(revision) {
            true => self.refresh(sharing).map_err(|error| error.to_string()),
            false => Ok(()),
        }
    }

    /// Follows the shared store and renews the claim of this replica, until the
    /// training thread has ended. Runs on a thread of its own.
    pub(super) fn follow(&self, sharing: &Sharing) {
        let mut has_failed = false;
        let mut renewed = Instant::now();
        loop {
            let state = lock(&self.state);
            let (state, _) = self
                .changed
                .wait_timeout_while(state, SYNC_INTERVAL, |state| !state.thread_ended)
                .unwrap_or_else(PoisonError::into_inner);
            if state.thread_ended {
                return;
            }
            let running = state.running.clone();
            drop(state);
            let mut followed = self.refresh_if_changed(sharing);
            if renewed.elapsed() >= RENEW_INTERVAL {
                renewed = Instant::now();
                if let Some(job) = running {
                    followed = followed.and(renew(&job).map_err(|error| error.to_string()));
                }
            }
            match followed {
                Ok(()) => {
                    if std::mem::take(&mut has_failed) {
                        tracing::info!("the shared trainings can be read again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        tracing::warn!(
                            error,
                            "changes of the shared trainings are not seen at the moment"
                        );
                    }
                }
            }
        }
    }

    /// Stores a new training for all replicas.
    pub(super) fn start_shared(
        &self,
        sharing: &Sharing,
        new: &NewJob<'_>,
        requester: &Requester,
    ) -> Result<Arc<Job>, JobsError> {
        let folder = tempfile::Builder::new()
            .prefix("new-")
            .tempdir_in(&self.config.folder)?;
        let device = self.context.learners.device();
        let (metadata, accepted, tokens) = new.write_shared(folder.path(), device)?;
        let stored = sharing.trainings.insert(&NewTraining {
            id: new.id,
            metadata: &metadata,
            accepted,
            tokens: &tokens,
            limits: self.queue_limits(requester, &requester.publisher.owner),
        });
        stored.map_err(|error| self.of_shared(error, new.id, requester))?;
        self.refresh(sharing)?;
        // It can begin at once.
        self.changed.notify_all();
        self.get(&lock(&self.state), new.id)
    }

    fn queue_limits<'a>(&self, requester: &Requester, owner: &'a Owner) -> QueueLimits<'a> {
        QueueLimits {
            max_queued: self.config.max_queued,
            owner,
            max_of_owner: requester.max_trainings,
        }
    }

    fn of_shared(&self, error: SharedTrainingsError, id: &str, requester: &Requester) -> JobsError {
        match error {
            SharedTrainingsError::QueueFull => JobsError::QueueFull {
                limit: self.config.max_queued,
            },
            SharedTrainingsError::Quota => JobsError::TrainingQuota {
                limit: requester.max_trainings.unwrap_or_default(),
            },
            SharedTrainingsError::NotFound => JobsError::not_found(id),
            error => error.into(),
        }
    }

    /// Asks whichever replica has the training to end it.
    pub(super) fn cancel_shared(&self, sharing: &Sharing, job: &Arc<Job>) -> Result<(), JobsError> {
        if job.run().is_some() && job.stop_request() == StopRequest::Nothing {
            // By this replica: at once.
            job.request_stop(StopRequest::Cancel);
        }
        let finished = job.cancelled_while_waiting();
        sharing.trainings.cancel(job.id(), finished)?;
        self.refresh(sharing)
    }

    /// Lets a training that has ended wait for a replica again.
    pub(super) fn resume_shared(
        &self,
        sharing: &Sharing,
        id: &str,
        requester: &Requester,
    ) -> Result<Arc<Job>, JobsError> {
        self.refresh(sharing)?;
        let job = self.get(&lock(&self.state), id)?;
        let not_resumable = |state| {
            let id = id.to_owned();
            Err(JobsError::NotResumable { id, state })
        };
        match job.summary().state {
            State::Cancelled | State::Failed | State::Interrupted => {}
            State::Queued => return not_resumable("is waiting for its turn"),
            State::Running => return not_resumable("is running"),
            State::Succeeded => return not_resumable("has succeeded"),
        }
        let run = job.summary().run.saturating_add(1);
        let from = Verified {
            step: job.checkpoint_step().unwrap_or(0),
            // What the checkpoint was computed with is known to the replica that
            // reads it, which reports it.
            instructions: String::new(),
        };
        let resumed = self.resumed(&job, run, from, sharing.trainings.replica());
        let resumed = EventKind::Resumed(resumed);
        let limits = self.queue_limits(requester, job.owner());
        match sharing.trainings.resume(id, resumed, limits) {
            Err(SharedTrainingsError::NotEnded) => {
                return not_resumable("is being resumed already");
            }
            other => other.map_err(|error| self.of_shared(error, id, requester))?,
        }
        self.refresh(sharing)?;
        self.changed.notify_all();
        Ok(job)
    }

    /// Deletes a training that has ended, for all replicas.
    pub(super) fn delete_shared(&self, sharing: &Sharing, id: &str) -> Result<Arc<Job>, JobsError> {
        let job = self.get(&lock(&self.state), id)?;
        match sharing.trainings.delete(id) {
            Err(SharedTrainingsError::NotEnded) => {
                let state = match job.summary().state {
                    State::Queued => "is waiting for its turn",
                    _ => "is running",
                };
                let id = id.to_owned();
                return Err(JobsError::NotDeletable { id, state });
            }
            Err(SharedTrainingsError::NotFound) => return Err(JobsError::not_found(id)),
            other => other?,
        }
        lock(&self.state).jobs.remove(id);
        tracing::info!(id, "a training was deleted");
        Ok(job)
    }

    /// Blocks until this replica has claimed a training; `None` if the server
    /// stops.
    pub(super) fn next_shared(&self, sharing: &Sharing) -> Option<Arc<Job>> {
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
                self.let_go(&job);
                Ok(None)
            }
            Err(error) => {
                self.let_go(&job);
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
    pub(super) fn end_shared(&self, sharing: &Sharing, job: &Job, finished: Finished) {
        let Some(run) = job.run() else {
            return;
        };
        let state = finished.state;
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
        self.let_go(job);
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
    fn let_go(&self, job: &Job) {
        job.detach();
        lock(&self.state).running = None;
        delete_copies(job.folder());
    }

    /// Deletes the oldest ended trainings beyond the maximum, for all replicas.
    pub(super) fn delete_old_shared(&self, sharing: &Sharing, ids: &[String]) {
        for id in ids {
            match sharing.trainings.delete(id) {
                Ok(()) => tracing::info!(id, "an old training was deleted"),
                // Another replica was faster, or it was resumed.
                Err(SharedTrainingsError::NotFound | SharedTrainingsError::NotEnded) => {}
                Err(error) => {
                    tracing::warn!(%error, id, "an old training could not be deleted");
                }
            }
        }
    }
}

fn renew(job: &Job) -> io::Result<()> {
    if let Some(run) = job.run()
        && run.renew()?
        && job.stop_request() == StopRequest::Nothing
    {
        job.request_stop(StopRequest::Cancel);
    }
    Ok(())
}

impl ListState {
    /// Number of waiting trainings, of this replica or shared.
    pub(super) fn count_queued(&self) -> usize {
        let jobs = self.jobs.values();
        jobs.filter(|job| job.summary().state == State::Queued)
            .count()
    }

    /// Number of waiting and running shared trainings of an owner.
    pub(super) fn shared_unfinished_of(&self, owner: &Owner) -> u64 {
        let unfinished = self
            .jobs
            .values()
            .filter(|job| job.owner() == owner && !job.summary().state.has_ended());
        unfinished.count() as u64
    }
}
