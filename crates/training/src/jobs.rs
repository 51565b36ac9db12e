//! The list of trainings: accepts, queues, cancels and resumes them, and keeps
//! the training thread busy. `trainer` runs a training.

mod error;
mod folder;
mod requester;
mod sharing;
mod upload;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use charlstm_model::corpus::Corpus;
use charlstm_model::learner::LearnerFactory;
use charlstm_store::session::Owner;
use charlstm_store::unix_time;
use tokio::sync::Semaphore;

use self::folder::{new_id, read_all};
use self::sharing::Sharing;
use self::upload::MAX_UPLOADS;
use super::checkpoint::{LoadError, Verified};
use super::events::{EventKind, Resumed, State};
use super::job::{Job, NewJob, Resumability, StopRequest};
use super::memory::{self, Memory};
use super::models::Models;
use super::sample::SampleWriter;
use super::shared::SharedTrainings;
use super::spec::{ResolvedSpec, SpecError, TrainingSpec};
use super::trainer::{self, Intervals, TrainerContext};

pub use self::error::JobsError;
pub use self::requester::Requester;
pub use self::upload::Upload;

#[cfg(test)]
mod tests;

/// Maximum time that a deletion waits for a training that has just ended: far
/// longer than its last files take.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Settings of the trainings.
#[derive(Clone, Debug)]
pub struct JobsConfig {
    /// Folder of the trainings; created if it does not exist.
    pub folder: PathBuf,
    /// Maximum number of trainings that wait for their turn.
    pub max_queued: usize,
    /// Maximum bytes of a corpus.
    pub max_corpus_bytes: u64,
    /// Time between two checkpoints. There is one at the end of the training
    /// as well.
    pub checkpoint_interval: Duration,
    /// Time between two attempts to publish a finished model that the disk
    /// does not accept.
    pub publish_interval: Duration,
    /// Maximum number of ended trainings that are kept. The oldest ones beyond
    /// it are deleted, but never interrupted ones.
    pub keep_ended: usize,
    /// Whether each training writes event files for TensorBoard.
    pub tensorboard: bool,
    /// Returns the memory that trainings may use.
    pub memory: fn() -> Memory,
}

impl JobsConfig {
    /// The defaults: sixteen waiting trainings, corpora of 4 GiB, a checkpoint
    /// every minute, an attempt to publish every ten seconds, a thousand ended
    /// trainings, the memory of this machine.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            max_queued: 16,
            max_corpus_bytes: 4 << 30,
            checkpoint_interval: Duration::from_secs(60),
            publish_interval: Duration::from_secs(10),
            keep_ended: 1000,
            tensorboard: false,
            memory: Memory::now,
        }
    }
}

/// The trainings of one data folder. A cheap handle; clones share everything.
///
/// Methods block on the disk unless they say otherwise.
#[derive(Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
}

struct Shared {
    config: JobsConfig,
    context: TrainerContext,
    uploads: Arc<Semaphore>,
    state: Mutex<ListState>,
    /// Signals work to the training thread, and its end to [`Jobs::stop`].
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Set if replicas share the trainings; the folder holds copies then.
    sharing: Option<Sharing>,
}

#[derive(Default)]
struct ListState {
    jobs: BTreeMap<String, Arc<Job>>,
    queue: VecDeque<Arc<Job>>,
    /// Trainings that are being resumed and are about to join the queue.
    resuming: BTreeSet<String>,
    running: Option<Arc<Job>>,
    stopping: bool,
    thread_ended: bool,
}

/// Number of trainings by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Running trainings: 0 or 1.
    pub running: usize,
    /// Waiting trainings.
    pub queued: usize,
}

