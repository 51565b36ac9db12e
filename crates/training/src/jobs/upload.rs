//! A corpus that is being uploaded.

use std::fs::File;

use charlstm_model::corpus::{CorpusError, CorpusReader, ReadError};
use tokio::sync::OwnedSemaphorePermit;

use super::{JobsError, Requester};
use crate::models::InitialModelInfo;
use crate::spec::{ResolvedSpec, TrainingSpec};

/// Maximum number of corpora that are uploaded at a time: more than the server
/// lets clients send, which is where uploads are shared among callers. Each has
/// an open file.
pub(super) const MAX_UPLOADS: usize = 128;

/// A training whose spec is valid and whose corpus is being uploaded.
pub struct Upload {
    pub(super) requested: TrainingSpec,
    pub(super) spec: ResolvedSpec,
    /// The model of `init_from`, without its weights: an upload takes as long
    /// as its client likes.
    pub(super) initial: Option<InitialModelInfo>,
    pub(super) reader: CorpusReader,
    pub(super) requester: Requester,
    _permit: OwnedSemaphorePermit,
}

impl Upload {
    pub(super) fn new(
        permit: OwnedSemaphorePermit,
        requester: Requester,
        requested: TrainingSpec,
        spec: ResolvedSpec,
        initial: Option<InitialModelInfo>,
        spill: File,
        max_bytes: u64,
    ) -> Self {
        let quota = requester.max_corpus_bytes.unwrap_or(u64::MAX);
        let max_bytes = max_bytes.min(quota);
        Self {
            reader: CorpusReader::new(spill, u64::from(spec.skip_chars), max_bytes),
            requester,
            requested,
            spec,
            initial,
            _permit: permit,
        }
    }

    /// Adds the next bytes of the corpus and writes them to the disk. Computes
    /// for some milliseconds per megabyte.
    ///
    /// # Errors
    /// Those of [`CorpusReader::push`]; `CorpusQuota` if the corpus is longer
    /// than the principal's corpora may be.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), JobsError> {
        self.reader.push(chunk).map_err(|error| match error {
            ReadError::Text(CorpusError::TooLarge { limit })
                if Some(limit) == self.requester.max_corpus_bytes =>
            {
                JobsError::CorpusQuota { limit }
            }
            error => error.into(),
        })
    }
}
