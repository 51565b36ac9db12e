//! Admission: how many calls may be in progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the calls that are in progress anywhere in the engine.
///
/// A call that only waits for its reader, or for its commit, is idle: its slot
/// is free for another call, so that slow readers do not block others. At most
/// as many calls are idle as may be active; further ones keep their slots.
#[derive(Debug)]
pub(crate) struct Admission {
    max_calls: usize,
    active: AtomicUsize,
    idle: AtomicUsize,
}

impl Admission {
    pub(crate) fn new(max_calls: usize) -> Arc<Self> {
        Arc::new(Self {
            max_calls,
            active: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
        })
    }

    /// Returns a slot for a call, or `None` if all are taken.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Permit> {
        self.add_below_max(&self.active).then(|| Permit {
            admission: Arc::clone(self),
            is_idle: false,
        })
    }

    fn add_below_max(&self, count: &AtomicUsize) -> bool {
        let more = |count| (count < self.max_calls).then_some(count + 1);
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }

    /// Number of calls in progress, idle ones included.
    pub(crate) fn live(&self) -> usize {
        self.active.load(Ordering::Relaxed) + self.idle.load(Ordering::Relaxed)
    }
}

/// The slot of a call, freed when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    is_idle: bool,
}

impl Permit {
    /// Frees the slot for other calls while this one waits.
    pub(crate) fn release(&mut self) {
        if !self.is_idle && self.admission.add_below_max(&self.admission.idle) {
            self.admission.active.fetch_sub(1, Ordering::Relaxed);
            self.is_idle = true;
        }
    }

    /// Takes a slot again, even if all are taken by now: the call was admitted
    /// once.
    pub(crate) fn reacquire(&mut self) {
        if std::mem::take(&mut self.is_idle) {
            self.admission.active.fetch_add(1, Ordering::Relaxed);
            self.admission.idle.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let count = if self.is_idle {
            &self.admission.idle
        } else {
            &self.admission.active
        };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}
