//! The list of trainings: accepts, queues, cancels, resumes, and keeps the one
//! training thread busy. What happens within a training is in `trainer`.

mod error;
mod folder;
mod upload;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use self::folder::{new_id, now_unix_ms, read_all};
use self::upload::Places;
use super::checkpoint;
use super::events::{Accepted, State};
use super::job::{Job, NewJob, StopRequest};
use charlstm_model::learner::LearnerFactory;

use super::memory;
use super::models::Models;
use super::sample::SampleWriter;
use super::spec::{ResolvedSpec, SpecError, TrainingSpec};
use super::trainer::{self, ReportInterval, TrainerContext};
use charlstm_model::corpus::{Corpus, Split};

pub use self::error::JobsError;
pub use self::upload::Upload;

#[cfg(test)]
mod tests;

const INTERRUPTED: &str = "the server stopped; the training can be resumed";

/// Limits and places of the trainings.
#[derive(Clone, Debug)]
pub struct JobsConfig {
    /// Folder of the trainings; made where it is not there.
    pub folder: PathBuf,
    /// Most trainings that wait for their turn.
    pub max_queued: usize,
    /// Most bytes of a corpus.
    pub max_corpus_bytes: u64,
    /// Longest time between two checkpoints; there is one at the end of each
    /// epoch besides.
    pub checkpoint_interval: Duration,
    /// Most trainings that have ended and are kept. Beyond, the oldest are
    /// deleted when a new one is accepted, and at the start; not those that
    /// were interrupted.
    pub keep_ended: usize,
    /// Whether each training writes event files for TensorBoard.
    pub tensorboard: bool,
}

impl JobsConfig {
    /// The usual limits: sixteen waiting trainings, corpora of 4 GiB, a
    /// checkpoint a minute, a thousand trainings that have ended.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            max_queued: 16,
            max_corpus_bytes: 4 << 30,
            checkpoint_interval: Duration::from_secs(60),
            keep_ended: 1000,
            tensorboard: false,
        }
    }
}

/// The trainings of one data folder. A cheap handle; clones share everything.
///
/// Methods block on the disk, unless they say otherwise.
#[derive(Clone)]
pub struct Jobs {
    shared: Arc<Shared>,
}

struct Shared {
    config: JobsConfig,
    context: TrainerContext,
    places: Places,
    state: Mutex<ListState>,
    /// Tells the training thread of work, and those that wait for its end.
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct ListState {
    jobs: BTreeMap<String, Arc<Job>>,
    queue: VecDeque<Arc<Job>>,
    running: Option<Arc<Job>>,
    stopping: bool,
    thread_ended: bool,
}

/// How many trainings there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Trainings that run: 0 or 1.
    pub running: usize,
    /// Trainings that wait.
    pub queued: usize,
}

impl Jobs {
    /// Opens the folder and starts the training thread. Trainings that ran or
    /// waited when the server ended without notice are interrupted now.
    ///
    /// # Errors
    /// A folder that cannot be made or listed. A training in it that cannot be
    /// read is left out, and the log says why.
    pub fn open(
        config: JobsConfig,
        learners: Arc<dyn LearnerFactory>,
        models: Arc<dyn Models>,
        sampler: Box<SampleWriter>,
    ) -> Result<Self, JobsError> {
        fs::create_dir_all(&config.folder)?;
        let state = ListState {
            jobs: read_all(&config.folder)?,
            ..ListState::default()
        };
        let context = TrainerContext {
            learners,
            models,
            sampler,
            pace: ReportInterval::with_checkpoints_every(config.checkpoint_interval),
            tensorboard: config.tensorboard,
        };
        let shared = Arc::new(Shared {
            config,
            context,
            places: Places::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            thread: Mutex::new(None),
        });
        shared.forget_old();
        let thread = std::thread::Builder::new().name("training".to_owned());
        let worker = Arc::clone(&shared);
        *lock(&shared.thread) = Some(thread.spawn(move || worker.work())?);
        Ok(Self { shared })
    }

