//! The list of trainings. Its modules accept, queue, cancel, resume and delete
//! them, and `training_thread` runs one after the other with `trainer`.

mod acceptance;
mod cancellation;
mod deletion;
mod error;
mod folder;
mod queue;
mod requester;
mod resumption;
mod sharing;
mod training_thread;
mod upload;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use charlstm_model::learner::LearnerFactory;
use tokio::sync::Semaphore;

use self::folder::read_all;
use self::sharing::Sharing;
use self::upload::MAX_UPLOADS;
use super::job::Job;
use super::memory::Memory;
use super::models::Models;
use super::sample::SampleWriter;
use super::shared::SharedTrainings;
use super::trainer::{Intervals, TrainerContext};

pub use self::error::JobsError;
pub use self::queue::Load;
pub use self::requester::Requester;
pub use self::upload::Upload;

#[cfg(test)]
mod tests;

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
            thread.spawn(move || {
                if let Some(sharing) = &follower.sharing {
                    follower.follow(sharing);
                }
            })?;
        }
        let thread = std::thread::Builder::new().name("training".to_owned());
        let worker = Arc::clone(&shared);
        *lock(&shared.thread) = Some(thread.spawn(move || worker.work(can_train))?);
        Ok(Self { shared })
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
}

impl Shared {
    fn get(&self, state: &ListState, id: &str) -> Result<Arc<Job>, JobsError> {
        state
            .jobs
            .get(id)
            .cloned()
            .ok_or_else(|| JobsError::not_found(id))
    }
}

/// Orders trainings by age, oldest first; two may have been accepted within a
/// millisecond.
fn age_order(job: &Job) -> (u64, String) {
    (job.metadata().created_unix_ms, job.id().to_owned())
}

/// A panic while a lock was held leaves nothing half done: each change of the
/// list is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
