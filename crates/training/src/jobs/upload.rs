//! A corpus on its way to the server, and how many there may be at a time.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::JobsError;
use crate::models::InitialModel;
use crate::spec::{ResolvedSpec, TrainingSpec};
use charlstm_model::corpus::CorpusReader;

/// Most corpora that are uploaded at a time: each may grow to the limit of a
/// corpus.
const MAX_UPLOADS: usize = 8;

/// A training whose spec is valid and whose corpus is under way.
pub struct Upload {
    pub(super) asked: TrainingSpec,
    pub(super) spec: ResolvedSpec,
    pub(super) initial: Option<InitialModel>,
    pub(super) reader: CorpusReader,
    _place: Place,
}

/// Counts the uploads.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

/// One upload's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    pub(super) fn take(&self) -> Result<Place, JobsError> {
        let more = |taken| (taken < MAX_UPLOADS).then_some(taken + 1);
        match self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
        {
            Ok(_) => Ok(Place(Arc::clone(&self.0))),
            Err(limit) => Err(JobsError::TooManyUploads { limit }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Upload {
    pub(super) fn new(
        place: Place,
        asked: TrainingSpec,
        spec: ResolvedSpec,
        initial: Option<InitialModel>,
        spill: File,
        max_bytes: u64,
    ) -> Self {
        Self {
            reader: CorpusReader::new(spill, u64::from(spec.skip_chars), max_bytes),
            asked,
            spec,
            initial,
            _place: place,
        }
    }

    /// Takes the next bytes of the corpus, which go to the disk. Computes for
    /// some milliseconds a megabyte.
    ///
    /// # Errors
    /// Those of [`CorpusReader::push`].
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), JobsError> {
        Ok(self.reader.push(chunk)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_upload_ends() {
        let places = Places::default();
        let mut taken: Vec<Place> = (0..MAX_UPLOADS).map(|_| places.take().unwrap()).collect();
        assert!(matches!(
            places.take(),
            Err(JobsError::TooManyUploads { limit: MAX_UPLOADS })
        ));
        taken.pop();
        assert!(places.take().is_ok());
    }
}
