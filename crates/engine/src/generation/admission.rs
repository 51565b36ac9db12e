//! How many calls there may be, and how busy each worker is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts the calls that are under way anywhere in the engine.
///
/// One that only waits for its reader rests: its place is free for another,
/// so that slow readers keep nobody out. At most as many rest as may be under
/// way; more slow readers keep their places.
#[derive(Debug)]
pub(super) struct Admission {
    most: usize,
    live: AtomicUsize,
    resting: AtomicUsize,
}

impl Admission {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            live: AtomicUsize::new(0),
            resting: AtomicUsize::new(0),
        })
    }

    /// A place for one call, or `None` where all are taken.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Permit> {
        self.add_below_most(&self.live).then(|| Permit {
            admission: Arc::clone(self),
            rests: false,
        })
    }

    fn add_below_most(&self, count: &AtomicUsize) -> bool {
        let more = |count| (count < self.most).then_some(count + 1);
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Calls under way, those at rest included.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed) + self.resting.load(Ordering::Relaxed)
    }
}

/// A call's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    rests: bool,
}

impl Permit {
    /// The call only waits for its reader.
    pub(super) fn release(&mut self) {
        if !self.rests && self.admission.add_below_most(&self.admission.resting) {
            self.admission.live.fetch_sub(1, Ordering::Relaxed);
            self.rests = true;
        }
    }

    /// The call goes on, also where there are too many by now.
    pub(super) fn reacquire(&mut self) {
        if std::mem::take(&mut self.rests) {
            self.admission.live.fetch_add(1, Ordering::Relaxed);
            self.admission.resting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let count = if self.rests {
            &self.admission.resting
        } else {
            &self.admission.live
        };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker has to do, as the engine sees it when it chooses one.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Calls and the characters they are yet to be primed with.
    weight: AtomicUsize,
    /// Calls in the batch.
    pub(super) running: AtomicUsize,
    /// Calls that wait for a place in it.
    pub(super) queued: AtomicUsize,
    /// Steps of its batches since the start, and the rows of all of them.
    pub(super) steps: AtomicU64,
    pub(super) rows: AtomicU64,
    /// Characters processed in prefill since the start.
    pub(super) prefill_chars: AtomicU64,
}

/// Characters of priming that weigh as much as one more text in the batch.
const CHARS_OF_A_TEXT: usize = 256;

impl Load {
    pub(super) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// Adds a call that is to be primed with `prime_chars`.
    pub(super) fn add(self: &Arc<Self>, prime_chars: usize) -> LoadShare {
        let share = 1 + prime_chars / CHARS_OF_A_TEXT;
        self.weight.fetch_add(share, Ordering::Relaxed);
        LoadShare {
            load: Arc::clone(self),
            share,
        }
    }
}

/// One call's share of a worker's load; taken off when dropped.
#[derive(Debug)]
pub(super) struct LoadShare {
    load: Arc<Load>,
    share: usize,
}

impl LoadShare {
    /// The priming is done.
    pub(super) fn primed(&mut self) {
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
