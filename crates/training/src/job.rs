//! One training on disk: its folder, its metadata, its corpus, its history.
//! `jobs` decides whose turn it is; the trainer trains.

mod sharing;

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use charlstm_model::corpus::{Corpus, Split};
use charlstm_model::learner::LearnerConfig;
use charlstm_model::tokens::{CorpusTokens, Width};
use charlstm_model::vocabulary::Vocabulary;
use charlstm_repository::Publisher;
use charlstm_store::atomic_file::{self, AtomicFile, Digesting};
use charlstm_store::session::Owner;
use charlstm_store::{checksummed_json, hex};
use serde::{Deserialize, Serialize};

use self::sharing::Sharing;
use super::checkpoint::Checkpoints;
use super::claimed_run::RunCheckpoints;
use super::events::{Accepted, Event, EventKind, Finished, State, Summary};
use super::history::{History, Watcher};
use super::spec::ResolvedSpec;

const METADATA: &str = "job.json";
const TOKENS: &str = "tokens.bin";
const EVENTS: &str = "events.jsonl";
/// The last event of a training that has ended, in case its history is damaged.
const OUTCOME: &str = "outcome.json";
/// Version of the folder's layout, and the only one that is read.
const FORMAT: u32 = 1;

/// The data of a training that never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobMetadata {
    format: u32,
    /// Id of the training.
    pub id: String,
    /// Time at which it was accepted, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// Who started it; before there were principals, an administrator.
    #[serde(default = "Publisher::admin")]
    pub publisher: Publisher,
    /// What to train and how.
    pub spec: ResolvedSpec,
    /// The characters in the order of their token ids.
    vocabulary: String,
    /// SHA-256 of the corpus, in hexadecimal.
    pub corpus_sha256: String,
    /// Number of characters in the corpus, after `skip_chars`.
    pub corpus_chars: usize,
    /// The most frequent character of the corpus.
    #[serde(default)]
    pub most_frequent: Option<char>,
    /// Number of those to train on; the rest is held out.
    pub training_chars: usize,
    /// SHA-256 of the file of token ids, in hexadecimal.
    tokens_sha256: String,
    /// Width of the token ids in that file.
    #[serde(default = "first_width")]
    tokens_width: Width,
}

/// The first development version always wrote two bytes.
fn first_width() -> Width {
    Width::Two
}

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

/// What resuming a training would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumability {
    FromCheckpoint,
    /// No checkpoint was ever saved.
    FromBeginning,
    /// The corpus is gone.
    Impossible,
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

/// The token ids of a corpus, open for training.
pub(super) struct JobTokens {
    pub(super) training: CorpusTokens,
    pub(super) validation: CorpusTokens,
    /// The first character of the corpus.
    pub(super) first: u32,
}

/// The last event of a run.
#[derive(Serialize, Deserialize)]
struct Outcome {
    run: u32,
    event: Event,
}

impl Job {
    /// Writes a new training to a folder in `trainings`, as a whole or not at
    /// all.
    pub(super) fn create(trainings: &Path, new: NewJob<'_>, device: String) -> io::Result<Self> {
        let staging = trainings.join(format!(".new-{}", new.id));
        let folder = trainings.join(new.id);
        fs::create_dir(&staging)?;
        let job = new.write(&staging).and_then(|metadata| {
            let accepted = new.accepted(&metadata, device);
            let history = History::create(&staging.join(EVENTS))?;
            history.append_durable(EventKind::Accepted(accepted))?;
            drop(history);
            atomic_file::sync_folder(&staging)?;
            atomic_file::rename(&staging, &folder)?;
            Self::with(metadata, folder.clone())
        });
        if job.is_err() {
            // An incomplete training on a full disk only takes space.
            let _ = fs::remove_dir_all(&staging);
            let _ = fs::remove_dir_all(&folder);
        }
        job
    }

    /// Reads a training from its folder.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let text = fs::read(folder.join(METADATA))?;
        let metadata: JobMetadata =
            checksummed_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        if metadata.format != FORMAT {
            let found = metadata.format;
            let text = format!("it has format {found}, and this server reads format {FORMAT}");
            return Err(invalid(text));
        }
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