    /// Checks a spec, before its corpus comes.
    ///
    /// # Errors
    /// A bad spec, an unknown model to begin with, a full queue, too many
    /// uploads, a folder that takes no file.
    pub fn begin(&self, spec: &TrainingSpec) -> Result<Upload, JobsError> {
        self.shared.context.learners.check_supported()?;
        let mut resolved = spec.resolve(rand::random)?;
        self.shared.check_room(&lock(&self.shared.state))?;
        let place = self.shared.places.take()?;
        let initial = match resolved.init_from.take() {
            None => None,
            Some(reference) => {
                let model = self.shared.context.models.find(&reference)?;
                resolved.inherit(spec, &model.id, &model.parameters.architecture)?;
                Some(model)
            }
        };
        let config = &self.shared.config;
        // It has no name: a server that is killed leaves nothing behind.
        let spill = tempfile::tempfile_in(&config.folder)?;
        let max_bytes = config.max_corpus_bytes;
        Ok(Upload::new(
            place,
            spec.clone(),
            resolved,
            initial,
            spill,
            max_bytes,
        ))
    }

    /// Ends the corpus and queues the training.
    ///
    /// # Errors
    /// A corpus that cannot be trained on, too little memory, a full queue, a
    /// failing disk. Nothing is left of the training then.
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
        spec.suit(&upload.asked, split.training.len());
        let needed = memory::estimate_bytes(&spec, corpus.vocabulary.len());
        memory::check(needed, memory::available_bytes())?;
        self.shared.check_room(&lock(&self.shared.state))?;
        let accepted = accepted(
            &spec,
            &corpus,
            &split,
            self.shared.context.learners.device(),
        );
        let created_unix_ms = now_unix_ms();
        let new = NewJob {
            id: &new_id(created_unix_ms),
            created_unix_ms,
            spec,
            corpus: &corpus,
            split: &split,
        };
        let job = Arc::new(Job::create(&self.shared.config.folder, new, accepted)?);
        self.shared.enqueue(&job)?;
        self.shared.forget_old();
        Ok(job)
    }

    /// A training by its name. Does not block.
    ///
    /// # Errors
    /// An unknown name.
    pub fn get(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        let state = lock(&self.shared.state);
        state
            .jobs
            .get(id)
            .cloned()
            .ok_or_else(|| JobsError::NotFound {
                id: id.chars().take(100).collect(),
            })
    }

    /// All trainings, the newest first. Does not block.
    pub fn list(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<Arc<Job>> = lock(&self.shared.state).jobs.values().cloned().collect();
        jobs.sort_by(|a, b| {
            let key = |job: &Job| (job.facts().created_unix_ms, job.id().to_owned());
            key(b).cmp(&key(a))
        });
        jobs
    }

    /// How many trainings run and wait. Does not block.
    pub fn load(&self) -> Load {
        let state = lock(&self.shared.state);
        Load {
            running: usize::from(state.running.is_some()),
            queued: state.queue.len(),
        }
    }

    /// Asks a training to end; one that waits ends at once. One that has ended
    /// stays as it is.
    ///
    /// # Errors
    /// An unknown name.
    pub fn cancel(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        let job = self.get(id)?;
        let mut state = lock(&self.shared.state);
        let waiting = state.queue.iter().position(|other| other.id() == id);
        if let Some(place) = waiting {
            state.queue.remove(place);
            drop(state);
            job.end(State::Cancelled, "cancelled while it waited for its turn");
        } else if state.running.as_ref().is_some_and(|other| other.id() == id)
            && job.stop_request() == StopRequest::Nothing
        {
            job.request_stop(StopRequest::Cancel);
        }
        Ok(job)
    }

    /// Queues a training that had ended without success, to go on from its
    /// checkpoint. One that never had its turn begins.
    ///
    /// # Errors
    /// An unknown name; a training that runs, waits or has succeeded; no sound
    /// checkpoint; a full queue.
    pub fn resume(&self, id: &str) -> Result<Arc<Job>, JobsError> {
        self.shared.context.learners.check_supported()?;
        let job = self.get(id)?;
        let summary = job.summary();
        check_resumable(id, summary.state)?;
        if summary.has_checkpoint || summary.step > 0 {
            checkpoint::load(job.folder(), id).map_err(|reason| JobsError::NoCheckpoint {
                id: id.to_owned(),
                reason,
            })?;
        }
        self.shared.enqueue(&job)?;
        Ok(job)
    }

    /// Resumes all interrupted trainings, the oldest first, as far as the
    /// queue takes them. What cannot be resumed is logged.
    pub fn resume_interrupted(&self) {
        for job in self.list().into_iter().rev() {
            if job.summary().state == State::Interrupted
                && let Err(error) = self.resume(job.id())
            {
                tracing::warn!(%error, id = job.id(), "a training could not be resumed");
            }
        }
    }

    /// Ends the training thread: the training that runs saves a checkpoint
    /// and is interrupted, as are those that wait. Blocks until the thread has
    /// ended, at most for `patience`; returns whether it has.
    pub fn stop(&self, patience: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.stopping = true;
        // One that was cancelled ends as such.
        if let Some(job) = &state.running
            && job.stop_request() == StopRequest::Nothing
        {
            job.request_stop(StopRequest::Stop);
        }
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        self.shared.changed.notify_all();
        for job in waiting {
            job.end(State::Interrupted, INTERRUPTED);
        }
        let state = lock(&self.shared.state);
        let (state, _) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| !state.thread_ended)
            .unwrap_or_else(PoisonError::into_inner);
        let ended = state.thread_ended;
        drop(state);
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
    fn check_room(&self, state: &ListState) -> Result<(), JobsError> {
        if state.stopping {
            return Err(JobsError::Stopping);
        }
        let limit = self.config.max_queued;
        // One that can begin at once does not wait.
        let idle = state.running.is_none() && state.queue.is_empty();
        if !idle && state.queue.len() >= limit {
            return Err(JobsError::QueueFull { limit });
        }
        Ok(())
    }

    fn enqueue(&self, job: &Arc<Job>) -> Result<(), JobsError> {
        let mut state = lock(&self.state);
        let is_new = !state.jobs.contains_key(job.id());
        let room = self.check_room(&state);
        if is_new && let Err(error) = room {
            drop(state);
            // Nobody was reported of it yet.
            fs::remove_dir_all(job.folder())?;
            return Err(error);
        }
        room?;
        if !is_new {
            // Of two that resume it at once, one comes first.
            check_resumable(job.id(), job.summary().state)?;
            job.history().set_active(State::Queued);
        }
        state.jobs.insert(job.id().to_owned(), Arc::clone(job));
        state.queue.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Deletes the oldest trainings that have ended, where there are too many.
    fn forget_old(&self) {
        let mut state = lock(&self.state);
        let spent = |job: &Job| match job.summary().state {
            State::Succeeded | State::Cancelled | State::Failed => true,
            State::Queued | State::Running | State::Interrupted => false,
        };
        let mut ended: Vec<Arc<Job>> = state
            .jobs
            .values()
            .filter(|job| spent(job))
            .cloned()
            .collect();
        ended.sort_by_key(|job| (job.facts().created_unix_ms, job.id().to_owned()));
        let surplus = ended.len().saturating_sub(self.config.keep_ended);
        ended.truncate(surplus);
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

    /// The training thread.
    fn work(&self) {
        trainer::lower_priority();
        while let Some(job) = self.next() {
            let finished = trainer::run(&job, &self.context);
            job.history().append(finished);
            job.let_go_of_spent_files();
            lock(&self.state).running = None;
        }
        lock(&self.state).thread_ended = true;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<Arc<Job>> {
        let state = lock(&self.state);
        let mut state = self
            .changed
            .wait_while(state, |state| !state.stopping && state.queue.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return None;
        }
        let job = state.queue.pop_front()?;
        job.request_stop(StopRequest::Nothing);
        job.history().set_active(State::Running);
        state.running = Some(Arc::clone(&job));
        Some(job)
    }
}

fn check_resumable(id: &str, state: State) -> Result<(), JobsError> {
    let state = match state {
        State::Cancelled | State::Failed | State::Interrupted => return Ok(()),
        State::Queued => "waiting for its turn",
        State::Running => "running",
        State::Succeeded => "complete",
    };
    Err(JobsError::NotResumable {
        id: id.to_owned(),
        state,
    })
}

fn check_prime(spec: &ResolvedSpec, corpus: &Corpus) -> Result<(), JobsError> {
    let prime = spec.sample_prime.as_deref().unwrap_or_default();
    corpus
        .vocabulary
        .encode(prime)
        .map_err(|unknown| SpecError::new("sample_prime", unknown.to_string()))?;
    Ok(())
}

fn accepted(spec: &ResolvedSpec, corpus: &Corpus, split: &Split, device: String) -> Accepted {
    let batch_chars = spec.batch_size as usize * spec.sequence_length as usize;
    let steps_per_epoch = (split.training.len() / batch_chars) as u64;
    let architecture = spec.architecture(corpus.vocabulary.len());
    Accepted {
        corpus_chars: corpus.chars() as u64,
        vocabulary_size: u32::try_from(corpus.distinct()).unwrap_or(u32::MAX),
        steps_per_epoch,
        total_steps: steps_per_epoch * u64::from(spec.epochs),
        parameters: architecture.parameter_count() as u64,
        device,
    }
}

/// A panic while the lock was held left nothing half done: each change of the
/// list is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
