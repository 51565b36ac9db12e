//! A corpus on its way to the server, and how many there may be at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::JobsError;
use crate::model::corpus::CorpusReader;
use crate::training::learn::InitialModel;
use crate::training::memory;
use crate::training::spec::ResolvedSpec;

/// Most corpora that are uploaded at a time: each may grow to the limit of a
/// corpus.
const MAX_UPLOADS: usize = 8;
/// Growth after which the memory that is free is looked at again.
const CHECK_BYTES: usize = 64 << 20;

/// A training whose spec is valid and whose corpus is under way.
pub struct Upload {
    pub(super) spec: ResolvedSpec,
    pub(super) initial: Option<InitialModel>,
    pub(super) reader: CorpusReader,
    checked_bytes: usize,
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
        spec: ResolvedSpec,
        initial: Option<InitialModel>,
        max_bytes: u64,
    ) -> Self {
        Self {
            reader: CorpusReader::new(u64::from(spec.skip_chars), max_bytes),
            spec,
            initial,
            checked_bytes: 0,
            _place: place,
        }
    }

    /// Takes the next bytes of the corpus. Computes for some milliseconds a
    /// megabyte.
    ///
    /// # Errors
    /// Those of [`CorpusReader::push`]; a corpus that outgrows the memory.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), JobsError> {
        self.reader.push(chunk)?;
        let bytes = self.reader.bytes();
        if bytes >= self.checked_bytes + CHECK_BYTES {
            self.checked_bytes = bytes;
            // The training will hold them twice as wide besides.
            memory::check(2 * bytes as u64, memory::available_bytes())?;
        }
        Ok(())
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
