//! A corpus that is being uploaded.

use std::fs::File;

use charlstm_model::corpus::CorpusReader;
use tokio::sync::OwnedSemaphorePermit;

use super::JobsError;
use crate::models::InitialModelInfo;
use crate::spec::{ResolvedSpec, TrainingSpec};

/// Maximum number of corpora that are uploaded at a time: each may grow to the
/// maximum length of a corpus.
pub(super) const MAX_UPLOADS: usize = 8;

/// A training whose spec is valid and whose corpus is being uploaded.
pub struct Upload {
    pub(super) requested: TrainingSpec,
    pub(super) spec: ResolvedSpec,
    /// The model of `init_from`, without its weights: an upload takes as long
    /// as its client likes.
    pub(super) initial: Option<InitialModelInfo>,
    pub(super) reader: CorpusReader,
    _permit: OwnedSemaphorePermit,
}

impl Upload {
    pub(super) fn new(
        permit: OwnedSemaphorePermit,
        requested: TrainingSpec,
        spec: ResolvedSpec,
        initial: Option<InitialModelInfo>,
        spill: File,
        max_bytes: u64,
    ) -> Self {
        Self {
            reader: CorpusReader::new(spill, u64::from(spec.skip_chars), max_bytes),
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
    /// Those of [`CorpusReader::push`].
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), JobsError> {
        Ok(self.reader.push(chunk)?)
    }
}