impl Jobs {
    /// Opens the folder and starts the training thread. Trainings that were
    /// running or waiting when the server stopped without notice are
    /// interrupted now.
    ///
    /// # Errors
    /// The folder cannot be created or listed, or the thread not be started. A
    /// training that cannot be read is logged and ignored.
    pub fn open(
        config: JobsConfig,
        learners: Arc<dyn LearnerFactory>,
        models: Arc<dyn Models>,
        sampler: Box<SampleWriter>,
    ) -> Result<Self, JobsError> {
        fs::create_dir_all(&config.folder)?;
        let state = ListState {
            jobs: read_all(&config.folder, &*models)?,
            ..ListState::default()
        };
        Self::start_threads(config, state, learners, models, sampler, None)
    }

    /// Opens the trainings that replicas share, with the folder as the place for
    /// copies of their files, and starts a thread that runs what this replica
    /// claims. Blocks on the network.
    ///
    /// # Errors
    /// The folder cannot be used, `Unavailable`, or a thread cannot be started.
    pub fn open_shared(
        config: JobsConfig,
        learners: Arc<dyn LearnerFactory>,
        models: Arc<dyn Models>,
        sampler: Box<SampleWriter>,
        trainings: Arc<dyn SharedTrainings>,
    ) -> Result<Self, JobsError> {
        sharing::clear(&config.folder)?;
        let sharing = Some(Sharing::new(trainings));
        let state = ListState::default();
        Self::start_threads(config, state, learners, models, sampler, sharing)
    }

    fn start_threads(
        config: JobsConfig,
        state: ListState,
        learners: Arc<dyn LearnerFactory>,
        models: Arc<dyn Models>,
        sampler: Box<SampleWriter>,
        sharing: Option<Sharing>,
    ) -> Result<Self, JobsError> {
        let context = TrainerContext {
            learners,
            models,
            sampler,
            intervals: Intervals::new(config.checkpoint_interval, config.publish_interval),
            tensorboard: config.tensorboard,
            memory: config.memory,
        };
        let shared = Arc::new(Shared {
            config,
            context,
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            state: Mutex::new(state),
            changed: Condvar::new(),
            thread: Mutex::new(None),
            sharing,
        });
        if let Some(sharing) = &shared.sharing {
            shared.refresh(sharing)?;
        }
        shared.delete_old();
        // A build that cannot train only follows the others.
        let can_train = shared.context.learners.check_supported().is_ok();
        if shared.sharing.is_some() {
            let thread = std::thread::Builder::new().name("training-sync".to_owned());
            let follower = Arc::clone(&shared);
            let started = thread.spawn(move || {
                if let Some(sharing) = &follower.sharing {
                    follower.follow(sharing);
                }
            })?;
            if let Some(sharing) = &shared.sharing {
                *lock(&sharing.thread) = Some(started);
            }
        }
        let thread = std::thread::Builder::new().name("training".to_owned());
        let worker = Arc::clone(&shared);
        *lock(&shared.thread) = Some(thread.spawn(move || worker.work(can_train))?);
        Ok(Self { shared })
    }

    /// Validates a spec, before its corpus is uploaded.
    ///
    /// # Errors
    /// The spec is not valid, the model of `init_from` is unknown, the name of
    /// the model belongs to another principal, the queue is full, a quota of the
    /// requester is reached, too many corpora are being uploaded, or the folder
    /// is not writable.
    pub fn begin(&self, spec: &TrainingSpec, requester: Requester) -> Result<Upload, JobsError> {
        let learners = &self.shared.context.learners;
        learners.check_supported()?;
        let mut resolved = spec.resolve(learners.fastest_precision(), rand::random)?;
        let models = &self.shared.context.models;
        models.check_publisher(&resolved.model, &requester.publisher)?;
        self.shared
            .check_space_in_queue(&lock(&self.shared.state), &requester)?;
        let permit = Arc::clone(&self.shared.uploads)
            .try_acquire_owned()
            .map_err(|_| JobsError::TooManyUploads { limit: MAX_UPLOADS })?;
        let initial = match resolved.init_from.take() {
            None => None,
            Some(reference) => {
                let model = self.shared.context.models.describe(&reference)?;
                resolved.inherit(spec, &model.id, &model.architecture)?;
                Some(model)
            }
        };
        let config = &self.shared.config;
        // It has no name, so that nothing is left of it if the server is killed.
        let spill = tempfile::tempfile_in(&config.folder)?;
        let max_bytes = config.max_corpus_bytes;
        Ok(Upload::new(
            permit,
            requester,
            spec.clone(),
            resolved,
            initial,
            spill,
            max_bytes,
        ))
    }

