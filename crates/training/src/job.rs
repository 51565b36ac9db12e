//! One training on disk: its folder, the facts that never change, its corpus,
//! its history. Whose turn it is, the list decides (`jobs`); how it trains,
//! the trainer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::checkpoint;
use super::digesting::Digesting;
use super::events::{Accepted, EventKind, Finished, State, Summary};
use super::history::{History, Watcher};
use super::spec::ResolvedSpec;
use charlstm_model::corpus::{Corpus, Split};
use charlstm_model::learner::LearnerConfig;
use charlstm_model::tokens::{CorpusTokens, Width};
use charlstm_model::vocabulary::Vocabulary;

const FACTS: &str = "job.json";
const TOKENS: &str = "tokens.bin";
const EVENTS: &str = "events.jsonl";
/// Version of the folder's layout.
const FORMAT: u32 = 1;

/// What never changes about a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobMetadata {
    format: u32,
    /// Its name.
    pub id: String,
    /// When it was accepted, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// What to train and how.
    pub spec: ResolvedSpec,
    /// The characters in the order of their numbers.
    vocabulary: String,
    /// SHA-256 of the corpus, in hexadecimal.
    pub corpus_sha256: String,
    /// Characters of the corpus, after `skip_chars`.
    pub corpus_chars: usize,
    /// Characters of it to train on; the rest is held out.
    pub training_chars: usize,
    /// SHA-256 of the file of numbers, in hexadecimal.
    tokens_sha256: String,
    /// How wide the numbers in that file are.
    #[serde(default = "first_width")]
    tokens_width: Width,
}

/// The first servers wrote two bytes for each.
fn first_width() -> Width {
    Width::Two
}

/// What somebody wants of a training that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum StopRequest {
    /// Go on.
    Nothing = 0,
    /// Save a checkpoint and end as cancelled.
    Cancel = 1,
    /// Save a checkpoint and end as interrupted: the server stops.
    Stop = 2,
}

/// One training.
pub struct Job {
    facts: JobMetadata,
    vocabulary: Vocabulary,
    folder: PathBuf,
    history: Arc<History>,
    stop_request: AtomicU8,
}

/// The numbers of a corpus, mapped for training.
pub(super) struct JobTokens {
    pub(super) training: CorpusTokens,
    pub(super) validation: CorpusTokens,
    /// The first character of the corpus.
    pub(super) first: u32,
}

impl Job {
    /// Writes a new training under `trainings`, whole or not at all.
    pub(super) fn create(
        trainings: &Path,
        new: NewJob<'_>,
        accepted: Accepted,
    ) -> io::Result<Self> {
        let aside = trainings.join(format!(".new-{}", new.id));
        fs::create_dir(&aside)?;
        let job = new.write(&aside).and_then(|facts| {
            let history = History::create(&aside.join(EVENTS))?;
            history.append(EventKind::Accepted(accepted));
            drop(history);
            File::open(&aside)?.sync_all()?;
            let folder = trainings.join(new.id);
            fs::rename(&aside, &folder)?;
            File::open(trainings)?.sync_all()?;
            let history = History::open(&folder.join(EVENTS))?;
            Ok(Self::with(facts, folder, history))
        });
        if job.is_err() {
            // What a full disk could not take whole is only in the way.
            let _ = fs::remove_dir_all(&aside);
        }
        job
    }

