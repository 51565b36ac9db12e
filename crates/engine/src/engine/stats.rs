//! The load of an engine. Nothing here changes it.

use std::sync::atomic::{AtomicU64, Ordering};

use charlstm_store::session::SessionStats;

use super::Engine;
use crate::commit_times::CommitTimes;
use crate::prompt_cache::PromptCacheStats;
use crate::worker_load::WorkerLoad;

/// Load and counters of an engine, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Generations in the batch or in prefill.
    pub running: usize,
    /// Maximum number of generations in the batch.
    pub max_batch: usize,
    /// Generations that wait for a slot.
    pub queued: usize,
    /// Maximum number of generations that wait.
    pub max_queue: usize,
    /// Decode steps since the start.
    pub steps: u64,
    /// Rows of all those steps.
    pub rows: u64,
    /// Characters processed in prefill since the start.
    pub prefill_chars: u64,
    /// Use of the prompt cache.
    pub prompt_cache: PromptCacheStats,
    /// Counters of the session storage.
    pub sessions: SessionStats,
    /// How long commits have taken.
    pub commits: CommitTimes,
}

impl Engine {
    /// Returns the current load. Answers from memory.
    pub fn stats(&self) -> EngineStats {
        let workers = &self.shared.workers;
        let sum = |of: fn(&WorkerLoad) -> usize| workers.iter().map(|w| of(&w.load)).sum();
        let count = |of: fn(&WorkerLoad) -> &AtomicU64| {
            let counts = workers.iter().map(|w| of(&w.load).load(Ordering::Relaxed));
            counts.sum()
        };
        EngineStats {
            running: sum(|load| load.running.load(Ordering::Relaxed)),
            max_batch: self.shared.config.max_batch,
            queued: sum(|load| load.queued.load(Ordering::Relaxed)),
            max_queue: self.shared.config.max_queue,
            steps: count(|load| &load.steps),
            rows: count(|load| &load.rows),
            prefill_chars: count(|load| &load.prefill_chars),
            prompt_cache: self.shared.prompt_cache.stats(),
            sessions: self.storage().stats(),
            commits: self.shared.committer.times(),
        }
    }

    /// Returns the number of generations that have not ended, were not read to
    /// the end, or are not committed.
    pub fn live_generations(&self) -> usize {
        self.shared.generations.live()
    }
}
