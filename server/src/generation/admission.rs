//! How many calls there may be, and how busy each worker is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts the calls that are under way anywhere in the engine.
#[derive(Debug)]
pub(super) struct Admission {
    most: usize,
    live: AtomicUsize,
}

impl Admission {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            live: AtomicUsize::new(0),
        })
    }

    /// A place for one call, or `None` where all are taken.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Permit> {
        self.live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |live| {
                (live < self.most).then_some(live + 1)
            })
            .ok()
            .map(|_| Permit(Arc::clone(self)))
    }

    /// Calls under way.
    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }
}

/// A call's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Admission>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
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