    /// Reads a training back.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let facts: JobMetadata = serde_json::from_slice(&fs::read(folder.join(FACTS))?)?;
        if facts.format != FORMAT {
            let text = format!("format {} is not known, {FORMAT} is", facts.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let history = History::open(&folder.join(EVENTS))?;
        Ok(Self::with(facts, folder.to_owned(), history))
    }

    fn with(facts: JobMetadata, folder: PathBuf, history: History) -> Self {
        Self {
            vocabulary: Vocabulary::from_chars(facts.vocabulary.chars().collect()),
            facts,
            folder,
            history: Arc::new(history),
            stop_request: AtomicU8::new(StopRequest::Nothing as u8),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.facts.id
    }

    /// What never changes about it.
    pub fn facts(&self) -> &JobMetadata {
        &self.facts
    }

    /// Where it stands.
    pub fn summary(&self) -> Summary {
        self.history.summary()
    }

    /// Its events from that number on, then the live ones.
    pub fn watch(&self, from_sequence: u64) -> Watcher {
        Watcher::new(Arc::clone(&self.history), from_sequence)
    }

    /// Returns its events.
    pub fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Returns what the training has been asked to do.
    pub fn stop_request(&self) -> StopRequest {
        match self.stop_request.load(Ordering::Acquire) {
            0 => StopRequest::Nothing,
            1 => StopRequest::Cancel,
            _ => StopRequest::Stop,
        }
    }

    pub(super) fn request_stop(&self, stop_request: StopRequest) {
        self.stop_request
            .store(stop_request as u8, Ordering::Release);
    }

    /// Ends the training in its history, without a model.
    pub(super) fn end(&self, state: State, message: &str) {
        let summary = self.summary();
        self.history.append(EventKind::Finished(Finished {
            state,
            version: 0,
            train_loss: summary.train_loss,
            validation_loss: None,
            message: message.to_owned(),
            best_epoch: None,
        }));
    }

    pub(super) fn config(&self) -> LearnerConfig {
        let spec = &self.facts.spec;
        LearnerConfig {
            architecture: spec.architecture(self.vocabulary.len()),
            batch_size: spec.batch_size as usize,
            sequence_length: spec.sequence_length as usize,
            epochs: spec.epochs,
            dropout: spec.dropout,
            learning_rate: spec.learning_rate,
            clip_norm: spec.clip_norm,
            seed: spec.seed,
            optimizer: spec.recipe.method(),
        }
    }

    /// Deletes corpus and checkpoints of a training that has succeeded: it
    /// cannot be resumed, and its model is published.
    pub(super) fn let_go_of_spent_files(&self) {
        if self.summary().state != State::Succeeded {
            return;
        }
        let corpus = [self.folder.join(TOKENS)];
        for path in corpus.into_iter().chain(checkpoint::files(&self.folder)) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "a file that is no longer needed stays");
                }
                _ => {}
            }
        }
    }

    /// Maps the numbers of the corpus, after a check of every byte.
    pub(super) fn tokens(&self) -> io::Result<JobTokens> {
        let damaged = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let mut file = File::open(self.folder.join(TOKENS))?;
        if digest_of(&mut file)? != self.facts.tokens_sha256 {
            return Err(damaged("the stored corpus is damaged"));
        }
        let tokens = CorpusTokens::map(&file, self.facts.tokens_width)?;
        let middle = self.facts.training_chars;
        let part = |part| {
            let part = tokens.range(part);
            part.ok_or_else(|| damaged("the stored corpus is shorter than its facts say"))
        };
        Ok(JobTokens {
            first: tokens
                .get(0)
                .ok_or_else(|| damaged("the stored corpus is empty"))?,
            training: part(0..middle)?,
            validation: part(middle..self.facts.corpus_chars)?,
        })
    }
}

/// A training that is about to be written.
pub(super) struct NewJob<'a> {
    pub(super) id: &'a str,
    pub(super) created_unix_ms: u64,
    pub(super) spec: ResolvedSpec,
    pub(super) corpus: &'a Corpus,
    pub(super) split: &'a Split,
}

impl NewJob<'_> {
    fn write(&self, folder: &Path) -> io::Result<JobMetadata> {
        let facts = JobMetadata {
            format: FORMAT,
            id: self.id.to_owned(),
            created_unix_ms: self.created_unix_ms,
            spec: self.spec.clone(),
            vocabulary: self.corpus.vocabulary.characters().iter().collect(),
            corpus_sha256: hex(&self.corpus.sha256),
            corpus_chars: self.corpus.chars(),
            training_chars: self.split.training.len(),
            tokens_sha256: write_tokens(&folder.join(TOKENS), self.corpus)?,
            tokens_width: Width::of(self.corpus.vocabulary.len()),
        };
        let mut file = File::create(folder.join(FACTS))?;
        file.write_all(&serde_json::to_vec_pretty(&facts)?)?;
        file.sync_all()?;
        Ok(facts)
    }
}

/// Writes the numbers of a corpus; returns the SHA-256 of the file.
fn write_tokens(path: &Path, corpus: &Corpus) -> io::Result<String> {
    let mut out = Digesting::new(File::create(path)?);
    corpus.write(&mut out)?;
    let (file, digest) = out.finish()?;
    file.sync_all()?;
    Ok(hex(&digest))
}

/// SHA-256 of a file, in hexadecimal, without holding the file.
fn digest_of(file: &mut File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&bytes[..count]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