    /// Reports the end of the training. If the disk does not accept the event,
    /// it is kept in memory, and the log says so.
    pub(super) fn finish(&self, finished: Finished) {
        let run = self.summary().run;
        let event = self.history.append(EventKind::Finished(finished));
        if self.sharing.is_some() {
            return;
        }
        let outcome = Outcome {
            run,
            event: event.as_ref().clone(),
        };
        let written = checksummed_json::to_text(&outcome)
            .map_err(io::Error::from)
            .and_then(|text| atomic_file::write(&self.folder.join(OUTCOME), &text));
        if let Err(error) = written {
            tracing::warn!(%error, id = self.id(), "the outcome of a training cannot be written");
        }
    }

    /// Reports the end of the training in a state without a model.
    pub(super) fn finish_without_model(&self, state: State, message: String) {
        self.finish(self.without_model(state, message));
    }

    pub(super) fn without_model(&self, state: State, message: String) -> Finished {
        Finished {
            state,
            version: 0,
            train_loss: self.summary().train_loss,
            validation_loss: None,
            message,
            best_epoch: None,
        }
    }

    /// Reports that the training was cancelled before its turn came.
    pub(super) fn cancel_waiting(&self) {
        self.finish(self.cancelled_while_waiting());
    }

    /// Returns the last event of a training that is cancelled before its turn
    /// comes.
    pub(super) fn cancelled_while_waiting(&self) -> Finished {
        let text = format!(
            "cancelled while it was waiting; {}",
            self.resumability().message()
        );
        self.without_model(State::Cancelled, text)
    }

    /// Reports that the server stopped, or stops, before the training ended.
    pub(super) fn interrupt(&self, resumability: Resumability) {
        let text = format!("the server stopped; {}", resumability.message());
        self.finish_without_model(State::Interrupted, text);
    }

    /// Adds the last event again if the history has lost it.
    fn restore_outcome(&self) {
        let path = self.folder.join(OUTCOME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, path = %path.display(), "the outcome of a training cannot be read");
                }
                return;
            }
        };
        let outcome: Outcome = match checksummed_json::from_slice(&text) {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "the outcome of a training is damaged");
                return;
            }
        };
        let summary = self.summary();
        if summary.state.has_ended() || outcome.run < summary.run {
            return;
        }
        tracing::warn!(
            id = self.id(),
            "the history of a training had lost its last event"
        );
        self.history.append_from(outcome.event);
    }

    /// Forgets how the last run ended, when another one begins.
    pub(super) fn forget_outcome(&self) {
        match fs::remove_file(self.folder.join(OUTCOME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, id = self.id(), "the outcome of an earlier run remains");
            }
            _ => {}
        }
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

    /// Returns what resuming would do, by the files that exist.
    pub(super) fn resumability(&self) -> Resumability {
        if let Some(sharing) = self.sharing() {
            return match sharing.checkpoint_step {
                Some(_) => Resumability::FromCheckpoint,
                None => Resumability::FromBeginning,
            };
        }
        let expected = self.metadata.corpus_chars * self.metadata.tokens_width.bytes();
        let tokens = fs::metadata(self.folder.join(TOKENS));
        if !tokens.is_ok_and(|tokens| tokens.len() == expected as u64) {
            Resumability::Impossible
        } else if self.checkpoints().exist() {
            Resumability::FromCheckpoint
        } else {
            Resumability::FromBeginning
        }
    }

    /// Deletes corpus and checkpoints of a training that has succeeded: it
    /// cannot be resumed, and its model is published.
    pub(super) fn delete_spent_files(&self) {
        if self.summary().state != State::Succeeded {
            return;
        }
        let tokens = match fs::remove_file(self.folder.join(TOKENS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if let Err(error) = tokens.and(self.checkpoints().delete()) {
            tracing::warn!(%error, id = self.id(), "files of a training that are no longer needed remain");
        }
    }

    /// Opens the token ids of the corpus, after checking every byte.
    pub(super) fn tokens(&self) -> io::Result<JobTokens> {
        let mut reader = Digesting::new(BufReader::with_capacity(
            1 << 16,
            File::open(self.folder.join(TOKENS))?,
        ));
        io::copy(&mut reader, &mut io::sink())?;
        let (reader, digest) = reader.finish();
        if hex::encode(&digest) != self.metadata.tokens_sha256 {
            return Err(invalid("the stored corpus is damaged".to_owned()));
        }
        let width = self.metadata.tokens_width;
        let tokens = CorpusTokens::open(reader.into_inner(), width, self.vocabulary.len())?;
        let mut first = [0];
        tokens.read(0, &mut first)?;
        let middle = self.metadata.training_chars;
        let part = |part| {
            let text = "the stored corpus is shorter than its metadata says";
            tokens.range(part).ok_or_else(|| invalid(text.to_owned()))
        };
        Ok(JobTokens {
            first: first[0],
            training: part(0..middle)?,
            validation: part(middle..self.metadata.corpus_chars)?,
        })
    }
}

impl Resumability {
    /// Says it, as the end of a sentence on how a training ended.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::FromCheckpoint => "the training can be resumed",
            Self::FromBeginning => {
                "the training can be resumed, but no checkpoint was saved: it starts from the \
                 beginning"
            }
            Self::Impossible => "the training cannot be resumed: its corpus is missing or damaged",
        }
    }
}