    /// Completes the corpus and queues the training.
    ///
    /// # Errors
    /// The corpus cannot be trained on, memory is not sufficient, the queue is
    /// full, a quota of the requester is reached, or the disk fails. Nothing is
    /// left of the training then.
    pub fn start(&self, upload: Upload) -> Result<Arc<Job>, JobsError> {
        let (mut corpus, mut spec) = (upload.reader.finish()?, upload.spec);
        if let Some(initial) = upload.initial {
            let unknown = corpus.unknown_to(&initial.vocabulary);
            if !unknown.is_empty() && !spec.extend_vocabulary {
                let model = initial.id;
                return Err(JobsError::UnknownCharacters { model, unknown });
            }
            corpus.recode(&initial.vocabulary)?;
        }
        check_prime(&spec, &corpus)?;
        let split = corpus.split(
            spec.validation_fraction,
            spec.batch_size as usize,
            spec.sequence_length as usize,
        )?;
        spec.adapt_to_length(&upload.requested, split.training.len());
        let needed = memory::estimate_bytes(&spec, corpus.vocabulary.len());
        self.shared.check_memory(needed)?;
        self.shared
            .check_space_in_queue(&lock(&self.shared.state), &upload.requester)?;
        let created_unix_ms = unix_time::now_ms();
        let new = NewJob {
            id: &new_id(created_unix_ms),
            created_unix_ms,
            publisher: upload.requester.publisher.clone(),
            spec,
            corpus: &corpus,
            split: &split,
        };
        if let Some(sharing) = &self.shared.sharing {
            let job = self.shared.start_shared(sharing, &new, &upload.requester)?;
            self.shared.delete_old();
            return Ok(job);
        }
        let device = self.shared.context.learners.device();
        let job = Arc::new(Job::create(&self.shared.config.folder, new, device)?);
        self.shared.enqueue_new(&job, &upload.requester)?;
        self.shared.delete_old();
        Ok(job)
    }

    /// Returns a training by its id. Does not block.
    ///
    /// # Errors
    /// There is no such training.
    pub fn get(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        self.shared.get(&lock(&self.shared.state), id)
    }

    /// Returns all trainings, newest first. Does not block.
    pub fn list(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<Arc<Job>> = lock(&self.shared.state).jobs.values().cloned().collect();
        jobs.sort_by_key(|job| Reverse(age_order(job)));
        jobs
    }

    /// Returns the id of the training that this server runs. Does not block.
    pub fn running(&self) -> Option<String> {
        let state = lock(&self.shared.state);
        state.running.as_ref().map(|job| job.id().to_owned())
    }

    /// Returns the number of running and waiting trainings. Does not block.
    pub fn load(&self) -> Load {
        let state = lock(&self.shared.state);
        Load {
            running: usize::from(state.running.is_some()),
            queued: match self.shared.sharing {
                Some(_) => state.count_queued(),
                None => state.queue.len() + state.resuming.len(),
            },
        }
    }

    /// Returns the number of waiting and running trainings of an owner. Does not
    /// block.
    pub fn unfinished_of(&self, owner: &Owner) -> u64 {
        let state = lock(&self.shared.state);
        match self.shared.sharing {
            Some(_) => state.shared_unfinished_of(owner),
            None => state.unfinished_of(owner),
        }
    }

    /// Asks a training to end. A waiting one ends immediately, a running one
    /// saves a checkpoint first. Has no effect on one that has ended.
    ///
    /// # Errors
    /// There is no such training.
    pub fn cancel(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        self.cancel_if(id, |_, _| true)
    }

