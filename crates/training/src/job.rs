//! One training on disk: its folder, its metadata, its corpus, its history.
//! `jobs` decides whose turn it is; the trainer trains.

mod metadata;
mod new_job;
mod outcome;
mod resumability;
mod sharing;
mod tokens;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use charlstm_model::learner::LearnerConfig;
use charlstm_model::vocabulary::Vocabulary;
use charlstm_store::atomic_file;
use charlstm_store::session::Owner;

use self::metadata::METADATA;
use self::sharing::Sharing;
use super::checkpoint::Checkpoints;
use super::claimed_run::RunCheckpoints;
use super::events::Summary;
use super::history::{History, Watcher};

pub use self::metadata::JobMetadata;
pub(super) use self::new_job::NewJob;
pub(super) use self::resumability::Resumability;
pub(super) use self::tokens::JobTokens;

/// The file of its events in its folder.
const EVENTS: &str = "events.jsonl";

/// A request to a training that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopRequest {
    /// Continue.
    Nothing,
    /// Save a checkpoint and end as cancelled.
    Cancel,
    /// Save a checkpoint and end as interrupted: the server stops.
    Stop,
    /// End without saving anything: another replica has taken over.
    Abandon,
}

/// One training.
pub struct Job {
    metadata: JobMetadata,
    vocabulary: Vocabulary,
    folder: PathBuf,
    history: Arc<History>,
    stop_request: Mutex<StopRequest>,
    stop_requested: Condvar,
    /// Set if replicas share the training.
    sharing: Option<Mutex<Sharing>>,
}

impl Job {
    /// Reads a training from its folder.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let metadata = JobMetadata::parse(&fs::read(folder.join(METADATA))?)?;
        if let Err(error) = atomic_file::remove_leftovers(folder) {
            tracing::warn!(%error, folder = %folder.display(), "temporary files could not be removed");
        }
        let job = Self::with(metadata, folder.to_owned())?;
        job.restore_outcome();
        Ok(job)
    }

    fn with(metadata: JobMetadata, folder: PathBuf) -> io::Result<Self> {
        let vocabulary = Vocabulary::from_chars(metadata.vocabulary.chars().collect());
        let accepted = || metadata.accepted(&vocabulary, String::new());
        let history = History::open(&folder.join(EVENTS), accepted)?;
        Ok(Self::new(metadata, folder, history, None))
    }

    fn new(
        metadata: JobMetadata,
        folder: PathBuf,
        history: History,
        sharing: Option<Mutex<Sharing>>,
    ) -> Self {
        Self {
            vocabulary: Vocabulary::from_chars(metadata.vocabulary.chars().collect()),
            metadata,
            folder,
            history: Arc::new(history),
            stop_request: Mutex::new(StopRequest::Nothing),
            stop_requested: Condvar::new(),
            sharing,
        }
    }

    /// Returns its id.
    pub fn id(&self) -> &str {
        &self.metadata.id
    }

    /// Returns the principal that it belongs to.
    pub fn owner(&self) -> &Owner {
        &self.metadata.publisher.owner
    }

    /// Returns the data that never changes.
    pub fn metadata(&self) -> &JobMetadata {
        &self.metadata
    }

    /// Returns the summary of its events.
    pub fn summary(&self) -> Summary {
        self.history.summary()
    }

    /// Watches its events from that sequence number on, including those to
    /// come.
    pub fn watch(&self, from_sequence: u64) -> Watcher {
        Watcher::new(Arc::clone(&self.history), from_sequence)
    }

    /// Returns its events.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Returns the text of its metadata.
    pub(super) fn metadata_text(&self) -> io::Result<String> {
        fs::read_to_string(self.folder.join(METADATA))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(super) fn checkpoints(&self) -> Checkpoints {
        let checkpoints = Checkpoints::new(&self.folder, self.id());
        match self.run() {
            None => checkpoints,
            Some(run) => checkpoints.with_sink(Box::new(RunCheckpoints {
                folder: self.folder.clone(),
                run,
                history: Arc::clone(&self.history),
            })),
        }
    }

    /// Returns what the training has been asked to do.
    pub fn stop_request(&self) -> StopRequest {
        match self.run() {
            Some(run) if run.is_lost() => StopRequest::Abandon,
            _ => *self.lock_stop_request(),
        }
    }

    pub(super) fn request_stop(&self, stop_request: StopRequest) {
        *self.lock_stop_request() = stop_request;
        self.stop_requested.notify_all();
    }

    /// Blocks until the training is asked to stop, at most for `patience`.
    pub(super) fn wait_for_stop_request(&self, patience: Duration) -> StopRequest {
        let (request, _) = self
            .stop_requested
            .wait_timeout_while(self.lock_stop_request(), patience, |request| {
                *request == StopRequest::Nothing
            })
            .unwrap_or_else(PoisonError::into_inner);
        drop(request);
        self.stop_request()
    }

    fn lock_stop_request(&self) -> MutexGuard<'_, StopRequest> {
        // A single value is valid whatever happened to the thread that held it.
        self.stop_request
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> LearnerConfig {
        let spec = &self.metadata.spec;
        LearnerConfig {
            architecture: spec.architecture(self.vocabulary.len()),
            batch_size: spec.batch_size as usize,
            sequence_length: spec.sequence_length as usize,
            epochs: spec.epochs,
            dropout: spec.dropout,
            learning_rate: spec.learning_rate,
            clip_norm: spec.clip_norm,
            seed: spec.seed,
            optimizer: spec.optimizer(),
            techniques: spec.techniques(),
            precision: spec.precision,
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
