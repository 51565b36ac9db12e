//! The limits of an engine.

use std::time::Duration;

/// Limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Number of threads that compute.
    pub workers: usize,
    /// Maximum number of generations in the batch, over all workers.
    pub max_batch: usize,
    /// Maximum number of generations that wait for a slot.
    pub max_queue: usize,
    /// Maximum number of scores that run or wait.
    pub max_scores: usize,
    /// Maximum number of characters, of all prompts and scored texts together,
    /// that were accepted and not fed to the network yet: 4 bytes each.
    pub max_queued_chars: usize,
    /// Maximum number of characters of one text that were generated and not
    /// read. A job with more is parked until its reader has caught up.
    pub max_unread_chars: usize,
    /// A generation ends if its reader takes nothing for this time.
    pub reader_timeout: Duration,
    /// Maximum length of a prompt, in characters.
    pub max_prompt_chars: usize,
    /// Memory for states after prompts, so that a prompt with the same
    /// beginning is not fed again; 0 keeps none.
    pub prompt_cache_bytes: u64,
    /// Time that readers have, at shutdown, to take the text that is there.
    pub stop_grace: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            // At 256 rows a product runs near the peak of the processor; more
            // only make each generation slower.
            max_batch: 256,
            max_queue: 1024,
            max_scores: 64,
            // 64 MB.
            max_queued_chars: 16_000_000,
            // A reader that is some seconds behind is not parked; a thousand
            // of them take a few megabytes.
            max_unread_chars: 4096,
            reader_timeout: Duration::from_secs(60),
            // Some minutes of prefill, and 4 MB.
            max_prompt_chars: 1_000_000,
            // Some thousand prompts of a network of 2 layers of 512.
            prompt_cache_bytes: 64_000_000,
            stop_grace: Duration::from_secs(2),
        }
    }
}
