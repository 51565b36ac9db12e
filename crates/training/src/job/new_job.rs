//! Writes the folder of a new training.

use std::fs;
use std::io::{self, BufWriter};
use std::path::Path;

use charlstm_model::corpus::{Corpus, Split};
use charlstm_model::tokens::Width;
use charlstm_repository::Publisher;
use charlstm_store::atomic_file::{self, AtomicFile, Digesting};
use charlstm_store::{checksummed_json, hex};

use super::metadata::{FORMAT, JobMetadata, METADATA};
use super::tokens::TOKENS;
use super::{EVENTS, Job};
use crate::events::{Accepted, EventKind};
use crate::history::History;
use crate::spec::ResolvedSpec;

impl Job {
    /// Writes a new training to a folder in `trainings`, as a whole or not at
    /// all.
    pub(crate) fn create(trainings: &Path, new: NewJob<'_>, device: String) -> io::Result<Self> {
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
}

/// A training that is to be written.
pub(crate) struct NewJob<'a> {
    pub(crate) id: &'a str,
    pub(crate) created_unix_ms: u64,
    pub(crate) publisher: Publisher,
    pub(crate) spec: ResolvedSpec,
    pub(crate) corpus: &'a Corpus,
    pub(crate) split: &'a Split,
}

impl NewJob<'_> {
    pub(super) fn accepted(&self, metadata: &JobMetadata, device: String) -> Accepted {
        let mut accepted = metadata.accepted(&self.corpus.vocabulary, device);
        // The vocabulary of a model of init_from may have more.
        accepted.vocabulary_size = u32::try_from(self.corpus.distinct()).unwrap_or(u32::MAX);
        accepted
    }

    pub(super) fn write(&self, folder: &Path) -> io::Result<JobMetadata> {
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
