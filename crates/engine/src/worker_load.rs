//! How busy each worker is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The load of a worker: read by the engine when it chooses one for a call,
/// and by metrics.
#[derive(Debug, Default)]
pub(crate) struct WorkerLoad {
    /// Calls, plus the characters that they still have to prefill, weighted.
    weight: AtomicUsize,
    /// Calls in the batch or in prefill.
    pub(crate) running: AtomicUsize,
    /// Calls that wait for a slot.
    pub(crate) queued: AtomicUsize,
    /// Decode steps since the start.
    pub(crate) steps: AtomicU64,
    /// Rows of all those steps.
    pub(crate) rows: AtomicU64,
    /// Characters processed in prefill since the start.
    pub(crate) prefill_chars: AtomicU64,
}

/// Prompt characters that weigh as much as one more row in the batch.
const CHARS_PER_CALL: usize = 256;

impl WorkerLoad {
    /// Work that is queued, in calls.
    pub(crate) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// Adds a call with `chars` characters to prefill or to score.
    pub(crate) fn add(self: &Arc<Self>, chars: usize) -> LoadShare {
        let share = 1 + chars / CHARS_PER_CALL;
        self.weight.fetch_add(share, Ordering::Relaxed);
        LoadShare {
            load: Arc::clone(self),
            share,
        }
    }
}

/// The share of one call in a worker's load, subtracted when dropped.
#[derive(Debug)]
pub(crate) struct LoadShare {
    load: Arc<WorkerLoad>,
    share: usize,
}

impl LoadShare {
    /// Subtracts the prompt, once it was prefilled.
    pub(crate) fn prefilled(&mut self) {
        self.load
            .weight
            .fetch_sub(self.share - 1, Ordering::Relaxed);
        self.share = 1;
    }
}

impl Drop for LoadShare {
    fn drop(&mut self) {
        self.load.weight.fetch_sub(self.share, Ordering::Relaxed);
    }
}