impl JobMetadata {
    /// Returns the first event of the training.
    pub(super) fn accepted(&self, vocabulary: &Vocabulary, device: String) -> Accepted {
        let spec = &self.spec;
        let batch_chars = spec.batch_size as usize * spec.sequence_length as usize;
        let steps_per_epoch = (self.training_chars / batch_chars.max(1)) as u64;
        Accepted {
            corpus_chars: self.corpus_chars as u64,
            vocabulary_size: u32::try_from(vocabulary.len()).unwrap_or(u32::MAX),
            steps_per_epoch,
            total_steps: steps_per_epoch * u64::from(spec.epochs),
            parameters: spec.architecture(vocabulary.len()).parameter_count() as u64,
            device,
        }
    }
}

/// A training that is to be written.
pub(super) struct NewJob<'a> {
    pub(super) id: &'a str,
    pub(super) created_unix_ms: u64,
    pub(super) publisher: Publisher,
    pub(super) spec: ResolvedSpec,
    pub(super) corpus: &'a Corpus,
    pub(super) split: &'a Split,
}

impl NewJob<'_> {
    fn accepted(&self, metadata: &JobMetadata, device: String) -> Accepted {
        let mut accepted = metadata.accepted(&self.corpus.vocabulary, device);
        // The vocabulary of a model of init_from may have more.
        accepted.vocabulary_size = u32::try_from(self.corpus.distinct()).unwrap_or(u32::MAX);
        accepted
    }

    fn write(&self, folder: &Path) -> io::Result<JobMetadata> {
        let metadata = JobMetadata {
            format: FORMAT,
            id: self.id.to_owned(),
            created_unix_ms: self.created_unix_ms,
            publisher: self.publisher.clone(),
            spec: self.spec.clone(),
            vocabulary: self.corpus.vocabulary.characters().iter().collect(),
            corpus_sha256: hex::encode(&self.corpus.sha256),
            corpus_chars: self.corpus.chars(),
            most_frequent: self.corpus.most_frequent(),
            training_chars: self.split.training.len(),
            tokens_sha256: write_tokens(&folder.join(TOKENS), self.corpus)?,
            tokens_width: Width::of(self.corpus.vocabulary.len()),
        };
        let text = checksummed_json::to_text(&metadata)?;
        atomic_file::write(&folder.join(METADATA), &text)?;
        Ok(metadata)
    }
}

/// Writes the token ids of a corpus; returns the SHA-256 of the file in
/// hexadecimal.
fn write_tokens(path: &Path, corpus: &Corpus) -> io::Result<String> {
    let file = BufWriter::with_capacity(1 << 16, AtomicFile::create(path)?);
    let mut out = Digesting::new(file);
    corpus.write(&mut out)?;
    let (file, digest) = out.finish();
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .commit()?;
    Ok(hex::encode(&digest))
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
