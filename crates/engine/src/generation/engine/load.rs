//! How much an engine has to do and has done. Nothing here changes it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use crate::generation::admission::Load;

/// The load of an engine, for a status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Texts in the batch.
    pub running: usize,
    /// Most texts in the batch.
    pub max_batch: usize,
    /// Texts that wait for a place.
    pub queued: usize,
    /// Most texts that wait.
    pub max_queue: usize,
    /// Sessions kept.
    pub sessions: usize,
    /// Most sessions kept.
    pub max_sessions: usize,
    /// Bytes of all sessions.
    pub session_bytes: usize,
    /// Steps of all batches since the start.
    pub steps: u64,
    /// Rows of all those steps.
    pub rows: u64,
    /// Characters processed in prefill since the start.
    pub prefill_chars: u64,
}

impl Engine {
    /// The load.
    pub fn load_stats(&self) -> EngineLoad {
        let workers = &self.shared.workers;
        let sum = |of: fn(&Load) -> usize| workers.iter().map(|w| of(&w.load)).sum();
        let count = |of: fn(&Load) -> &AtomicU64| {
            let counts = workers.iter().map(|w| of(&w.load).load(Ordering::Relaxed));
            counts.sum()
        };
        let store = self.shared.book.store();
        EngineLoad {
            running: sum(|load| load.running.load(Ordering::Relaxed)),
            max_batch: self.shared.config.max_batch,
            queued: sum(|load| load.queued.load(Ordering::Relaxed)),
            max_queue: self.shared.config.max_queue,
            sessions: store.len(),
            max_sessions: store.limits().max_sessions,
            session_bytes: store.bytes(),
            steps: count(|load| &load.steps),
            rows: count(|load| &load.rows),
            prefill_chars: count(|load| &load.prefill_chars),
        }
    }

    /// Texts that are not over or not read to the end.
    pub fn live_texts(&self) -> usize {
        self.shared.texts.live()
    }
}
