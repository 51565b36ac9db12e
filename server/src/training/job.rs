//! One training on disk: its folder, the facts that never change, its corpus,
//! its history. Whose turn it is, the list decides (`jobs`); how it trains,
//! the trainer.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::events::{Accepted, EventKind, Finished, State, Summary};
use super::history::{History, Watcher};
use super::spec::ResolvedSpec;
use crate::model::corpus::{Corpus, Split};
use crate::model::learner::LearnerConfig;
use crate::model::vocabulary::Vocabulary;

const FACTS: &str = "job.json";
const TOKENS: &str = "tokens.bin";
const EVENTS: &str = "events.jsonl";
/// Version of the folder's layout.
const FORMAT: u32 = 1;

/// What never changes about a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobFacts {
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
}

/// What somebody wants of a training that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Wish {
    /// Go on.
    Nothing = 0,
    /// Save a checkpoint and end as cancelled.
    Cancel = 1,
    /// Save a checkpoint and end as interrupted: the server stops.
    Stop = 2,
}

/// One training.
pub struct Job {
    facts: JobFacts,
    vocabulary: Vocabulary,
    folder: PathBuf,
    history: Arc<History>,
    wish: AtomicU8,
}

/// The numbers of a corpus, read back for training.
pub(super) struct JobTokens {
    pub(super) training: Arc<[u32]>,
    pub(super) validation: Arc<[u32]>,
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
        let facts: JobFacts = serde_json::from_slice(&fs::read(folder.join(FACTS))?)?;
        if facts.format != FORMAT {
            let text = format!("format {} is not known, {FORMAT} is", facts.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let history = History::open(&folder.join(EVENTS))?;
        Ok(Self::with(facts, folder.to_owned(), history))
    }

    fn with(facts: JobFacts, folder: PathBuf, history: History) -> Self {
        Self {
            vocabulary: Vocabulary::in_order(facts.vocabulary.chars().collect()),
            facts,
            folder,
            history: Arc::new(history),
            wish: AtomicU8::new(Wish::Nothing as u8),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.facts.id
    }

    /// What never changes about it.
    pub fn facts(&self) -> &JobFacts {
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

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    pub(crate) fn wish(&self) -> Wish {
        match self.wish.load(Ordering::Acquire) {
            0 => Wish::Nothing,
            1 => Wish::Cancel,
            _ => Wish::Stop,
        }
    }

    pub(super) fn set_wish(&self, wish: Wish) {
        self.wish.store(wish as u8, Ordering::Release);
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
            method: spec.recipe.method(),
        }
    }

    /// Reads the numbers of the corpus back and checks them.
    pub(super) fn tokens(&self) -> io::Result<JobTokens> {
        let damaged = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
        let bytes = fs::read(self.folder.join(TOKENS))?;
        if hex(&Sha256::digest(&bytes)) != self.facts.tokens_sha256 {
            return Err(damaged("the stored corpus is damaged"));
        }
        let (pairs, _) = bytes.as_chunks::<2>();
        let widen = |pairs: &[[u8; 2]]| -> Arc<[u32]> {
            let number = |pair: &[u8; 2]| u32::from(u16::from_le_bytes(*pair));
            pairs.iter().map(number).collect()
        };
        let (training, validation) = pairs
            .split_at_checked(self.facts.training_chars)
            .ok_or_else(|| damaged("the stored corpus is shorter than its facts say"))?;
        let training = widen(training);
        Ok(JobTokens {
            first: *training
                .first()
                .ok_or_else(|| damaged("the stored corpus is empty"))?,
            validation: widen(validation),
            training,
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
    fn write(&self, folder: &Path) -> io::Result<JobFacts> {
        let facts = JobFacts {
            format: FORMAT,
            id: self.id.to_owned(),
            created_unix_ms: self.created_unix_ms,
            spec: self.spec.clone(),
            vocabulary: self.corpus.vocabulary.characters().iter().collect(),
            corpus_sha256: hex(&self.corpus.sha256),
            corpus_chars: self.corpus.tokens.len(),
            training_chars: self.split.training.len(),
            tokens_sha256: write_tokens(&folder.join(TOKENS), &self.corpus.tokens)?,
        };
        let mut file = File::create(folder.join(FACTS))?;
        file.write_all(&serde_json::to_vec_pretty(&facts)?)?;
        file.sync_all()?;
        Ok(facts)
    }
}

/// Writes the numbers, two bytes each, the lower first; returns their SHA-256.
fn write_tokens(path: &Path, tokens: &[u16]) -> io::Result<String> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut digest = Sha256::new();
    let mut bytes = Vec::new();
    for chunk in tokens.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|token| token.to_le_bytes()));
        digest.update(&bytes);
        out.write_all(&bytes)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
