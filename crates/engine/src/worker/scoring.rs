//! Scores texts between the decode steps of running generations.

use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use super::batches::batch_of;
use crate::error::GenerateError;

/// Maximum number of characters that are scored between two decode steps of
/// running generations.
const SCORE_CHARS: usize = 32;

/// Number of characters that are scored at once if nothing else is to be done.
const LONE_SCORE_CHARS: usize = 64;

impl Worker {
    /// Scores a chunk of the text that has waited longest.
    pub(super) fn score(&mut self) {
        let Some(mut job) = self.scores.pop_front() else {
            return;
        };
        if job.is_abandoned() {
            return;
        }
        if job.deadline.is_some_and(|d| d <= Instant::now()) {
            return job.fail(GenerateError::Deadline);
        }
        let chars = if self.scheduler.is_idle() {
            LONE_SCORE_CHARS
        } else {
            let running = self.scheduler.running();
            SCORE_CHARS.min(self.prefill_budget.chunk_chars(running))
        };
        let slots = self.config.slots;
        let is_done = batch_of(&mut self.batches, &job.model, slots)
            .and_then(|batch| job.advance(batch.rows(), chars));
        match is_done {
            Ok(false) => self.scores.push_back(job),
            Ok(true) => job.finish(),
            Err(error) => {
                self.drop_batch(&Arc::clone(&job.model), &error);
                job.fail(GenerateError::Internal(error.to_string()));
            }
        }
    }
}