    /// As [`Self::cancel`], unless the training has been resumed since that run
    /// (see [`crate::events::Summary::run`]) began.
    ///
    /// # Errors
    /// There is no such training.
    pub fn cancel_run(&self, id: &str, run: u32) -> Result<Arc<Job>, JobsError> {
        // While a training is being resumed, its last run is over.
        self.cancel_if(id, |job, is_resuming| {
            !is_resuming && job.summary().run == run
        })
    }

    fn cancel_if(
        &self,
        id: &str,
        condition: impl FnOnce(&Job, bool) -> bool,
    ) -> Result<Arc<Job>, JobsError> {
        let mut state = lock(&self.shared.state);
        let job = self.shared.get(&state, id)?;
        let is_resuming = state.resuming.contains(id);
        if !condition(&job, is_resuming) {
            return Ok(job);
        }
        if let Some(sharing) = &self.shared.sharing {
            drop(state);
            self.shared.cancel_shared(sharing, &job)?;
            return Ok(job);
        }
        if let Some(place) = state.queue.iter().position(|other| other.id() == id) {
            state.queue.remove(place);
            drop(state);
            job.cancel_waiting();
        } else if (is_resuming || state.running.as_ref().is_some_and(|other| other.id() == id))
            && job.stop_request() == StopRequest::Nothing
        {
            job.request_stop(StopRequest::Cancel);
        }
        Ok(job)
    }

    /// Queues a training that has ended without success, to continue from its
    /// last checkpoint, or from the beginning if none was ever saved.
    ///
    /// # Errors
    /// There is no such training; it is waiting, running or has succeeded; its
    /// checkpoints or its corpus are damaged; the queue is full; the requester's
    /// quota of trainings is reached; or the disk does not accept the event that
    /// reports it.
    pub fn resume(&self, id: &str, requester: &Requester) -> Result<Arc<Job>, JobsError> {
        let shared = &self.shared;
        shared.context.learners.check_supported()?;
        if let Some(sharing) = &shared.sharing {
            return shared.resume_shared(sharing, id, requester);
        }
        let job = shared.reserve_resume(id, requester)?;
        let resumed = shared.report_resume(&job);
        shared.complete_resume(&job, resumed)?;
        Ok(job)
    }

    /// Deletes a training that has ended, with all its files. Its watchers keep
    /// its events. Returns the training as it was.
    ///
    /// # Errors
    /// There is no such training, it is waiting, running or being resumed, or
    /// the disk fails; then the training stays.
    pub fn delete(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        let shared = &self.shared;
        if let Some(sharing) = &shared.sharing {
            return shared.delete_shared(sharing, id);
        }
        let state = lock(&shared.state);
        let job = shared.get(&state, id)?;
        let is_running =
            |state: &ListState| state.running.as_ref().is_some_and(|job| job.id() == id);
        // For a moment after its last event, the thread still has its files.
        let (mut state, _) = shared
            .changed
            .wait_timeout_while(state, END_PATIENCE, |state| {
                is_running(state) && job.summary().state.has_ended()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let not_deletable = |state| {
            let id = id.to_owned();
            Err(JobsError::NotDeletable { id, state })
        };
        if state.resuming.contains(id) {
            return not_deletable("is being resumed");
        }
        match job.summary().state {
            State::Queued => return not_deletable("is waiting for its turn"),
            _ if is_running(&state) => return not_deletable("is running"),
            State::Running => return not_deletable("is running"),
            State::Succeeded | State::Cancelled | State::Failed | State::Interrupted => {}
        }
        let removed = folder::remove(&shared.config.folder, job.folder(), id)?;
        state.jobs.remove(id);
        drop(state);
        // The training is gone; what this leaves, the next start removes.
        if let Err(error) = fs::remove_dir_all(&removed) {
            tracing::warn!(%error, id, "the files of a deleted training stay until the next start");
        }
        tracing::info!(id, "a training was deleted");
        Ok(job)
    }

    /// Resumes all interrupted trainings, oldest first, as far as the queue has
    /// space. A shared training is never interrupted: another replica continues. A training that cannot be resumed is logged.
    pub fn resume_interrupted(&self) {
        for job in self.list().into_iter().rev() {
            if job.summary().state == State::Interrupted
                && let Err(error) = self.resume(job.id(), &Requester::admin())
            {
                tracing::warn!(%error, id = job.id(), "a training could not be resumed");
            }
        }
    }

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
    fn get(&self, state: &ListState, id: &str) -> Result<Arc<Job>, JobsError> {
        state
            .jobs
            .get(id)
            .cloned()
            .ok_or_else(|| JobsError::not_found(id))
    }

    fn check_space_in_queue(
        &self,
        state: &ListState,
        requester: &Requester,
    ) -> Result<(), JobsError> {
        if state.stopping {
            return Err(JobsError::Stopping);
        }
        let limit = self.config.max_queued;
        if self.sharing.is_some() {
            // The shared store counts exactly.
            return match state.count_queued() >= limit {
                true => Err(JobsError::QueueFull { limit }),
                false => Ok(()),
            };
        }
        let waiting = state.queue.len() + state.resuming.len();
        // A training that can start immediately does not wait.
        let idle = state.running.is_none() && waiting == 0;
        if !idle && waiting >= limit {
            return Err(JobsError::QueueFull { limit });
        }
        requester.check_trainings(state)
    }

    /// Rejects a training that can never fit, or that would start now and does
    /// not fit now. For one that has to wait, what is free now says nothing;
    /// the trainer checks it again in any case.
    fn check_memory(&self, needed_bytes: u64) -> Result<(), JobsError> {
        let memory = (self.config.memory)();
        memory.check_total(needed_bytes)?;
        if self.sharing.is_some() {
            // Which replica will run it is not known.
            return Ok(());
        }
        let state = lock(&self.state);
        if state.running.is_none() && state.queue.is_empty() {
            memory.check_available(needed_bytes)?;
        }
        Ok(())
    }

    /// Adds a new training to the list and the queue.
    fn enqueue_new(&self, job: &Arc<Job>, requester: &Requester) -> Result<(), JobsError> {
        let mut state = lock(&self.state);
        if let Err(error) = self.check_space_in_queue(&state, requester) {
            drop(state);
            // It was not reported to any client yet.
            fs::remove_dir_all(job.folder())?;
            return Err(error);
        }
        state.jobs.insert(job.id().to_owned(), Arc::clone(job));
        state.queue.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Reserves a place in the queue for a training to resume. Until
    /// [`Self::complete_resume`], it is neither deleted nor resumed again.
    fn reserve_resume(&self, id: &str, requester: &Requester) -> Result<Arc<Job>, JobsError> {
        let mut state = lock(&self.state);
        let job = self.get(&state, id)?;
        let not_resumable = |state| {
            let id = id.to_owned();
            Err(JobsError::NotResumable { id, state })
        };
        if state.resuming.contains(id) {
            return not_resumable("is being resumed already");
        }
        match job.summary().state {
            State::Cancelled | State::Failed | State::Interrupted => {}
            State::Queued => return not_resumable("is waiting for its turn"),
            State::Running => return not_resumable("is running"),
            State::Succeeded => return not_resumable("has succeeded"),
        }
        self.check_space_in_queue(&state, requester)?;
        state.resuming.insert(id.to_owned());
        job.request_stop(StopRequest::Nothing);
        Ok(job)
    }

    /// Verifies that a training can be resumed, and reports that it is.
    fn report_resume(&self, job: &Job) -> Result<(), JobsError> {
        let id = || job.id().to_owned();
        if job.resumability() == Resumability::Impossible {
            return Err(JobsError::NoCorpus { id: id() });
        }
        let verified = match job.checkpoints().verify() {
            Ok(verified) => verified,
            Err(LoadError::Missing) => Verified::default(),
            Err(reason) => return Err(JobsError::NoCheckpoint { id: id(), reason }),
        };
        let run = job.summary().run.saturating_add(1);
        let resumed = self.resumed(job, run, verified, "");
        job.history().append_durable(EventKind::Resumed(resumed))?;
        job.forget_outcome();
        Ok(())
    }

    /// Returns the event of a run of this server that continues from a
    /// checkpoint.
    fn resumed(&self, job: &Job, run: u32, from: Verified, replica: &str) -> Resumed {
        let learners = &self.context.learners;
        let precision = job.metadata().spec.precision;
        let instructions = learners.instructions(precision);
        let message = if from.instructions.is_empty() || from.instructions == instructions {
            String::new()
        } else {
            format!(
                "the checkpoint was computed with {} and the training continues with \
                 {instructions}: it is the same training, but the last bits of its weights differ \
                 from those without the interruption",
                from.instructions
            )
        };
        Resumed {
            run,
            step: from.step,
            replica: replica.to_owned(),
            device: learners.device(),
            threads: u32::try_from(learners.threads()).unwrap_or(u32::MAX),
            precision: precision.name().to_owned(),
            instructions,
            message,
        }
    }

    /// Moves a training that was resumed to the queue, or ends it if it was
    /// cancelled or the server stopped meanwhile.
    fn complete_resume(
        &self,
        job: &Arc<Job>,
        resumed: Result<(), JobsError>,
    ) -> Result<(), JobsError> {
        let mut state = lock(&self.state);
        state.resuming.remove(job.id());
        resumed?;
        if state.stopping {
            drop(state);
            job.interrupt(job.resumability());
            return Err(JobsError::Stopping);
        }
        if job.stop_request() == StopRequest::Cancel {
            drop(state);
            job.cancel_waiting();
            return Ok(());
        }
        state.queue.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Deletes the oldest ended trainings beyond the maximum.
    fn delete_old(&self) {
        let mut state = lock(&self.state);
        let has_ended = |job: &Job| match job.summary().state {
            State::Succeeded | State::Cancelled | State::Failed => true,
            State::Queued | State::Running | State::Interrupted => false,
        };
        let is_current = |job: &Job| {
            state.resuming.contains(job.id())
                || state
                    .running
                    .as_ref()
                    .is_some_and(|running| running.id() == job.id())
        };
        let mut ended: Vec<Arc<Job>> = state
            .jobs
            .values()
            .filter(|job| has_ended(job) && !is_current(job))
            .cloned()
            .collect();
        ended.sort_by_key(|job| age_order(job));
        let surplus = ended.len().saturating_sub(self.config.keep_ended);
        ended.truncate(surplus);
        if let Some(sharing) = &self.sharing {
            drop(state);
            let ids: Vec<String> = ended.iter().map(|job| job.id().to_owned()).collect();
            return self.delete_old_shared(sharing, &ids);
        }
        for job in &ended {
            state.jobs.remove(job.id());
        }
        drop(state);
        for job in ended {
            tracing::info!(id = job.id(), "an old training is deleted");
            if let Err(error) = fs::remove_dir_all(job.folder()) {
                tracing::warn!(%error, id = job.id(), "an old training could not be deleted");
            }
        }
    }

    /// Runs on the training thread.
    fn work(&self, can_train: bool) {
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

/// Orders trainings by age, oldest first; two may have been accepted within a
/// millisecond.
fn age_order(job: &Job) -> (u64, String) {
    (job.metadata().created_unix_ms, job.id().to_owned())
}

fn check_prime(spec: &ResolvedSpec, corpus: &Corpus) -> Result<(), JobsError> {
    let prime = spec.sample_prime.as_deref().unwrap_or_default();
    corpus
        .vocabulary
        .encode(prime)
        .map_err(|unknown| SpecError::new("sample_prime", unknown.to_string()))?;
    Ok(())
}

/// A panic while a lock was held leaves nothing half done: each change of the
/// list is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
